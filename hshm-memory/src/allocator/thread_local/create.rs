//! Creating and attaching.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::geometry::{Geometry, HEADER_BYTES, Identity};
use super::layout::{MAGIC, UNIT_BYTES};
use super::view::{View, header_at};
use super::words::{self, SlotWord};
use super::{Inner, ThreadLocalAllocator, tls, units};
use crate::backend::{Backend, PosixShmMmap};
use crate::error::{AllocError, SegmentError};
use crate::manager::InitBackend;
use crate::options::InitOptions;
use crate::pointer::AllocatorId;
use crate::process::ProcessId;

impl ThreadLocalAllocator {
    /// Lays an allocator with the identity `id` out in `backend`, whose bytes must be zero.
    ///
    /// The segment's own tables take about 0.2 % of the capacity and 1.3 KiB for each worker slot; a worker that
    /// goes on allocating takes 64 KiB more for its cache.
    /// The backend is grown by as much, if its capacity allows, so that the size it was created
    /// with remains for blocks.
    ///
    /// # Errors
    /// [`SegmentError::Exists`] if an allocator stands there already,
    /// [`SegmentError::BadOption`] for options out of range, [`SegmentError::Truncated`] if the
    /// capacity is too small for the tables and one unit, [`SegmentError::Backend`] if there is no
    /// memory for them.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, OnExit, ThreadLocalAllocator};
    /// let backend = Arc::new(MemfdMmap::create("example", 16 << 20, 64 << 20)?);
    /// let options = InitOptions { on_exit: OnExit::Reclaim, ..InitOptions::default() };
    /// let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options)?;
    /// assert_eq!(heap.id(), AllocatorId::new(0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shm_init(
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &InitOptions,
    ) -> Result<Self, SegmentError> {
        let geometry = Geometry::compute(backend.capacity_bytes(), options)?;
        let size = backend.committed_bytes().next_multiple_of(UNIT_BYTES);
        let committed = size.saturating_add(geometry.metadata_bytes()).min(geometry.capacity);
        backend.grow(committed)?;
        backend.populate(0..geometry.tags)?;
        let identity = Identity { id, on_exit: options.on_exit };
        let committed_bytes = backend.committed_bytes();
        let view = View::new(backend, geometry, identity, committed_bytes);
        if view.header().magic.load(crate::sync::Ordering::Acquire) == MAGIC {
            return Err(SegmentError::Exists);
        }
        view.populate_tables(geometry.first_unit, view.units())?;
        units::rebuild_hints(&view);
        let header = view.header();
        geometry.store(header, identity);
        header.committed.store(view.limit(), crate::sync::Ordering::Relaxed);
        let keeps_memory = u64::from(!view.backend().gives_back());
        header.keeps_memory.store(keeps_memory, crate::sync::Ordering::Relaxed);
        // Died here: nobody takes it for a segment; a daemon removes it by its record.
        crate::crash_point!("segment.without_magic");
        // ORDER: Release: whoever sees the magic sees all of the above.
        header.magic.store(MAGIC, crate::sync::Ordering::Release);
        Ok(Self::over(view))
    }

    /// Validates the allocator that stands in `backend` and attaches to it.
    ///
    /// # Errors
    /// [`SegmentError::Truncated`], [`SegmentError::Foreign`], [`SegmentError::LayoutVersion`] or
    /// [`SegmentError::Corrupt`], by what was found.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{doc_heap, ThreadLocalAllocator};
    /// # let heap = doc_heap();
    /// let again = ThreadLocalAllocator::shm_deserialize(heap.backend().clone())?;
    /// let block = heap.allocate(100)?;
    /// // SAFETY: the block is ours, and freed once.
    /// unsafe { again.free(block)? };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        Ok(Self::over(View::new(backend, geometry, identity, found_bytes)))
    }

    /// Attaches to the named segment `name` without a daemon.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::shm_deserialize`], and [`SegmentError::Backend`] if there is no
    /// such segment, or it cannot be opened.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{memory_manager, AllocatorId, InitOptions, MemoryBackendId, PosixShmMmap, ThreadLocalAllocator};
    ///
    /// let name = format!("attach-example.{}", std::process::id());
    /// let id = MemoryBackendId::new(1);
    /// memory_manager().create_backend::<PosixShmMmap>(id, &name, 16 << 20)?;
    /// memory_manager().create_allocator::<ThreadLocalAllocator>(id, AllocatorId::new(1, 1), &InitOptions::default())?;
    /// // In the same process or another:
    /// let heap = ThreadLocalAllocator::attach(&name)?;
    /// assert_eq!(heap.id(), AllocatorId::new(1, 1));
    /// PosixShmMmap::unlink(&name)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, ThreadLocalAllocator};
    /// # let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 64 << 20)?);
    /// # let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &InitOptions::default())?;
    /// assert!(heap.allocate(4 << 20).is_err());
    /// heap.grow(16 << 20)?;
    /// heap.allocate(4 << 20)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow(&self, bytes: u64) -> Result<u64, AllocError> {
        let view = &*self.inner.view;
        view.refresh_limit();
        let before = view.units();
        let rounded = bytes.checked_next_multiple_of(UNIT_BYTES).unwrap_or(u64::MAX);
        if rounded <= view.geometry.capacity {
            view.populate_tables(before, words::unit_of(rounded))?;
        }
        // Died here: the tables reach further than the segment, which nobody sees. In the other order
        // others would look at tables without memory behind them, which a full machine may not have.
        crate::crash_point!("grow.tables_ready");
        view.backend().grow(rounded)?;
        // Died here: who finds no room makes the units known, or who grows or recovers the segment.
        crate::crash_point!("grow.extended");
        let committed = view.refresh_limit();
        units::know_grown(view);
        Ok(committed)
    }
}
