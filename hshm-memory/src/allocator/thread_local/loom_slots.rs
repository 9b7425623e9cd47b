//! Models of a slot's way from holder to holder: claimed by one, recovered by one, and never with
//! anything of its last holder in it.

use std::sync::Arc;

use super::layout::{Counters, Slot};
use super::slots::{transition_claim, transition_free, transition_park, transition_recover};
use super::words::{Operation, SlotWord, Step};
use crate::process::ProcessId;
use crate::sync::model::{Death, explore, explore_deaths};
use crate::sync::{AtomicU64, Ordering};

const fn process(pid: u32) -> ProcessId {
    ProcessId { pid, start_ticks: 77 }
}

struct World {
    word: AtomicU64,
    slot: Slot,
    retired: Counters,
}

impl World {
    fn new(word: SlotWord) -> Arc<Self> {
        let slot = Slot::for_model();
        Arc::new(Self { word: AtomicU64::new(word.0), slot, retired: Counters::for_model() })
    }

    /// Uses the slot, as its only holder.
    fn hold(&self, thread: u32) {
        assert_eq!(self.slot.thread.load(Ordering::Relaxed), 0, "it has another holder");
        assert_eq!(self.slot.counters.loaded.load(Ordering::Relaxed), 0);
        assert_eq!(self.slot.journal.operation.load(Ordering::Relaxed), 0);
        self.slot.thread.store(thread, Ordering::Relaxed);
        self.slot.counters.loaded.store(5, Ordering::Relaxed);
        let operation = Operation::new(Step::FreeFrom, thread, 1);
        self.slot.journal.operation.store(operation.0, Ordering::Relaxed);
    }

    fn free(&self) {
        transition_free(&self.word, &self.slot, &self.retired);
    }

    /// What [`super::recover::recover_process`] does with a slot whose word it read.
    fn recover(&self, word: SlotWord, by: u32) -> bool {
        let taken = transition_recover(&self.word, word, process(by));
        if taken {
            self.free();
        }
        taken
    }
}

#[test]
fn of_two_claimers_one_gets_the_slot_and_finds_it_empty() {
    explore(3, || {
        let world = World::new(SlotWord::live(process(1)));
        world.hold(1);
        let claimers = [2, 3].map(|pid| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || {
                let claimed = transition_claim(&world.word, SlotWord::FREE, process(pid));
                if claimed {
                    world.hold(pid);
                }
                claimed
            })
        });
        let holder = Arc::clone(&world);
        loom::thread::spawn(move || holder.free()).join().unwrap();
        let claimed = claimers.map(|claimer| claimer.join().unwrap());
        assert!(claimed != [true, true]);
        let word = SlotWord(world.word.load(Ordering::Relaxed));
        assert_eq!(word == SlotWord::FREE, claimed == [false, false]);
        assert_eq!(world.retired.loaded.load(Ordering::Relaxed), 5);
    });
}

#[test]
fn a_parked_slot_is_taken_over_by_one_thread_with_all_that_is_in_it() {
    explore(3, || {
        let world = World::new(SlotWord::live(process(1)));
        let claimers = [(); 2].map(|()| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || {
                let claimed =
                    transition_claim(&world.word, SlotWord::parked(process(1)), process(1));
                if claimed {
                    assert_eq!(world.slot.counters.loaded.load(Ordering::Relaxed), 5);
                }
                claimed
            })
        });
        let holder = Arc::clone(&world);
        let holder = loom::thread::spawn(move || {
            holder.hold(1);
            transition_park(&holder.word);
        });
        holder.join().unwrap();
        let claimed = claimers.map(|claimer| claimer.join().unwrap());
        assert!(claimed != [true, true]);
    });
}

/// Two recover the dead's slot while a third claims what becomes free. A recoverer that comes late,
/// with the dead's word in its hand, must not take the slot from its next holder.
#[test]
fn of_two_recoverers_one_works_and_the_next_holder_is_left_alone() {
    explore(3, || {
        let dead = SlotWord::live(process(1));
        let world = World::new(dead);
        world.hold(1);
        let recoverers = [2, 3].map(|pid| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || {
                let word = SlotWord(world.word.load(Ordering::Acquire));
                word == dead && world.recover(word, pid)
            })
        });
        let claimer = Arc::clone(&world);
        let claimer = loom::thread::spawn(move || {
            let claimed = transition_claim(&claimer.word, SlotWord::FREE, process(4));
            if claimed {
                claimer.hold(4);
            }
            claimed
        });
        let claimed = claimer.join().unwrap();
        let worked = recoverers.map(|recoverer| recoverer.join().unwrap());
        assert_eq!(worked.iter().filter(|&&worked| worked).count(), 1);
        let word = SlotWord(world.word.load(Ordering::Acquire));
        let expected = if claimed { SlotWord::live(process(4)) } else { SlotWord::FREE };
        assert_eq!(word, expected);
    });
}

#[test]
fn a_dead_recoverer_is_recovered_by_one() {
    explore_deaths(3, |death: Death| {
        let world = World::new(SlotWord::live(process(1)));
        world.hold(1);
        let first = Arc::clone(&world);
        let first = loom::thread::spawn(move || {
            death.await_in(|| first.recover(SlotWord::live(process(1)), 2)).is_some()
        });
        let ended = first.join().unwrap();
        let recoverers = [3, 4].map(|pid| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || {
                // Both the dead and its recoverer are found dead.
                let word = SlotWord(world.word.load(Ordering::Acquire));
                [process(1), process(2)].contains(&word.process()) && world.recover(word, pid)
            })
        });
        let worked = recoverers.map(|recoverer| recoverer.join().unwrap());
        let expected = usize::from(!ended);
        let worked = worked.iter().filter(|&&worked| worked).count();
        assert!(worked == expected || worked == 0, "{worked} worked, {expected} expected");
        assert_eq!(world.word.load(Ordering::Acquire), SlotWord::FREE.0);
        let retired = world.retired.loaded.load(Ordering::Relaxed);
        assert!(retired == 5 || (!ended && retired == 0), "{retired} counted");
    });
}
