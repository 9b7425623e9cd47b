//! Blocks: allocating, freeing, and where they are.

use std::ptr::NonNull;

use super::size_class::{GRANULE_BYTES, SMALL_MAX_BYTES, class_of, small_class_of};
use super::{ThreadLocalAllocator, heap, tls, words};
use crate::allocator::Allocator;
use crate::context::MemContext;
use crate::error::AllocError;
use crate::pointer::OffsetPointer;

// The fast paths, `allocate`, `allocate_mapped` and `free`, are always inlined: a call that returns its
// result in memory costs half as much again.
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
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let block = heap.allocate(100)?;
    /// assert_eq!(heap.resolve(block, 100)?.addr().get() % 16, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn allocate(&self, bytes: usize) -> Result<OffsetPointer, AllocError> {
        if let Some((offset, _)) = self.take_at_hand(bytes) {
            return Ok(OffsetPointer::new(offset));
        }
        self.allocate_slow(MemContext::DEFAULT, bytes, GRANULE_BYTES)
    }

    /// [`ThreadLocalAllocator::allocate`], and where the block is in this process: cheaper than to
    /// [`resolve`](ThreadLocalAllocator::resolve) it.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::allocate`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let (block, address) = heap.allocate_mapped(100)?;
    /// assert_eq!(heap.resolve(block, 100)?, address);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn allocate_mapped(
        &self,
        bytes: usize,
    ) -> Result<(OffsetPointer, NonNull<u8>), AllocError> {
        if let Some((offset, heap)) = self.take_at_hand(bytes) {
            return Ok((OffsetPointer::new(offset), heap.address(offset)));
        }
        let block = self.allocate_slow(MemContext::DEFAULT, bytes, GRANULE_BYTES)?;
        Ok((block, self.resolve(block, bytes)?))
    }

    /// Allocates `bytes` bytes aligned to `align`, a power of two up to what the backend's own
    /// beginning has ([`alignment`](crate::Backend::alignment)): 2 MiB, for all memory that the kernel maps.
    ///
    /// # Errors
    /// [`AllocError::BadAlignment`], and as [`ThreadLocalAllocator::allocate`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let block = heap.aligned_allocate(100, 4096)?;
    /// assert_eq!(heap.resolve(block, 100)?.addr().get() % 4096, 0);
    /// assert!(heap.aligned_allocate(100, 3).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    /// of small blocks that the calling thread keeps in its cache.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{OffsetPointer, doc_heap};
    /// # let heap = doc_heap();
    /// let block = heap.allocate(100)?;
    /// // SAFETY: the block was just allocated, and nobody else knows of it.
    /// unsafe { heap.free(block)? };
    /// // SAFETY: null is refused.
    /// assert!(unsafe { heap.free(OffsetPointer::NULL) }.is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub unsafe fn free(&self, pointer: OffsetPointer) -> Result<(), AllocError> {
        if let Some(heap) = tls::current(self.key) {
            // SAFETY: [owned] the thread's registry keeps its current heap alive.
            let heap = unsafe { &*heap };
            let offset = pointer.offset_bytes();
            if heap.push_small(offset) || heap.free_larger(offset) {
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
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let block = heap.allocate(100)?;
    /// // SAFETY: the block is ours, and the old offset is not used again.
    /// let longer = unsafe { heap.reallocate(block, 5000)? };
    /// assert!(heap.usable_bytes(longer)? >= 5000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, ThreadLocalAllocator};
    /// # let backend = std::sync::Arc::new(MemfdMmap::create("example", 16 << 20, 16 << 20)?);
    /// let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
    /// let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options)?;
    /// // The application's header is zeroed: its first eight bytes are an empty cell.
    /// let (cell, _) = heap.custom_header();
    /// let block = heap.allocate_into(cell, 100)?;
    /// assert_eq!(heap.read_cell(cell)?, block);
    /// // SAFETY: nobody uses the block.
    /// assert!(unsafe { heap.free_from(cell)? });
    /// assert!(heap.read_cell(cell)?.is_null());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
        self.aligned_allocate_into_as(MemContext::DEFAULT, cell, bytes, align)
    }

    /// Frees the block that the cell at `cell` names and makes the cell null, exactly once: if this
    /// process is killed meanwhile, after recovery either both have happened or neither. If several
    /// processes do this at once, one frees the block. False if the cell named no block.
    ///
    /// # Safety
    /// If the cell names a block, it is one of this allocator that nobody uses any more.
    /// Under [`OnExit::Reclaim`](crate::OnExit::Reclaim), its owner is a process that has not been recovered since.
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
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let block = heap.allocate(100)?;
    /// assert_eq!(heap.usable_bytes(block)?, 112);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let block = heap.allocate(100)?;
    /// let address = heap.resolve(block, 100)?;
    /// assert_eq!(heap.offset_of(address), Some(block));
    /// assert!(heap.resolve(block, usize::MAX).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn resolve(&self, pointer: OffsetPointer, len: usize) -> Result<NonNull<u8>, AllocError> {
        self.inner.view.resolve(pointer.offset_bytes(), len)
    }

    /// The offset of an address in this process's mapping of the segment, or `None` if it lies
    /// elsewhere.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// let elsewhere = std::ptr::NonNull::from(&heap).cast();
    /// assert_eq!(heap.offset_of(elsewhere), None);
    /// ```
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
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// heap.allocate(100)?;
    /// assert_eq!(heap.report().workers.len(), 1);
    /// heap.detach_thread();
    /// assert_eq!(heap.report().workers.len(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn detach_thread(&self) {
        tls::detach_thread(self.key);
    }

    /// A block of at least `bytes` bytes out of what the calling thread has at hand, and its heap.
    #[inline(always)]
    fn take_at_hand(&self, bytes: usize) -> Option<(u64, &heap::Heap)> {
        // One question after the other: each is one branch.
        let heap = tls::current(self.key)?;
        // SAFETY: [owned] the thread's registry keeps its current heap alive.
        let heap = unsafe { &*heap };
        let Some(class) = small_class_of(bytes) else {
            return Some((heap.take_larger(bytes)?.get(), heap));
        };
        Some((heap.take_small(class)?.get(), heap))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn allocate_slow(
        &self,
        context: MemContext,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        let offset = self.with_context(context, |heap| {
            let quickly = if align != GRANULE_BYTES {
                None
            } else if bytes <= SMALL_MAX_BYTES {
                heap.take_small(class_of(bytes))
            } else {
                heap.take_larger(bytes)
            };
            quickly.map_or_else(|| heap.allocate_slow(bytes, align), |block| Ok(block.get()))
        })?;
        Ok(OffsetPointer::new(offset))
    }

    #[cold]
    #[inline(never)]
    pub(super) fn free_slow(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<(), AllocError> {
        let offset = pointer.offset_bytes();
        self.with_context(context, |heap| {
            let is_done =
                heap.push_small(offset) || heap.free_larger(offset) || heap.free_cached(offset);
            if is_done { Ok(()) } else { heap.free_slow(offset) }
        })
    }

    pub(super) fn with_context<R>(
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
