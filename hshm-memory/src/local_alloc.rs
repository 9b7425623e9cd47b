//! Collections that need raw pointers, in an allocator's memory: the trait of the crate
//! `allocator-api2`, which its own `Vec` and `Box` and `hashbrown`'s maps are generic over.

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator as StdAllocator};

use crate::allocator::Allocator;
use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::context::MemContext;

/// The largest alignment that every block has.
const ALIGN: usize = 16;

/// Hands an allocator's memory to collections of this process.
///
/// What such a collection holds is reached by this process's addresses, so no other process can use
/// it, although the bytes stand in shared memory; for that there are [`crate::collections`]. A process
/// that ends without dropping a collection leaves its blocks, and what becomes of them, the allocator
/// says ([`crate::OnExit`]). After a fork the collections are the parent's: a child that changed or
/// dropped one would do so to the parent's.
///
/// Memory that cannot be had is an error where the collection has a way to say so (`try_reserve`, or
/// `Box::try_new_in`), and ends the process by [`std::alloc::handle_alloc_error`] where it has none.
///
/// # Examples
/// ```
/// use allocator_api2::vec::Vec;
/// use hshm_memory::LocalAlloc;
/// # let heap = hshm_memory::doc_heap();
///
/// let mut squares = Vec::new_in(LocalAlloc::new(&heap));
/// squares.extend((0..1000_u64).map(|n| n * n));
/// assert!(heap.report().allocated_bytes >= 8000);
/// drop(squares);
/// assert_eq!(heap.report().allocated_bytes, 0);
/// ```
pub struct LocalAlloc<'a, A: Allocator + ?Sized = ThreadLocalAllocator> {
    allocator: &'a A,
    context: MemContext,
}

impl<'a, A: Allocator + ?Sized> LocalAlloc<'a, A> {
    /// Memory of `allocator`, for collections that live no longer than it.
    ///
    /// # Examples
    /// ```
    /// use allocator_api2::boxed::Box;
    /// use hshm_memory::LocalAlloc;
    /// # let heap = hshm_memory::doc_heap();
    ///
    /// let boxed = Box::new_in([1_u32; 100], LocalAlloc::new(&heap));
    /// assert_eq!(boxed.iter().sum::<u32>(), 100);
    /// ```
    #[must_use]
    pub const fn new(allocator: &'a A) -> Self {
        Self::with_context(allocator, MemContext::DEFAULT)
    }

    /// The same, where every operation is done as the thread that `context` names.
    ///
    /// # Examples
    /// ```
    /// use allocator_api2::vec::Vec;
    /// use hshm_memory::{Allocator as _, LocalAlloc};
    /// # let heap = hshm_memory::doc_heap();
    ///
    /// let context = heap.create_tls()?;
    /// let mut numbers = Vec::new_in(LocalAlloc::with_context(&heap, context));
    /// numbers.push(1);
    /// drop(numbers);
    /// heap.free_tls(context)?;
    /// # Ok::<(), hshm_memory::AllocError>(())
    /// ```
    #[must_use]
    pub const fn with_context(allocator: &'a A, context: MemContext) -> Self {
        Self { allocator, context }
    }

    /// Resizes a block that is not empty, and stays so. None if that cannot be done in place or with
    /// the alignment that all blocks have.
    ///
    /// # Safety
    /// As [`StdAllocator::grow`] or [`StdAllocator::shrink`].
    unsafe fn resize(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Option<Result<NonNull<[u8]>, AllocError>> {
        if new.align() > ALIGN || old.size() == 0 || new.size() == 0 {
            return None;
        }
        let offset = self.allocator.offset_of(block)?;
        // SAFETY: the caller says that it is a block of this allocator, and gives it up.
        let resized = unsafe {
            self.allocator.reallocate_offset_no_null_check(self.context, offset, new.size())
        };
        let resized = resized.and_then(|offset| self.allocator.resolve(offset, new.size()));
        Some(match resized {
            Ok(address) => Ok(NonNull::slice_from_raw_parts(address, new.size())),
            Err(_) => Err(AllocError),
        })
    }

    /// Makes a new block, copies what fits, and frees the old one.
    ///
    /// # Safety
    /// As [`StdAllocator::grow`] or [`StdAllocator::shrink`].
    unsafe fn replace(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        let fresh = self.allocate(new)?;
        let bytes = old.size().min(new.size());
        let to = fresh.cast::<u8>();
        // SAFETY: [owned] both blocks are the caller's, as long as that, and different.
        unsafe { block.copy_to_nonoverlapping(to, bytes) };
        // SAFETY: the caller gives the old block up.
        unsafe { self.deallocate(block, old) };
        Ok(fresh)
    }
}

// SAFETY: [owned] blocks that are not empty come from the allocator, which promises that they are
// valid until freed and as long and aligned as was asked for; it is borrowed, so it outlives every
// copy of this value, and all copies are the same allocator.
unsafe impl<A: Allocator + ?Sized> StdAllocator for LocalAlloc<'_, A> {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let (bytes, align) = (layout.size(), layout.align());
        if bytes == 0 {
            return Ok(NonNull::slice_from_raw_parts(layout.dangling_ptr(), 0));
        }
        let block = self.allocator.aligned_allocate_offset(self.context, bytes, align);
        let address = block.and_then(|offset| self.allocator.resolve(offset, bytes));
        match address {
            Ok(address) => Ok(NonNull::slice_from_raw_parts(address, bytes)),
            Err(_) => Err(AllocError),
        }
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        if let Some(offset) = self.allocator.offset_of(block) {
            // SAFETY: the caller gives the block up. A heap that somebody scribbled on may refuse it;
            // it is lost then.
            let _ = unsafe { self.allocator.free_offset_no_null_check(self.context, offset) };
        }
    }

    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller promises the same.
        match unsafe { self.resize(block, old, new) } {
            Some(resized) => resized,
            // SAFETY: as above.
            None => unsafe { self.replace(block, old, new) },
        }
    }

    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller promises the same.
        let grown = unsafe { self.grow(block, old, new) }?;
        // SAFETY: [owned] the block is as long as `new` says, which is not shorter than `old`.
        let fresh = unsafe { grown.cast::<u8>().add(old.size()) };
        // SAFETY: [owned] as above.
        unsafe { fresh.write_bytes(0, new.size() - old.size()) };
        Ok(grown)
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller promises the same.
        match unsafe { self.resize(block, old, new) } {
            Some(resized) => resized,
            // SAFETY: as above.
            None => unsafe { self.replace(block, old, new) },
        }
    }
}

impl<A: Allocator + ?Sized> Clone for LocalAlloc<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<A: Allocator + ?Sized> Copy for LocalAlloc<'_, A> {}

impl<A: Allocator + ?Sized> fmt::Debug for LocalAlloc<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalAlloc").field(&self.allocator).finish()
    }
}
