//! Shared memory that many processes allocate from, and that survives the death of any of them.
//!
//! A *segment* is a range of shared memory that describes itself: whoever may open it can attach,
//! allocate, free, and look after what dead processes left, with this library and without asking
//! anybody. Start with [`ThreadLocalAllocator`].
//!
//! # The map of a segment
//!
//! ```text
//! 0        header            magic, layout version, geometry, checksum
//! 4 KiB    custom header     the application's own
//!          slot words        one per worker slot: which process holds it
//!          free bits         one per unit: may be free         (a hint; two levels)
//!          adoptable bits    one per unit: may be worth adopting          (a hint)
//!          tags              one per unit: what it is, and whose
//!          slots             one per worker: journal, counters, bins
//!          descriptors       one per unit: the page's lists
//!          units             64 KiB each: pages of blocks, and runs that are one large block
//! committed ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄  the file ends here; growing moves it
//! capacity                   every process's address range ends here
//! ```
//!
//! A page is one unit (blocks to 8 KiB) or eight (to 64 KiB), cut into blocks of one size class.
//! A worker takes small blocks from its *cache* and puts those that it frees there, whatever pages
//! they are of, with a load and a store; the cache stands in a unit of the segment, so that it is
//! recovered with its worker. Beyond that, the worker that owns a page allocates from it and frees to
//! it likewise; others free to it with one compare-and-swap. A page without free blocks is given up,
//! and becomes the property of whoever first frees a block of it.
//!
//! # Invariants
//!
//! Code cites them by number, and [`ThreadLocalAllocator::check`] asserts them.
//!
//! - **I1** A unit is what its tag says, and its owner's. Only the owner changes the tag of an owned
//!   unit, except that anybody may turn an allocated run into a run in transit of its own, to free
//!   it. An unowned unit or page changes hands by one compare-and-swap. An owner is a slot in use.
//! - **I2** The units of a page or run that are not its first belong to it as long as the first says
//!   so. No body stands without a head, save one whose head its owner is making or unmaking.
//! - **I3** A block of a page is below the page's carved count and on one list of the page, in its map
//!   of purged blocks, or in one cache, once, or in none of them and allocated; or it is beyond the
//!   carved count and in none, save that an owner who cuts or forgets blocks of its page may have some in
//!   its cache for that moment. A list is as long as its first word says, the blocks that its blocks name
//!   included. Memory stands behind all but purged blocks and those beyond the carved count.
//! - **I4** A bin's list is of one page, which the bin's slot owns; a page's list is of that page; a
//!   cache has blocks of pages of their class, under [`OnExit::Reclaim`] of its own slot's.
//! - **I5** A slot is nobody's, or names the process that holds, keeps or recovers it.
//! - **I6** Whatever the holder of a slot was about when it died, the slot's journal, its bins, and
//!   the tags and lists of its units say enough to finish or undo it; doing so may be interrupted
//!   and begun again.
//! - **I7** Nothing read from a segment is followed before it is checked: geometry is validated once
//!   and kept privately; an offset from a list is used only after its page or its bounds were
//!   compared. A process reads and writes only inside the segment, whatever the others do.

mod allocator;
pub mod backend;
pub mod collections;
mod context;
#[doc(hidden)]
pub mod crash;
mod error;
pub mod gpu;
mod local_alloc;
mod manager;
mod options;
mod platform;
mod pointer;
mod process;
#[cfg(unix)]
mod read_only;
pub mod report;
pub mod robust;
mod sync;
pub mod thread_model;
mod typed;

pub use allocator::thread_local::{LAYOUT_VERSION, ThreadLocalAllocator};
pub use allocator::{
    Allocator, AllocatorKind, AnyAllocator, MallocAllocator, ScalablePageAllocator, ShmAllocator,
    StackAllocator,
};
pub use backend::{
    ArrayBackend, Backend, BackendError, BackendKind, BackendOptions, BackendSlice, MallocBackend,
    MemfdMmap, PosixMmapBackend, PosixShmMmap,
};
#[cfg(unix)]
pub use backend::{CudaShmMmap, FileMmap, RocmShmMmap};
pub use context::MemContext;
pub use error::{AllocError, SegmentError};
pub use local_alloc::LocalAlloc;
pub use manager::{InitBackend, ManagerError, MemoryBackendId, MemoryManager, memory_manager};
pub use options::{HeapOptions, InitOptions, OnExit, UnknownName};
pub use pointer::{AllocatorId, FullPtr, OffsetPointer, Pointer};
pub use process::ProcessId;
#[cfg(unix)]
pub use read_only::ReadOnlySegment;
pub use report::{CheckReport, HeapReport, RecoveryReport, RepairReport};
pub use typed::{ShmBox, TypedAllocator};

/// A heap for the examples in this crate's documentation.
#[doc(hidden)]
#[must_use]
#[allow(clippy::missing_panics_doc, reason = "an example that cannot go on fails")]
#[allow(clippy::unwrap_used, reason = "an example that cannot go on fails")]
pub fn doc_heap() -> ThreadLocalAllocator {
    let backend = std::sync::Arc::new(backend::scratch("example", 16 << 20, 16 << 20).unwrap());
    ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &InitOptions::default())
        .unwrap()
}
