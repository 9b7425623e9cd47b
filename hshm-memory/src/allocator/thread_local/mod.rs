//! The allocator for many threads of many processes: each has a heap of its own in the segment, and
//! takes and returns blocks without asking anybody.

mod census;
mod check;
mod geometry;
mod heap;
mod interface;
mod journal;
mod layout;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_journal;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_page;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_remote;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_slots;
#[cfg(unix)]
mod open;
mod page;
mod queue;
mod recover;
mod refill;
mod release;
mod remote;
mod settle;
mod size_class;
mod slots;
mod tls;
mod units;
mod view;
mod walk;
mod words;

#[cfg(test)]
#[cfg(not(hshm_loom))]
mod hostile;
#[cfg(test)]
mod interrupted;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::geometry::{Geometry, HEADER_BYTES, Identity};
pub use self::layout::LAYOUT_VERSION;
use self::layout::UNIT_BYTES;
pub(super) use self::layout::{KIND_THREAD_LOCAL as KIND, MAGIC};
#[cfg(unix)]
pub(crate) use self::open::segment_capacity;
use self::size_class::{GRANULE_BYTES, MEDIUM_MAX_BYTES, class_of, small_class_of};
use self::view::{View, header_at};
use self::words::SlotWord;
use crate::allocator::Allocator;
use crate::backend::{Backend, PosixShmMmap};
use crate::context::MemContext;
use crate::error::{AllocError, SegmentError};
use crate::manager::InitBackend;
use crate::options::{InitOptions, OnExit};
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::process::ProcessId;
use crate::report::{CheckReport, HeapReport, RecoveryReport};

/// The recommended allocator for shared memory: a heap for each thread, in the segment itself.
///
/// The value is this process's view of an allocator; clones share it. When the last one is dropped,
/// the slots of its threads are given back. Blocks stay allocated until somebody frees them: they
/// belong to the segment, not to a value in some process.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, ThreadLocalAllocator};
///
/// let backend = Arc::new(MemfdMmap::create("example", 16 << 20, 64 << 20)?);
/// let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), backend, &InitOptions::default())?;
/// let block = heap.allocate(100)?;
/// // SAFETY: the block is ours and at least 100 bytes long.
/// unsafe { heap.resolve(block, 100)?.write_bytes(7, 100) };
/// // SAFETY: nobody uses the block any more.
/// unsafe { heap.free(block)? };
/// assert_eq!(heap.report().allocated_bytes, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ThreadLocalAllocator {
    /// `inner.key`, here to save a step on the fast path.
    key: u64,
    inner: Arc<Inner>,
}

/// What the clones share.
pub(crate) struct Inner {
    /// Unique among all allocators that this process ever attached.
    key: u64,
    view: Arc<View>,
    /// This process as its recoverer sees it, if that differs from how it sees itself; else 0.
    identity: AtomicU64,
    /// The fork generation in which `identity` was set.
    identity_generation: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        tls::detach_all(self.key);
    }
}

impl Inner {
    /// Who claims slots here.
    fn process(&self) -> Result<ProcessId, AllocError> {
        let identity = self.identity.load(Ordering::Relaxed);
        if identity == 0 {
            return ProcessId::current().map_err(AllocError::Identity);
        }
        if self.identity_generation.load(Ordering::Relaxed) != tls::generation() {
            let message = "forked, in a pid namespace that the daemon does not share: attach anew";
            return Err(AllocError::Identity(std::io::Error::other(message)));
        }
        Ok(SlotWord(identity).process())
    }
}

