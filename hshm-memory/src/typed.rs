//! Objects rather than bytes: making and deleting values in an allocator's memory, and an owner that
//! deletes by itself.
//!
//! A value that stays within the process may be of any type. One that another process is to use must
//! mean the same there: no pointer, reference, handle or `usize`, a `repr(C)` or primitive layout.
//!
//! All memory that is shared can be written by whoever maps it. As long as every process keeps to
//! blocks that it allocated or was given, a reference into a block is as good as one into private
//! memory. Data of processes that are not trusted so far should be copied out before it is looked
//! at, through [`Allocator::resolve`].

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use crate::allocator::Allocator;
use crate::context::MemContext;
use crate::error::AllocError;
use crate::pointer::{FullPtr, OffsetPointer, Pointer};

/// Typed operations, for every allocator.
pub trait TypedAllocator: Allocator {
    /// Allocates room for `value` and moves it there.
    ///
    /// # Errors
    /// As [`Allocator::aligned_allocate_offset`]; the value is dropped then.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{doc_heap, MemContext, TypedAllocator};
    /// # let heap = doc_heap();
    /// let pair = heap.new_object(MemContext::DEFAULT, (1_u64, 2_u64))?;
    /// // SAFETY: the object was just made, and nobody else has it.
    /// assert_eq!(unsafe { pair.address.as_ref() }, &(1, 2));
    /// // SAFETY: as above, and the pointer is not used again.
    /// unsafe { heap.delete_object(MemContext::DEFAULT, pair)? };
    /// # Ok::<(), hshm_memory::AllocError>(())
    /// ```
    fn new_object<T>(&self, context: MemContext, value: T) -> Result<FullPtr<T>, AllocError> {
        let offset = self.aligned_allocate_offset(context, size_of::<T>(), align_of::<T>())?;
        let address = self.resolve(offset, size_of::<T>())?.cast::<T>();
        // SAFETY: [owned] the block was just allocated, long and aligned enough for a `T`.
        unsafe { address.write(value) };
        Ok(FullPtr { address, shared: self.pointer(offset) })
    }

    /// Drops the value and frees its block. If freeing fails, the value is dropped all the same.
    ///
    /// # Safety
    /// The object is one that [`TypedAllocator::new_object`] of this allocator made, of type `T`,
    /// and nobody uses it any more.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] for null and as [`Allocator::free_offset_no_null_check`].
    unsafe fn delete_object<T>(
        &self,
        context: MemContext,
        object: FullPtr<T>,
    ) -> Result<(), AllocError> {
        let offset = own_offset(self, object.shared)?;
        // SAFETY: the caller gives up a valid object.
        unsafe { object.address.drop_in_place() };
        // SAFETY: the same promise; the block is not used any more.
        unsafe { self.free_offset_no_null_check(context, offset) }
    }

    /// Allocates a slice of `len` values, each made by `make` from its index.
    ///
    /// # Errors
    /// [`AllocError::TooLarge`] if so many values have no size that can be counted, and as
    /// [`Allocator::aligned_allocate_offset`].
    ///
    /// # Panics
    /// If `make` does; the values made so far are dropped and the block is freed.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{doc_heap, MemContext, TypedAllocator};
    /// # let heap = doc_heap();
    /// let squares = heap.new_slice(MemContext::DEFAULT, 4, |index| index as u64 * index as u64)?;
    /// // SAFETY: the slice was just made, and nobody else has it.
    /// assert_eq!(unsafe { squares.address.as_ref() }, [0, 1, 4, 9]);
    /// // SAFETY: as above, and the pointer is not used again.
    /// unsafe { heap.delete_slice(MemContext::DEFAULT, squares)? };
    /// # Ok::<(), hshm_memory::AllocError>(())
    /// ```
    fn new_slice<T>(
        &self,
        context: MemContext,
        len: usize,
        mut make: impl FnMut(usize) -> T,
    ) -> Result<FullPtr<[T]>, AllocError> {
        let bytes = size_of::<T>().checked_mul(len).ok_or(AllocError::TooLarge {
            bytes: u64::MAX,
            limit_bytes: isize::MAX.unsigned_abs() as u64,
        })?;
        let offset = self.aligned_allocate_offset(context, bytes, align_of::<T>())?;
        let first = self.resolve(offset, bytes)?.cast::<T>();
        let mut unfinished = Unfinished { allocator: self, context, offset, first, made: 0 };
        for index in 0..len {
            let value = make(index);
            let place = first.as_ptr().wrapping_add(index);
            // SAFETY: [owned] the block was just allocated, long and aligned enough for `len`.
            unsafe { place.write(value) };
            unfinished.made += 1;
        }
        let _ = ManuallyDrop::new(unfinished);
        let address = NonNull::slice_from_raw_parts(first, len);
        Ok(FullPtr { address, shared: self.pointer(offset) })
    }

