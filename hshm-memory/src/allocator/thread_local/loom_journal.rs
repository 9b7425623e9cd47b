//! Models of `allocate_into` and `free_from` on one cell: whoever dies when, and whoever helps,
//! afterwards the cell names a block or the block is free, never both and never neither.

use std::sync::Arc;

use super::journal::{clear, fill, write};
use super::layout::Journal;
use super::settle::{has_arrived, settle};
use super::words::{Operation, Step, cell_being_freed, cell_names_block};
use crate::sync::model::{Death, explore_deaths};
use crate::sync::{AtomicU64, Ordering};

const CELL: u64 = 0x1000;
const WORKERS: usize = 3;

/// A worker slot with one block.
struct Worker {
    journal: Journal,
    /// 1 while the block is on a list of its worker's: in its bin, or given back to its page.
    is_free: AtomicU64,
    /// 1 once the memory is a block that a freer allocated for itself, as a run's may be.
    is_taken: AtomicU64,
}

struct World {
    cell: AtomicU64,
    /// The victim is number 0.
    workers: [Worker; WORKERS],
}

fn block_of(worker: usize) -> u64 {
    (worker as u64 + 1) << 16
}

fn worker_of(block: u64) -> usize {
    usize::try_from(block >> 16).unwrap() - 1
}

impl World {
    fn new() -> Arc<Self> {
        let worker = || Worker {
            journal: Journal::for_model(),
            is_free: AtomicU64::new(1),
            is_taken: AtomicU64::new(0),
        };
        Arc::new(Self { cell: AtomicU64::new(0), workers: [(); WORKERS].map(|()| worker()) })
    }

    /// [`super::heap::Heap::allocate_into`] by `worker`, if its block is to be had.
    fn allocate_into(&self, worker: usize, sequence: u32) {
        let Worker { journal, is_free, .. } = &self.workers[worker];
        if self.cell.load(Ordering::Acquire) != 0 || is_free.load(Ordering::Acquire) == 0 {
            return;
        }
        let block = block_of(worker);
        write(journal, Operation::new(Step::AllocateInto, 2, sequence), CELL, block);
        is_free.store(0, Ordering::Release);
        if fill(&self.cell, CELL, block).is_err() {
            self.free(block);
        }
        clear(journal);
    }

    /// [`super::heap::Heap::free_from`] by `worker`.
    fn free_from(&self, worker: usize) -> bool {
        let journal = &self.workers[worker].journal;
        let offset = self.cell.load(Ordering::Acquire);
        if !cell_names_block(offset) {
            return false;
        }
        write(journal, Operation::new(Step::FreeFrom, 2, 1), CELL, offset);
        let marked = cell_being_freed(u32::try_from(worker).unwrap(), 1);
        let won =
            self.cell.compare_exchange(offset, marked, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won {
            settle(&self.workers[worker_of(offset)].journal, CELL, offset);
            self.free(offset);
            self.cell.store(0, Ordering::Release);
        }
        clear(journal);
        won
    }

    /// Somebody gets the memory for another block.
    fn take(&self, owner: usize) {
        let Worker { is_free, is_taken, .. } = &self.workers[owner];
        if is_free.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            is_taken.store(1, Ordering::Relaxed);
        }
    }

    fn free(&self, block: u64) {
        let was_free = self.workers[worker_of(block)].is_free.swap(1, Ordering::AcqRel);
        assert_eq!(was_free, 0, "it is freed twice");
    }

    /// [`super::journal::resolve`] for the victim.
    fn resolve(&self) {
        let Worker { journal, is_free, .. } = &self.workers[0];
        let operation = Operation(journal.operation.load(Ordering::SeqCst));
        if operation.step() == Step::AllocateInto {
            let marker = |slot| self.workers.get(slot as usize).map(|worker| &worker.journal);
            let arrived = has_arrived(journal, operation, &self.cell, block_of(0), marker).unwrap();
            if !arrived && is_free.load(Ordering::Acquire) == 0 {
                self.free(block_of(0));
            }
        }
        clear(journal);
    }

    /// When all have ended.
    fn assert_exactly_once(&self) {
        let cell = self.cell.load(Ordering::Acquire);
        for worker in 0..WORKERS {
            let Worker { is_free, is_taken, .. } = &self.workers[worker];
            let is_free = is_free.load(Ordering::Acquire) == 1;
            let is_taken = is_taken.load(Ordering::Acquire) == 1;
            let block = block_of(worker);
            let uses = u32::from(is_free) + u32::from(is_taken) + u32::from(cell == block);
            assert_eq!(uses, 1, "{block:#x}, free {is_free}, taken {is_taken}, cell {cell:#x}");
        }
    }
}

/// The second allocation is of the same block into the same cell, so a freer that comes late cannot
/// tell it from the first.
#[test]
fn a_block_that_returns_to_its_cell_is_freed_once() {
    explore_deaths(2, |death: Death| {
        let world = World::new();
        let [allocator, recoverer, first, second] = [(); 4].map(|()| Arc::clone(&world));
        let allocator = loom::thread::spawn(move || {
            death.await_in(|| {
                allocator.allocate_into(0, 1);
                allocator.allocate_into(0, 2);
            });
        });
        let freers = [
            loom::thread::spawn(move || first.free_from(1)),
            loom::thread::spawn(move || second.free_from(2)),
        ];
        let recoverer = loom::thread::spawn(move || {
            allocator.join().unwrap();
            recoverer.resolve();
        });
        recoverer.join().unwrap();
        for freer in freers {
            freer.join().unwrap();
        }
        world.assert_exactly_once();
    });
}

#[test]
fn of_two_blocks_for_one_cell_one_gets_there() {
    explore_deaths(3, |death: Death| {
        let world = World::new();
        let [victim, recoverer, rival, freer] = [(); 4].map(|()| Arc::clone(&world));
        let victim = loom::thread::spawn(move || {
            death.await_in(|| victim.allocate_into(0, 1));
        });
        let rival = loom::thread::spawn(move || rival.allocate_into(1, 1));
        let freer = loom::thread::spawn(move || freer.free_from(2));
        let recoverer = loom::thread::spawn(move || {
            victim.join().unwrap();
            recoverer.resolve();
        });
        recoverer.join().unwrap();
        rival.join().unwrap();
        freer.join().unwrap();
        world.assert_exactly_once();
    });
}

/// The dead's block was freed from the cell and is a part of something else now.
#[test]
fn memory_that_serves_another_since_is_left_alone() {
    explore_deaths(3, |death: Death| {
        let world = World::new();
        let [victim, recoverer, freer] = [(); 3].map(|()| Arc::clone(&world));
        let victim = loom::thread::spawn(move || {
            death.await_in(|| victim.allocate_into(0, 1));
        });
        let freer = loom::thread::spawn(move || {
            if freer.free_from(1) {
                freer.take(0);
            }
        });
        let recoverer = loom::thread::spawn(move || {
            victim.join().unwrap();
            recoverer.resolve();
        });
        recoverer.join().unwrap();
        freer.join().unwrap();
        world.assert_exactly_once();
    });
}