/// Creating and attaching.
impl ThreadLocalAllocator {
    /// Lays an allocator with the identity `id` out in `backend`, whose bytes must be zero.
    ///
    /// The segment's own tables take about 0.2 % of the capacity and 1.3 KiB for each worker slot.
    /// The backend is grown by as much, if its capacity allows, so that the size it was created
    /// with remains for blocks.
    ///
    /// # Errors
    /// [`SegmentError::Exists`] if an allocator stands there already,
    /// [`SegmentError::BadOption`] for options out of range, [`SegmentError::Truncated`] if the
    /// capacity is too small for the tables and one unit, [`SegmentError::Backend`] if there is no
    /// memory for them.
    pub fn shm_init(
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &InitOptions,
    ) -> Result<Self, SegmentError> {
        let geometry = Geometry::compute(backend.capacity_bytes(), options)?;
        let size = backend.committed_bytes().next_multiple_of(UNIT_BYTES);
        let committed = size.saturating_add(geometry.metadata_bytes()).min(geometry.capacity);
        backend.grow(committed)?;
        let fixed_tables = geometry.tags;
        backend.populate(0..geometry.slots)?;
        backend.populate(geometry.free_summary..fixed_tables)?;
        let identity = Identity { id, on_exit: options.on_exit };
        let view = View::new(backend, geometry, identity);
        if view.header().magic.load(crate::sync::Ordering::Acquire) == MAGIC {
            return Err(SegmentError::Exists);
        }
        view.populate_tables(geometry.first_unit, view.units())?;
        units::rebuild_hints(&view);
        let header = view.header();
        geometry.store(header, identity);
        header.committed.store(view.limit(), crate::sync::Ordering::Relaxed);
        // ORDER: Release: whoever sees the magic sees all of the above.
        header.magic.store(MAGIC, crate::sync::Ordering::Release);
        Ok(Self::over(view))
    }

    /// Validates the allocator that stands in `backend` and attaches to it.
    ///
    /// # Errors
    /// [`SegmentError::Truncated`], [`SegmentError::Foreign`], [`SegmentError::LayoutVersion`] or
    /// [`SegmentError::Corrupt`], by what was found.
    pub fn shm_deserialize(backend: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        let found_bytes = backend.committed_bytes();
        if found_bytes < HEADER_BYTES {
            return Err(SegmentError::Truncated { found_bytes, needed_bytes: HEADER_BYTES });
        }
        let (geometry, identity) = Geometry::load(header_at(backend.base()), found_bytes)?;
        if geometry.capacity > backend.capacity_bytes() {
            return Err(SegmentError::Corrupt {
                field: "the capacity",
                found: geometry.capacity,
                why: "which is more than was mapped",
            });
        }
        Ok(Self::over(View::new(backend, geometry, identity)))
    }

    /// Attaches to the named segment `name` without a daemon.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::shm_deserialize`], and [`SegmentError::Backend`] if there is no
    /// such segment, or it cannot be opened.
    pub fn attach(name: &str) -> Result<Self, SegmentError> {
        Self::shm_deserialize(Arc::new(PosixShmMmap::shm_attach(name)?))
    }

    fn over(view: View) -> Self {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        tls::watch_forks();
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        let inner = Inner {
            key,
            view: Arc::new(view),
            identity: AtomicU64::new(0),
            identity_generation: AtomicU64::new(0),
        };
        Self { key, inner: Arc::new(inner) }
    }

    /// Says who this process is to the one that recovers the dead, where that is not who it is to
    /// itself: it lives in another pid namespace. To be called before the first allocation.
    pub fn set_identity(&self, process: ProcessId) {
        self.inner.identity_generation.store(tls::generation(), Ordering::Relaxed);
        self.inner.identity.store(SlotWord::live(process).0, Ordering::Relaxed);
    }

    /// Makes the segment at least `bytes` long, rounded up to units, and returns its new length.
    /// Processes that are attached use the new memory without doing anything.
    ///
    /// # Errors
    /// [`AllocError::Backend`] beyond the capacity, or if there is no memory for the new units'
    /// descriptors.
    pub fn grow(&self, bytes: u64) -> Result<u64, AllocError> {
        let view = &*self.inner.view;
        let before = view.units();
        let rounded = bytes.checked_next_multiple_of(UNIT_BYTES).unwrap_or(u64::MAX);
        view.backend().grow(rounded)?;
        let units = words::unit_of(view.backend().committed_bytes().min(view.geometry.capacity));
        view.populate_tables(before, units)?;
        let committed = view.refresh_limit();
        view.header().committed.fetch_max(committed, crate::sync::Ordering::Relaxed);
        // Died before this: the next who grows or recovers the segment makes the units known.
        units::rebuild_hints(view);
        Ok(committed)
    }
}

