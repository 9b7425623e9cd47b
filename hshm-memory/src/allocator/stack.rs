//! The arena: one word moves upwards as blocks are handed out, and back when all are given up.

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::contexts::Contexts;
use super::segment::{Format, GRANULE_BYTES, Segment, seal};
use super::{Allocator, AllocatorKind, ShmAllocator};
use crate::backend::Backend;
use crate::context::MemContext;
use crate::error::{AllocError, SegmentError};
use crate::options::HeapOptions;
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::{CheckReport, HeapReport};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What a segment begins with: "hshmSTK1", read as a little-endian number.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"hshmSTK1");
/// The version of the segments that this library writes and reads.
pub(super) const LAYOUT_VERSION: u32 = 1;
const FORMAT: Format = Format { kind: AllocatorKind::Stack, magic: MAGIC, version: LAYOUT_VERSION };

/// What a block's own header takes, before it.
const PREFIX_BYTES: u64 = GRANULE_BYTES;

/// The allocator's part of the segment's first page.
#[repr(C)]
struct Table {
    /// Where the next block can begin.
    top: AtomicU64,
    /// Bytes below `top` that were freed, but not from the top.
    freed: AtomicU64,
    /// How often everything was given up at once.
    epoch: AtomicU64,
    /// The next context's number.
    next_context: AtomicU32,
    _reserved: AtomicU32,
}

#[cfg(not(hshm_loom))]
const _: () = {
    assert!(size_of::<Table>() == 32);
    assert!(std::mem::offset_of!(Table, freed) == 8);
    assert!(std::mem::offset_of!(Table, epoch) == 16);
    assert!(std::mem::offset_of!(Table, next_context) == 24);
};

/// A bump allocator: for what is made while something starts, or is given up all at once.
///
/// Allocating moves one word; no lock is taken and nobody waits. Freeing the block that was allocated
/// last moves the word back. Freeing any other only counts, until [`StackAllocator::reset`] gives
/// everything up. Each block takes 16 bytes more than was asked for, rounded up to 16, and what its
/// alignment skips; all of that is what [`Allocator::allocated_bytes`] counts.
///
/// Who dies inside an operation leaves at most its block allocated, the one that it was about to
/// hand out or had begun to free, and nothing that others would wait for or stumble over.
///
/// A second free, a free of null and one of a pointer that is no block's are reported, as long as
/// nobody wrote a block's header over the one that stood, or stood by chance, before the pointer:
/// that of a freed block stays as it is until the memory is handed out again.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use hshm_memory::{
///     Allocator, AllocatorId, HeapOptions, MemContext, MemfdMmap, ShmAllocator, StackAllocator,
/// };
///
/// let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 1 << 20)?);
/// let arena = StackAllocator::shm_init(AllocatorId::new(0, 1), backend, &HeapOptions::default())?;
/// let first = arena.allocate_offset(MemContext::DEFAULT, 100)?;
/// let second = arena.allocate_offset(MemContext::DEFAULT, 100)?;
/// // SAFETY: nobody uses any block any more.
/// unsafe { arena.reset() };
/// assert_eq!(arena.allocate_offset(MemContext::DEFAULT, 100)?, first);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StackAllocator {
    inner: Arc<Inner>,
}

struct Inner {
    segment: Segment,
    contexts: Contexts,
}

/// A block as its header has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// Where the memory begins that it takes.
    start: u64,
    /// Where it begins itself.
    offset: u64,
    /// Where it ends.
    end: u64,
}

/// A block's header: bits 0-41 its length in granules, 42 whether it was freed, 44-63 the seal. The
/// word before holds how many bytes the block takes before its own first byte.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    const FREED: u64 = 1 << 42;
    const SEAL_SHIFT: u32 = 44;

    /// `epoch` tells the blocks of today from those before the last reset.
    fn new(offset: u64, granules: u64, lead: u64, freed: bool, epoch: u64) -> Self {
        let fields = granules & (Self::FREED - 1) | if freed { Self::FREED } else { 0 };
        let salt = lead.wrapping_mul(0x1_0001).wrapping_add(epoch);
        Self(fields | seal(offset, fields, salt) << Self::SEAL_SHIFT)
    }

    fn granules(self) -> u64 {
        self.0 & (Self::FREED - 1)
    }
}

/// Both words of a header, and what they say.
struct Header<'s> {
    lead: &'s AtomicU64,
    word: &'s AtomicU64,
    found: Word,
    block: Block,
    epoch: u64,
}

