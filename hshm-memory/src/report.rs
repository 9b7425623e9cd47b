//! What a heap looks like from outside: plain numbers, for people, the control plane and tests.

use serde::{Deserialize, Serialize};

use crate::options::OnExit;
use crate::pointer::AllocatorId;
use crate::process::ProcessId;

/// A heap at one moment. While others allocate, the numbers are each true at some moment of the
/// walk, but not all at the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapReport {
    /// The version of the layout the segment is written in.
    pub layout_version: u32,
    /// The allocator's identity.
    pub id: AllocatorId,
    /// What becomes of a dead process's blocks.
    pub on_exit: OnExit,
    /// The most the segment can grow to.
    pub capacity_bytes: u64,
    /// How far it reaches now, its own metadata included.
    pub committed_bytes: u64,
    /// Size of a unit, the grain in which pages are cut.
    pub unit_bytes: u64,
    /// Units the segment has now, without those its metadata fills.
    pub units_total: u64,
    /// Units that belong to no page and no large block.
    pub units_free: u64,
    /// The longest run of free units: no block larger than this can be had now.
    pub largest_free_run_bytes: u64,
    /// Bytes that the application's own header has.
    pub custom_header_bytes: u64,
    /// Bytes in blocks that are allocated, each counted as its size class's size.
    pub allocated_bytes: u64,
    /// Blocks that are allocated.
    pub allocated_blocks: u64,
    /// The size classes that have pages, by ascending block size.
    pub classes: Vec<ClassReport>,
    /// Blocks too large for a size class: how many there are.
    pub large_blocks: u64,
    /// And the bytes of whole units they take.
    pub large_bytes: u64,
    /// Free blocks that workers keep to hand out again, whatever pages they are of.
    pub cached_blocks: u64,
    /// Their bytes.
    pub cached_bytes: u64,
    /// Pages without owner, which any worker may adopt.
    pub abandoned_pages: u64,
    /// The slots in use.
    pub workers: Vec<WorkerReport>,
    /// Worker slots the segment has in all.
    pub worker_slots: u32,
    /// Operations of all workers since the segment was created.
    pub operations: OperationCounts,
}

impl HeapReport {
    /// How much of the free memory cannot serve one large request: 0 if all free units lie in one
    /// run, towards 1 the more they are scattered. 0 if nothing is free.
    #[must_use]
    pub fn external_fragmentation(&self) -> f64 {
        let free = self.units_free.saturating_mul(self.unit_bytes);
        if free == 0 { 0.0 } else { 1.0 - self.largest_free_run_bytes as f64 / free as f64 }
    }

    /// Bytes in units that pages and large blocks hold, whether their blocks are allocated or not.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.units_total.saturating_sub(self.units_free).saturating_mul(self.unit_bytes)
    }
}

/// The pages of one size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassReport {
    /// Size of each block, in bytes.
    pub block_bytes: u64,
    /// Pages of this class.
    pub pages: u64,
    /// Blocks that fit those pages.
    pub blocks: u64,
    /// Blocks of those that are allocated.
    pub allocated_blocks: u64,
}

/// A stretch of a segment, of whole units, and what it is: a page, a large block, or free memory. A
/// segment's stretches lie one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Where it begins, in bytes from the segment's start.
    pub offset: u64,
    /// Its length, in bytes.
    pub bytes: u64,
    /// The slot of the worker that owns it; 0 for nobody.
    pub owner: u32,
    /// What it is.
    #[serde(flatten)]
    pub content: Content,
}

/// What a [`Stretch`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Content {
    /// Anybody's to take.
    Free,
    /// Blocks of one size.
    Page {
        /// Size of each, in bytes.
        block_bytes: u64,
        /// How many fit.
        blocks: u64,
        /// How many are allocated, those in workers' caches included.
        allocated_blocks: u64,
    },
    /// One block.
    Large,
    /// Where a worker notes what it caches.
    Cache,
    /// A worker is making it one of the others, or keeps it to be a large block again.
    Changing,
    /// None of these: somebody scribbled on the segment.
    Unknown,
}

/// One worker slot in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The slot's number, from 1.
    pub slot: u32,
    /// The process that holds it.
    pub process: ProcessId,
    /// The thread that uses it, as the kernel numbers it in its own pid namespace; 0 if the thread
    /// has ended.
    pub thread: u32,
    /// What state the slot is in.
    pub state: WorkerState,
    /// Pages it owns.
    pub pages: u64,
    /// What it has done since it was claimed.
    pub operations: OperationCounts,
}