/// Blocks.
impl ThreadLocalAllocator {
    /// Allocates `bytes` bytes (none counts as one), aligned to 16.
    ///
    /// The contents are whatever stood there before. If this process is killed before the call
    /// returns, the block is allocated or it is not; nobody knows its offset then. Where that must
    /// not be, use [`ThreadLocalAllocator::allocate_into`].
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`] if the segment is full, [`AllocError::TooLarge`] if it could
    /// never hold the block, [`AllocError::Backend`] if the machine has no memory left for it,
    /// [`AllocError::NoWorkerSlot`] if this is the thread's first operation and no slot is free.
    #[inline]
    pub fn allocate(&self, bytes: usize) -> Result<OffsetPointer, AllocError> {
        if let (Some(heap), Some(class)) = (tls::current(self.key), small_class_of(bytes)) {
            // SAFETY: [owned] the thread's registry keeps its current heap alive.
            let heap = unsafe { &*heap };
            if let Some(offset) = heap.pop_small(class) {
                return Ok(OffsetPointer::new(offset));
            }
        }
        self.allocate_slow(MemContext::DEFAULT, bytes, GRANULE_BYTES)
    }

    /// Allocates `bytes` bytes aligned to `align`, a power of two up to what the backend's own
    /// beginning has ([`Backend::alignment`]): 2 MiB, for all memory that the kernel maps.
    ///
    /// # Errors
    /// [`AllocError::BadAlignment`], and as [`ThreadLocalAllocator::allocate`].
    #[inline]
    pub fn aligned_allocate(
        &self,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        if align <= GRANULE_BYTES && align.is_power_of_two() {
            return self.allocate(bytes);
        }
        self.allocate_slow(MemContext::DEFAULT, bytes, align)
    }

    /// Frees the block at `pointer`, whichever process allocated it. Freeing null is an error.
    ///
    /// # Safety
    /// `pointer` is a block of this allocator that is allocated, and nobody uses it any more.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] for null, for an offset outside the segment's pages, and for
    /// one in a page of another worker or of nobody, or in a large block, where no allocated block
    /// begins. What cannot be told is a second free of a small block, and a wrong offset in a page
    /// of the calling thread.
    #[inline]
    pub unsafe fn free(&self, pointer: OffsetPointer) -> Result<(), AllocError> {
        if let Some(heap) = tls::current(self.key) {
            // SAFETY: [owned] the thread's registry keeps its current heap alive.
            let heap = unsafe { &*heap };
            if heap.push_small(pointer.offset_bytes()) {
                return Ok(());
            }
        }
        self.free_slow(MemContext::DEFAULT, pointer)
    }

    /// Makes the block at `pointer` `bytes` long, where it stands if possible, and returns where it
    /// is then. Its contents are kept, up to the smaller of both sizes. On an error the old block
    /// stays as it was.
    ///
    /// # Safety
    /// As [`ThreadLocalAllocator::free`]; the old offset is not used any more if another is
    /// returned.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`], and as [`ThreadLocalAllocator::allocate`].
    pub unsafe fn reallocate(
        &self,
        pointer: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        // SAFETY: the caller promises the same.
        unsafe { self.reallocate_offset_no_null_check(MemContext::DEFAULT, pointer, bytes) }
    }

    /// Allocates `bytes` bytes and stores the block's offset in the cell at `cell`, exactly once:
    /// if this process is killed meanwhile, after recovery either the cell names the block, or the
    /// cell is null and the block is free.
    ///
    /// A cell is eight bytes, aligned to eight, in a block or in the application's header, that
    /// hold 0. Other processes may read it, and empty it with [`ThreadLocalAllocator::free_from`];
    /// one that moves the offset elsewhere must know that this call has returned.
    ///
    /// # Errors
    /// [`AllocError::BadCell`] if `cell` is no such cell or not null, and as
    /// [`ThreadLocalAllocator::allocate`].
    pub fn allocate_into(
        &self,
        cell: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.aligned_allocate_into(cell, bytes, GRANULE_BYTES)
    }

    /// [`ThreadLocalAllocator::allocate_into`] of a block aligned to `align`, a power of two up to
    /// 2 MiB.
    ///
    /// # Errors
    /// [`AllocError::BadAlignment`], and as [`ThreadLocalAllocator::allocate_into`].
    pub fn aligned_allocate_into(
        &self,
        cell: OffsetPointer,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let align = if align.is_power_of_two() { align.max(GRANULE_BYTES) } else { align };
        let offset = tls::with_heap(&self.inner, |heap| {
            heap.allocate_into(cell.offset_bytes(), bytes, align)
        })?;
        Ok(OffsetPointer::new(offset))
    }

    /// Frees the block that the cell at `cell` names and makes the cell null, exactly once: if this
    /// process is killed meanwhile, after recovery either both have happened or neither. If several
    /// processes do this at once, one frees the block. False if the cell named no block.
    ///
    /// # Safety
    /// If the cell names a block, it is one of this allocator that nobody uses any more.
    ///
    /// # Errors
    /// [`AllocError::BadCell`]; [`AllocError::NotAllocated`] if what the cell holds is no block's
    /// offset, and then the cell keeps it.
    pub unsafe fn free_from(&self, cell: OffsetPointer) -> Result<bool, AllocError> {
        // SAFETY: the caller promises the same.
        unsafe { self.free_from_as(MemContext::DEFAULT, cell) }
    }

    /// What the cell at `cell` names: null also while another process frees it.
    ///
    /// # Errors
    /// [`AllocError::BadCell`].
    pub fn read_cell(&self, cell: OffsetPointer) -> Result<OffsetPointer, AllocError> {
        let cell = self.inner.view.cell(cell.offset_bytes())?;
        // ORDER: Acquire pairs with the Release of `allocate_into`, so that what its maker wrote
        // before is seen.
        let value = cell.load(crate::sync::Ordering::Acquire);
        let named = if words::cell_names_block(value) { value } else { 0 };
        Ok(OffsetPointer::new(named))
    }

    /// The size of the allocated block at `pointer`, which is at least what was asked for.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] where no block begins.
    pub fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError> {
        self.usable_bytes_as(MemContext::DEFAULT, pointer)
    }

    /// The address, in this process, of the `len` bytes at `pointer`.
    ///
    /// Only that they lie in the segment is checked. They are shared: read and write them as the
    /// block's owner, or as atomics.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] if they do not all lie in the segment, after its header.
    #[inline]
    pub fn resolve(&self, pointer: OffsetPointer, len: usize) -> Result<NonNull<u8>, AllocError> {
        self.inner.view.resolve(pointer.offset_bytes(), len)
    }

    /// The offset of an address in this process's mapping of the segment, or `None` if it lies
    /// elsewhere.
    #[must_use]
    pub fn offset_of(&self, address: NonNull<u8>) -> Option<OffsetPointer> {
        let view = &self.inner.view;
        let distance = address.addr().get().checked_sub(view.base().addr().get())? as u64;
        (distance >= view.geometry.custom_header && distance < view.limit())
            .then(|| OffsetPointer::new(distance))
    }

    /// Where the application's own header stands, and its length in bytes.
    #[must_use]
    pub fn custom_header(&self) -> (OffsetPointer, usize) {
        let geometry = &self.inner.view.geometry;
        let len = usize::try_from(geometry.custom_header_bytes).unwrap_or(0);
        (OffsetPointer::new(geometry.custom_header), len)
    }

    /// Gives back the calling thread's slot now rather than when the thread ends. The next
    /// operation claims one again.
    pub fn detach_thread(&self) {
        tls::detach_thread(self.key);
    }

    #[cold]
    #[inline(never)]
    fn allocate_slow(
        &self,
        context: MemContext,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let offset = self.with_context(context, |heap| {
            if align == GRANULE_BYTES
                && bytes <= MEDIUM_MAX_BYTES
                && let Some(offset) = heap.pop_any(class_of(bytes))
            {
                return Ok(offset);
            }
            heap.allocate_slow(bytes, align)
        })?;
        Ok(OffsetPointer::new(offset))
    }

    #[cold]
    #[inline(never)]
    fn free_slow(&self, context: MemContext, pointer: OffsetPointer) -> Result<(), AllocError> {
        let offset = pointer.offset_bytes();
        self.with_context(context, |heap| {
            if heap.push_small(offset) { Ok(()) } else { heap.free_slow(offset) }
        })
    }

    fn with_context<R>(
        &self,
        context: MemContext,
        f: impl FnOnce(&heap::Heap) -> Result<R, AllocError>,
    ) -> Result<R, AllocError> {
        if context == MemContext::DEFAULT {
            tls::with_heap(&self.inner, f)
        } else {
            tls::with_named(&self.inner, context, f)
        }
    }
}

