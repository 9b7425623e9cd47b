//! The allocator for many threads of many processes: each has a heap of its own in the segment, and
//! takes and returns blocks without asking anybody.

mod blocks;
mod cache;
mod care;
mod census;
mod check;
mod create;
mod drain;
mod fresh;
mod geometry;
mod heap;
mod interface;
mod journal;
mod layout;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_journal;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_page;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_remote;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_slots;
#[cfg(unix)]
mod open;
mod page;
mod parcel;
mod purge;
mod queue;
mod recover;
mod refill;
mod release;
mod remote;
mod repair;
mod runs;
mod settle;
mod size_class;
mod slots;
mod tls;
mod trim;
mod units;
mod view;
mod walk;
mod words;

#[cfg(test)]
mod cache_tests;
#[cfg(test)]
#[cfg(not(hshm_loom))]
mod hostile;
#[cfg(test)]
mod interrupted;
#[cfg(test)]
mod repair_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod trim_tests;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use self::layout::KIND_THREAD_LOCAL as KIND;
pub use self::layout::LAYOUT_VERSION;
pub(crate) use self::layout::MAGIC;
use self::view::View;
use self::words::SlotWord;
use crate::error::AllocError;
use crate::process::ProcessId;

/// The recommended allocator for shared memory: a heap for each thread, in the segment itself.
///
/// The value is this process's view of an allocator; clones share it. When the last one is dropped,
/// the slots of its threads are given back. Blocks stay allocated until somebody frees them: they
/// belong to the segment, not to a value in some process.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, ThreadLocalAllocator};
///
/// let backend = Arc::new(MemfdMmap::create("example", 16 << 20, 64 << 20)?);
/// let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), backend, &InitOptions::default())?;
/// let block = heap.allocate(100)?;
/// // SAFETY: the block is ours and at least 100 bytes long.
/// unsafe { heap.resolve(block, 100)?.write_bytes(7, 100) };
/// // SAFETY: nobody uses the block any more.
/// unsafe { heap.free(block)? };
/// assert_eq!(heap.report().allocated_bytes, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct ThreadLocalAllocator {
    /// `inner.key`, here to save a step on the fast path.
    key: u64,
    inner: Arc<Inner>,
}

/// What the clones share.
pub(crate) struct Inner {
    /// Unique among all allocators that this process ever attached.
    key: u64,
    view: Arc<View>,
    /// This process as its recoverer sees it, if that differs from how it sees itself; else 0.
    identity: AtomicU64,
    /// The fork generation in which `identity` was set.
    identity_generation: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // This thread's heap would keep the memory mapped until the thread ends.
        tls::detach_thread(self.key);
        tls::detach_all(self.key);
    }
}

impl Inner {
    /// Who claims slots here.
    fn process(&self) -> Result<ProcessId, AllocError> {
        let identity = self.identity.load(Ordering::Relaxed);
        if identity == 0 {
            return ProcessId::current().map_err(AllocError::Identity);
        }
        if self.identity_generation.load(Ordering::Relaxed) != tls::generation() {
            let message = "forked, in a pid namespace that the daemon does not share: attach anew";
            return Err(AllocError::Identity(std::io::Error::other(message)));
        }
        Ok(SlotWord(identity).process())
    }

    /// Whether others see this process under another number than it sees itself: then it sees them
    /// under other numbers too, or not at all, and cannot tell who is dead.
    fn is_apart(&self) -> bool {
        self.identity.load(Ordering::Relaxed) != 0
    }
}

impl fmt::Debug for ThreadLocalAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadLocalAllocator")
            .field("id", &self.id())
            .field("backend", &self.inner.view.backend().kind())
            .field("capacity_bytes", &self.capacity_bytes())
            .finish_non_exhaustive()
    }
}