impl StackAllocator {
    pub(super) fn segment(&self) -> &Segment {
        &self.inner.segment
    }

    fn table(&self) -> &Table {
        self.segment().table()
    }

    fn over(segment: Segment) -> Self {
        Self { inner: Arc::new(Inner { segment, contexts: Contexts::new() }) }
    }

    /// Where the next block can begin, unless somebody wrote nonsense there.
    fn top(&self) -> Result<u64, AllocError> {
        // ORDER: Acquire pairs with the Release of whoever moved it: the block's bytes are his no more.
        let top = self.table().top.load(Ordering::Acquire);
        let first = self.segment().first_block();
        if top >= first && top.is_multiple_of(GRANULE_BYTES) && self.segment().reaches(top) {
            Ok(top)
        } else {
            Err(AllocError::Corrupt { offset: top, what: "the top lies outside the segment" })
        }
    }

    /// From `from` to `to`. False if somebody else moved it meanwhile.
    fn transition_top(&self, from: u64, to: u64) -> bool {
        // ORDER: AcqRel: the memory passes from its last user to the next.
        let (done, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        self.table().top.compare_exchange(from, to, done, relaxed).is_ok()
    }

    /// Gives all blocks up at once, whoever allocated them.
    ///
    /// # Safety
    /// Nobody uses any block any more, or is about to allocate or free one.
    pub unsafe fn reset(&self) {
        let table = self.table();
        table.epoch.fetch_add(1, Ordering::Relaxed);
        // Died here: all blocks that were freed count as allocated, until the next reset.
        table.freed.store(0, Ordering::Relaxed);
        // ORDER: Release pairs with the Acquire in `top`.
        table.top.store(self.segment().first_block(), Ordering::Release);
    }

    /// Makes the segment at least `bytes` long, and returns its new length. Processes that are
    /// attached use the new memory without doing anything.
    ///
    /// # Errors
    /// [`AllocError::Backend`] beyond the capacity.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, HeapOptions, MemfdMmap, ShmAllocator, StackAllocator};
    /// let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// let arena = StackAllocator::shm_init(AllocatorId::new(0, 1), backend, &HeapOptions::default())?;
    /// assert_eq!(arena.grow(2 << 20)?, 2 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow(&self, bytes: u64) -> Result<u64, AllocError> {
        self.segment().backend().grow(bytes)?;
        Ok(self.segment().refresh_limit())
    }