    /// Drops the values and frees their block.
    ///
    /// # Safety
    /// The slice is one that [`TypedAllocator::new_slice`] of this allocator made, of as many `T`,
    /// and nobody uses it any more.
    ///
    /// # Errors
    /// As [`TypedAllocator::delete_object`].
    unsafe fn delete_slice<T>(
        &self,
        context: MemContext,
        slice: FullPtr<[T]>,
    ) -> Result<(), AllocError> {
        let offset = own_offset(self, slice.shared)?;
        // SAFETY: the caller gives up a valid slice.
        unsafe { slice.address.drop_in_place() };
        // SAFETY: the same promise; the block is not used any more.
        unsafe { self.free_offset_no_null_check(context, offset) }
    }

    /// The pointer that means this block in every process.
    fn pointer(&self, offset: OffsetPointer) -> Pointer {
        Pointer { allocator: self.id(), offset }
    }

    /// Finds the local address of an object that is known by its pointer.
    ///
    /// That it lies in the allocator's memory and is aligned for a `T` is checked; that there is a
    /// `T`, the caller must know before using the address.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] for null, for a pointer of another allocator, and for one that is
    /// not aligned or reaches outside.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{doc_heap, MemContext, Pointer, TypedAllocator};
    /// # let heap = doc_heap();
    /// let made = heap.new_object(MemContext::DEFAULT, 7_u32)?;
    /// let found = heap.full_ptr::<u32>(made.shared)?;
    /// assert_eq!(found.address, made.address);
    /// assert!(heap.full_ptr::<u32>(Pointer::NULL).is_err());
    /// # Ok::<(), hshm_memory::AllocError>(())
    /// ```
    fn full_ptr<T>(&self, shared: Pointer) -> Result<FullPtr<T>, AllocError> {
        let offset = own_offset(self, shared)?;
        let address = self.resolve(offset, size_of::<T>())?.cast::<T>();
        if !address.is_aligned() {
            let why = "it is not aligned for the type asked for";
            return Err(AllocError::NotAllocated { offset: offset.offset_bytes(), why });
        }
        Ok(FullPtr { address, shared })
    }
}

impl<A: Allocator + ?Sized> TypedAllocator for A {}

/// The offset of a pointer, if it is one of this allocator and not null.
fn own_offset<A: Allocator + ?Sized>(
    allocator: &A,
    shared: Pointer,
) -> Result<OffsetPointer, AllocError> {
    let offset = shared.offset.offset_bytes();
    if shared.is_null() {
        Err(AllocError::NotAllocated { offset, why: "it is null" })
    } else if shared.allocator == allocator.id() {
        Ok(shared.offset)
    } else {
        Err(AllocError::NotAllocated { offset, why: "it belongs to another allocator" })
    }
}

/// A slice that is being made: gives back what there is of it.
struct Unfinished<'a, T, A: Allocator + ?Sized> {
    allocator: &'a A,
    context: MemContext,
    offset: OffsetPointer,
    first: NonNull<T>,
    made: usize,
}

