//! Looking at the heap, and after the dead.

use std::sync::Arc;

use super::{ThreadLocalAllocator, census, check, recover};
use crate::backend::Backend;
use crate::options::OnExit;
use crate::pointer::AllocatorId;
use crate::process::ProcessId;
use crate::report::{CheckReport, HeapReport, RecoveryReport, Stretch};

impl ThreadLocalAllocator {
    /// The allocator's identity.
    #[must_use]
    pub fn id(&self) -> AllocatorId {
        self.inner.view.identity.id
    }

    /// What becomes of a dead process's blocks.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        self.inner.view.on_exit()
    }

    /// The backend under it.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        self.inner.view.backend()
    }

    /// The most that the segment can grow to, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.inner.view.geometry.capacity
    }

    /// How far the segment reaches now, in bytes.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        self.inner.view.refresh_limit()
    }

    /// Counts what is allocated, held and free.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// heap.allocate(100)?;
    /// let report = heap.report();
    /// assert_eq!((report.allocated_blocks, report.allocated_bytes), (1, 112));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn report(&self) -> HeapReport {
        census::report(&self.inner.view)
    }

    /// What the segment is divided into, from its first page on: some 50 bytes for each 64 KiB at most.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// use hshm_memory::report::Content;
    ///
    /// # let heap = doc_heap();
    /// heap.allocate(100)?;
    /// let stretches = heap.stretches();
    /// let page = stretches.iter().find(|stretch| stretch.content != Content::Free).unwrap();
    /// let Content::Page { block_bytes, allocated_blocks, .. } = page.content else { panic!() };
    /// assert_eq!((block_bytes, allocated_blocks), (112, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn stretches(&self) -> Vec<Stretch> {
        census::stretches(&self.inner.view)
    }

    /// Walks the whole heap, follows every list, and names each invariant that is broken. On a heap
    /// that is in use, pages that do not hold still are looked at again.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// assert!(heap.check().is_clean());
    /// ```
    #[must_use]
    pub fn check(&self) -> CheckReport {
        check::check(&self.inner.view)
    }

    /// The processes that hold worker slots, each once, in ascending order.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{ProcessId, doc_heap};
    /// # let heap = doc_heap();
    /// heap.allocate(100)?;
    /// assert_eq!(heap.holders(), [ProcessId::current()?]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn holders(&self) -> Vec<ProcessId> {
        let slots = self.inner.view.slots_in_use();
        let mut holders: Vec<_> = slots.map(|(_, word)| word.process()).collect();
        holders.sort_unstable();
        holders.dedup();
        holders
    }

    /// Recovers every slot of `dead`, which has ended: operations that it was about are finished or
    /// undone, and its pages are left to the others or freed, as [`OnExit`] says. Does nothing if
    /// the process is found alive, nor in a process that lives in another pid namespace than the daemon
    /// that it attached through: there the living would pass for dead.
    ///
    /// It may be interrupted at any point and called again; of several callers, each slot is
    /// recovered by one. Nobody waits for it.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{ProcessId, doc_heap};
    /// # let heap = doc_heap();
    /// heap.allocate(100)?;
    /// // Nothing is taken from the living.
    /// assert_eq!(heap.recover(ProcessId::current()?).slots, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn recover(&self, dead: ProcessId) -> RecoveryReport {
        self.recover_some(dead, usize::MAX)
    }

    /// The same for `most` slots of `dead`, for who recovers step by step: as long as it finds so many,
    /// there may be more. What a step takes is bounded by the segment's units.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::{ProcessId, doc_heap};
    /// # let heap = doc_heap();
    /// let dead = ProcessId { pid: 1 << 21, start_ticks: 1 };
    /// while heap.recover_some(dead, 16).slots == 16 {
    ///     // There is time for something else.
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn recover_some(&self, dead: ProcessId, most: usize) -> RecoveryReport {
        if self.inner.is_apart() || dead.is_alive() {
            return RecoveryReport::default();
        }
        // Without a name of our own nobody could tell whether we are still at it.
        let Ok(by) = ProcessId::current() else { return RecoveryReport::default() };
        recover::recover_process(&self.inner.view, dead, by, most)
    }

    /// Looks for holders that have ended, and recovers them. For processes that share a segment
    /// without a daemon; all of them must live in one pid namespace.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::doc_heap;
    /// # let heap = doc_heap();
    /// assert_eq!(heap.recover_dead().slots, 0);
    /// ```
    #[must_use]
    pub fn recover_dead(&self) -> RecoveryReport {
        let mut report = RecoveryReport::default();
        for process in self.holders() {
            report += self.recover(process);
        }
        report
    }
}
