//! Blocks that a cell in shared memory names, and that no death loses.

use crate::allocator::Allocator;
use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::error::AllocError;
use crate::pointer::OffsetPointer;

/// An allocator that stores a new block's offset in shared memory, and frees what is named there.
///
/// Collections keep their blocks in such cells. Whether a process that is killed meanwhile can lose
/// a block, each allocator says.
pub trait CellAllocator: Allocator {
    /// Allocates `bytes` bytes, aligned to 16, and stores the block's offset in the cell at `cell`,
    /// which holds 0.
    ///
    /// # Errors
    /// [`AllocError::BadCell`] if `cell` is no such cell or not null, and as
    /// [`Allocator::allocate_offset`].
    fn allocate_into(&self, cell: OffsetPointer, bytes: usize)
    -> Result<OffsetPointer, AllocError>;

    /// Frees the block that the cell at `cell` names and makes the cell null. False if it named
    /// none.
    ///
    /// # Safety
    /// If the cell names a block, it is one of this allocator that nobody uses any more.
    ///
    /// # Errors
    /// [`AllocError::BadCell`]; [`AllocError::NotAllocated`] if what the cell holds is no block's
    /// offset.
    unsafe fn free_from(&self, cell: OffsetPointer) -> Result<bool, AllocError>;
}

/// Exactly once across a death: after recovery the cell names the block, or the block is free.
impl CellAllocator for ThreadLocalAllocator {
    fn allocate_into(
        &self,
        cell: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.allocate_into(cell, bytes)
    }

    unsafe fn free_from(&self, cell: OffsetPointer) -> Result<bool, AllocError> {
        // SAFETY: the caller promises the same.
        unsafe { self.free_from(cell) }
    }
}
