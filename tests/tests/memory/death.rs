//! Processes that are killed, and what their segment is like afterwards.

use std::time::Duration;

use hshm_memory::{InitOptions, OnExit, ProcessId, RecoveryReport};
use hshm_tests::cells::Cells;
use hshm_tests::process::Worker;
use hshm_tests::random::Random;
use hshm_tests::segment::{Kind, TestSegment, VARIANTS};

fn start(segment: &TestSegment, role: &str, seed: u64) -> Worker {
    let mut command = segment.command(crate::WORKER, role);
    let mut worker = Worker::start(command.arg(seed.to_string()));
    worker.expect("at work");
    worker
}

/// Lets it work for a random moment, mostly a short one.
fn wait_a_moment(random: &mut Random) {
    let magnitude = random.below(13);
    std::thread::sleep(Duration::from_micros(random.below(1 << magnitude)));
}

#[test]
fn a_killed_process_leaves_a_sound_heap() {
    for (kind, on_exit) in VARIANTS {
        let options = InitOptions { on_exit, worker_slots: 4, ..Default::default() };
        let segment = TestSegment::new(kind, 512 << 20, options);
        let mut random = Random::new(11);
        for seed in 0..25 {
            let mut worker = start(&segment, "churn", seed);
            let id = ProcessId::of(worker.pid()).unwrap();
            wait_a_moment(&mut random);
            assert_eq!(segment.heap.recover(id), RecoveryReport::default(), "it lives");
            worker.kill();
            let recovered = segment.heap.recover(id);
            assert_eq!(recovered.slots, 1, "{recovered:?}");
            segment.assert_sound();
            assert!(segment.heap.holders().is_empty());
            let allocated = segment.heap.report().allocated_bytes;
            if on_exit == OnExit::Reclaim {
                assert_eq!(allocated, 0, "what the dead had goes with it");
            }
            assert_eq!(segment.heap.recover(id), RecoveryReport::default(), "it was recovered");
        }
    }
}

#[test]
fn after_a_kill_each_block_is_in_its_cell_or_free() {
    for kind in [Kind::PosixShm, Kind::Memfd] {
        let options =
            InitOptions { custom_header_bytes: 64 * 8, worker_slots: 4, ..Default::default() };
        let segment = TestSegment::new(kind, 64 << 20, options);
        let cells = Cells::of(&segment.heap);
        let mut random = Random::new(12);
        for seed in 0..100 {
            let mut worker = start(&segment, "cells", seed);
            wait_a_moment(&mut random);
            worker.kill();
            assert_eq!(segment.heap.recover_dead().slots, 1);
            segment.assert_sound();
            cells.assert_balance();
        }
        cells.clear();
        segment.assert_empty();
    }
}

#[test]
fn a_storm_of_kills_loses_not_one_byte() {
    let options =
        InitOptions { custom_header_bytes: 256 * 8, worker_slots: 64, ..Default::default() };
    let segment = TestSegment::new(Kind::PosixShm, 128 << 20, options);
    let cells = Cells::of(&segment.heap);
    let mut random = Random::new(13);
    let mut workers: Vec<_> = (0..4).map(|seed| start(&segment, "cells", seed)).collect();
    let mut recovered = RecoveryReport::default();
    for seed in 0..300 {
        // This process is one of them.
        (0..random.below(200)).for_each(|_| cells.change_one(&mut random, 100_000));
        wait_a_moment(&mut random);
        let worker = &mut workers[random.index(4)];
        worker.kill();
        // Now and then several are dead at once, and one is recovered late.
        if random.below(4) > 0 {
            recovered += segment.heap.recover_dead();
        }
        *worker = start(&segment, "cells", 1000 + seed);
    }
    workers.iter_mut().for_each(Worker::kill);
    recovered += segment.heap.recover_dead();
    assert_eq!(recovered.slots, 304, "{recovered:?}");
    segment.assert_sound();
    cells.assert_balance();
    cells.clear();
    segment.assert_empty();
}

#[test]
fn a_process_that_is_stopped_hinders_nobody() {
    let options =
        InitOptions { custom_header_bytes: 64 * 8, worker_slots: 4, ..Default::default() };
    let segment = TestSegment::new(Kind::PosixShm, 64 << 20, options);
    let cells = Cells::of(&segment.heap);
    let mut random = Random::new(14);
    for seed in 0..20 {
        let mut worker = start(&segment, "cells", seed);
        wait_a_moment(&mut random);
        let pid = nix::unistd::Pid::from_raw(worker.pid().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
        // Whatever it was about, the others allocate, free and look at the heap.
        (0..2000).for_each(|_| cells.change_one(&mut random, 100_000));
        segment.assert_sound();
        assert_eq!(segment.heap.recover_dead(), RecoveryReport::default(), "it is not dead");
        worker.kill();
        assert_eq!(segment.heap.recover_dead().slots, 1);
        cells.assert_balance();
    }
    cells.clear();
    segment.assert_empty();
}
