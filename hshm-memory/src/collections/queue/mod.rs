//! A bounded queue for many pushers and many poppers of many processes.

mod layout;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_ring;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_waiting;
mod ring;
#[cfg(test)]
#[cfg(not(hshm_loom))]
mod tests;
mod waiting;
mod words;

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use bytemuck::Pod;

use self::layout::{Geometry, PUSHERS, Parts, WHAT};
use self::ring::{NotPushed, Scribbled};
use self::waiting::{Event, Tried};
use super::{CellAllocator, CollectionError, identity};
use crate::allocator::Allocator;
use crate::allocator::thread_local::ThreadLocalAllocator;
use crate::context::MemContext;
use crate::pointer::OffsetPointer;

/// A queue in shared memory: any thread of any process puts messages in, any takes them out, in the
/// order in which they were put in.
///
/// The value is this process's view of a queue; clones, and views of other processes, are of the same
/// one. The queue lives in one block until it is destroyed, whichever process made it.
///
/// # What a death leaves
/// A message is put in, and taken out, by one compare-and-swap each. So a process that dies inside
/// [`try_push`](Self::try_push) or [`push`](Self::push) has put its message in, whole, or has not; one
/// that dies inside [`try_pop`](Self::try_pop) or [`pop`](Self::pop) has left the message in, or takes
/// it along. Nobody else's message is lost, seen twice or torn. Nobody waits for a dead, or for one
/// that was stopped: what it leaves is one of the 64 pushers, which is taken over when all are in use.
/// If it dies or is stopped between putting a message in and waking those who wait for one, they find
/// it within a tenth of a second.
///
/// A process that dies between making a queue and telling others where it is leaves a block that nobody
/// knows; where that must not be, see [`create_into`](Self::create_into).
///
/// Bytes that another process scribbled make wrong messages, or [`CollectionError::Corrupt`].
///
/// # Examples
/// ```
/// use std::time::Duration;
/// use hshm_memory::collections::{CollectionError, ShmQueue};
/// # let heap = hshm_memory::doc_heap();
///
/// let queue = ShmQueue::<u64>::create_in(&heap, 100)?;
/// // In another process, which was told the offset:
/// let view = ShmQueue::<u64>::attach(&heap, queue.place())?;
/// view.push(7, Duration::from_secs(1))?;
/// assert_eq!(queue.pop(Duration::from_secs(1))?, 7);
/// # drop(view);
/// // SAFETY: nobody uses the queue any more.
/// unsafe { queue.destroy()? };
/// # Ok::<(), CollectionError>(())
/// ```
pub struct ShmQueue<'a, T, A: Allocator + ?Sized = ThreadLocalAllocator> {
    allocator: &'a A,
    place: OffsetPointer,
    parts: Parts<'a>,
    _messages: PhantomData<fn(T) -> T>,
}

/// Making and finding.
impl<'a, T: Pod, A: Allocator + ?Sized> ShmQueue<'a, T, A> {
    /// Makes a queue with room for `capacity` messages, rounded up to a power of two.
    ///
    /// It takes as many bytes as a message has and 16 for each of them, and about 5 KiB.
    ///
    /// # Errors
    /// [`CollectionError::Capacity`] if it is 0 or beyond 2^20; [`CollectionError::Alloc`] if there
    /// is no memory for it.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<[f32; 3]>::create_in(&heap, 1000)?;
    /// assert_eq!((queue.len(), queue.capacity()), (0, 1024));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn create_in(allocator: &'a A, capacity: usize) -> Result<Self, CollectionError> {
        let geometry = Geometry::compute(capacity, size_of::<T>())?;
        let bytes = geometry.block_bytes()?;
        let place = allocator.allocate_offset(MemContext::DEFAULT, bytes)?;
        match Parts::initialise(allocator, place, geometry) {
            Ok(parts) => Ok(Self::over(allocator, place, parts)),
            Err(error) => {
                // SAFETY: [owned] it was just allocated, and nobody knows of it.
                unsafe { allocator.free_offset_no_null_check(MemContext::DEFAULT, place) }?;
                Err(error)
            }
        }
    }

    /// Finds the queue that stands in the block at `place`, which may be in use.
    ///
    /// # Errors
    /// [`CollectionError::NotThere`] if there is none, [`CollectionError::ElementSize`] if its
    /// messages have another size, [`CollectionError::Namespace`] if its processes cannot be seen
    /// from here, [`CollectionError::Corrupt`] if its own data contradict themselves.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// # let queue = ShmQueue::<u64>::create_in(&heap, 100)?;
    /// # let place = queue.place();
    /// let queue = ShmQueue::<u64>::attach(&heap, place)?;
    /// let other = ShmQueue::<u32>::attach(&heap, place);
    /// assert!(matches!(other, Err(CollectionError::ElementSize { .. })));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn attach(allocator: &'a A, place: OffsetPointer) -> Result<Self, CollectionError> {
        let parts = Parts::find(allocator, place, size_of::<T>())?;
        Ok(Self::over(allocator, place, parts))
    }

    fn over(allocator: &'a A, place: OffsetPointer, parts: Parts<'a>) -> Self {
        Self { allocator, place, parts, _messages: PhantomData }
    }

    /// Where the queue is, for others to attach to.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// # let queue = ShmQueue::<u64>::create_in(&heap, 100)?;
    /// assert_eq!(ShmQueue::<u64>::attach(&heap, queue.place())?.place(), queue.place());
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn place(&self) -> OffsetPointer {
        self.place
    }

    /// Takes the queue away and frees its block, with what is in it.
    ///
    /// # Safety
    /// No other view of it is used any more, in any process.
    ///
    /// # Errors
    /// [`CollectionError::Alloc`] if the allocator refuses the block.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<u64>::create_in(&heap, 100)?;
    /// // SAFETY: nobody else knows of it.
    /// unsafe { queue.destroy()? };
    /// assert_eq!(heap.report().allocated_bytes, 0);
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub unsafe fn destroy(self) -> Result<(), CollectionError> {
        self.parts.unmake();
        // SAFETY: the caller gives the block up.
        unsafe { self.allocator.free_offset_no_null_check(MemContext::DEFAULT, self.place) }?;
        Ok(())
    }
}

