//! Worker slots: threads that come and go, and processes that fork.

use hshm_memory::{AllocError, Allocator, InitOptions, OffsetPointer};
use hshm_tests::process::Worker;
use hshm_tests::segment::{Kind, TestSegment, VARIANTS};

fn each_variant(worker_slots: u32, test: impl Fn(&TestSegment)) {
    for (kind, on_exit) in VARIANTS {
        let options = InitOptions { on_exit, worker_slots, ..Default::default() };
        let segment = TestSegment::new(kind, 64 << 20, options);
        test(&segment);
        segment.assert_empty();
    }
}

fn allocate_and_free(segment: &TestSegment, turns: usize) {
    let heap = &segment.heap;
    let sizes = [1, 100, 5000, 20_000, 100_000];
    for turn in 0..turns {
        let block = heap.allocate(sizes[turn % sizes.len()]).unwrap();
        // SAFETY: the block is ours.
        unsafe { heap.free(block) }.unwrap();
    }
}

#[test]
fn two_thousand_threads_in_turn_need_one_slot() {
    each_variant(1, |segment| {
        std::thread::scope(|scope| {
            for _ in 0..2000 {
                // Joined, because the end of a scope does not wait for a thread's destructors.
                scope.spawn(|| allocate_and_free(segment, 10)).join().unwrap();
            }
        });
        assert!(segment.heap.report().workers.len() <= 1);
    });
}

#[test]
fn threads_that_come_and_go_eight_at_a_time_need_eight_slots() {
    each_variant(8, |segment| {
        std::thread::scope(|scope| {
            let lanes: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..100 {
                            std::thread::scope(|scope| {
                                scope.spawn(|| allocate_and_free(segment, 20)).join().unwrap();
                            });
                        }
                    })
                })
                .collect();
            lanes.into_iter().for_each(|lane| lane.join().unwrap());
        });
        assert!(segment.heap.report().workers.len() <= 8);
    });
}

#[test]
fn what_a_thread_left_another_uses_and_frees() {
    each_variant(3, |segment| {
        let heap = &segment.heap;
        let blocks: Vec<OffsetPointer> = std::thread::scope(|scope| {
            let make = scope.spawn(|| (0..5000).map(|_| heap.allocate(100).unwrap()).collect());
            make.join().unwrap()
        });
        let held = heap.report().held_bytes();
        for block in blocks {
            // SAFETY: the thread that allocated it gave it to us.
            unsafe { heap.free(block) }.unwrap();
        }
        // The memory serves anybody now, without growing.
        (0..5000).map(|_| heap.allocate(100).unwrap()).collect::<Vec<_>>().iter().for_each(|&b| {
            // SAFETY: the block is ours.
            unsafe { heap.free(b) }.unwrap();
        });
        assert!(heap.report().held_bytes() <= held + (128 << 10), "the pages were used again");
    });
}

#[test]
fn more_threads_than_slots_is_an_error_and_no_harm() {
    each_variant(2, |segment| {
        let heap = &segment.heap;
        let context = heap.create_tls().unwrap();
        allocate_and_free(segment, 1);
        std::thread::scope(|scope| {
            let third = scope.spawn(|| heap.allocate(1));
            assert!(matches!(third.join().unwrap(), Err(AllocError::NoWorkerSlot { slots: 2 })));
        });
        heap.free_tls(context).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| allocate_and_free(segment, 5)).join().unwrap();
        });
    });
}

#[test]
fn a_forked_child_has_a_slot_of_its_own() {
    for kind in [Kind::PosixShm, Kind::Memfd] {
        let options = InitOptions { custom_header_bytes: 4096 * 8, ..Default::default() };
        let segment = TestSegment::new(kind, 64 << 20, options);
        Worker::start(&mut segment.command(crate::WORKER, "fork")).finish();
        segment.assert_empty();
    }
}

#[test]
fn a_process_may_fork_while_its_threads_allocate() {
    for kind in [Kind::PosixShm, Kind::Memfd] {
        let segment = TestSegment::new(kind, 64 << 20, InitOptions::default());
        let mut command = segment.command(crate::WORKER, "fork-while-threads-allocate");
        Worker::start(&mut command).finish();
        segment.assert_empty();
    }
}
