//! Allocators inside a block of another.

use std::sync::Arc;

use super::state::Place;
use super::{ManagerError, MemoryManager};
use crate::allocator::ShmAllocator;
use crate::backend::{Backend, BackendSlice, MIN_ALIGN};
use crate::context::MemContext;
use crate::pointer::{AllocatorId, OffsetPointer};

/// The alignment of a sub-allocator's memory, where its parent's allows: that of a unit of the
/// thread-local allocator.
const ALIGN: usize = 64 << 10;

impl MemoryManager {
    /// Lays an allocator out in a block of the allocator `parent`, `size_bytes` long or up to a page
    /// longer, and registers it. The block is filled with zeros first.
    ///
    /// # Errors
    /// [`ManagerError::AllocatorExists`]; [`ManagerError::NoSuchAllocator`] for the parent;
    /// [`ManagerError::NoBackend`] if the parent has no memory of its own; and as
    /// [`Allocator::aligned_allocate_offset`](crate::Allocator::aligned_allocate_offset) and [`ShmAllocator::shm_init`].
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use hshm_memory::{
    ///     Allocator, AllocatorId, HeapOptions, MemContext, MemoryManager, StackAllocator, doc_heap,
    /// };
    ///
    /// let manager = MemoryManager::new();
    /// let heap = Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// let id = AllocatorId::new(0, 2);
    /// let options = HeapOptions::default();
    /// let arena = manager.create_sub_allocator::<StackAllocator>(heap.id(), id, 1 << 20, &options)?;
    /// let block = arena.allocate_offset(MemContext::DEFAULT, 100)?;
    /// let address = arena.resolve(block, 100)?;
    /// // The address lies in both; the innermost is found.
    /// assert_eq!(manager.find(address).map(|pointer| pointer.allocator), Some(id));
    /// drop(arena);
    /// // SAFETY: nobody uses the arena or its blocks any more.
    /// unsafe { manager.destroy_sub_allocator(id)? };
    /// assert_eq!(heap.report().allocated_bytes, 0);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn create_sub_allocator<A: ShmAllocator + 'static>(
        &self,
        parent: AllocatorId,
        id: AllocatorId,
        size_bytes: usize,
        options: &A::Options,
    ) -> Result<Arc<A>, ManagerError> {
        self.read(|state| state.vacant_allocator(id))?;
        let outer = self.allocator(parent)?;
        let whole = outer.backend().ok_or(ManagerError::NoBackend { id: parent })?;
        let size = size_bytes.max(1).checked_next_multiple_of(MIN_ALIGN).unwrap_or(usize::MAX);
        let align = ALIGN.min(whole.alignment());
        let offset = outer.aligned_allocate_offset(MemContext::DEFAULT, size, align)?;
        let made = (|| {
            let address = outer.resolve(offset, size)?;
            // SAFETY: [owned] the block was just allocated, and is so long.
            unsafe { address.write_bytes(0, size) };
            let slice = part(whole, offset, size)?;
            let allocator = Arc::new(A::shm_init(id, slice, options)?);
            self.insert_allocator(allocator.clone(), Place::Block { parent, offset })?;
            Ok(allocator)
        })();
        if made.is_err() {
            // SAFETY: [owned] nobody was told of the block.
            unsafe { outer.free_offset_no_null_check(MemContext::DEFAULT, offset) }?;
        }
        made
    }

