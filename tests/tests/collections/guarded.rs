//! Vectors, strings and maps under SIGKILL.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hshm_memory::InitOptions;
use hshm_memory::collections::{CollectionError, ShmHashMap, ShmQueue, ShmString, ShmVec};
use hshm_memory::crash::{CRASH_POINTS, arm};
use hshm_memory::robust::LockError;
use hshm_tests::crash::process as child;
use hshm_tests::guarded::{HEADER_BYTES, Plain, Shared, cell};
use hshm_tests::process::{Worker, wait_until};
use hshm_tests::random::Random;
use hshm_tests::segment::{Kind, TestSegment};
use hshm_tests::stock::Stock;
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

/// Steps that a process goes if nobody kills it.
const STEPS: u64 = 400;

fn segment() -> TestSegment {
    let options = InitOptions { custom_header_bytes: HEADER_BYTES, ..InitOptions::default() };
    TestSegment::new(Kind::Memfd, 4 << 20, options)
}

/// Lets another process die at `point` after `passes`. False if it comes to its end.
fn die(point: &str, passes: u32, work: impl FnOnce()) -> bool {
    let dying = child::spawn(|| {
        assert!(arm(point, passes));
        work();
    });
    child::was_killed(child::wait(dying.unwrap()).unwrap()).unwrap()
}

/// What the collections are like after a death: as before the step that was under way, or after it.
/// Notes it in the progress.
fn settle(shared: &Shared<'_>, point: &str) -> Plain {
    let steps = shared.progress().load(Ordering::SeqCst);
    let found = shared.look();
    if found == Plain::after(steps) {
        return found;
    }
    assert_eq!(found, Plain::after(steps + 1), "died at {point} in step {steps}");
    shared.progress().store(steps + 1, Ordering::SeqCst);
    found
}

/// The survivor works on, before the dead is recovered and after.
fn survive(segment: &TestSegment, shared: Shared<'_>, point: &str) {
    let plain = settle(&shared, point);
    let plain = shared.go_on(plain, 40);
    assert_eq!(shared.look(), plain, "after {point}, before recovery");
    let _ = segment.heap.recover_dead();
    segment.assert_sound();
    let plain = shared.go_on(plain, 40);
    assert_eq!(shared.look(), plain, "after {point}");
    // Each has its first block and one of values, and nothing that a dead one left.
    assert_eq!(segment.heap.report().allocated_blocks, 6, "after {point}");
    shared.destroy();
    segment.assert_empty();
}

#[test]
fn at_each_crash_point_an_operation_has_happened_or_has_not() {
    let mut kills = BTreeMap::new();
    let points = CRASH_POINTS.iter().filter(|point| {
        ["guarded.", "map.", "into.", "from."].iter().any(|of| point.name.starts_with(of))
    });
    for point in points {
        let kills: &mut u32 = kills.entry(point.name).or_default();
        for passes in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
            let segment = segment();
            let shared = Shared::create(&segment.heap);
            let killed = die(point.name, passes, || {
                let _ = shared.go_on(Plain::default(), STEPS);
            });
            *kills += u32::from(killed);
            survive(&segment, shared, point.name);
            if !killed {
                break;
            }
        }
    }
    // These have tests of their own below.
    kills.retain(|name, kills| {
        *kills == 0 && !["guarded.laid_out", "guarded.mended"].contains(name)
    });
    assert!(kills.is_empty(), "no operation comes by {kills:?}");
}

#[test]
fn who_dies_mending_leaves_it_to_the_next() {
    for point in ["guarded.filled", "guarded.published", "guarded.noted", "map.shown", "map.hidden"]
    {
        for second in ["guarded.mended", "guarded.copied", "from.marked", "from.freed"] {
            let segment = segment();
            let shared = Shared::create(&segment.heap);
            let work = || {
                let _ = shared.go_on(Plain::default(), STEPS);
            };
            assert!(die(point, 1, work));
            // The next one takes the lock from the dead and may die on the way.
            let died = die(second, 0, || {
                let _ = shared.look();
            });
            assert!(died || second != "guarded.mended", "{second} after {point}");
            survive(&segment, shared, point);
        }
    }
}

