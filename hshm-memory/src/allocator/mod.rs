//! Allocators: what cuts a backend into blocks.

mod any;
mod contexts;
mod malloc;
mod scalable_page;
mod segment;
mod stack;
pub(crate) mod thread_local;

use std::fmt;
use std::ptr::NonNull;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::any::AnyAllocator;
#[cfg(unix)]
pub(crate) use self::any::segment_capacity;
pub use self::malloc::MallocAllocator;
pub use self::scalable_page::ScalablePageAllocator;
pub use self::stack::StackAllocator;
use self::thread_local::ThreadLocalAllocator;
use crate::backend::Backend;
use crate::context::MemContext;
use crate::error::{AllocError, SegmentError};
use crate::options::UnknownName;
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::CheckReport;
use crate::sync::{AtomicU64, Ordering};

/// What every allocator does, whichever way it does it.
///
/// A block is named by its offset from the beginning of the allocator's memory, which means the
/// same in each process that has the memory mapped.
///
/// # Safety
/// An implementation promises that a block which it hands out lies in its memory, is as long and as
/// aligned as was asked for, and overlaps no other block that is allocated; and that
/// [`Allocator::resolve`] answers only addresses that stay valid as long as the allocator lives.
pub unsafe trait Allocator: Send + Sync + fmt::Debug {
    /// Which implementation this is.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// use hshm_memory::AllocatorKind;
    /// assert_eq!(Allocator::kind(&heap), AllocatorKind::ThreadLocal);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn kind(&self) -> AllocatorKind;

    /// The allocator's identity.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// use hshm_memory::AllocatorId;
    /// assert_eq!(Allocator::id(&heap), AllocatorId::new(0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn id(&self) -> AllocatorId;

    /// The memory under it; `None` for an allocator that takes its memory elsewhere.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// assert!(Allocator::backend(&heap).is_some());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn backend(&self) -> Option<&Arc<dyn Backend>>;

    /// Where the application's own header stands, and its length in bytes. It was zeroed when the
    /// allocator was made, and the allocator never touches it.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::Allocator;
    /// use hshm_memory::{AllocatorId, HeapOptions, MallocAllocator};
    /// let options = HeapOptions { custom_header_bytes: 64 };
    /// let heap = MallocAllocator::new(AllocatorId::new(0, 1), &options)?;
    /// let (header, len) = heap.custom_header();
    /// // SAFETY: the header is the application's.
    /// unsafe { heap.resolve(header, len)?.write_bytes(7, len) };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn custom_header(&self) -> (OffsetPointer, usize);