    /// Attaches to the allocator in the block at `offset` of `parent`, which another process, or
    /// another manager, made there with `size_bytes`, and registers it.
    ///
    /// # Errors
    /// As [`MemoryManager::create_sub_allocator`], and [`ShmAllocator::shm_deserialize`].
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use hshm_memory::{AllocatorId, HeapOptions, MemoryManager, StackAllocator, doc_heap};
    ///
    /// let (manager, heap, id) = (MemoryManager::new(), Arc::new(doc_heap()), AllocatorId::new(0, 2));
    /// manager.register_allocator(heap.clone())?;
    /// let options = HeapOptions::default();
    /// manager.create_sub_allocator::<StackAllocator>(heap.id(), id, 1 << 20, &options)?;
    /// let (parent, offset) = manager.place_in_parent(id)?.ok_or(hshm_memory::ManagerError::NoDefault)?;
    /// // Usually in another process:
    /// let other = MemoryManager::new();
    /// other.register_allocator(heap.clone())?;
    /// other.attach_sub_allocator::<StackAllocator>(parent, offset, 1 << 20)?;
    /// assert_eq!(other.allocator(id)?.id(), id);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn attach_sub_allocator<A: ShmAllocator + 'static>(
        &self,
        parent: AllocatorId,
        offset: OffsetPointer,
        size_bytes: usize,
    ) -> Result<Arc<A>, ManagerError> {
        let outer = self.allocator(parent)?;
        let whole = outer.backend().ok_or(ManagerError::NoBackend { id: parent })?;
        let size = size_bytes.max(1).checked_next_multiple_of(MIN_ALIGN).unwrap_or(usize::MAX);
        outer.resolve(offset, size)?;
        let allocator = Arc::new(A::shm_deserialize(part(whole, offset, size)?)?);
        self.insert_allocator(allocator.clone(), Place::Block { parent, offset })?;
        Ok(allocator)
    }

    /// Where the memory of a sub-allocator begins in its parent, for
    /// [`MemoryManager::attach_sub_allocator`]; `None` for an allocator that is none.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`].
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use hshm_memory::{AllocatorId, HeapOptions, MemoryManager, StackAllocator, doc_heap};
    ///
    /// let (manager, heap, id) = (MemoryManager::new(), Arc::new(doc_heap()), AllocatorId::new(0, 2));
    /// manager.register_allocator(heap.clone())?;
    /// let options = HeapOptions::default();
    /// manager.create_sub_allocator::<StackAllocator>(heap.id(), id, 1 << 20, &options)?;
    /// assert_eq!(manager.place_in_parent(id)?.map(|(parent, _)| parent), Some(heap.id()));
    /// assert_eq!(manager.place_in_parent(heap.id())?, None);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn place_in_parent(
        &self,
        id: AllocatorId,
    ) -> Result<Option<(AllocatorId, OffsetPointer)>, ManagerError> {
        self.read(|state| {
            Ok(match state.allocator(id)?.place {
                Place::Block { parent, offset } => Some((parent, offset)),
                Place::Own | Place::Backend(_) => None,
            })
        })
    }

    /// Forgets a sub-allocator and gives its memory back to its parent, with all its blocks.
    ///
    /// # Safety
    /// Nobody uses the sub-allocator or a block of it any more, in any process.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`]; [`ManagerError::InUse`] if another stands in a block of it;
    /// [`ManagerError::Alloc`] if the parent refuses the memory.
    ///
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use hshm_memory::{AllocatorId, HeapOptions, MemoryManager, StackAllocator, doc_heap};
    ///
    /// let (manager, heap, id) = (MemoryManager::new(), Arc::new(doc_heap()), AllocatorId::new(0, 2));
    /// manager.register_allocator(heap.clone())?;
    /// let options = HeapOptions::default();
    /// manager.create_sub_allocator::<StackAllocator>(heap.id(), id, 1 << 20, &options)?;
    /// // SAFETY: nobody uses the arena or a block of it.
    /// unsafe { manager.destroy_sub_allocator(id)? };
    /// assert_eq!(heap.report().allocated_bytes, 0);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub unsafe fn destroy_sub_allocator(&self, id: AllocatorId) -> Result<(), ManagerError> {
        let place = self.place_in_parent(id)?;
        drop(self.remove_allocator(id)?);
        if let Some((parent, offset)) = place {
            let outer = self.allocator(parent)?;
            // SAFETY: the caller promises that nobody uses the block.
            unsafe { outer.free_offset_no_null_check(MemContext::DEFAULT, offset) }?;
        }
        Ok(())
    }
}

/// The part of a backend that a block is.
fn part(
    whole: &Arc<dyn Backend>,
    offset: OffsetPointer,
    size: usize,
) -> Result<Arc<dyn Backend>, ManagerError> {
    let start = offset.offset_bytes();
    let end = start.saturating_add(size as u64);
    Ok(Arc::new(BackendSlice::new(Arc::clone(whole), start..end)?))
}