/// The state of a worker slot in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// A thread allocates through it.
    Live,
    /// Its thread ended; the process keeps the pages until it dies or another of its threads
    /// takes the slot ([`OnExit::Reclaim`] only).
    Parked,
    /// Its process died, and a recovery is under way.
    Recovering,
}

/// Counts of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OperationCounts {
    /// Blocks handed out.
    pub allocations: u64,
    /// Blocks given back by the worker that owns their page.
    pub local_frees: u64,
    /// Blocks given back by another than the owner of their page.
    pub remote_frees: u64,
    /// Pages without owner that were taken over.
    pub adoptions: u64,
}

impl std::ops::AddAssign for OperationCounts {
    fn add_assign(&mut self, other: Self) {
        self.allocations = self.allocations.wrapping_add(other.allocations);
        self.local_frees = self.local_frees.wrapping_add(other.local_frees);
        self.remote_frees = self.remote_frees.wrapping_add(other.remote_frees);
        self.adoptions = self.adoptions.wrapping_add(other.adoptions);
    }
}

/// What a recovery found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Slots of the dead process that were recovered and are free again.
    pub slots: u32,
    /// Operations that stood in a journal and were carried to their end.
    pub operations_completed: u32,
    /// Operations that stood in a journal and were undone.
    pub operations_undone: u32,
    /// Pages left without owner, for others to adopt.
    pub pages_abandoned: u64,
    /// Pages and large blocks whose memory was given back to the segment.
    pub pages_freed: u64,
}

impl std::ops::AddAssign for RecoveryReport {
    fn add_assign(&mut self, other: Self) {
        self.slots += other.slots;
        self.operations_completed += other.operations_completed;
        self.operations_undone += other.operations_undone;
        self.pages_abandoned += other.pages_abandoned;
        self.pages_freed += other.pages_freed;
    }
}

/// What a repair did, and what it could not do.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RepairReport {
    /// What was done for dead processes that held worker slots.
    pub recovered: RecoveryReport,
    /// Slots whose word was none that there can be. They are free now.
    pub slots_freed: u32,
    /// Units that were owned by a slot that nobody held, and are owned no more.
    pub owners_cleared: u64,
    /// Lists of free blocks that could not be followed. Their blocks count as allocated from now on.
    pub lists_dropped: u64,
    /// Counts of a page's carved blocks or a run's units that contradicted its lists or tags. In a
    /// table of pages: whatever contradicted the pages' headers.
    pub counts_corrected: u64,
    /// Units that were made part of the page or run again that says it has them.
    pub units_bound: u64,
    /// The heap afterwards, with what could not be repaired.
    pub remaining: CheckReport,
}

impl RepairReport {
    /// Whether anything was found that had to be done.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        let Self { recovered, remaining, .. } = self;
        let idle = Self { remaining: remaining.clone(), ..Self::default() };
        *recovered != RecoveryReport::default() || *self != idle
    }
}

/// What a walk over the whole heap found.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// Units looked at.
    pub units: u64,
    /// Pages looked at.
    pub pages: u64,
    /// Free blocks found on lists.
    pub free_blocks: u64,
    /// Blocks that are on no list, hence allocated.
    pub allocated_blocks: u64,
    /// Bytes in those, large blocks included.
    pub allocated_bytes: u64,
    /// Broken invariants, the first [`CheckReport::MAX_VIOLATIONS`] of them.
    pub violations: Vec<Violation>,
    /// How many there are in all.
    pub violations_total: u64,
}

impl CheckReport {
    /// How many violations are described; the rest is only counted.
    pub const MAX_VIOLATIONS: usize = 64;

    /// Whether every invariant holds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violations_total == 0
    }

    /// Notes that `invariant` is broken at `offset`.
    pub(crate) fn violate(&mut self, invariant: &str, offset: u64, what: String) {
        self.violations_total += 1;
        if self.violations.len() < Self::MAX_VIOLATIONS {
            self.violations.push(Violation { invariant: invariant.to_owned(), offset, what });
        }
    }
}

/// One broken invariant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The invariant, as numbered in the crate's documentation: `I4`.
    pub invariant: String,
    /// The offset in the segment that it is about, in bytes.
    pub offset: u64,
    /// What was found.
    pub what: String,
}
