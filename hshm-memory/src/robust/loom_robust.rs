//! Models of the lock: one holder at a time, and after a death one who mends, and is told so.

use std::sync::Arc;

use super::{Acquired, RobustLock, Try, Word};
use crate::process::ProcessId;
use crate::sync::model::{Death, explore, explore_deaths};
use crate::sync::{AtomicU64, Ordering};

const fn thread(number: u32) -> ProcessId {
    ProcessId { pid: number, start_ticks: 77 }
}

/// Two numbers that are equal whenever nobody holds the lock.
struct World {
    lock: RobustLock,
    first: AtomicU64,
    second: AtomicU64,
}

impl World {
    fn new(word: Word, first: u64, second: u64) -> Arc<Self> {
        let lock = RobustLock::new();
        lock.word.store(word.0, Ordering::Relaxed);
        Arc::new(Self { lock, first: AtomicU64::new(first), second: AtomicU64::new(second) })
    }

    fn lock(&self, me: ProcessId, dead: &[u32]) -> Acquired {
        loop {
            match self.lock.attempt(me, |holder| dead.contains(&holder.pid)) {
                Try::Taken(acquired) => return acquired,
                Try::Held(..) | Try::Lost => loom::thread::yield_now(),
            }
        }
    }

    /// Adds one to both numbers under the lock, taking the threads in `dead` for dead.
    fn add(&self, number: u32, dead: &[u32]) {
        let me = thread(number);
        let acquired = self.lock(me, dead);
        let first = self.first.load(Ordering::Relaxed);
        if acquired == Acquired::FromDead {
            self.second.store(first, Ordering::Relaxed);
            assert!(self.lock.transition_mended(me));
        }
        assert_eq!(first, self.second.load(Ordering::Relaxed), "not alone, or not told to mend");
        self.first.store(first + 1, Ordering::Relaxed);
        self.second.store(first + 1, Ordering::Relaxed);
        assert!(self.lock.release(Word::held(me, Acquired::Clean), Word::FREE));
    }

    /// Two survivors take the lock; what it guards is as if each had died or not.
    fn survive(this: &Arc<Self>, dead: &'static [u32], expected: &[u64]) {
        let survivors = [5, 6].map(|number| {
            let world = Arc::clone(this);
            loom::thread::spawn(move || world.add(number, dead))
        });
        for survivor in survivors {
            survivor.join().unwrap();
        }
        let first = this.first.load(Ordering::Relaxed);
        assert_eq!(first, this.second.load(Ordering::Relaxed));
        assert!(expected.contains(&first), "{first} is none of {expected:?}");
        assert_eq!(this.lock.word.load(Ordering::Relaxed), Word::FREE.0);
    }
}

#[test]
fn one_thread_at_a_time_holds_the_lock() {
    explore(3, || {
        let world = World::new(Word::FREE, 0, 0);
        let others = [1, 2].map(|number| {
            let world = Arc::clone(&world);
            loom::thread::spawn(move || world.add(number, &[]))
        });
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(world.first.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn of_two_who_find_the_holder_dead_one_mends() {
    explore_deaths(3, |death: Death| {
        let world = World::new(Word::FREE, 0, 0);
        let victim = Arc::clone(&world);
        loom::thread::spawn(move || death.await_in(|| victim.add(1, &[]))).join().unwrap();
        World::survive(&world, &[1], &[2, 3]);
    });
}

#[test]
fn who_dies_mending_leaves_it_to_the_next() {
    explore_deaths(3, |death: Death| {
        let world = World::new(Word::held(thread(9), Acquired::Clean), 1, 0);
        let victim = Arc::clone(&world);
        loom::thread::spawn(move || death.await_in(|| victim.add(1, &[9]))).join().unwrap();
        World::survive(&world, &[9, 1], &[3, 4]);
    });
}

/// A holder and one who comes while the former dead one's lock is being taken over.
#[test]
fn a_lock_taken_over_is_not_taken_from_its_next_holder() {
    explore(3, || {
        let world = World::new(Word::held(thread(9), Acquired::FromDead), 1, 0);
        World::survive(&world, &[9], &[3]);
    });
}