    /// Allocates `bytes` bytes (none counts as one), aligned to 16, as the thread that `context`
    /// names.
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`] if no room is left, [`AllocError::TooLarge`] if there never
    /// could be, [`AllocError::BadContext`] for a context that is not of this allocator; others as
    /// the implementation says.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// assert!(!block.is_null());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError>;

    /// The same, at a multiple of `align`.
    ///
    /// # Errors
    /// [`AllocError::BadAlignment`] if `align` is no power of two or beyond what the memory's own
    /// alignment allows, and as [`Allocator::allocate_offset`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let block = heap.aligned_allocate_offset(MemContext::DEFAULT, 100, 4096)?;
    /// assert!(block.offset_bytes().is_multiple_of(4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn aligned_allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError>;

    /// Makes the block at `pointer`, which is not null, `bytes` long, where it stands if possible,
    /// and returns where it is then, aligned to 16. Its contents are kept, up to the smaller of
    /// both sizes. On an error the block stays as it was. A block that is to be smaller stays where
    /// there is no room to move it, perhaps longer than asked for: that is no error.
    ///
    /// # Safety
    /// As [`Allocator::free_offset_no_null_check`]; the old offset is not used any more if another
    /// is returned.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] where it can be told that no block begins there, and as
    /// [`Allocator::allocate_offset`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// // SAFETY: the block is ours; its old offset is not used any more.
    /// let block = unsafe { heap.reallocate_offset_no_null_check(MemContext::DEFAULT, block, 5000)? };
    /// assert!(heap.resolve(block, 5000).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    unsafe fn reallocate_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError>;

    /// Frees the block at `pointer`, which is not null.
    ///
    /// # Safety
    /// `pointer` is a block of this allocator that is allocated, and nobody uses it any more.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] where it can be told that no block begins there; which mistakes
    /// can be told, each implementation says.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// // SAFETY: nobody uses the block any more.
    /// unsafe { heap.free_offset_no_null_check(MemContext::DEFAULT, block)? };
    /// // SAFETY: null is no block, which is found out.
    /// unsafe { heap.free_offset_no_null_check(MemContext::DEFAULT, OffsetPointer::NULL).unwrap_err() };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    unsafe fn free_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<(), AllocError>;

    /// Claims storage that no thread uses by itself, unique over all processes, for operations that
    /// are given the context returned. Threads that use it at once wait for one another.
    ///
    /// # Errors
    /// [`AllocError::NoWorkerSlot`] if no more can be had.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let context = heap.create_tls()?;
    /// let block = heap.allocate_offset(context, 100)?;
    /// // SAFETY: nobody uses the block any more.
    /// unsafe { heap.free_offset_no_null_check(context, block)? };
    /// heap.free_tls(context)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn create_tls(&self) -> Result<MemContext, AllocError>;

    /// Gives back what [`Allocator::create_tls`] claimed.
    ///
    /// # Errors
    /// [`AllocError::BadContext`] if the context names no such storage.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let context = heap.create_tls()?;
    /// heap.free_tls(context)?;
    /// assert!(heap.allocate_offset(context, 100).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn free_tls(&self, context: MemContext) -> Result<(), AllocError>;

    /// The address, in this process, of the `len` bytes at `pointer`. They are shared: read and
    /// write them as the block's owner, or as atomics.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] if they do not all lie in the allocator's memory, after its
    /// header.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// let address = Allocator::resolve(&heap, block, 100)?;
    /// // SAFETY: the block is ours and at least 100 bytes long.
    /// unsafe { address.write_bytes(7, 100) };
    /// assert!(Allocator::resolve(&heap, OffsetPointer::NULL, 1).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn resolve(&self, pointer: OffsetPointer, len: usize) -> Result<NonNull<u8>, AllocError>;

    /// The offset of an address in this process that lies in the allocator's memory; `None` for any
    /// other.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// let address = heap.resolve(block, 100)?;
    /// assert_eq!(Allocator::offset_of(&heap, address), Some(block));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn offset_of(&self, address: NonNull<u8>) -> Option<OffsetPointer>;

    /// Bytes in blocks that are allocated now, each counted as long as it really is: 0 once
    /// everything was freed. For leak checks; it may take a walk over the whole heap.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// assert_eq!(heap.allocated_bytes(), 0);
    /// let block = heap.allocate_offset(MemContext::DEFAULT, 100)?;
    /// assert!(heap.allocated_bytes() >= 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn allocated_bytes(&self) -> u64;

    /// Walks all there is and names each invariant that is broken.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{Allocator, MemContext, OffsetPointer};
    /// # let heap = hshm_memory::doc_heap();
    /// let report = Allocator::check(&heap);
    /// assert!(report.is_clean(), "{:?}", report.violations);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn check(&self) -> CheckReport;
}

/// An allocator that lives in its backend's own bytes, so that others can attach to it.
pub trait ShmAllocator: Allocator + Sized {
    /// What it is told at creation besides its identity.
    type Options: Default;

    /// Lays an allocator with the identity `id` out in `backend`, whose bytes must be zero.
    ///
    /// # Errors
    /// [`SegmentError::Exists`] if an allocator stands there already, [`SegmentError::BadOption`]
    /// for options out of range, [`SegmentError::Truncated`] if there is too little memory.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, HeapOptions, PosixShmMmap, ScalablePageAllocator, ShmAllocator};
    /// # let name = format!("hshm-doc-init.{}", std::process::id());
    /// # let backend = Arc::new(PosixShmMmap::create(&name, 1 << 20, 4 << 20, 0o600)?);
    /// # PosixShmMmap::unlink(&name)?;
    /// let id = AllocatorId::new(0, 1);
    /// let heap = ScalablePageAllocator::shm_init(id, backend, &HeapOptions::default())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn shm_init(
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &Self::Options,
    ) -> Result<Self, SegmentError>;

    /// Validates the allocator that stands in `backend` and attaches to it.
    ///
    /// # Errors
    /// [`SegmentError::Truncated`], [`SegmentError::Foreign`], [`SegmentError::LayoutVersion`] or
    /// [`SegmentError::Corrupt`], by what was found.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, HeapOptions, PosixShmMmap, ScalablePageAllocator, ShmAllocator};
    /// # let name = format!("hshm-doc-attach.{}", std::process::id());
    /// # let backend = Arc::new(PosixShmMmap::create(&name, 1 << 20, 4 << 20, 0o600)?);
    /// # PosixShmMmap::unlink(&name)?;
    /// # let options = HeapOptions::default();
    /// let id = AllocatorId::new(0, 1);
    /// ScalablePageAllocator::shm_init(id, backend.clone(), &options)?;
    /// // In another process, over the same memory:
    /// let heap = ScalablePageAllocator::shm_deserialize(backend)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn shm_deserialize(backend: Arc<dyn Backend>) -> Result<Self, SegmentError>;

    /// Maps the segment behind `file` over its whole capacity and attaches to it.
    ///
    /// # Errors
    /// As [`ShmAllocator::shm_deserialize`], and [`SegmentError::Backend`] if the file is no shared
    /// memory of this kind.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use hshm_memory::{AllocatorId, HeapOptions, ShmAllocator, StackAllocator};
    /// use hshm_memory::{Allocator, Backend, BackendKind, MemfdMmap};
    ///
    /// let backend = Arc::new(MemfdMmap::create("example", 1 << 20, 4 << 20)?);
    /// # let id = AllocatorId::new(0, 1);
    /// # StackAllocator::shm_init(id, backend.clone(), &HeapOptions::default())?;
    /// let file = backend.fd().ok_or("no file")?.try_clone_to_owned()?;
    /// // In another process, which got the file:
    /// let arena = <StackAllocator as ShmAllocator>::open_fd(BackendKind::Memfd, file)?;
    /// assert_eq!(arena.id(), id);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(unix)]
    fn open_fd(
        kind: crate::backend::BackendKind,
        file: std::os::fd::OwnedFd,
    ) -> Result<Self, SegmentError> {
        let capacity = segment_capacity(&file)?;
        Self::shm_deserialize(kind.open_fd(file, capacity)?)
    }
}

/// A kind of allocator, by the name that users write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AllocatorKind {
    /// A heap for each thread of each process, with lock-free frees between them.
    #[default]
    ThreadLocal,
    /// One table of free pages for all, under a lock that survives its holder.
    ScalablePage,
    /// A bump pointer: what is allocated is mostly freed all at once.
    Stack,
    /// The process's own malloc; not shared.
    Malloc,
}

impl AllocatorKind {
    /// The integer that stands for it in a segment.
    const fn to_u32(self) -> u32 {
        match self {
            Self::Malloc => 1,
            Self::ScalablePage => 2,
            Self::ThreadLocal => thread_local::KIND,
            Self::Stack => 4,
        }
    }

    /// The version of the segments that this library writes and reads.
    #[cfg(unix)]
    const fn layout_version(self) -> u32 {
        match self {
            Self::ThreadLocal => thread_local::LAYOUT_VERSION,
            Self::ScalablePage => scalable_page::LAYOUT_VERSION,
            Self::Stack => stack::LAYOUT_VERSION,
            Self::Malloc => 0,
        }
    }

    /// The kind of the allocator that stands in `backend`, by its first bytes; `None` if there is
    /// none. Whether it is whole, attaching to it finds out.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Allocator, AllocatorKind, doc_heap};
    ///
    /// let kind = AllocatorKind::in_backend(&**doc_heap().backend());
    /// assert_eq!(kind, Some(AllocatorKind::ThreadLocal));
    /// ```
    #[must_use]
    pub fn in_backend(backend: &dyn Backend) -> Option<Self> {
        if backend.committed_bytes() < 8 {
            return None;
        }
        let address = backend.base().cast::<u64>();
        // SAFETY: [mapped] the first bytes are there, and a backend's beginning is aligned; [atomic]
        // they are read as an atomic, which all write them as.
        let magic = unsafe { AtomicU64::from_ptr(address.as_ptr()) };
        // ORDER: Acquire pairs with the Release at the end of shm_init.
        Self::of_magic(magic.load(Ordering::Acquire))
    }