impl<T, A: Allocator + ?Sized> Drop for Unfinished<'_, T, A> {
    fn drop(&mut self) {
        let made = NonNull::slice_from_raw_parts(self.first, self.made);
        // SAFETY: [init] so many were written, and nobody has seen them.
        unsafe { made.drop_in_place() };
        // SAFETY: [owned] the block is ours. An error cannot be told from here: the block is one.
        let _ = unsafe { self.allocator.free_offset_no_null_check(self.context, self.offset) };
    }
}

/// Owns an object in an allocator's memory, as `Box` owns one in the process's.
///
/// # Examples
/// ```
/// # use hshm_memory::{doc_heap, ShmBox};
/// # let heap = doc_heap();
/// let mut counter = ShmBox::new(&heap, 41_u64)?;
/// *counter += 1;
/// // Hand it to another process: the pointer means the same there.
/// let shared = ShmBox::into_shared(counter);
/// // SAFETY: the pointer came from `into_shared`, with this type, and is used once.
/// let counter = unsafe { ShmBox::<u64, _>::from_shared(&heap, shared)? };
/// assert_eq!(*counter, 42);
/// drop(counter);
/// assert_eq!(heap.report().allocated_bytes, 0);
/// # Ok::<(), hshm_memory::AllocError>(())
/// ```
pub struct ShmBox<'a, T, A: Allocator + ?Sized> {
    allocator: &'a A,
    object: FullPtr<T>,
}

// SAFETY: [owned] it owns its object as `Box` does, and allocators are `Send` and `Sync`.
unsafe impl<T: Send, A: Allocator + ?Sized> Send for ShmBox<'_, T, A> {}
// SAFETY: [owned] as above: a shared reference only gives `&T`.
unsafe impl<T: Sync, A: Allocator + ?Sized> Sync for ShmBox<'_, T, A> {}

impl<'a, T, A: Allocator + ?Sized> ShmBox<'a, T, A> {
    /// Allocates room for `value` and moves it there.
    ///
    /// # Errors
    /// As [`TypedAllocator::new_object`].
    pub fn new(allocator: &'a A, value: T) -> Result<Self, AllocError> {
        let object = allocator.new_object(MemContext::DEFAULT, value)?;
        Ok(Self { allocator, object })
    }

    /// What the object is called in every process.
    #[must_use]
    pub fn shared(this: &Self) -> Pointer {
        this.object.shared
    }

    /// Gives the object up without dropping it: whoever has the pointer owns it now.
    #[must_use = "whoever has the pointer must give the object back some time"]
    pub fn into_shared(this: Self) -> Pointer {
        ManuallyDrop::new(this).object.shared
    }

    /// Takes an object over.
    ///
    /// # Safety
    /// `shared` came from [`ShmBox::into_shared`] of a `T`, in whichever process, and each pointer
    /// is taken over once. `T` means the same in both processes.
    ///
    /// # Errors
    /// As [`TypedAllocator::full_ptr`].
    pub unsafe fn from_shared(allocator: &'a A, shared: Pointer) -> Result<Self, AllocError> {
        let object = allocator.full_ptr(shared)?;
        Ok(Self { allocator, object })
    }
}

impl<T, A: Allocator + ?Sized> Deref for ShmBox<'_, T, A> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: [owned] the object is this box's, and nobody else's until it is given up.
        unsafe { self.object.address.as_ref() }
    }
}

impl<T, A: Allocator + ?Sized> DerefMut for ShmBox<'_, T, A> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: [owned] as above, and the box is borrowed for as long.
        unsafe { ptr::NonNull::as_mut(&mut self.object.address) }
    }
}

