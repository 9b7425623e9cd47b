//! One table of free pages for all processes, under a lock that survives its holder.
//!
//! ```text
//! 0        header            magic, layout version, geometry, checksum; the table: lock, caches, sums
//! 4 KiB    custom header     the application's own
//!          pages             one after the other, each a header of 16 bytes and a block
//! end      ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄  the last page ends here; growing moves it
//! capacity                   every process's address range ends here
//! ```
//!
//! A page is as long as its block needs. Free pages wait in caches by size: each size below 1 KiB has
//! its own, and there are eight for each doubling beyond. Allocating takes the page that fits best of
//! a few, or cuts a larger one in two; freeing joins a page with its free neighbours. So what is lost
//! is 16 bytes for the header, and at most 16 for rounding (a block of 16 bytes takes 32), and free
//! memory is in pieces as large as can be.
//!
//! What [`ScalablePageAllocator::check`] asserts:
//!
//! - **P1** From the first block on, page follows page up to the table's end: each has a header whose
//!   seal fits its place, its size and its state.
//! - **P2** Each page, and the table, knows the size of the page before.
//! - **P3** No two free pages stand side by side.
//! - **P4** A free page is in the cache of its size, once; a cache holds no other.
//! - **P5** The sums are those of the allocated pages.
//!
//! All but P1 follows from the headers and is made anew when a holder of the lock has died.

mod check;
mod heap;
mod layout;
mod mend;
#[cfg(test)]
#[cfg(not(hshm_loom))]
mod tests;

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use self::heap::{Heap, granules_for};
pub(super) use self::layout::{LAYOUT_VERSION, MAGIC};
use self::layout::{State, Table};
use super::contexts::Contexts;
use super::segment::{Format, Segment};
use super::{Allocator, AllocatorKind, ShmAllocator};
use crate::backend::Backend;
use crate::context::MemContext;
use crate::error::{AllocError, SegmentError};
use crate::options::HeapOptions;
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::{CheckReport, HeapReport, RepairReport};
use crate::robust::{Acquired, LockError};
use crate::sync::Ordering;

const FORMAT: Format =
    Format { kind: AllocatorKind::ScalablePage, magic: MAGIC, version: LAYOUT_VERSION };

/// An allocator with one table for all threads of all processes.
///
/// It packs better than [`ThreadLocalAllocator`](crate::ThreadLocalAllocator), and keeps nothing for
/// each thread, but all operations wait for one lock. A process that dies holding it stops nobody:
/// the next one takes it over, and makes the table anew from the pages' headers, which takes a look at
/// each page. A block whose allocation had not returned then is allocated or free; one whose free had
/// not is allocated or free; and all sums are right. Blocks of the dead stay allocated.
///
/// All who use it live in one pid namespace. Over memory that is one process's own, a forked child has
/// the lock as it was: if another thread of its parent held it, operations end with an error after a
/// minute.
///
/// A second free, a free of null and one of a pointer that is no block's are reported: a block's
/// header says what it is, sealed with its place, and the pages before and after must agree. Only a
/// forged header between two forged neighbours is taken for one, and memory that was handed out again
/// is another block's.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use hshm_memory::{
///     Allocator, AllocatorId, HeapOptions, MemContext, MemfdMmap, ScalablePageAllocator,
///     ShmAllocator,
/// };
///
/// let backend: Arc<MemfdMmap> = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
/// let options = HeapOptions { custom_header_bytes: 64 };
/// let heap = ScalablePageAllocator::shm_init(AllocatorId::new(0, 1), backend.clone(), &options)?;
/// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
/// // SAFETY: the block is ours and at least 100 bytes long.
/// unsafe { heap.resolve(block, 100)?.write_bytes(7, 100) };
///
/// // Another process attaches to the same bytes, and frees the block.
/// let other = ScalablePageAllocator::shm_deserialize(backend)?;
/// // SAFETY: nobody uses the block any more.
/// unsafe { other.free_offset_no_null_check(MemContext::DEFAULT, block)? };
/// assert_eq!(heap.allocated_bytes(), 0);
/// assert!(heap.check().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ScalablePageAllocator {
    inner: Arc<Inner>,
}

struct Inner {
    segment: Segment,
    contexts: Contexts,
}

impl ScalablePageAllocator {
    pub(super) fn segment(&self) -> &Segment {
        &self.inner.segment
    }

    fn table(&self) -> &Table {
        self.segment().table()
    }

    fn over(segment: Segment) -> Self {
        Self { inner: Arc::new(Inner { segment, contexts: Contexts::new() }) }
    }

