//! What an allocator must be able to do for a [`Segment`](crate::Segment) of it.

use hshm_memory::{
    AllocError, MemContext, OffsetPointer, ProcessId, ScalablePageAllocator, SegmentError,
    ShmAllocator, StackAllocator, ThreadLocalAllocator,
};

mod sealed {
    pub trait Sealed {}

    impl Sealed for hshm_memory::ThreadLocalAllocator {}
    impl Sealed for hshm_memory::ScalablePageAllocator {}
    impl Sealed for hshm_memory::StackAllocator {}
}

/// An allocator that a daemon serves: a thread-local one, one with a table of pages, or an arena.
///
/// Each operation goes straight to the allocator, whose own ones are to be preferred where it is known.
pub trait SegmentAllocator: ShmAllocator + Clone + sealed::Sealed {
    /// The most that the segment can grow to, in bytes.
    fn capacity_bytes(&self) -> u64;

    /// The size of the allocated block at `pointer`.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] where no block begins, as far as can be told.
    fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError>;

    /// Allocates as the calling thread.
    ///
    /// # Errors
    /// As [`Allocator::allocate_offset`](hshm_memory::Allocator::allocate_offset).
    fn allocate(&self, bytes: usize) -> Result<OffsetPointer, AllocError> {
        self.allocate_offset(MemContext::DEFAULT, bytes)
    }

    /// Says under which number the daemon sees this process, where that is not its own.
    #[doc(hidden)]
    fn be_known_as(&self, _: ProcessId) -> Result<(), SegmentError> {
        Ok(())
    }

    /// Gives back what the calling thread holds of the segment, apart from blocks.
    #[doc(hidden)]
    fn let_go(&self) {}
}

impl SegmentAllocator for ThreadLocalAllocator {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes()
    }

    fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError> {
        self.usable_bytes(pointer)
    }

    #[inline]
    fn allocate(&self, bytes: usize) -> Result<OffsetPointer, AllocError> {
        self.allocate(bytes)
    }

    fn be_known_as(&self, identity: ProcessId) -> Result<(), SegmentError> {
        self.set_identity(identity);
        Ok(())
    }

    fn let_go(&self) {
        self.detach_thread();
    }
}

impl SegmentAllocator for ScalablePageAllocator {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes()
    }

    fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError> {
        self.usable_bytes(pointer)
    }

    /// Its lock names threads as the processes that wait for it know them.
    fn be_known_as(&self, _: ProcessId) -> Result<(), SegmentError> {
        Err(SegmentError::PidNamespace { kind: hshm_memory::AllocatorKind::ScalablePage })
    }
}

/// It names nobody, so that it does not matter who knows this process under which number.
impl SegmentAllocator for StackAllocator {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes()
    }

    fn usable_bytes(&self, pointer: OffsetPointer) -> Result<usize, AllocError> {
        self.usable_bytes(pointer)
    }
}
