//! The operations that every allocator has, which name the worker's slot.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::size_class::GRANULE_BYTES;
use super::{ThreadLocalAllocator, tls};
use crate::allocator::{Allocator, AllocatorKind, ShmAllocator};
use crate::backend::Backend;
use crate::context::MemContext;
use crate::error::{AllocError, SegmentError};
use crate::options::InitOptions;
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::CheckReport;

// SAFETY: [owned] a block is popped from a page that belongs to the caller's slot, or is a run of
// units that the caller claimed, so no other has it (I1, I3); both are cut as long and as aligned as
// asked for; [mapped] `resolve` checks bounds against the mapping, which lives as long as the view.
unsafe impl Allocator for ThreadLocalAllocator {
    fn kind(&self) -> AllocatorKind {
        AllocatorKind::ThreadLocal
    }

    fn id(&self) -> AllocatorId {
        self.id()
    }

    fn backend(&self) -> Option<&Arc<dyn Backend>> {
        Some(self.backend())
    }

    fn custom_header(&self) -> (OffsetPointer, usize) {
        self.custom_header()
    }

    fn allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.aligned_allocate_offset(context, bytes, GRANULE_BYTES)
    }

    fn aligned_allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let align = if align.is_power_of_two() { align.max(GRANULE_BYTES) } else { align };
        self.allocate_slow(context, bytes, align)
    }

    unsafe fn reallocate_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let offset = pointer.offset_bytes();
        let (in_place, old_bytes) = self.with_context(context, |heap| {
            Ok((heap.resize(offset, bytes)?, heap.usable_bytes(offset)?))
        })?;
        if in_place {
            return Ok(pointer);
        }
        let kept = usize::try_from(old_bytes).unwrap_or(usize::MAX).min(bytes);
        let new = match self.allocate_offset(context, bytes) {
            Ok(new) => new,
            // Where there is no room for a smaller block, it stays where it is.
            Err(_) if bytes as u64 <= old_bytes => {
                self.with_context(context, |heap| heap.cut(offset, bytes))?;
                return Ok(pointer);
            }
            Err(error) => return Err(error),
        };
        let (from, to) = (self.resolve(pointer, kept)?, self.resolve(new, kept)?);
        // SAFETY: [mapped] both ranges were resolved; [owned] both blocks are the caller's. Where
        // somebody scribbled on the segment they may overlap, which this allows.
        unsafe { ptr::copy(from.as_ptr(), to.as_ptr(), kept) };
        // SAFETY: the caller gives the old block up.
        unsafe { self.free_offset_no_null_check(context, pointer) }?;
        Ok(new)
    }

    unsafe fn free_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<(), AllocError> {
        self.free_slow(context, pointer)
    }

    fn create_tls(&self) -> Result<MemContext, AllocError> {
        tls::create_named(&self.inner)
    }

    fn free_tls(&self, context: MemContext) -> Result<(), AllocError> {
        tls::free_named(&self.inner, context)
    }

    fn resolve(&self, pointer: OffsetPointer, len: usize) -> Result<NonNull<u8>, AllocError> {
        self.resolve(pointer, len)
    }

    fn offset_of(&self, address: NonNull<u8>) -> Option<OffsetPointer> {
        self.offset_of(address)
    }

    fn allocated_bytes(&self) -> u64 {
        self.report().allocated_bytes
    }

    fn check(&self) -> CheckReport {
        self.check()
    }
}