#[test]
fn who_dies_making_a_collection_leaves_a_cell_that_can_be_emptied() {
    let segment = segment();
    let heap = &segment.heap;
    let at = cell(heap, 3);
    type Make<'a> = &'a dyn Fn();
    let make: [(&str, Make<'_>); 4] = [
        ("guarded.laid_out", &|| drop(ShmVec::<u64>::create_into(heap, at))),
        ("guarded.laid_out", &|| drop(ShmString::create_into(heap, at))),
        ("guarded.laid_out", &|| drop(ShmHashMap::<u64, u64>::create_into(heap, at))),
        ("queue.laid_out", &|| drop(ShmQueue::<u64>::create_into(heap, at, 10))),
    ];
    for (point, make) in make {
        for point in [point, "into.journalled", "into.taken", "into.stored"] {
            assert!(die(point, 0, make), "{point}");
            let _ = heap.recover_dead();
            let place = heap.read_cell(at).unwrap();
            if !place.is_null() {
                let found = ShmVec::<u64>::attach(heap, place);
                assert!(matches!(found, Err(CollectionError::NotThere { .. })), "{point}");
                // SAFETY: whoever made it has died.
                assert!(unsafe { heap.free_from(at) }.unwrap());
            }
            segment.assert_empty();
        }
    }
}

#[test]
fn a_stopped_holder_makes_others_wait_and_a_dead_one_does_not() {
    let segment = segment();
    let map = ShmHashMap::<u64, u64>::create_into(&segment.heap, cell(&segment.heap, 2)).unwrap();
    map.insert(1, 10).unwrap();
    let holder = child::spawn(|| {
        let _ = map.update(&1, |value| {
            raise(Signal::SIGSTOP).expect("a process can stop itself");
            value.map(|value| value + 1)
        });
    });
    let holder = holder.unwrap();
    let stopped = waitpid(holder, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(holder, Signal::SIGSTOP));
    let view = ShmHashMap::<u64, u64>::attach(&segment.heap, map.place()).unwrap();
    let view = view.with_patience(Duration::from_millis(5));
    let told = view.get(&1);
    assert!(matches!(told, Err(CollectionError::Lock(LockError::TimedOut { .. }))), "{told:?}");
    kill(holder, Signal::SIGKILL).unwrap();
    assert!(child::was_killed(child::wait(holder).unwrap()).unwrap());
    assert_eq!(view.get(&1).unwrap(), Some(10), "what it was about has not happened");
    assert_eq!(map.insert(1, 12).unwrap(), Some(10));
    // SAFETY: nobody else uses it.
    unsafe { map.destroy_from(cell(&segment.heap, 2)) }.unwrap();
    let _ = segment.heap.recover_dead();
    segment.assert_empty();
}

/// Four change the same collections, and one after the other is killed.
#[test]
fn a_storm_of_kills_leaves_whole_collections() {
    let options =
        InitOptions { custom_header_bytes: Stock::HEADER_BYTES, ..InitOptions::default() };
    let segment = TestSegment::new(Kind::PosixShm, 32 << 20, options);
    let stock = Stock::create(&segment.heap);
    let mut random = Random::new(31);
    let start = |seat: u64| {
        let mut command = segment.command(crate::WORKER, "stock");
        Worker::start(command.arg(seat.to_string()))
    };
    let mut workers = [0, 1, 2, 3].map(start);
    for _ in 0..60 {
        let seat = random.index(4);
        // All get on, whoever died before: each has come to the end of a round, at least.
        let before = [0, 1, 2, 3].map(|seat| stock.rounds(seat));
        let goes_on = |(seat, before)| stock.rounds(seat) >= before + 2;
        wait_until("all go on", || (0..).zip(before).all(goes_on));
        let magnitude = random.below(12);
        std::thread::sleep(Duration::from_micros(random.below(1 << magnitude)));
        workers[seat].kill();
        stock.verify_seat(seat as u64);
        if random.below(3) == 0 {
            let _ = segment.heap.recover_dead();
        }
        workers[seat] = start(seat as u64);
    }
    for (seat, worker) in (0..).zip(&mut workers) {
        worker.kill();
        stock.verify_seat(seat);
    }
    let _ = segment.heap.recover_dead();
    segment.assert_sound();
    stock.destroy();
    segment.assert_empty();
}
