//! The memory context: hints that go with an operation.

use crate::thread_model::ThreadId;

/// As which thread an operation is to be done: with whose storage.
///
/// The default context has the null thread id, which says: find the calling thread's storage, and
/// claim some if it has none yet. One made by `create_tls` has an id of its own, for whoever is given
/// it; two threads that use it at once wait for one another. Every operation of the allocator that
/// made it honours it, and in this process alone.
///
/// # Examples
/// ```
/// # use hshm_memory::doc_heap;
/// use hshm_memory::{Allocator, MemContext};
///
/// # let heap = doc_heap();
/// let context = heap.create_tls()?;
/// assert!(MemContext::DEFAULT.thread_id().is_null());
/// assert!(!context.thread_id().is_null());
/// // Any thread may allocate with it.
/// let block = std::thread::scope(|scope| {
///     scope.spawn(|| heap.allocate_offset(context, 100)).join().expect("it does not panic")
/// })?;
/// // SAFETY: nobody uses the block any more.
/// unsafe { heap.free_offset_no_null_check(context, block)? };
/// heap.free_tls(context)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MemContext {
    thread: ThreadId,
}

impl MemContext {
    /// The context that says: find the current thread.
    pub const DEFAULT: Self = Self { thread: ThreadId::NULL };

    #[must_use]
    pub(crate) const fn with_slot(slot: u32) -> Self {
        // Not `into`: that is no constant function.
        Self { thread: ThreadId::new(slot as u64) }
    }

    /// The thread's number as its allocator counts, unique over all processes; null for the current
    /// thread. It is no number that the thread model gives.
    #[must_use]
    #[inline]
    pub const fn thread_id(self) -> ThreadId {
        self.thread
    }

    /// The same, as the number of a worker slot where the allocator has those; 0 for the current
    /// thread's.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "`with_slot` alone makes others than 0")]
        let slot = self.thread.get() as u32;
        slot
    }
}
