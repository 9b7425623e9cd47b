//! Models of the remote free list: nothing is lost, nothing is there twice, and who died in a push
//! is known to have pushed or not.

use std::sync::Arc;

use super::journal;
use super::layout::{Journal, UNIT_BYTES};
use super::remote::{Link, Mark, Place, Pusher, push, push_chain, push_happened, take};
use super::words::{List, Operation, Remote, Step, unit_of};
use crate::sync::model::{Death, explore, explore_deaths};
use crate::sync::{AtomicU64, Ordering};

/// The one slot that journals.
const SLOT: u32 = 3;
const BLOCKS: u32 = 3;
const BLOCK_BYTES: u64 = 16;

/// A page of three blocks, all allocated.
struct Page {
    start: u64,
    list: AtomicU64,
    links: [AtomicU64; BLOCKS as usize],
}

/// Two pages, and what the journalling slot left.
struct World {
    pages: [Page; 2],
    journal: Journal,
    acknowledged: AtomicU64,
}

impl World {
    fn new() -> Arc<Self> {
        let page = |number: u64| Page {
            start: (number + 1) * UNIT_BYTES,
            list: AtomicU64::new(Remote::empty(7).0),
            links: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        let pages = [page(0), page(1)];
        Arc::new(Self { pages, journal: Journal::for_model(), acknowledged: AtomicU64::new(0) })
    }

    fn pusher_of(&self, slot: u32) -> Option<Pusher<'_>> {
        (slot == SLOT).then_some(Pusher {
            operation: &self.journal.operation,
            acknowledged: &self.acknowledged,
        })
    }

    fn push(&self, page: usize, block: usize, mark: Mark) {
        let page = &self.pages[page];
        let place = Place { page: page.start, offset_in_page: block as u64 * BLOCK_BYTES };
        let pushed = push(
            &page.list,
            &page.links[block],
            place,
            mark,
            |slot| self.pusher_of(slot),
            || Some(BLOCKS),
        );
        assert_eq!(pushed, Ok(true));
    }

    /// The numbers of the blocks that were taken, and the list as it was prepared before.
    fn take(&self, page: usize) -> Vec<usize> {
        let page = &self.pages[page];
        let prepared = std::cell::Cell::new(List::EMPTY);
        let pusher_of = |slot| self.pusher_of(slot);
        let taken = take(&page.list, page.start, pusher_of, |list| prepared.set(list));
        assert_eq!(taken, prepared.get(), "recovery would find another list");
        page.walk(taken)
    }

    /// The journalled free of a block: what `free_from` does, the cell left out.
    fn push_journalled(&self, page: usize, block: usize, sequence: u32) {
        let offset = self.pages[page].start + block as u64 * BLOCK_BYTES;
        let operation = Operation::new(Step::FreeFrom, unit_of(offset), sequence);
        journal::write(&self.journal, operation, 0, offset);
        self.push(page, block, Mark { slot: SLOT, sequence });
        journal::clear(&self.journal);
    }

    /// The flush of the first two blocks of the first page out of a cache.
    fn flush(&self, sequence: u32) {
        let page = &self.pages[0];
        let operation = Operation::new(Step::Flush, unit_of(page.start), sequence);
        journal::write(&self.journal, operation, 0, page.start);
        let link = |number: usize| Link {
            distance: number as u64 * BLOCK_BYTES,
            word: &page.links[number],
            blocks: 1,
        };
        let chain = [link(1), link(0)];
        let mark = Mark { slot: SLOT, sequence };
        let pusher_of = |slot| self.pusher_of(slot);
        let blocks = || Some(BLOCKS);
        let pushed = push_chain(&page.list, page.start, &chain, mark, pusher_of, blocks);
        assert_eq!(pushed, Ok(true));
        journal::clear(&self.journal);
    }

    /// What the recoverer of the slot learns: which operation was under way, and whether its block
    /// was pushed.
    fn inquire(&self) -> Option<(usize, usize, bool)> {
        let operation = Operation(self.journal.operation.load(Ordering::SeqCst));
        if operation.step() == Step::Idle {
            return None;
        }
        let offset = self.journal.block.load(Ordering::Relaxed);
        let page = usize::from(offset >= self.pages[1].start);
        let block = usize::try_from((offset - self.pages[page].start) / BLOCK_BYTES).unwrap();
        let list = &self.pages[page].list;
        Some((page, block, push_happened(list, SLOT, operation, &self.acknowledged)))
    }
}

impl Page {
    fn walk(&self, list: List) -> Vec<usize> {
        let mut blocks = Vec::new();
        let mut rest = list;
        while !rest.is_empty() {
            let block = usize::try_from((rest.first() - self.start) / BLOCK_BYTES).unwrap();
            blocks.push(block);
            assert!(blocks.len() <= BLOCKS as usize, "the list has a cycle");
            rest = List(self.links[block].load(Ordering::Relaxed));
        }
        assert_eq!(blocks.len(), list.count() as usize, "the count is wrong");
        blocks
    }
}

fn sorted(parts: [Vec<usize>; 2]) -> Vec<usize> {
    let mut blocks = parts.concat();
    blocks.sort_unstable();
    blocks
}

