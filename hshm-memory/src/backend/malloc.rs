//! Memory from the process's `malloc`.

use std::ops::Range;
use std::ptr::NonNull;

#[cfg(unix)]
use super::advice::Mapped;
use super::range::{inside, validate_grow, validate_sizes, zero};
use super::{BASE_ALIGN, Backend, BackendError, BackendKind};

/// Memory of one process, from its `malloc`.
///
/// It is as long as it is created; a [`PosixMmapBackend`](super::PosixMmapBackend) can grow.
///
/// # Examples
/// ```
/// use hshm_memory::{Backend, BackendKind, MallocBackend};
///
/// let backend = MallocBackend::create(1 << 20)?;
/// assert_eq!(backend.kind(), BackendKind::Malloc);
/// assert_eq!(backend.committed_bytes(), 1 << 20);
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Debug)]
pub struct MallocBackend {
    /// What `malloc` gave, to be given back.
    block: NonNull<libc::c_void>,
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: [owned] the block belongs to this value until it is dropped, whichever thread does so.
unsafe impl Send for MallocBackend {}
// SAFETY: [owned] as above; all methods take `&self` and write zeros atomically at most.
unsafe impl Sync for MallocBackend {}

impl MallocBackend {
    /// Allocates `size` bytes, rounded up to pages, at a multiple of 2 MiB. All bytes are zero.
    ///
    /// # Errors
    /// [`BackendError::BadSize`]; [`BackendError::Full`] if `malloc` has no such block.
    pub fn create(size: u64) -> Result<Self, BackendError> {
        validate_sizes(size, size)?;
        let len = size.next_multiple_of(super::MIN_ALIGN as u64);
        let full = || BackendError::Full { bytes: len };
        let needed = usize::try_from(len).ok().and_then(|len| len.checked_add(BASE_ALIGN));
        let needed = needed.ok_or_else(full)?;
        // SAFETY: [ffi] it takes any size. So large a block is usually fresh from the kernel, and
        // what of it goes unused, for the sake of its beginning, then costs addresses alone.
        let block = unsafe { libc::calloc(1, needed) };
        let block = NonNull::new(block).ok_or_else(full)?;
        let start = block.cast::<u8>();
        // SAFETY: [owned] the block is longer than what is wanted by more than is skipped.
        let base = unsafe { start.add(start.align_offset(BASE_ALIGN)) };
        Ok(Self { block, base, len })
    }
}

impl Drop for MallocBackend {
    fn drop(&mut self) {
        // SAFETY: [owned] calloc gave it, and nobody uses it after the last who held the backend.
        unsafe { libc::free(self.block.as_ptr()) };
    }
}

// SAFETY: [owned] the block is this value's until it is dropped, and its base was aligned; all of it
// can be used from the beginning.
unsafe impl Backend for MallocBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Malloc
    }

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn capacity_bytes(&self) -> u64 {
        self.len
    }

    fn committed_bytes(&self) -> u64 {
        self.len
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        #[cfg(unix)]
        {
            // SAFETY: [owned] the block lives as long as the value.
            let mapped = unsafe { Mapped::new(self.base, self.len) };
            mapped.populate(&range).map(drop)
        }
        #[cfg(not(unix))]
        {
            let _ = range;
            Ok(())
        }
    }

    /// Fills the range with zeros, and lets the kernel have what it will.
    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        if inside(&range, self.len).is_none() {
            return Ok(());
        }
        // Not every malloc has its memory from where it reads as zeros when it was given back.
        // SAFETY: [mapped] the range lies inside; the caller of this gives its contents up.
        unsafe { zero(self.base, range.clone()) };
        #[cfg(unix)]
        {
            // SAFETY: [owned] as above.
            let mapped = unsafe { Mapped::new(self.base, self.len) };
            // SAFETY: [owned] whichever memory it is, it reads as zeros with or without this.
            unsafe { mapped.punch_private(&range) };
        }
        Ok(())
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        validate_grow(bytes, self.len)
    }
}
