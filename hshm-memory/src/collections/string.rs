//! A string that processes share.

use std::fmt;
use std::time::Duration;

use super::guarded::Kind;
use super::sequence::Sequence;
use super::{CellAllocator, CollectionError};
use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::pointer::OffsetPointer;

/// What a shared string is.
const KIND: Kind =
    Kind { what: "shared string", magic: *b"hshmstr1", first_bytes: 1, second_bytes: 0 };

/// A text in shared memory, which any thread of any process reads and changes.
///
/// It is to text what [`ShmVec`](super::ShmVec) is to values: each operation has it for itself.
///
/// # What a death leaves
/// As with [`ShmVec`](super::ShmVec): an operation whose process dies in it has happened, whole, or has
/// not, and nobody waits for a dead. Bytes that another process scribbled make a wrong text or, where
/// they are no UTF-8, an error.
///
/// # Examples
/// ```
/// use hshm_memory::collections::{CollectionError, ShmString};
/// # let heap = hshm_memory::doc_heap();
///
/// let text = ShmString::create_in(&heap)?;
/// text.set("to be")?;
/// // In another process, which was told the offset:
/// ShmString::attach(&heap, text.place())?.push_str(" or not to be")?;
/// assert_eq!(text.get()?, "to be or not to be");
/// // SAFETY: nobody uses the string any more.
/// unsafe { text.destroy()? };
/// # Ok::<(), CollectionError>(())
/// ```
pub struct ShmString<'a, A: ?Sized = ThreadLocalAllocator> {
    bytes: Sequence<'a, A>,
}

impl<'a, A: CellAllocator + ?Sized> ShmString<'a, A> {
    /// Makes an empty string.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory for it;
    /// [`CollectionError::GoesWithProcess`] where blocks are freed when a process ends.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// assert_eq!(ShmString::create_in(&heap)?.get()?, "");
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_in(allocator: &'a A) -> Result<Self, CollectionError> {
        Sequence::create_in(allocator, KIND).map(|bytes| Self { bytes })
    }

    /// Makes an empty string, whose first block the cell at `cell` names from then on. See
    /// [`ShmVec::create_into`](super::ShmVec::create_into).
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in); [`crate::AllocError::BadCell`] if the cell is not null.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let cell = heap.allocate(8)?;
    /// # // SAFETY: it was just allocated.
    /// # unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
    /// let text = ShmString::create_into(&heap, cell)?;
    /// assert_eq!(heap.read_cell(cell)?, text.place());
    /// // SAFETY: nobody else uses it.
    /// unsafe { text.destroy_from(cell)? };
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_into(allocator: &'a A, cell: OffsetPointer) -> Result<Self, CollectionError> {
        Sequence::create_into(allocator, cell, KIND).map(|bytes| Self { bytes })
    }

    /// Finds the string whose first block is at `place`, which may be in use.
    ///
    /// # Errors
    /// [`CollectionError::NotThere`] if there is none, [`CollectionError::Namespace`] if its processes
    /// cannot be seen from here.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.set("abc")?;
    /// assert_eq!(ShmString::attach(&heap, text.place())?.get()?, "abc");
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn attach(allocator: &'a A, place: OffsetPointer) -> Result<Self, CollectionError> {
        Sequence::attach(allocator, place, KIND).map(|bytes| Self { bytes })
    }

    /// Takes the string away and frees its blocks.
    ///
    /// # Safety
    /// No other view of it is used any more, in any process.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if the allocator refuses a block.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// // SAFETY: nobody else knows of it.
    /// unsafe { text.destroy()? };
    /// assert_eq!(heap.report().allocated_bytes, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub unsafe fn destroy(self) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.bytes.destroy() }
    }

    /// Takes away the string that the cell at `cell` names, and makes the cell null. See
    /// [`create_into`](Self::create_into).
    ///
    /// # Safety
    /// As [`destroy`](Self::destroy); the cell names this string.
    ///
    /// # Errors
    /// As [`CellAllocator::free_from`].
    pub unsafe fn destroy_from(self, cell: OffsetPointer) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.bytes.destroy_from(cell) }
    }

    /// Puts `text` in the place of the one that there is, at once.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.set("abc")?;
    /// text.set("de")?;
    /// assert_eq!(text.get()?, "de");
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn set(&self, text: &str) -> Result<(), CollectionError> {
        self.bytes.assign(text.len(), text.as_bytes())
    }

    /// Appends `text`, at once.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.push_str("to be")?;
    /// text.push_str(" or not")?;
    /// assert_eq!(text.get()?, "to be or not");
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn push_str(&self, text: &str) -> Result<(), CollectionError> {
        self.bytes.append(text.len(), text.as_bytes())
    }

    /// A copy of the text, as it is at one moment.
    ///
    /// # Errors
    /// [`CollectionError::Corrupt`] if it is no UTF-8, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.set("Grüße")?;
    /// assert_eq!(text.get()?, "Grüße");
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn get(&self) -> Result<String, CollectionError> {
        let bytes = self.bytes.snapshot(
            |len| {
                let mut all = Vec::new();
                all.try_reserve_exact(len)?;
                all.resize(len, 0);
                Ok(all)
            },
            |all: &mut Vec<u8>| all,
        )?;
        String::from_utf8(bytes).map_err(|_| self.bytes.corrupt("it is no UTF-8"))
    }

    /// How many bytes it has, at this moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`] if a stopped process has it; [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.set("Grüße")?;
    /// assert_eq!(text.len()?, 7);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn len(&self) -> Result<usize, CollectionError> {
        Ok(self.bytes.len_and_capacity()?.0)
    }

    /// Whether it is empty, at this moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// assert!(text.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn is_empty(&self) -> Result<bool, CollectionError> {
        Ok(self.len()? == 0)
    }

    /// How many bytes there is room for without another block.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.set("abc")?;
    /// assert!(text.capacity()? >= 3);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn capacity(&self) -> Result<usize, CollectionError> {
        Ok(self.bytes.len_and_capacity()?.1)
    }

    /// Makes it empty, and keeps the room.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// text.set("abc")?;
    /// text.clear()?;
    /// assert_eq!(text.get()?, "");
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn clear(&self) -> Result<(), CollectionError> {
        self.bytes.truncate(0)
    }
}

impl<A: ?Sized> ShmString<'_, A> {
    /// The same string, with operations that wait for others so long at most, rather than for
    /// [`PATIENCE`](crate::robust::PATIENCE).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// let text = ShmString::create_in(&heap)?.with_patience(Duration::from_millis(10));
    /// assert_eq!(text.len()?, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.bytes.set_patience(patience);
        self
    }

    /// Where the string is, for others to attach to.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmString};
    /// # let heap = hshm_memory::doc_heap();
    /// # let text = ShmString::create_in(&heap)?;
    /// assert_eq!(ShmString::attach(&heap, text.place())?.place(), text.place());
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn place(&self) -> OffsetPointer {
        self.bytes.place()
    }
}

impl<A: ?Sized> fmt::Debug for ShmString<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmString").field("place", &self.place()).finish_non_exhaustive()
    }
}
