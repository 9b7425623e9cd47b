//! A hash map that processes share.

mod probe;

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytemuck::Pod;

use self::probe::{Layout, Pairs};
use super::guarded::{Guarded, Held, Kind};
use super::{CellAllocator, CollectionError};
use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::pointer::OffsetPointer;

/// A map from keys to values in shared memory, which any thread of any process reads and changes.
///
/// The value is this process's view of a map, which lives until it is destroyed. Each operation has the
/// map for itself, by a lock, and waits for others to be done with theirs, for at most
/// [`PATIENCE`](crate::robust::PATIENCE). Keys are the same if their bytes are: for floating-point
/// numbers 0 and -0 differ.
///
/// # What a death leaves
/// As with [`ShmVec`](super::ShmVec): an operation whose process dies in it has happened, whole, or has
/// not, and nobody waits for a dead. In [`update`](Self::update) that goes for what the function made
/// of the value, too. The next one counts all pairs, once.
///
/// # Examples
/// ```
/// use hshm_memory::collections::{CollectionError, ShmHashMap};
/// # let heap = hshm_memory::doc_heap();
///
/// let squares = ShmHashMap::<u32, u64>::create_in(&heap)?;
/// // In another process, which was told the offset:
/// let view = ShmHashMap::<u32, u64>::attach(&heap, squares.place())?;
/// view.insert(3, 9)?;
/// assert_eq!(squares.get(&3)?, Some(9));
/// # drop(view);
/// // SAFETY: nobody uses the map any more.
/// unsafe { squares.destroy()? };
/// # Ok::<(), CollectionError>(())
/// ```
pub struct ShmHashMap<'a, K, V, A: ?Sized = ThreadLocalAllocator> {
    guarded: Guarded<'a, A>,
    _keys: PhantomData<fn(K) -> K>,
    _values: PhantomData<fn(V) -> V>,
}

/// Making and finding.
impl<'a, K: Pod, V: Pod, A: CellAllocator + ?Sized> ShmHashMap<'a, K, V, A> {
    const KIND: Kind = {
        assert!(size_of::<K>() > 0, "keys without bytes are all the same");
        let (first_bytes, second_bytes) = (size_of::<K>(), size_of::<V>());
        Kind { what: "shared map", magic: *b"hshmmap1", first_bytes, second_bytes }
    };
    const LAYOUT: Layout = Layout::of(Self::KIND);

    /// Makes an empty map.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory for it;
    /// [`CollectionError::GoesWithProcess`] where blocks are freed when a process ends.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// assert!(ShmHashMap::<[u8; 16], f32>::create_in(&heap)?.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_in(allocator: &'a A) -> Result<Self, CollectionError> {
        Guarded::create_in(allocator, Self::KIND).map(Self::over)
    }

    /// Makes an empty map, whose first block the cell at `cell` names from then on. See
    /// [`ShmVec::create_into`](super::ShmVec::create_into).
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in); [`crate::AllocError::BadCell`] if the cell is not null.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let cell = heap.allocate(8)?;
    /// # // SAFETY: it was just allocated.
    /// # unsafe { heap.resolve(cell, 8)?.write_bytes(0, 8) };
    /// let map = ShmHashMap::<u64, u64>::create_into(&heap, cell)?;
    /// assert_eq!(heap.read_cell(cell)?, map.place());
    /// // SAFETY: nobody else uses it.
    /// unsafe { map.destroy_from(cell)? };
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_into(allocator: &'a A, cell: OffsetPointer) -> Result<Self, CollectionError> {
        Guarded::create_into(allocator, cell, Self::KIND).map(Self::over)
    }

    /// Finds the map whose first block is at `place`, which may be in use.
    ///
    /// # Errors
    /// [`CollectionError::NotThere`] if there is none, [`CollectionError::ElementSize`] if its keys or
    /// values have another size, [`CollectionError::Namespace`] if its processes cannot be seen from
    /// here.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// let view = ShmHashMap::<u64, u64>::attach(&heap, map.place())?;
    /// let other = ShmHashMap::<u64, u32>::attach(&heap, map.place());
    /// assert!(matches!(other, Err(CollectionError::ElementSize { .. })));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn attach(allocator: &'a A, place: OffsetPointer) -> Result<Self, CollectionError> {
        Guarded::attach(allocator, place, Self::KIND).map(Self::over)
    }

    fn over(guarded: Guarded<'a, A>) -> Self {
        Self { guarded, _keys: PhantomData, _values: PhantomData }
    }

    /// Takes the map away and frees its blocks.
    ///
    /// # Safety
    /// No other view of it is used any more, in any process.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if the allocator refuses a block.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// // SAFETY: nobody else knows of it.
    /// unsafe { map.destroy()? };
    /// assert_eq!(heap.report().allocated_bytes, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub unsafe fn destroy(self) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.guarded.destroy() }
    }

    /// Takes away the map that the cell at `cell` names, and makes the cell null. See
    /// [`create_into`](Self::create_into).
    ///
    /// # Safety
    /// As [`destroy`](Self::destroy); the cell names this map.
    ///
    /// # Errors
    /// As [`CellAllocator::free_from`].
    pub unsafe fn destroy_from(self, cell: OffsetPointer) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.guarded.destroy_from(cell) }
    }

    fn lock(&self) -> Result<Held<'_, 'a, A>, CollectionError> {
        self.guarded.lock(|held| probe::count(held, Self::LAYOUT))
    }
}