/// Operations on cells and sizes, as the thread that a context names.
impl ThreadLocalAllocator {
    /// [`ThreadLocalAllocator::allocate_into`], as the thread that `context` names.
    ///
    /// # Errors
    /// [`AllocError::BadContext`] if it names none of this allocator and process, and as
    /// [`ThreadLocalAllocator::allocate_into`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// use hshm_memory::Allocator;
    ///
    /// # let heap = doc_heap();
    /// let context = heap.create_tls()?;
    /// let cell = heap.allocate_offset(context, 8)?;
    /// // SAFETY: the block is ours and eight bytes long.
    /// unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
    /// let block = heap.allocate_into_as(context, cell, 100)?;
    /// assert_eq!(heap.read_cell(cell)?, block);
    /// assert_eq!(heap.usable_bytes_as(context, block)?, 112);
    /// // SAFETY: nobody uses the block any more.
    /// assert!(unsafe { heap.free_from_as(context, cell)? });
    /// assert!(heap.read_cell(cell)?.is_null());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn allocate_into_as(
        &self,
        context: MemContext,
        cell: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.aligned_allocate_into_as(context, cell, bytes, GRANULE_BYTES)
    }

    /// [`ThreadLocalAllocator::aligned_allocate_into`], as the thread that `context` names.
    ///
    /// # Errors
    /// [`AllocError::BadContext`] if it names none of this allocator and process, and as
    /// [`ThreadLocalAllocator::aligned_allocate_into`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// use hshm_memory::{Allocator, MemContext};
    ///
    /// # let heap = doc_heap();
    /// let cell = heap.allocate(8)?;
    /// // SAFETY: the block is ours and eight bytes long.
    /// unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
    /// let block = heap.aligned_allocate_into_as(MemContext::DEFAULT, cell, 100, 4096)?;
    /// assert!(block.offset_bytes().is_multiple_of(4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn aligned_allocate_into_as(
        &self,
        context: MemContext,
        cell: OffsetPointer,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let cell = cell.offset_bytes();
        let align = if align.is_power_of_two() { align.max(GRANULE_BYTES) } else { align };
        self.with_context(context, |heap| heap.allocate_into(cell, bytes, align))
            .map(OffsetPointer::new)
    }

    /// [`ThreadLocalAllocator::free_from`], as the thread that `context` names.
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// [`AllocError::BadContext`] if it names none of this allocator and process, and as
    /// [`ThreadLocalAllocator::free_from`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// use hshm_memory::{Allocator, MemContext};
    ///
    /// # let heap = doc_heap();
    /// let cell = heap.allocate(8)?;
    /// // SAFETY: the block is ours and eight bytes long.
    /// unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
    /// heap.allocate_into(cell, 100)?;
    /// // SAFETY: nobody uses the block any more.
    /// assert!(unsafe { heap.free_from_as(MemContext::DEFAULT, cell)? });
    /// // SAFETY: the cell is empty, so there is no block.
    /// assert!(!unsafe { heap.free_from_as(MemContext::DEFAULT, cell)? });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn free_from_as(
        &self,
        context: MemContext,
        cell: OffsetPointer,
    ) -> Result<bool, AllocError> {
        self.with_context(context, |heap| heap.free_from(cell.offset_bytes()))
    }

    /// Gives the memory behind free blocks, as far as they are the calling thread's or nobody's, back to
    /// the kernel, and returns how many bytes that were. They are free as before, and have memory again
    /// when they are allocated.
    ///
    /// There is no need to call this for the segment's own sake: a thread that is about to use more
    /// memory gives back as much elsewhere if it can, and all it can when there is none to be had. It
    /// is for a program that will be idle. It looks at all of the segment. Where the backend does not
    /// give memory back ([`Backend::gives_back`]), as no one does under Windows, nothing is done.
    ///
    /// # Errors
    /// [`AllocError::NoWorkerSlot`] and [`AllocError::Identity`] if the thread cannot use the segment.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let block = heap.allocate(4 << 20)?;
    /// assert_eq!(heap.trim()?, 0);
    /// // SAFETY: nobody uses the block any more.
    /// unsafe { heap.free(block)? };
    /// let given = heap.trim()?;
    /// assert!(given >= 4 << 20 || !heap.backend().gives_back());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn trim(&self) -> Result<u64, AllocError> {
        self.with_context(MemContext::DEFAULT, |heap| Ok(heap.trim()))
    }

    /// [`ThreadLocalAllocator::usable_bytes`], as the thread that `context` names.
    ///
    /// # Errors
    /// [`AllocError::BadContext`] if it names none of this allocator and process, and as
    /// [`ThreadLocalAllocator::usable_bytes`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// use hshm_memory::{Allocator, MemContext};
    ///
    /// let block = heap.allocate(100)?;
    /// assert!(heap.usable_bytes_as(MemContext::DEFAULT, block)? >= 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn usable_bytes_as(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<usize, AllocError> {
        let bytes = self.with_context(context, |heap| heap.usable_bytes(pointer.offset_bytes()))?;
        Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

impl ShmAllocator for ThreadLocalAllocator {
    type Options = InitOptions;

    fn shm_init(
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &InitOptions,
    ) -> Result<Self, SegmentError> {
        Self::shm_init(id, backend, options)
    }

    fn shm_deserialize(backend: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        Self::shm_deserialize(backend)
    }
}
