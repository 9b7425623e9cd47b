//! A part of another backend.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

#[cfg(unix)]
use super::Obtained;
use super::range::{inside, validate_grow};
use super::{Backend, BackendError, BackendKind, MIN_ALIGN};

/// The part `[offset, offset + len)` of another backend: so that several allocators share one, each
/// with a part of its own, or one stands inside a block of another.
///
/// Other processes attach to the backend as a whole, and take the same part of it. Parts that
/// overlap make the allocators on them corrupt one another, as any stray write does.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use hshm_memory::{Backend, BackendSlice, MemfdMmap};
///
/// let whole: Arc<dyn Backend> = Arc::new(MemfdMmap::create("parts", 32 << 20, 32 << 20)?);
/// let first = BackendSlice::new(whole.clone(), 0..16 << 20)?;
/// let second = BackendSlice::new(whole.clone(), 16 << 20..32 << 20)?;
/// assert_eq!(first.capacity_bytes() + second.capacity_bytes(), whole.capacity_bytes());
/// assert_eq!((second.range(), second.whole().kind()), (16 << 20..32 << 20, whole.kind()));
/// assert!(BackendSlice::new(whole, 16 << 20..33 << 20).is_err());
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Debug)]
pub struct BackendSlice {
    whole: Arc<dyn Backend>,
    base: NonNull<u8>,
    alignment: usize,
    range: Range<u64>,
}

// SAFETY: [mapped] the address is the backend's, which may be sent and is held.
unsafe impl Send for BackendSlice {}
// SAFETY: [mapped] as above.
unsafe impl Sync for BackendSlice {}

impl BackendSlice {
    /// Takes `range` of `whole`, in bytes from its beginning.
    ///
    /// # Errors
    /// [`BackendError::BadPart`] if it is empty, does not begin and end at multiples of
    /// [`MIN_ALIGN`], or does not lie in what `whole` has committed.
    pub fn new(whole: Arc<dyn Backend>, range: Range<u64>) -> Result<Self, BackendError> {
        let committed_bytes = whole.committed_bytes();
        let bad = |why| BackendError::BadPart {
            start: range.start,
            end: range.end,
            committed_bytes,
            why,
        };
        let grain = MIN_ALIGN as u64;
        if !range.start.is_multiple_of(grain) || !range.end.is_multiple_of(grain) {
            return Err(bad("its ends are no multiples of 4096"));
        }
        if range.is_empty() {
            return Err(bad("it is empty"));
        }
        let beyond = bad("it ends beyond what is committed; grow the backend first");
        let Some((start, _)) = inside(&range, committed_bytes) else { return Err(beyond) };
        let base = whole.base().as_ptr().wrapping_add(start);
        let base = NonNull::new(base).ok_or(beyond)?;
        let alignment = match range.start {
            0 => whole.alignment(),
            start => whole.alignment().min(1 << start.trailing_zeros().min(30)),
        };
        Ok(Self { whole, base, alignment, range })
    }

    /// The backend that this is a part of.
    #[must_use]
    pub fn whole(&self) -> &Arc<dyn Backend> {
        &self.whole
    }

    /// Which part it is, in bytes from the beginning of the whole.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// `range` of the part as a range of the whole, cut off where the part ends.
    fn of_whole(&self, range: &Range<u64>) -> Range<u64> {
        let at = |offset: u64| self.range.start.saturating_add(offset).min(self.range.end);
        at(range.start)..at(range.end)
    }
}

// SAFETY: [mapped] the range lies in the whole's, which is held and keeps its own promises.
unsafe impl Backend for BackendSlice {
    fn kind(&self) -> BackendKind {
        BackendKind::Slice
    }

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn alignment(&self) -> usize {
        self.alignment
    }

    fn capacity_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// All of it, unless the whole was cut short.
    fn committed_bytes(&self) -> u64 {
        self.whole.committed_bytes().min(self.range.end).saturating_sub(self.range.start)
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.whole.populate(self.of_whole(&range))
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        match self.of_whole(&range) {
            empty if empty.is_empty() => Ok(()),
            range => self.whole.punch(range),
        }
    }

    fn gives_back(&self) -> bool {
        self.range.start.is_multiple_of(4096) && self.whole.gives_back()
    }

    fn is_damaged(&self) -> bool {
        self.whole.is_damaged()
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        validate_grow(bytes, self.capacity_bytes())
    }

    /// That of the pages of the part. Where huge pages reach over its ends, they count as a whole.
    #[cfg(unix)]
    fn obtained(&self) -> Result<Obtained, BackendError> {
        super::obtained::look_up(self.base, self.capacity_bytes())
    }
}