/// Pairs. All operations may fail with [`CollectionError::Lock`] or [`CollectionError::Corrupt`].
impl<K: Pod, V: Pod, A: CellAllocator + ?Sized> ShmHashMap<'_, K, V, A> {
    /// Makes `value` the value of `key`. Returns the one before.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// assert_eq!(map.insert(1, 10)?, None);
    /// assert_eq!(map.insert(1, 11)?, Some(10));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn insert(&self, key: K, value: V) -> Result<Option<V>, CollectionError> {
        let mut before = None;
        self.update(&key, |old| {
            before = old;
            Some(value)
        })?;
        Ok(before)
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.insert(1, 10)?;
    /// assert_eq!((map.get(&1)?, map.get(&2)?), (Some(10), None));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn get(&self, key: &K) -> Result<Option<V>, CollectionError> {
        let held = self.lock()?;
        let found = Pairs::of(&held, Self::LAYOUT)?.find(bytemuck::bytes_of(key));
        Ok(found.map(|place| {
            let mut value = V::zeroed();
            place.load_value(bytemuck::bytes_of_mut(&mut value));
            value
        }))
    }

    /// Whether `key` has a value.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.insert(1, 10)?;
    /// assert!(map.contains_key(&1)? && !map.contains_key(&2)?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn contains_key(&self, key: &K) -> Result<bool, CollectionError> {
        let held = self.lock()?;
        Ok(Pairs::of(&held, Self::LAYOUT)?.find(bytemuck::bytes_of(key)).is_some())
    }

    /// Takes `key` out, and returns its value.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.insert(1, 10)?;
    /// assert_eq!((map.remove(&1)?, map.remove(&1)?), (Some(10), None));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn remove(&self, key: &K) -> Result<Option<V>, CollectionError> {
        let mut removed = None;
        self.update(key, |old| {
            removed = old;
            None
        })?;
        Ok(removed)
    }

    /// Makes what `f` returns the value of `key`, or takes it out if that is none. `f` is given the value
    /// that there is, and nobody else changes it meanwhile. Returns the new value.
    ///
    /// Others wait for `f`, and if it panics the map stays as it was. `f` must not use the map, nor yield
    /// to another user-level thread.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// for _ in 0..3 {
    ///     map.update(&1, |count| Some(count.unwrap_or(0) + 1))?;
    /// }
    /// assert_eq!(map.get(&1)?, Some(3));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn update(
        &self,
        key: &K,
        f: impl FnOnce(Option<V>) -> Option<V>,
    ) -> Result<Option<V>, CollectionError> {
        let held = self.lock()?;
        let pairs = Pairs::of(&held, Self::LAYOUT)?;
        let bytes = bytemuck::bytes_of(key);
        let place = pairs.find(bytes);
        let old = place.map(|place| {
            let mut value = V::zeroed();
            place.load_value(bytemuck::bytes_of_mut(&mut value));
            value
        });
        let new = f(old);
        match (place, &new) {
            (Some(place), Some(value)) => pairs.overwrite(place, bytemuck::bytes_of(value))?,
            (Some(place), None) => pairs.take(place),
            (None, Some(value)) => pairs.add(bytes, bytemuck::bytes_of(value))?,
            (None, None) => {}
        }
        Ok(new)
    }

    /// A copy of all pairs, as they are at one moment, in no order.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.insert(1, 10)?;
    /// map.insert(2, 20)?;
    /// let sum: u64 = map.to_vec()?.iter().map(|(_, value)| value).sum();
    /// assert_eq!(sum, 30);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn to_vec(&self) -> Result<Vec<(K, V)>, CollectionError> {
        let held = self.lock()?;
        let pairs = Pairs::of(&held, Self::LAYOUT)?;
        let mut all = Vec::new();
        // As many as there are, whatever the count says.
        let room = all.try_reserve_exact(pairs.iter().count());
        room.map_err(|_| self.guarded.corrupt("it is beyond this process's memory"))?;
        all.extend(pairs.iter().take(all.capacity()).map(|place| {
            let (mut key, mut value) = (K::zeroed(), V::zeroed());
            place.load_key(bytemuck::bytes_of_mut(&mut key));
            place.load_value(bytemuck::bytes_of_mut(&mut value));
            (key, value)
        }));
        Ok(all)
    }

    /// Takes all pairs out. The map gets a new block.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.insert(1, 10)?;
    /// map.clear()?;
    /// assert!(map.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn clear(&self) -> Result<(), CollectionError> {
        let held = self.lock()?;
        Pairs::of(&held, Self::LAYOUT)?.clear()
    }

    /// How many pairs there are, at this moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`] if a stopped process has it; [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.insert(1, 10)?;
    /// assert_eq!(map.len()?, 1);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn len(&self) -> Result<usize, CollectionError> {
        Ok(self.lock()?.len())
    }

    /// Whether there is no pair, at this moment.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// assert!(map.is_empty()?);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn is_empty(&self) -> Result<bool, CollectionError> {
        Ok(self.len()? == 0)
    }

    /// How many pairs there is room for without another block, as long as none is taken out.
    ///
    /// # Errors
    /// [`CollectionError::Lock`], [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.reserve(100)?;
    /// assert!(map.capacity()? >= 100);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn capacity(&self) -> Result<usize, CollectionError> {
        let held = self.lock()?;
        Ok(Pairs::of(&held, Self::LAYOUT)?.capacity())
    }

    /// Makes room for `capacity` pairs in all.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if there is no memory, and as [`len`](Self::len).
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// map.reserve(100)?;
    /// assert!(map.capacity()? >= 100);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn reserve(&self, capacity: usize) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let pairs = Pairs::of(&held, Self::LAYOUT)?;
        if pairs.capacity() < capacity { pairs.rebuild(capacity) } else { Ok(()) }
    }
}

impl<K, V, A: ?Sized> ShmHashMap<'_, K, V, A> {
    /// The same map, with operations that wait for others so long at most, rather than for
    /// [`PATIENCE`](crate::robust::PATIENCE).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// let map = ShmHashMap::<u64, u64>::create_in(&heap)?.with_patience(Duration::from_millis(10));
    /// assert_eq!(map.len()?, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.guarded.set_patience(patience);
        self
    }

    /// Where the map is, for others to attach to.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmHashMap};
    /// # let heap = hshm_memory::doc_heap();
    /// # let map = ShmHashMap::<u64, u64>::create_in(&heap)?;
    /// let view = ShmHashMap::<u64, u64>::attach(&heap, map.place())?;
    /// assert_eq!(view.place(), map.place());
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn place(&self) -> OffsetPointer {
        self.guarded.place()
    }
}

impl<K, V, A: ?Sized> fmt::Debug for ShmHashMap<'_, K, V, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmHashMap").field("place", &self.place()).finish_non_exhaustive()
    }
}