    /// Runs `f` on the heap as the only one of all processes. Where what follows from the headers
    /// contradicts them, it is made anew and `f` run again: `f` fails before it decides anything.
    fn locked<R>(&self, f: impl Fn(&Heap<'_>) -> Result<R, AllocError>) -> Result<R, AllocError> {
        let guard = self.table().lock.lock()?;
        // Died here: nothing was begun.
        crate::crash_point!("scalable.locked");
        let heap = Heap::new(self.segment())?;
        if guard.acquired() == Acquired::FromDead {
            heap.mend()?;
            if !guard.mended() {
                return Err(AllocError::Corrupt { offset: 0, what: "the lock was overwritten" });
            }
        }
        let result = match f(&heap) {
            Err(AllocError::Corrupt { .. }) => {
                heap.mend()?;
                f(&heap)
            }
            result => result,
        };
        // Died here: everything is done.
        crate::crash_point!("scalable.done");
        result
    }

    fn allocate(&self, bytes: usize, align: usize) -> Result<OffsetPointer, AllocError> {
        let segment = self.segment();
        let align = segment.validate_align(align)?;
        let len = segment.validate_len(bytes)?;
        let offset = self.locked(|heap| match heap.allocate(len, align)? {
            Some(offset) => Ok(Some(offset)),
            // Whoever grew the segment may have died before it said so.
            None => heap.absorb()?.map_or(Ok(None), |grown| grown.allocate(len, align)),
        })?;
        offset.map(OffsetPointer::new).ok_or_else(|| segment.full(bytes))
    }

    /// Makes the segment at least `bytes` long, and returns its new length. Processes that are
    /// attached use the new memory without doing anything.
    ///
    /// # Errors
    /// [`AllocError::Backend`] beyond the capacity; [`AllocError::Lock`].
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{
    /// #     AllocatorId, HeapOptions, MemfdMmap, ScalablePageAllocator, ShmAllocator,
    /// # };
    /// let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// let id = AllocatorId::new(0, 1);
    /// let heap = ScalablePageAllocator::shm_init(id, backend, &HeapOptions::default())?;
    /// assert_eq!(heap.grow(2 << 20)?, 2 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow(&self, bytes: u64) -> Result<u64, AllocError> {
        self.segment().backend().grow(bytes)?;
        self.locked(|heap| heap.absorb().map(drop))?;
        Ok(self.segment().refresh_limit())
    }

    /// Makes anew what follows from the pages' headers. A header that was overwritten stands in
    /// [`RepairReport::remaining`], and nothing is changed then.
    pub(super) fn repair(&self) -> Result<RepairReport, AllocError> {
        let found = self.check().violations_total;
        match self.locked(|heap| heap.mend()) {
            Ok(()) | Err(AllocError::Corrupt { .. }) => {
                let remaining = self.check();
                let counts_corrected = found.saturating_sub(remaining.violations_total);
                Ok(RepairReport { counts_corrected, remaining, ..RepairReport::default() })
            }
            Err(error) => Err(error),
        }
    }

    /// Counts what is allocated and free.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, HeapOptions, MemfdMmap, ScalablePageAllocator, ShmAllocator};
    /// # let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// # let id = AllocatorId::new(0, 1);
    /// let heap = ScalablePageAllocator::shm_init(id, backend, &HeapOptions::default())?;
    /// assert_eq!(heap.report().units_free, heap.report().units_total);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn report(&self) -> HeapReport {
        let mut report = self.segment().blank_report();
        // What cannot be walked is left at zero; `check` says what is wrong with it.
        let _ = self
            .locked(|heap| {
                let (mut free, mut largest) = (0, 0);
                heap.walk(|page| {
                    if page.state == State::Free {
                        free += page.granules;
                        largest = page.block_bytes().max(largest);
                    }
                    Ok(())
                })?;
                Ok((free, largest, heap.sums()))
            })
            .map(|(free, largest, (bytes, blocks))| {
                report.units_free = free;
                report.largest_free_run_bytes = largest;
                report.allocated_bytes = bytes;
                report.allocated_blocks = blocks;
            });
        report
    }

    /// The most that the segment can grow to, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.segment().capacity()
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
    /// #     Allocator, AllocatorId, HeapOptions, MemContext, MemfdMmap, ScalablePageAllocator,
    /// #     ShmAllocator,
    /// # };
    /// # let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// # let id = AllocatorId::new(0, 1);
    /// # let heap = ScalablePageAllocator::shm_init(id, backend, &HeapOptions::default())?;
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// assert_eq!(heap.usable_bytes(block)?, 112);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError> {
        let bytes =
            self.locked(|heap| Ok(heap.allocated(pointer.offset_bytes())?.block_bytes()))?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

// SAFETY: [owned] a page is taken under the lock, and no two overlap (P1); its block is as long and as
// aligned as was asked for; [mapped] `resolve` checks bounds.
unsafe impl Allocator for ScalablePageAllocator {
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

