//! Many die at once, many recover at once, threads come and go meanwhile, and anyone may be killed.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hshm_memory::{InitOptions, OffsetPointer, ThreadLocalAllocator};
use hshm_tests::cells::Cells;
use hshm_tests::crash::process;
use hshm_tests::process::wait_until;
use hshm_tests::random::Random;
use hshm_tests::ring::shared_word;
use hshm_tests::segment::{Kind, TestSegment};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

const CELLS: u64 = 96;
const MOST_BYTES: usize = 100_000;

/// A segment of cells, and what the processes of a test tell one another.
struct Ground {
    segment: TestSegment,
    talk: TestSegment,
}

impl Ground {
    fn new() -> Self {
        let options = |words| InitOptions {
            custom_header_bytes: words * 8,
            worker_slots: 64,
            ..Default::default()
        };
        Self {
            segment: TestSegment::new(Kind::Memfd, 64 << 20, options(CELLS)),
            talk: TestSegment::new(Kind::Memfd, 1 << 20, options(2)),
        }
    }

    fn heap(&self) -> &ThreadLocalAllocator {
        &self.segment.heap
    }

    fn word(&self, index: u64) -> &AtomicU64 {
        let start = self.talk.heap.custom_header().0.offset_bytes();
        shared_word(&self.talk.heap, OffsetPointer::new(start + index * 8))
    }

    /// Not zero if all are to come to an end.
    fn end(&self) -> &AtomicU64 {
        self.word(0)
    }

    /// Slots that somebody recovered.
    fn recovered(&self) -> &AtomicU64 {
        self.word(1)
    }

    fn is_over(&self) -> bool {
        self.end().load(Ordering::SeqCst) != 0
    }

    /// Fills and empties cells until it is killed.
    fn worker(&self, seed: u64) -> Pid {
        let worker = process::spawn(|| {
            let mut random = Random::new(seed);
            while !self.is_over() {
                Cells::of(self.heap()).change_one(&mut random, MOST_BYTES);
            }
        });
        worker.unwrap()
    }

    fn workers(&self, count: u64, seed: u64) -> Vec<Pid> {
        let workers = (0..count).map(|number| self.worker(seed * 100 + number)).collect();
        let most = usize::try_from(count).unwrap();
        wait_until("all work", || self.heap().holders().len() == most);
        workers
    }

    /// Recovers whoever is dead, again and again.
    fn recoverer(&self) -> Pid {
        let recoverer = process::spawn(|| {
            while !self.is_over() {
                let slots = self.heap().recover_dead().slots;
                self.recovered().fetch_add(slots.into(), Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        recoverer.unwrap()
    }

    /// What the cells name is what is allocated.
    fn judge(&self) {
        self.segment.assert_sound();
        Cells::of(self.heap()).assert_balance();
        // Who asks for a block's size holds a slot.
        self.heap().detach_thread();
    }

    fn finish(&self) {
        Cells::of(self.heap()).clear();
        self.segment.assert_empty();
    }
}

fn end(process: Pid) {
    kill(process, Signal::SIGKILL).unwrap();
    assert_eq!(process::was_killed(process::wait(process).unwrap()), Ok(true));
}

fn has_ended(process: Pid) {
    assert_eq!(process::wait(process), Ok(WaitStatus::Exited(process, 0)));
}

fn wait_a_moment(random: &mut Random) {
    let magnitude = random.below(13);
    std::thread::sleep(Duration::from_micros(random.below(1 << magnitude)));
}

#[test]
fn of_many_who_recover_many_dead_one_recovers_each() {
    let ground = Ground::new();
    let mut random = Random::new(31);
    for round in 0..6 {
        ground.end().store(0, Ordering::SeqCst);
        ground.recovered().store(0, Ordering::SeqCst);
        let workers = ground.workers(10, round);
        let recoverers: Vec<_> = (0..4).map(|_| ground.recoverer()).collect();
        wait_a_moment(&mut random);
        workers.into_iter().for_each(end);
        wait_until("all slots are free", || ground.heap().holders().is_empty());
        ground.end().store(1, Ordering::SeqCst);
        recoverers.into_iter().for_each(has_ended);
        assert_eq!(ground.recovered().load(Ordering::SeqCst), 10);
        ground.judge();
    }
    ground.finish();
}

#[test]
fn whoever_recovers_may_die_of_it_while_others_work() {
    let ground = Ground::new();
    let mut random = Random::new(32);
    let mut workers = ground.workers(8, 1);
    let mut recoverers: Vec<_> = (0..2).map(|_| ground.recoverer()).collect();
    for round in 0..150 {
        let worker = &mut workers[random.index(8)];
        end(*worker);
        *worker = ground.worker(1000 + round);
        wait_a_moment(&mut random);
        let recoverer = &mut recoverers[random.index(2)];
        end(*recoverer);
        *recoverer = ground.recoverer();
    }
    workers.into_iter().chain(recoverers).for_each(end);
    let _ = ground.heap().recover_dead();
    assert!(ground.heap().holders().is_empty());
    ground.judge();
    ground.finish();
}

/// Threads that fill and empty cells, give back their slots and end, four at a time.
fn come_and_go(ground: &Ground, seed: u64) {
    let lane = |lane: u64| {
        let mut random = Random::new(seed * 4 + lane);
        while !ground.is_over() {
            let seed = random.next();
            let work = || {
                let mut random = Random::new(seed);
                for _ in 0..random.below(60) {
                    Cells::of(ground.heap()).change_one(&mut random, MOST_BYTES);
                    if random.below(8) == 0 {
                        ground.heap().detach_thread();
                    }
                }
            };
            std::thread::scope(|scope| scope.spawn(work).join().unwrap());
        }
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            scope.spawn(move || lane(number));
        }
    });
}

#[test]
fn threads_that_end_or_detach_under_load_leave_nothing_whoever_is_killed() {
    let ground = Ground::new();
    let mut random = Random::new(33);
    let start = |seed| process::spawn(|| come_and_go(&ground, seed)).unwrap();
    let lasting = [start(1), start(2)];
    let mut recovered = 0;
    for seed in 3..28 {
        let worker = start(seed);
        wait_a_moment(&mut random);
        std::thread::sleep(Duration::from_millis(3));
        end(worker);
        recovered += ground.heap().recover_dead().slots;
    }
    assert!(recovered > 0, "some died with slots");
    // The others end in order, and leave no slot to be recovered.
    ground.end().store(1, Ordering::SeqCst);
    lasting.into_iter().for_each(has_ended);
    assert_eq!(ground.heap().recover_dead().slots, 0);
    assert!(ground.heap().holders().is_empty());
    ground.judge();
    ground.finish();
}