    /// What is wrong with a segment that begins with `magic` and was to be one of this kind.
    fn not_found(self, magic: u64) -> SegmentError {
        match Self::of_magic(magic) {
            Some(found) if found != self => SegmentError::OtherAllocator { found, wanted: self },
            Some(_) | None => SegmentError::Foreign { found: magic },
        }
    }

    /// The kind whose segments begin with `magic`.
    fn of_magic(magic: u64) -> Option<Self> {
        match magic {
            thread_local::MAGIC => Some(Self::ThreadLocal),
            scalable_page::MAGIC => Some(Self::ScalablePage),
            stack::MAGIC => Some(Self::Stack),
            _ => None,
        }
    }
}

impl fmt::Display for AllocatorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ThreadLocal => "thread-local",
            Self::ScalablePage => "scalable-page",
            Self::Stack => "stack",
            Self::Malloc => "malloc",
        })
    }
}

impl FromStr for AllocatorKind {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "thread-local" => Ok(Self::ThreadLocal),
            "scalable-page" => Ok(Self::ScalablePage),
            "stack" => Ok(Self::Stack),
            "malloc" => Ok(Self::Malloc),
            other => Err(UnknownName {
                what: "allocator",
                found: other.to_owned(),
                expected: "thread-local, scalable-page, stack or malloc",
            }),
        }
    }
}
