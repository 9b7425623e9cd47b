//! Whichever allocator stands in a segment, for those who look after segments rather than allocate.

use std::ops::Deref;
#[cfg(unix)]
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{
    Allocator, AllocatorKind, ScalablePageAllocator, ShmAllocator, StackAllocator,
    ThreadLocalAllocator,
};
use crate::backend::Backend;
#[cfg(unix)]
use crate::backend::{BackendKind, BackendOptions, read_start};
use crate::error::{AllocError, SegmentError};
use crate::options::{HeapOptions, InitOptions, OnExit};
use crate::pointer::AllocatorId;
use crate::process::ProcessId;
use crate::report::{HeapReport, RecoveryReport, RepairReport};

/// An allocator of any kind that lives in its segment. It dereferences to the operations that all have.
///
/// # Examples
/// ```
/// use hshm_memory::{Allocator, AllocatorId, AllocatorKind, AnyAllocator, InitOptions};
/// # use hshm_memory::PosixShmMmap;
/// # let name = format!("hshm-doc-any.{}", std::process::id());
/// # let backend = std::sync::Arc::new(PosixShmMmap::create(&name, 1 << 20, 4 << 20, 0o600)?);
/// # PosixShmMmap::unlink(&name)?;
///
/// let (kind, id) = (AllocatorKind::ScalablePage, AllocatorId::new(0, 1));
/// AnyAllocator::shm_init(kind, id, backend.clone(), &InitOptions::default())?;
/// // In another process, which does not know what stands there:
/// let heap = AnyAllocator::shm_deserialize(backend)?;
/// assert_eq!((heap.kind(), heap.id()), (kind, id));
/// assert!(heap.check().is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum AnyAllocator {
    /// A heap for each thread.
    ThreadLocal(ThreadLocalAllocator),
    /// One table of pages.
    ScalablePage(ScalablePageAllocator),
    /// An arena.
    Stack(StackAllocator),
}

impl Deref for AnyAllocator {
    type Target = dyn Allocator;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::ThreadLocal(heap) => heap,
            Self::ScalablePage(heap) => heap,
            Self::Stack(heap) => heap,
        }
    }
}

impl AnyAllocator {
    /// Lays an allocator of this kind out in `backend`, whose bytes must be zero. What the options say
    /// of worker slots and of the blocks of the dead is for a thread-local one alone: the others have
    /// no slots, and keep the blocks.
    ///
    /// # Errors
    /// As [`ShmAllocator::shm_init`]; [`SegmentError::NotShared`] for a kind that lives in one process.
    pub fn shm_init(
        kind: AllocatorKind,
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &InitOptions,
    ) -> Result<Self, SegmentError> {
        let simple = HeapOptions { custom_header_bytes: options.custom_header_bytes };
        Ok(match kind {
            AllocatorKind::ThreadLocal => {
                Self::ThreadLocal(ThreadLocalAllocator::shm_init(id, backend, options)?)
            }
            AllocatorKind::ScalablePage => {
                Self::ScalablePage(ScalablePageAllocator::shm_init(id, backend, &simple)?)
            }
            AllocatorKind::Stack => Self::Stack(StackAllocator::shm_init(id, backend, &simple)?),
            AllocatorKind::Malloc => return Err(SegmentError::NotShared { kind }),
        })
    }

    /// Validates whichever allocator stands in `backend` and attaches to it.
    ///
    /// # Errors
    /// As [`ShmAllocator::shm_deserialize`].
    pub fn shm_deserialize(backend: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        Ok(match AllocatorKind::in_backend(&*backend) {
            Some(AllocatorKind::ScalablePage) => {
                Self::ScalablePage(ScalablePageAllocator::shm_deserialize(backend)?)
            }
            Some(AllocatorKind::Stack) => Self::Stack(StackAllocator::shm_deserialize(backend)?),
            // Which says what is wrong, if it is something else.
            Some(AllocatorKind::ThreadLocal | AllocatorKind::Malloc) | None => {
                Self::ThreadLocal(ThreadLocalAllocator::shm_deserialize(backend)?)
            }
        })
    }