impl<T, A: Allocator + ?Sized> Drop for ShmBox<'_, T, A> {
    fn drop(&mut self) {
        // SAFETY: [owned] the object is this box's, made by `new_object`, and the box is gone after
        // this. A heap that somebody scribbled on may refuse the block; it is lost then.
        let _ = unsafe { self.allocator.delete_object(MemContext::DEFAULT, self.object) };
    }
}

impl<T: fmt::Debug, A: Allocator + ?Sized> fmt::Debug for ShmBox<'_, T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use super::*;
    use crate::doc_heap;

    #[test]
    fn values_are_dropped_once_and_their_blocks_freed() {
        let heap = doc_heap();
        let value = Rc::new(1);
        let object = heap.new_object(MemContext::DEFAULT, Rc::clone(&value)).unwrap();
        assert_eq!(Rc::strong_count(&value), 2);
        // SAFETY: [owned] it was just made.
        unsafe { heap.delete_object(MemContext::DEFAULT, object) }.unwrap();
        assert_eq!(Rc::strong_count(&value), 1);
        let slice = heap.new_slice(MemContext::DEFAULT, 100, |_| Rc::clone(&value)).unwrap();
        assert_eq!(Rc::strong_count(&value), 101);
        // SAFETY: [owned] it was just made.
        unsafe { heap.delete_slice(MemContext::DEFAULT, slice) }.unwrap();
        assert_eq!(Rc::strong_count(&value), 1);
        drop(ShmBox::new(&heap, Rc::clone(&value)).unwrap());
        assert_eq!(Rc::strong_count(&value), 1);
        assert_eq!(heap.report().allocated_bytes, 0);
    }

    #[test]
    fn a_slice_whose_making_panics_leaves_nothing() {
        let heap = doc_heap();
        let value = Rc::new(1);
        let made = catch_unwind(AssertUnwindSafe(|| {
            heap.new_slice(MemContext::DEFAULT, 10, |index| {
                assert!(index < 5, "the sixth cannot be made");
                Rc::clone(&value)
            })
        }));
        assert!(made.is_err());
        assert_eq!(Rc::strong_count(&value), 1);
        assert_eq!(heap.report().allocated_bytes, 0);
    }

    #[test]
    fn pointers_that_name_no_object_are_refused() {
        let heap = doc_heap();
        let object = heap.new_object(MemContext::DEFAULT, [0_u64; 4]).unwrap();
        let offset = object.shared.offset.offset_bytes();
        let at = |offset| Pointer { offset: OffsetPointer::new(offset), ..object.shared };
        assert!(heap.full_ptr::<u64>(at(offset + 8)).is_ok());
        assert!(heap.full_ptr::<u64>(at(offset + 4)).is_err());
        assert!(heap.full_ptr::<u64>(at(u64::MAX - 7)).is_err());
        let foreign = Pointer { allocator: crate::AllocatorId::new(9, 9), ..object.shared };
        assert!(heap.full_ptr::<u64>(foreign).is_err());
        assert!(heap.new_slice(MemContext::DEFAULT, usize::MAX, |_| 1_u64).is_err());
        // SAFETY: [owned] it was made above; the foreign pointer is refused before it is used.
        unsafe {
            assert!(
                heap.delete_object(MemContext::DEFAULT, FullPtr { shared: foreign, ..object })
                    .is_err()
            );
        }
        // SAFETY: [owned] as above.
        unsafe { heap.delete_object(MemContext::DEFAULT, object) }.unwrap();
        assert_eq!(heap.report().allocated_bytes, 0);
    }

    #[test]
    fn alignment_of_the_type_is_honoured_through_a_trait_object() {
        #[repr(align(4096))]
        struct Page([u8; 5000]);

        let heap = doc_heap();
        let any: &dyn Allocator = &heap;
        let page = ShmBox::new(any, Page([3; 5000])).unwrap();
        assert_eq!(ptr::from_ref(&*page).addr() % 4096, 0);
        assert!(page.0.iter().all(|&byte| byte == 3));
    }
}