    /// Besides the trait's errors, [`AllocError::Lock`] if the lock was held for a minute by somebody
    /// who lives.
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

    unsafe fn reallocate_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.inner.contexts.validate(context)?;
        let len = self.segment().validate_len(bytes)?;
        let offset = pointer.offset_bytes();
        let old_bytes = self.locked(|heap| {
            let page = heap.allocated(offset)?;
            Ok(if heap.resize(page, granules_for(len))? { None } else { Some(page.block_bytes()) })
        })?;
        let Some(old_bytes) = old_bytes else { return Ok(pointer) };
        let kept = usize::try_from(old_bytes).unwrap_or(usize::MAX).min(bytes);
        let new = self.allocate(bytes, 1)?;
        let (from, to) = (self.resolve(pointer, kept)?, self.resolve(new, kept)?);
        // SAFETY: [mapped] both ranges were resolved; [owned] both blocks are the caller's. Where
        // somebody scribbled on the segment they may overlap, which this allows.
        unsafe { ptr::copy(from.as_ptr(), to.as_ptr(), kept) };
        // Died here: both blocks are allocated, and nobody knows the new one.
        self.locked(|heap| heap.free(offset))?;
        Ok(new)
    }

    unsafe fn free_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<(), AllocError> {
        self.inner.contexts.validate(context)?;
        self.locked(|heap| heap.free(pointer.offset_bytes()))
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

    /// The lengths of all blocks, their headers not counted. If the lock is not to be had, the sum as
    /// it stands.
    fn allocated_bytes(&self) -> u64 {
        let sum = |_: &Heap<'_>| Ok(self.table().allocated_bytes.load(Ordering::Relaxed));
        self.locked(sum).unwrap_or_else(|_| self.table().allocated_bytes.load(Ordering::Relaxed))
    }

    /// Takes the lock meanwhile, and so mends first what a dead holder left.
    fn check(&self) -> CheckReport {
        let mut report = CheckReport::default();
        let table_offset = self.segment().first_block();
        let unlocked = match self.table().lock.lock_timeout(check::PATIENCE) {
            Ok(guard) => match Heap::new(self.segment()) {
                Ok(heap) => {
                    if guard.acquired() == Acquired::FromDead && heap.mend().is_ok() {
                        guard.mended();
                    }
                    return heap.check();
                }
                Err(error) => error,
            },
            Err(LockError::TimedOut { holder, .. }) => {
                let what = format!("the lock is held by thread {holder}");
                report.violate("P5", table_offset, what);
                return report;
            }
            Err(error) => error.into(),
        };
        report.violate("P1", table_offset, unlocked.to_string());
        report
    }
}

impl ShmAllocator for ScalablePageAllocator {
    type Options = HeapOptions;

    fn shm_init(
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &HeapOptions,
    ) -> Result<Self, SegmentError> {
        let segment = Segment::create(FORMAT, id, backend, options)?;
        let table: &Table = segment.table();
        // ORDER: Relaxed: `publish` stores the magic after these with Release. The rest is zero.
        table.end.store(segment.first_block(), Ordering::Relaxed);
        table.next_context.store(1, Ordering::Relaxed);
        let allocator = Self::over(segment);
        let broken = |error: AllocError| {
            if let AllocError::Backend(error) = error {
                return SegmentError::Backend(error);
            }
            let why = "which was written to while the segment was laid out";
            SegmentError::Corrupt { field: "the page table", found: 0, why }
        };
        let heap = Heap::new(allocator.segment()).map_err(broken)?;
        heap.absorb().map_err(broken)?;
        allocator.segment().publish();
        Ok(allocator)
    }

    fn shm_deserialize(backend: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        let segment = Segment::open(FORMAT, backend)?;
        if Heap::new(&segment).is_err() {
            let found = segment.table::<Table>().end.load(Ordering::Relaxed);
            let why = "which lies outside the segment";
            return Err(SegmentError::Corrupt { field: "the last page's end", found, why });
        }
        Ok(Self::over(segment))
    }
}

impl fmt::Debug for ScalablePageAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScalablePageAllocator")
            .field("id", &self.id())
            .field("backend", &self.segment().backend().kind())
            .field("capacity_bytes", &self.capacity_bytes())
            .finish_non_exhaustive()
    }
}
