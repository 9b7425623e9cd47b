//! A vector that processes share.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytemuck::Pod;

use super::guarded::Kind;
use super::sequence::Sequence;
use super::{CellAllocator, CollectionError};
use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::pointer::OffsetPointer;

/// A growing sequence of values in shared memory, which any thread of any process reads and changes.
///
/// The value is this process's view of a vector, which lives until it is destroyed. Each operation has
/// the vector for itself, by a lock, and waits for others to be done with theirs, for at most
/// [`PATIENCE`](crate::robust::PATIENCE). Values are copied out and in: there are no references to
/// what others may change.
///
/// # What a death leaves
/// An operation whose process dies in it has happened, whole, or has not: whoever comes next finds the
/// lock's holder dead, and finishes or undoes what it was about. Nobody waits for a dead. Blocks are
/// allocated and freed exactly once where the allocator does so ([`CellAllocator`]). A process that is
/// stopped inside an operation makes others wait until it goes on or is killed; they are told after
/// that time ([`CollectionError::Lock`]), or after [`with_patience`](Self::with_patience).
///
/// A process that dies between making a vector and telling others where it is leaves a block that
/// nobody knows; where that must not be, see [`create_into`](Self::create_into).
///
/// Bytes that another process scribbled make wrong values, or an error.
///
/// # Examples
/// ```
/// use hshm_memory::collections::{CollectionError, ShmVec};
/// # let heap = hshm_memory::doc_heap();
///
/// let numbers = ShmVec::<u64>::create_in(&heap)?;
/// // In another process, which was told the offset:
/// let view = ShmVec::<u64>::attach(&heap, numbers.place())?;
/// view.extend_from_slice(&[1, 2, 3])?;
/// assert_eq!(numbers.to_vec()?, [1, 2, 3]);
/// # drop(view);
/// // SAFETY: nobody uses the vector any more.
/// unsafe { numbers.destroy()? };
/// # Ok::<(), CollectionError>(())
/// ```
pub struct ShmVec<'a, T, A: ?Sized = ThreadLocalAllocator> {
    values: Sequence<'a, A>,
    _values: PhantomData<fn(T) -> T>,
}

/// Making and finding.
impl<'a, T: Pod, A: CellAllocator + ?Sized> ShmVec<'a, T, A> {
    const KIND: Kind = {
        assert!(size_of::<T>() > 0, "values without bytes can only be counted");
        let (first_bytes, second_bytes) = (size_of::<T>(), 0);
        Kind { what: "shared vector", magic: *b"hshmvec1", first_bytes, second_bytes }
    };

    /// Makes an empty vector.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory for it;
    /// [`CollectionError::GoesWithProcess`] where blocks are freed when a process ends.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// assert!(ShmVec::<f64>::create_in(&heap)?.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_in(allocator: &'a A) -> Result<Self, CollectionError> {
        Sequence::create_in(allocator, Self::KIND).map(Self::over)
    }

    /// Makes an empty vector, whose first block the cell at `cell` names from then on.
    ///
    /// With an allocator that does this exactly once, a process that dies here leaves, after recovery,
    /// a cell that is null or names the block. If [`attach`](Self::attach) finds no vector there then,
    /// it died before the vector was ready, and [`CellAllocator::free_from`] gives the block back.
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in); [`crate::AllocError::BadCell`] if the cell is not null.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// // A vector of vectors: of cells, that is.
    /// let cell = heap.allocate(8)?;
    /// # // SAFETY: it was just allocated.
    /// # unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
    /// let numbers = ShmVec::<u64>::create_into(&heap, cell)?;
    /// assert_eq!(heap.read_cell(cell)?, numbers.place());
    /// // SAFETY: nobody else uses it.
    /// unsafe { numbers.destroy_from(cell)? };
    /// assert!(heap.read_cell(cell)?.is_null());
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_into(allocator: &'a A, cell: OffsetPointer) -> Result<Self, CollectionError> {
        Sequence::create_into(allocator, cell, Self::KIND).map(Self::over)
    }

    /// Finds the vector whose first block is at `place`, which may be in use.
    ///
    /// # Errors
    /// [`CollectionError::NotThere`] if there is none, [`CollectionError::ElementSize`] if its values
    /// have another size, [`CollectionError::Namespace`] if its processes cannot be seen from here.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// let view = ShmVec::<u64>::attach(&heap, numbers.place())?;
    /// let other = ShmVec::<u32>::attach(&heap, numbers.place());
    /// assert!(matches!(other, Err(CollectionError::ElementSize { .. })));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn attach(allocator: &'a A, place: OffsetPointer) -> Result<Self, CollectionError> {
        Sequence::attach(allocator, place, Self::KIND).map(Self::over)
    }

    fn over(values: Sequence<'a, A>) -> Self {
        Self { values, _values: PhantomData }
    }

    /// Takes the vector away and frees its blocks.
    ///
    /// # Safety
    /// No other view of it is used any more, in any process.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if the allocator refuses a block.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// // SAFETY: nobody else knows of it.
    /// unsafe { numbers.destroy()? };
    /// assert_eq!(heap.report().allocated_bytes, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub unsafe fn destroy(self) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.values.destroy() }
    }

    /// Takes away the vector that the cell at `cell` names, and makes the cell null. See
    /// [`create_into`](Self::create_into).
    ///
    /// # Safety
    /// As [`destroy`](Self::destroy); the cell names this vector.
    ///
    /// # Errors
    /// As [`CellAllocator::free_from`].
    pub unsafe fn destroy_from(self, cell: OffsetPointer) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.values.destroy_from(cell) }
    }
}