/// Making one that no death loses.
impl<'a, T: Pod, A: CellAllocator + ?Sized> ShmQueue<'a, T, A> {
    /// Makes a queue as [`create_in`](Self::create_in), whose block the cell at `cell` names from
    /// then on.
    ///
    /// With an allocator that does this exactly once, such as [`ThreadLocalAllocator`], a process
    /// that dies here leaves, after recovery, a cell that is null or names the block. If
    /// [`attach`](Self::attach) finds no queue there then, it died before the queue was ready, and
    /// [`CellAllocator::free_from`] gives the block back.
    ///
    /// # Errors
    /// As [`create_in`](Self::create_in); [`crate::AllocError::BadCell`] if the cell is not null.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, ThreadLocalAllocator};
    /// # let backend = std::sync::Arc::new(MemfdMmap::create("example", 16 << 20, 16 << 20)?);
    /// # let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
    /// # let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), backend, &options)?;
    /// let cell = heap.custom_header().0;
    /// let queue = ShmQueue::<u64>::create_into(&heap, cell, 100)?;
    /// let found = ShmQueue::<u64>::attach(&heap, heap.read_cell(cell)?)?;
    /// # drop(found);
    /// // SAFETY: nobody uses it any more.
    /// unsafe { queue.destroy_from(cell)? };
    /// assert!(heap.read_cell(cell)?.is_null());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_into(
        allocator: &'a A,
        cell: OffsetPointer,
        capacity: usize,
    ) -> Result<Self, CollectionError> {
        let geometry = Geometry::compute(capacity, size_of::<T>())?;
        let place = allocator.allocate_into(cell, geometry.block_bytes()?)?;
        match Parts::initialise(allocator, place, geometry) {
            Ok(parts) => Ok(Self::over(allocator, place, parts)),
            Err(error) => {
                // SAFETY: [owned] it was just allocated, and there is no queue in it.
                unsafe { allocator.free_from(cell) }?;
                Err(error)
            }
        }
    }

    /// Takes away the queue that the cell at `cell` names, and makes the cell null.
    ///
    /// # Safety
    /// As [`destroy`](Self::destroy); the cell names this queue.
    ///
    /// # Errors
    /// As [`CellAllocator::free_from`].
    pub unsafe fn destroy_from(self, cell: OffsetPointer) -> Result<(), CollectionError> {
        self.parts.unmake();
        // SAFETY: the caller gives the block up, and the cell names it.
        unsafe { self.allocator.free_from(cell) }?;
        Ok(())
    }
}