    /// The size of the allocated block at `pointer`, which is at least what was asked for.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] where no block begins.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{
    /// #     Allocator, AllocatorId, HeapOptions, MemContext, MemfdMmap, ShmAllocator, StackAllocator,
    /// # };
    /// # let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// # let id = AllocatorId::new(0, 1);
    /// # let arena = StackAllocator::shm_init(id, backend, &HeapOptions::default())?;
    /// let block = arena.allocate_offset(MemContext::DEFAULT, 100)?;
    /// assert_eq!(arena.usable_bytes(block)?, 112);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError> {
        let Block { offset, end, .. } = self.header(pointer)?.block;
        Ok(usize::try_from(end - offset).unwrap_or(usize::MAX))
    }

    /// Counts what is allocated and free.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, HeapOptions, MemfdMmap, ShmAllocator, StackAllocator};
    /// # let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// # let id = AllocatorId::new(0, 1);
    /// let heap = StackAllocator::shm_init(id, backend, &HeapOptions::default())?;
    /// assert_eq!(heap.report().units_free, heap.report().units_total);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn report(&self) -> HeapReport {
        let mut report = self.segment().blank_report();
        let top = self.top().unwrap_or(report.committed_bytes);
        report.largest_free_run_bytes = report.committed_bytes.saturating_sub(top);
        report.units_free = report.largest_free_run_bytes / report.unit_bytes;
        report.allocated_bytes = self.allocated_bytes();
        report
    }

    /// The most that the segment can grow to, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.segment().capacity()
    }

    fn allocate(&self, bytes: usize, align: usize) -> Result<OffsetPointer, AllocError> {
        let segment = self.segment();
        let align = segment.validate_align(align)?;
        let len = segment.validate_len(bytes)?;
        let epoch = self.table().epoch.load(Ordering::Relaxed);
        loop {
            let start = self.top()?;
            let offset = (start + PREFIX_BYTES).checked_next_multiple_of(align);
            let end = offset.and_then(|offset| offset.checked_add(len));
            let (Some(offset), Some(end)) = (offset, end) else { return Err(segment.full(bytes)) };
            if !segment.reaches(end) {
                return Err(segment.full(bytes));
            }
            segment.make_resident(end)?;
            if !self.transition_top(start, end) {
                continue;
            }
            // Died here: the block is allocated, and nobody knows it.
            let lead = offset - start;
            let word = Word::new(offset, len / GRANULE_BYTES, lead, false, epoch);
            self.header_word(offset - 16)?.store(lead, Ordering::Relaxed);
            // ORDER: Release: whoever frees the block finds both words.
            self.header_word(offset - 8)?.store(word.0, Ordering::Release);
            return Ok(OffsetPointer::new(offset));
        }
    }

    fn header_word(&self, offset: u64) -> Result<&AtomicU64, AllocError> {
        let what = "a block's header lies outside the segment";
        self.segment().word(offset).ok_or(AllocError::Corrupt { offset, what })
    }

    /// The header of the allocated block at `pointer`.
    fn header(&self, pointer: OffsetPointer) -> Result<Header<'_>, AllocError> {
        let offset = pointer.offset_bytes();
        let no = |why| AllocError::NotAllocated { offset, why };
        if pointer.is_null() {
            return Err(no("it is null"));
        }
        let top = self.top()?;
        let first = self.segment().first_block() + PREFIX_BYTES;
        if offset < first || offset >= top {
            return Err(no("it lies beyond all blocks"));
        }
        if !offset.is_multiple_of(GRANULE_BYTES) {
            return Err(no("it is not aligned to 16 bytes"));
        }
        let (lead_word, word) = (self.header_word(offset - 16)?, self.header_word(offset - 8)?);
        // ORDER: Acquire pairs with the Release in `allocate`.
        let found = Word(word.load(Ordering::Acquire));
        let lead = lead_word.load(Ordering::Relaxed);
        let epoch = self.table().epoch.load(Ordering::Relaxed);
        let granules = found.granules();
        if found.0 == Word::new(offset, granules, lead, true, epoch).0 {
            return Err(no("it is free already"));
        }
        if found.0 != Word::new(offset, granules, lead, false, epoch).0 {
            return Err(no("no block begins there"));
        }
        let start = offset.checked_sub(lead).filter(|&s| s >= first - PREFIX_BYTES);
        let end = offset.checked_add(granules * GRANULE_BYTES).filter(|&end| end <= top);
        match (start, end) {
            (Some(start), Some(end)) => Ok(Header {
                lead: lead_word,
                word,
                found,
                block: Block { start, offset, end },
                epoch,
            }),
            _ => Err(AllocError::Corrupt { offset, what: "a block reaches beyond the top" }),
        }
    }

    fn free(&self, pointer: OffsetPointer) -> Result<(), AllocError> {
        let header = self.header(pointer)?;
        let Block { start, offset, end } = header.block;
        let lead = header.lead.load(Ordering::Relaxed);
        let freed = Word::new(offset, header.found.granules(), lead, true, header.epoch);
        // ORDER: AcqRel: of two who free the block one does, and after its users.
        let (done, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        if header.word.compare_exchange(header.found.0, freed.0, done, relaxed).is_err() {
            return Err(AllocError::NotAllocated {
                offset: pointer.offset_bytes(),
                why: "it is free already",
            });
        }
        // Died here: the block is free, and counts as allocated until the next reset.
        if !self.transition_top(end, start) {
            self.table().freed.fetch_add(end - start, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes the block `len` bytes long where it stands. False if it is not the last one.
    fn resize(&self, header: &Header<'_>, len: u64) -> Result<bool, AllocError> {
        let Block { start, offset, end } = header.block;
        let Some(new_end) = offset.checked_add(len).filter(|&e| self.segment().reaches(e)) else {
            return Ok(false);
        };
        self.segment().make_resident(new_end)?;
        if !self.transition_top(end, new_end) {
            return Ok(false);
        }
        // Died here: what the block gained or lost is nobody's until the next reset.
        let word = Word::new(offset, len / GRANULE_BYTES, offset - start, false, header.epoch);
        // ORDER: Release, as in `allocate`.
        header.word.store(word.0, Ordering::Release);
        Ok(true)
    }
}

// SAFETY: [owned] a block is what one compare-and-swap of the top took, which no other takes before
// it was freed; it is as long and aligned as asked for; [mapped] `resolve` checks bounds.
unsafe impl Allocator for StackAllocator {
    fn kind(&self) -> AllocatorKind {
        self.segment().kind()
    }

    fn id(&self) -> AllocatorId {
        self.segment().id()
    }

    fn backend(&self) -> Option<&Arc<dyn Backend>> {
        Some(self.segment().backend())
    }

    fn custom_header(&self) -> (OffsetPointer, usize) {
        self.segment().custom_header()
    }

    fn allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.inner.contexts.validate(context)?;
        self.allocate(bytes, 1)
    }

    fn aligned_allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.inner.contexts.validate(context)?;
        self.allocate(bytes, align)
    }

    /// The last block grows and shrinks where it stands, any other shrinks to no avail or moves.
    unsafe fn reallocate_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.inner.contexts.validate(context)?;
        let len = self.segment().validate_len(bytes)?;
        let header = self.header(pointer)?;
        let old_len = header.block.end - header.block.offset;
        if len == old_len || self.resize(&header, len)? || len < old_len {
            return Ok(pointer);
        }
        let kept = usize::try_from(old_len).unwrap_or(usize::MAX).min(bytes);
        let new = self.allocate(bytes, 1)?;
        let (from, to) = (self.resolve(pointer, kept)?, self.resolve(new, kept)?);
        // SAFETY: [mapped] both ranges were resolved; [owned] both blocks are the caller's. Where
        // somebody scribbled on the segment they may overlap, which this allows.
        unsafe { ptr::copy(from.as_ptr(), to.as_ptr(), kept) };
        self.free(pointer)?;
        Ok(new)
    }

    unsafe fn free_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<(), AllocError> {
        self.inner.contexts.validate(context)?;
        self.free(pointer)
    }

    fn create_tls(&self) -> Result<MemContext, AllocError> {
        let next = &self.table().next_context;
        // ORDER: Relaxed: only that each number is handed out once.
        Ok(self.inner.contexts.create(|| next.fetch_add(1, Ordering::Relaxed)))
    }

    fn free_tls(&self, context: MemContext) -> Result<(), AllocError> {
        self.inner.contexts.free(context)
    }

    fn resolve(&self, pointer: OffsetPointer, len: usize) -> Result<NonNull<u8>, AllocError> {
        self.segment().resolve(pointer.offset_bytes(), len)
    }

    fn offset_of(&self, address: NonNull<u8>) -> Option<OffsetPointer> {
        self.segment().offset_of(address)
    }

    /// Everything between the first block and the top that was not freed.
    fn allocated_bytes(&self) -> u64 {
        // First what was freed: it is never more than what is below the top then.
        let freed = self.table().freed.load(Ordering::Acquire);
        let top = self.top().unwrap_or(self.segment().first_block());
        (top - self.segment().first_block()).saturating_sub(freed)
    }

    /// Both words are within bounds.
    fn check(&self) -> CheckReport {
        let mut report = CheckReport::default();
        let freed = self.table().freed.load(Ordering::Acquire);
        let first = self.segment().first_block();
        match self.top() {
            Ok(top) => {
                report.allocated_bytes = (top - first).saturating_sub(freed);
                if freed > top - first {
                    let what = format!("{freed} bytes are free of {}", top - first);
                    report.violate("S2", top, what);
                }
            }
            Err(error) => report.violate("S1", first, error.to_string()),
        }
        report
    }
}

impl ShmAllocator for StackAllocator {
    type Options = HeapOptions;

    fn shm_init(
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &HeapOptions,
    ) -> Result<Self, SegmentError> {
        let segment = Segment::create(FORMAT, id, backend, options)?;
        let table: &Table = segment.table();
        // ORDER: Relaxed: `publish` stores the magic after these with Release.
        table.top.store(segment.first_block(), Ordering::Relaxed);
        table.freed.store(0, Ordering::Relaxed);
        table.epoch.store(1, Ordering::Relaxed);
        table.next_context.store(1, Ordering::Relaxed);
        segment.publish();
        Ok(Self::over(segment))
    }

    fn shm_deserialize(backend: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        let arena = Self::over(Segment::open(FORMAT, backend)?);
        if arena.top().is_err() {
            let found = arena.table().top.load(Ordering::Relaxed);
            let why = "which lies outside the segment";
            return Err(SegmentError::Corrupt { field: "the top", found, why });
        }
        Ok(arena)
    }
}

impl fmt::Debug for StackAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StackAllocator")
            .field("id", &self.id())
            .field("backend", &self.segment().backend().kind())
            .field("capacity_bytes", &self.capacity_bytes())
            .finish_non_exhaustive()
    }
}