    /// Maps the segment behind `file` over its whole capacity and attaches to whichever allocator
    /// stands in it.
    ///
    /// # Errors
    /// As [`AnyAllocator::shm_deserialize`], and [`SegmentError::Backend`] if the file is no shared
    /// memory of this kind.
    #[cfg(unix)]
    pub fn open_fd(kind: BackendKind, file: OwnedFd) -> Result<Self, SegmentError> {
        Self::open_fd_with(kind, file, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`AnyAllocator::open_fd`], and as [`BackendKind::open_fd_with`] if an option cannot be had.
    #[cfg(unix)]
    pub fn open_fd_with(
        kind: BackendKind,
        file: OwnedFd,
        options: &BackendOptions,
    ) -> Result<Self, SegmentError> {
        let capacity = super::segment_capacity(&file)?;
        Self::shm_deserialize(kind.open_fd_with(file, capacity, options)?)
    }

    /// The backend under it.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        match self {
            Self::ThreadLocal(heap) => heap.backend(),
            Self::ScalablePage(heap) => heap.segment().backend(),
            Self::Stack(heap) => heap.segment().backend(),
        }
    }

    /// The most that the segment can grow to, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        match self {
            Self::ThreadLocal(heap) => heap.capacity_bytes(),
            Self::ScalablePage(heap) => heap.capacity_bytes(),
            Self::Stack(heap) => heap.capacity_bytes(),
        }
    }

    /// How far the segment reaches now, in bytes.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        match self {
            Self::ThreadLocal(heap) => heap.committed_bytes(),
            Self::ScalablePage(heap) => heap.segment().refresh_limit(),
            Self::Stack(heap) => heap.segment().refresh_limit(),
        }
    }

    /// What becomes of a dead process's blocks.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        match self {
            Self::ThreadLocal(heap) => heap.on_exit(),
            Self::ScalablePage(_) | Self::Stack(_) => OnExit::Keep,
        }
    }

    /// Makes the segment at least `bytes` long, and returns its new length.
    ///
    /// # Errors
    /// [`AllocError::Backend`] beyond the capacity, or if there is no memory for tables.
    pub fn grow(&self, bytes: u64) -> Result<u64, AllocError> {
        match self {
            Self::ThreadLocal(heap) => heap.grow(bytes),
            Self::ScalablePage(heap) => heap.grow(bytes),
            Self::Stack(heap) => heap.grow(bytes),
        }
    }

    /// Counts what is allocated and free. Only a thread-local one has size classes, workers and
    /// operations to count.
    #[must_use]
    pub fn report(&self) -> HeapReport {
        match self {
            Self::ThreadLocal(heap) => heap.report(),
            Self::ScalablePage(heap) => heap.report(),
            Self::Stack(heap) => heap.report(),
        }
    }

    /// The processes that hold worker slots. Only a thread-local allocator knows its users.
    #[must_use]
    pub fn holders(&self) -> Vec<ProcessId> {
        match self {
            Self::ThreadLocal(heap) => heap.holders(),
            Self::ScalablePage(_) | Self::Stack(_) => Vec::new(),
        }
    }

    /// Recovers what `dead`, which has ended, held. Only worker slots are held for longer than an
    /// operation; what was interrupted, the next operation mends.
    #[must_use]
    pub fn recover(&self, dead: ProcessId) -> RecoveryReport {
        self.recover_some(dead, usize::MAX)
    }

    /// The same for `most` worker slots of `dead`: as long as it finds so many, there may be more.
    #[must_use]
    pub fn recover_some(&self, dead: ProcessId, most: usize) -> RecoveryReport {
        match self {
            Self::ThreadLocal(heap) => heap.recover_some(dead, most),
            Self::ScalablePage(_) | Self::Stack(_) => RecoveryReport::default(),
        }
    }

    /// Repairs what can be repaired without guessing, while nobody uses the segment. For a table of
    /// pages, everything that follows from the pages' headers is made anew; an arena has nothing that
    /// could be.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::repair`]; [`AllocError::Lock`].
    pub fn repair(&self) -> Result<RepairReport, AllocError> {
        match self {
            Self::ThreadLocal(heap) => heap.repair(),
            Self::ScalablePage(heap) => heap.repair(),
            Self::Stack(heap) => {
                Ok(RepairReport { remaining: heap.check(), ..RepairReport::default() })
            }
        }
    }
}

/// The capacity that the header of the segment in `file` claims; everything about it is validated
/// again once it is mapped.
#[cfg(unix)]
pub(crate) fn segment_capacity(file: &OwnedFd) -> Result<u64, SegmentError> {
    use std::os::fd::AsFd;

    use crate::backend::BackendError;

    let mut start = [0; 32];
    let read = read_start(file.as_fd(), &mut start)
        .map_err(|source| BackendError::System { what: "cannot read the segment", source })?;
    if read < start.len() {
        let found_bytes = read as u64;
        return Err(SegmentError::Truncated { found_bytes, needed_bytes: 4096 });
    }
    let word = |at: usize| {
        let bytes = start.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    let magic = word(0);
    let kind = AllocatorKind::of_magic(magic).ok_or(SegmentError::Foreign { found: magic })?;
    #[allow(clippy::cast_possible_truncation, reason = "the low half is the version")]
    let found = word(8) as u32;
    let supported = kind.layout_version();
    if found != supported {
        return Err(SegmentError::LayoutVersion { found, supported });
    }
    Ok(word(24))
}
