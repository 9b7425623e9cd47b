//! Blocks that a cell in shared memory names.

use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::allocator::{Allocator, MallocAllocator, ScalablePageAllocator, StackAllocator};
use crate::context::MemContext;
use crate::error::AllocError;
use crate::options::OnExit;
use crate::pointer::OffsetPointer;
use crate::sync::{AtomicU64, Ordering};

/// An allocator that stores a new block's offset in shared memory, and frees what is named there.
///
/// Collections keep their blocks in such cells: eight bytes, aligned to eight, in a block or in the
/// application's header. With [`ThreadLocalAllocator`] this is done exactly once across a death. With
/// the others a process that dies in between leaves a block that nobody knows, and nothing worse.
///
/// # Examples
/// ```
/// use hshm_memory::collections::CellAllocator;
/// # let heap = hshm_memory::doc_heap();
///
/// let cell = heap.allocate(8)?;
/// // SAFETY: it was just allocated, and is eight bytes long.
/// unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
/// let block = CellAllocator::allocate_into(&heap, cell, 100)?;
/// assert_eq!(heap.read_cell(cell)?, block);
/// // SAFETY: nobody uses the block.
/// assert!(unsafe { CellAllocator::free_from(&heap, cell)? });
/// assert!(heap.read_cell(cell)?.is_null());
/// # Ok::<(), hshm_memory::AllocError>(())
/// ```
pub trait CellAllocator: Allocator {
    /// Allocates `bytes` bytes, aligned to 16, and stores the block's offset in the cell at `cell`,
    /// which holds 0.
    ///
    /// # Errors
    /// [`AllocError::BadCell`] if `cell` is no such cell or not null, and as
    /// [`Allocator::allocate_offset`].
    fn allocate_into(
        &self,
        cell: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let word = cell_at(self, cell)?;
        let not_null = AllocError::BadCell {
            offset: cell.offset_bytes(),
            why: "it is not null, and what it names would be lost",
        };
        if word.load(Ordering::Relaxed) != 0 {
            return Err(not_null);
        }
        let block = self.allocate_offset(MemContext::DEFAULT, bytes)?;
        // Died here: the block is lost.
        // ORDER: Release pairs with the Acquire of who frees or reads it.
        let (order, relaxed) = (Ordering::Release, Ordering::Relaxed);
        if word.compare_exchange(0, block.offset_bytes(), order, relaxed).is_ok() {
            return Ok(block);
        }
        // SAFETY: [owned] it was just allocated, and nobody knows of it.
        unsafe { self.free_offset_no_null_check(MemContext::DEFAULT, block) }?;
        Err(not_null)
    }

    /// Frees the block that the cell at `cell` names and makes the cell null. False if it named
    /// none.
    ///
    /// # Safety
    /// If the cell names a block, it is one of this allocator that nobody uses any more.
    ///
    /// # Errors
    /// [`AllocError::BadCell`]; [`AllocError::NotAllocated`] if what the cell holds is no block's
    /// offset.
    unsafe fn free_from(&self, cell: OffsetPointer) -> Result<bool, AllocError> {
        let word = cell_at(self, cell)?;
        // ORDER: Acquire pairs with the Release of who stored it.
        let block = word.swap(0, Ordering::Acquire);
        if block == 0 {
            return Ok(false);
        }
        // Died here: the block is lost. The other way round it would be freed twice.
        let block = OffsetPointer::new(block);
        // SAFETY: the caller gives it up.
        match unsafe { self.free_offset_no_null_check(MemContext::DEFAULT, block) } {
            Ok(()) => Ok(true),
            Err(error) => {
                // The cell names it again, for whoever looks into this.
                word.store(block.offset_bytes(), Ordering::Release);
                Err(error)
            }
        }
    }

    /// Whether blocks stay when the process that allocated them ends.
    fn keeps_blocks(&self) -> bool {
        true
    }
}

fn cell_at<A: Allocator + ?Sized>(
    allocator: &A,
    cell: OffsetPointer,
) -> Result<&AtomicU64, AllocError> {
    let offset = cell.offset_bytes();
    let bad = |why| AllocError::BadCell { offset, why };
    let address = allocator.resolve(cell, 8);
    let address = address.map_err(|_| bad("it lies outside the allocator's memory"))?;
    if !address.addr().get().is_multiple_of(8) {
        return Err(bad("it is not aligned to 8 bytes"));
    }
    // SAFETY: [mapped] it was resolved, and is mapped as long as the allocator lives; [atomic] whoever
    // uses a cell does so as an atomic.
    Ok(unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) })
}

impl CellAllocator for ScalablePageAllocator {}
impl CellAllocator for StackAllocator {}
/// Its memory is this process's, and so are collections in it.
impl CellAllocator for MallocAllocator {}

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

    fn keeps_blocks(&self) -> bool {
        self.on_exit() == OnExit::Keep
    }
}