/// Messages.
impl<T: Pod, A: Allocator + ?Sized> ShmQueue<'_, T, A> {
    /// Puts `message` in, if there is room.
    ///
    /// # Errors
    /// [`CollectionError::Full`]; [`CollectionError::Busy`] if 64 threads are in the midst of a
    /// push; [`CollectionError::Corrupt`]; [`CollectionError::Identity`] if `/proc` is not there.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<u64>::create_in(&heap, 2)?;
    /// queue.try_push(1)?;
    /// queue.try_push(2)?;
    /// assert!(matches!(queue.try_push(3), Err(CollectionError::Full)));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn try_push(&self, message: T) -> Result<(), CollectionError> {
        let me = identity::me().map_err(CollectionError::Identity)?;
        let bytes = bytemuck::bytes_of(&message);
        match self.parts.ring.push(me, bytes, identity::is_dead) {
            Ok(()) => {
                // Died here: who waits for a message looks again by itself.
                crate::crash_point!("queue.unannounced");
                self.parts.control.not_empty.0.came_about();
                Ok(())
            }
            Err(NotPushed::Full) => Err(CollectionError::Full),
            Err(NotPushed::NoPusher) => Err(CollectionError::Busy { most: PUSHERS.into() }),
            Err(NotPushed::Scribbled(what)) => Err(self.corrupt(what)),
        }
    }

    /// Takes the oldest message out.
    ///
    /// # Errors
    /// [`CollectionError::Empty`]; [`CollectionError::Corrupt`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<u64>::create_in(&heap, 2)?;
    /// queue.try_push(1)?;
    /// assert_eq!(queue.try_pop()?, 1);
    /// assert!(matches!(queue.try_pop(), Err(CollectionError::Empty)));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn try_pop(&self) -> Result<T, CollectionError> {
        let mut message = T::zeroed();
        match self.parts.ring.pop(bytemuck::bytes_of_mut(&mut message)) {
            Ok(true) => {
                self.parts.control.not_full.0.came_about();
                Ok(message)
            }
            Ok(false) => Err(CollectionError::Empty),
            Err(what) => Err(self.corrupt(what)),
        }
    }

    /// Puts `message` in, and waits for room for `timeout` at most ([`Duration::MAX`]: for ever).
    ///
    /// # Errors
    /// [`CollectionError::TimedOut`], and as [`try_push`](Self::try_push).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<u64>::create_in(&heap, 1)?;
    /// queue.push(1, Duration::MAX)?;
    /// let late = queue.push(2, Duration::from_millis(1));
    /// assert!(matches!(late, Err(CollectionError::TimedOut { .. })));
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn push(&self, message: T, timeout: Duration) -> Result<(), CollectionError> {
        wait(&self.parts.control.not_full.0, timeout, || self.try_push(message))
    }

    /// Takes the oldest message out, and waits for one for `timeout` at most ([`Duration::MAX`]: for
    /// ever).
    ///
    /// # Errors
    /// [`CollectionError::TimedOut`], and as [`try_pop`](Self::try_pop).
    ///
    /// # Examples
    /// ```
    /// # use std::time::Duration;
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<u64>::create_in(&heap, 1)?;
    /// std::thread::scope(|scope| {
    ///     let popper = scope.spawn(|| queue.pop(Duration::MAX));
    ///     queue.push(1, Duration::MAX)?;
    ///     assert_eq!(popper.join().expect("it does not panic")?, 1);
    ///     Ok::<(), CollectionError>(())
    /// })?;
    /// # Ok::<(), CollectionError>(())
    /// ```
    pub fn pop(&self, timeout: Duration) -> Result<T, CollectionError> {
        wait(&self.parts.control.not_empty.0, timeout, || self.try_pop())
    }

    /// How many messages there are: when others are at work, how many there were about now.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// let queue = ShmQueue::<u64>::create_in(&heap, 2)?;
    /// queue.try_push(1)?;
    /// assert_eq!(queue.len(), 1);
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.ring.len()
    }

    /// Whether there is no message, as far as [`len`](Self::len) tells.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// assert!(ShmQueue::<u64>::create_in(&heap, 2)?.is_empty());
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many messages there is room for.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::collections::{CollectionError, ShmQueue};
    /// # let heap = hshm_memory::doc_heap();
    /// assert_eq!(ShmQueue::<u64>::create_in(&heap, 5)?.capacity(), 8);
    /// # Ok::<(), CollectionError>(())
    /// ```
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.parts.geometry.capacity()
    }

    fn corrupt(&self, Scribbled(why): Scribbled) -> CollectionError {
        CollectionError::Corrupt { what: WHAT, offset: self.place.offset_bytes(), why }
    }
}

fn wait<R>(
    event: &Event,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<R, CollectionError>,
) -> Result<R, CollectionError> {
    let waited = event.wait_for(timeout, || match attempt() {
        Err(CollectionError::Full | CollectionError::Empty) => Tried::Wait,
        Err(CollectionError::Busy { .. }) => Tried::WaitBlindly,
        done => Tried::Done(done),
    });
    waited.unwrap_or(Err(CollectionError::TimedOut { waited: timeout }))
}

impl<T, A: Allocator + ?Sized> Clone for ShmQueue<'_, T, A> {
    fn clone(&self) -> Self {
        let Self { allocator, place, parts, .. } = *self;
        Self { allocator, place, parts, _messages: PhantomData }
    }
}

impl<T, A: Allocator + ?Sized> fmt::Debug for ShmQueue<'_, T, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShmQueue")
            .field("place", &self.place)
            .field("len", &self.parts.ring.len())
            .field("capacity", &self.parts.geometry.capacity())
            .finish_non_exhaustive()
    }
}