/// Looking at the heap, and after the dead.
impl ThreadLocalAllocator {
    /// The allocator's identity.
    #[must_use]
    pub fn id(&self) -> AllocatorId {
        self.inner.view.identity.id
    }

    /// What becomes of a dead process's blocks.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        self.inner.view.on_exit()
    }

    /// The backend under it.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        self.inner.view.backend()
    }

    /// The most that the segment can grow to, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.inner.view.geometry.capacity
    }

    /// How far the segment reaches now, in bytes.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        self.inner.view.refresh_limit()
    }

    /// Counts what is allocated, held and free.
    #[must_use]
    pub fn report(&self) -> HeapReport {
        census::report(&self.inner.view)
    }

    /// Walks the whole heap, follows every list, and names each invariant that is broken. On a heap
    /// that is in use, pages that do not hold still are looked at again.
    #[must_use]
    pub fn check(&self) -> CheckReport {
        check::check(&self.inner.view)
    }

    /// The processes that hold worker slots, each once, in ascending order.
    #[must_use]
    pub fn holders(&self) -> Vec<ProcessId> {
        let slots = self.inner.view.slots_in_use();
        let mut holders: Vec<_> = slots.map(|(_, word)| word.process()).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// Recovers every slot of `dead`, which has ended: operations that it was about are finished or
    /// undone, and its pages are left to the others or freed, as [`OnExit`] says. Does nothing if
    /// the process is found alive.
    ///
    /// It may be interrupted at any point and called again; of several callers, each slot is
    /// recovered by one. Nobody waits for it.
    #[must_use]
    pub fn recover(&self, dead: ProcessId) -> RecoveryReport {
        if dead.is_alive() {
            return RecoveryReport::default();
        }
        // Without a name of our own nobody could tell whether we are still at it.
        let Ok(by) = ProcessId::current() else { return RecoveryReport::default() };
        recover::recover_process(&self.inner.view, dead, by)
    }

    /// Looks for holders that have ended, and recovers them. For processes that share a segment
    /// without a daemon; all of them must live in one pid namespace.
    #[must_use]
    pub fn recover_dead(&self) -> RecoveryReport {
        let mut report = RecoveryReport::default();
        for process in self.holders() {
            report += self.recover(process);
        }
        report
    }
}

impl fmt::Debug for ThreadLocalAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadLocalAllocator")
            .field("id", &self.id())
            .field("backend", &self.inner.view.backend().kind())
            .field("capacity_bytes", &self.capacity_bytes())
            .finish_non_exhaustive()
    }
}