/// Values. All operations may fail with [`CollectionError::Lock`] or [`CollectionError::Corrupt`].
impl<T: Pod, A: CellAllocator + ?Sized> ShmVec<'_, T, A> {
    /// Appends a value.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.push(7)?;
    /// assert_eq!(numbers.get(0)?, Some(7));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn push(&self, value: T) -> Result<(), CollectionError> {
        self.values.append(1, bytemuck::bytes_of(&value))
    }

    /// Appends all values of a slice, at once: others see all of them or none.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 2, 3])?;
    /// assert_eq!(numbers.len()?, 3);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn extend_from_slice(&self, values: &[T]) -> Result<(), CollectionError> {
        self.values.append(values.len(), bytemuck::cast_slice(values))
    }

    /// Takes the last value away. None if there is none.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.push(7)?;
    /// assert_eq!((numbers.pop()?, numbers.pop()?), (Some(7), None));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn pop(&self) -> Result<Option<T>, CollectionError> {
        let mut value = T::zeroed();
        let popped = self.values.pop(bytemuck::bytes_of_mut(&mut value))?;
        Ok(popped.then_some(value))
    }

    /// The value at `index`. None if there is none.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 2])?;
    /// assert_eq!((numbers.get(1)?, numbers.get(2)?), (Some(2), None));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn get(&self, index: usize) -> Result<Option<T>, CollectionError> {
        let mut value = T::zeroed();
        let found = self.values.get(index, bytemuck::bytes_of_mut(&mut value))?;
        Ok(found.then_some(value))
    }

    /// Puts `value` in the place of the one at `index`, which it returns.
    ///
    /// # Errors
    /// [`CollectionError::OutOfRange`], and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.push(7)?;
    /// assert_eq!(numbers.set(0, 8)?, 7);
    /// assert_eq!(numbers.get(0)?, Some(8));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn set(&self, index: usize, value: T) -> Result<T, CollectionError> {
        let mut old = T::zeroed();
        let bytes = bytemuck::bytes_of(&value);
        self.values.set(index, bytes, bytemuck::bytes_of_mut(&mut old))?;
        Ok(old)
    }

    /// Takes the value at `index` out, and puts the last one in its place.
    ///
    /// # Errors
    /// [`CollectionError::OutOfRange`], and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 2, 3])?;
    /// assert_eq!(numbers.swap_remove(0)?, 1);
    /// assert_eq!(numbers.to_vec()?, [3, 2]);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn swap_remove(&self, index: usize) -> Result<T, CollectionError> {
        let (mut value, mut last) = (T::zeroed(), T::zeroed());
        let last = bytemuck::bytes_of_mut(&mut last);
        self.values.swap_remove(index, bytemuck::bytes_of_mut(&mut value), last)?;
        Ok(value)
    }

    /// Puts `value` before the one at `index`, or at the end. The vector is copied to a new block.
    ///
    /// # Errors
    /// [`CollectionError::OutOfRange`], and as [`push`](Self::push).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 3])?;
    /// numbers.insert(1, 2)?;
    /// assert_eq!(numbers.to_vec()?, [1, 2, 3]);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn insert(&self, index: usize, value: T) -> Result<(), CollectionError> {
        self.values.insert(index, bytemuck::bytes_of(&value))
    }

    /// Takes the value at `index` out and closes the gap. The vector is copied to a new block, unless it is
    /// the last value.
    ///
    /// # Errors
    /// [`CollectionError::OutOfRange`], and as [`push`](Self::push).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 2, 3])?;
    /// assert_eq!(numbers.remove(0)?, 1);
    /// assert_eq!(numbers.to_vec()?, [2, 3]);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn remove(&self, index: usize) -> Result<T, CollectionError> {
        let mut value = T::zeroed();
        self.values.remove(index, bytemuck::bytes_of_mut(&mut value))?;
        Ok(value)
    }

    /// Keeps the first `most` values.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 2, 3])?;
    /// numbers.truncate(2)?;
    /// assert_eq!(numbers.to_vec()?, [1, 2]);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn truncate(&self, most: usize) -> Result<(), CollectionError> {
        self.values.truncate(most)
    }

    /// Takes all values away, and keeps the room for them.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.push(1)?;
    /// numbers.clear()?;
    /// assert!(numbers.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn clear(&self) -> Result<(), CollectionError> {
        self.values.truncate(0)
    }

    /// Puts the values of a slice in the place of all that there are, at once. The vector gets a new block.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.push(1)?;
    /// numbers.assign(&[2, 3])?;
    /// assert_eq!(numbers.to_vec()?, [2, 3]);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn assign(&self, values: &[T]) -> Result<(), CollectionError> {
        self.values.assign(values.len(), bytemuck::cast_slice(values))
    }

    /// A copy of all values, as they are at one moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1, 2, 3])?;
    /// assert_eq!(numbers.to_vec()?.iter().sum::<u64>(), 6);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn to_vec(&self) -> Result<Vec<T>, CollectionError> {
        self.values.snapshot(
            |len| {
                let mut all = Vec::new();
                all.try_reserve_exact(len)?;
                all.resize(len, T::zeroed());
                Ok(all)
            },
            |all: &mut Vec<T>| bytemuck::cast_slice_mut(all),
        )
    }

    /// How many values there are, at this moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`] if a stopped process has it; [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.push(1)?;
    /// assert_eq!(numbers.len()?, 1);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn len(&self) -> Result<usize, CollectionError> {
        Ok(self.values.len_and_capacity()?.0)
    }

    /// Whether there is no value, at this moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// assert!(numbers.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn is_empty(&self) -> Result<bool, CollectionError> {
        Ok(self.len()? == 0)
    }

    /// How many values there is room for without another block.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.reserve(100)?;
    /// assert!(numbers.capacity()? >= 100);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn capacity(&self) -> Result<usize, CollectionError> {
        Ok(self.values.len_and_capacity()?.1)
    }

    /// Makes room for `capacity` values in all.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.reserve(100)?;
    /// assert!(numbers.capacity()? >= 100);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn reserve(&self, capacity: usize) -> Result<(), CollectionError> {
        self.values.set_capacity(Some(capacity))
    }

    /// Gives back the room that is not needed.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// numbers.extend_from_slice(&[1; 100])?;
    /// numbers.truncate(3)?;
    /// numbers.shrink_to_fit()?;
    /// assert_eq!(numbers.capacity()?, 3);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn shrink_to_fit(&self) -> Result<(), CollectionError> {
        self.values.set_capacity(None)
    }
}

impl<T, A: ?Sized> ShmVec<'_, T, A> {
    /// The same vector, with operations that wait for others so long at most, rather than for
    /// [`PATIENCE`](crate::robust::PATIENCE).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// let numbers = ShmVec::<u64>::create_in(&heap)?.with_patience(Duration::from_millis(10));
    /// assert_eq!(numbers.len()?, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.values.set_patience(patience);
        self
    }

    /// Where the vector is, for others to attach to.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmVec};
    /// # let heap = hshm_memory::doc_heap();
    /// # let numbers = ShmVec::<u64>::create_in(&heap)?;
    /// assert_eq!(ShmVec::<u64>::attach(&heap, numbers.place())?.place(), numbers.place());
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn place(&self) -> OffsetPointer {
        self.values.place()
    }
}

impl<T, A: ?Sized> fmt::Debug for ShmVec<'_, T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmVec").field("place", &self.place()).finish_non_exhaustive()
    }
}