#[test]
fn two_pushers_and_a_taker_lose_nothing_and_double_nothing() {
    explore(3, || {
        let world = World::new();
        let pushers = [0, 1].map(|block| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || world.push(0, block, Mark::default()))
        });
        let taker = Arc::clone(&world);
        let taker = loom::thread::spawn(move || taker.take(0));
        for pusher in pushers {
            pusher.join().unwrap();
        }
        assert_eq!(sorted([taker.join().unwrap(), world.take(0)]), [0, 1]);
    });
}

#[test]
fn a_death_in_a_push_is_told_from_one_before() {
    explore_deaths(2, |death: Death| {
        let world = World::new();
        let [victim, recoverer, other, owner] = [(); 4].map(|()| Arc::clone(&world));
        let victim = loom::thread::spawn(move || {
            death.await_in(|| victim.push_journalled(0, 0, 1)).is_some()
        });
        let other = loom::thread::spawn(move || other.push(0, 1, Mark::default()));
        let owner = loom::thread::spawn(move || owner.take(0));
        let recoverer = loom::thread::spawn(move || (victim.join().unwrap(), recoverer.inquire()));
        let (lived, inquiry) = recoverer.join().unwrap();
        other.join().unwrap();
        let blocks = sorted([owner.join().unwrap(), world.take(0)]);
        let is_free = blocks == [0, 1];
        assert!(is_free || blocks == [1], "{blocks:?}");
        assert!(is_free || !lived, "an operation that ended is undone");
        if let Some((_, _, happened)) = inquiry {
            assert_eq!(happened, is_free);
        }
    });
}

/// While somebody else frees to the page, and its owner takes what is there.
#[test]
fn blocks_that_are_flushed_arrive_together_or_stay() {
    explore_deaths(2, |death: Death| {
        let world = World::new();
        let [victim, recoverer, other, owner] = [(); 4].map(|()| Arc::clone(&world));
        let victim = loom::thread::spawn(move || death.await_in(|| victim.flush(1)).is_some());
        let other = loom::thread::spawn(move || other.push(0, 2, Mark::default()));
        let owner = loom::thread::spawn(move || owner.take(0));
        let recoverer = loom::thread::spawn(move || (victim.join().unwrap(), recoverer.inquire()));
        let (lived, inquiry) = recoverer.join().unwrap();
        other.join().unwrap();
        let blocks = sorted([owner.join().unwrap(), world.take(0)]);
        let arrived = blocks == [0, 1, 2];
        assert!(arrived || blocks == [2], "{blocks:?}");
        assert!(arrived || !lived, "an operation that ended is undone");
        if let Some((_, _, happened)) = inquiry {
            assert_eq!(happened, arrived);
        }
    });
}

#[test]
fn a_stale_acknowledgement_says_nothing_about_the_next_operation() {
    explore_deaths(3, |death: Death| {
        let world = World::new();
        let [victim, recoverer, other, owner] = [(); 4].map(|()| Arc::clone(&world));
        let victim = loom::thread::spawn(move || {
            death.await_in(|| {
                victim.push_journalled(0, 0, 1);
                victim.push_journalled(1, 0, 2);
            })
        });
        // May acknowledge the first operation when the second is under way already.
        let other = loom::thread::spawn(move || other.push(0, 1, Mark::default()));
        let owner = loom::thread::spawn(move || owner.take(1));
        let recoverer = loom::thread::spawn(move || {
            victim.join().unwrap();
            recoverer.inquire()
        });
        let inquiry = recoverer.join().unwrap();
        other.join().unwrap();
        let first = world.take(0);
        let second = sorted([owner.join().unwrap(), world.take(1)]);
        match inquiry {
            Some((0, 0, happened)) => assert_eq!(happened, first.contains(&0)),
            Some((1, 0, happened)) => assert_eq!(happened, second == [0]),
            Some(other) => panic!("no such operation: {other:?}"),
            None => {}
        }
    });
}

/// The recoverer pushes for the dead and dies too; the next one goes on.
#[test]
fn a_recoverers_death_in_the_deads_push_is_told_too() {
    // The first death comes in the push or just after it, before the journal is cleared: those are
    // the pushes that a recoverer inquires about.
    for victim_pushes in [false, true] {
        explore_deaths(2, move |death: Death| {
            let world = World::new();
            if victim_pushes {
                world.push_journalled(0, 0, 1);
            }
            let offset = world.pages[0].start;
            let operation = Operation::new(Step::FreeFrom, unit_of(offset), 1);
            journal::write(&world.journal, operation, 0, offset);
            let [first, second, owner, other] = [(); 4].map(|()| Arc::clone(&world));
            let owner = loom::thread::spawn(move || owner.take(0));
            let other = loom::thread::spawn(move || other.push(0, 1, Mark::default()));
            let first = loom::thread::spawn(move || {
                death.await_in(|| first.finish());
            });
            let second = loom::thread::spawn(move || {
                first.join().unwrap();
                second.finish();
            });
            second.join().unwrap();
            other.join().unwrap();
            let blocks = sorted([owner.join().unwrap(), world.take(0)]);
            assert_eq!(blocks, [0, 1]);
        });
    }
}

impl World {
    /// What a recoverer does with an interrupted free.
    fn finish(&self) {
        if let Some((page, block, false)) = self.inquire() {
            self.push(page, block, Mark { slot: SLOT, sequence: 1 });
        }
        journal::clear(&self.journal);
    }
}
