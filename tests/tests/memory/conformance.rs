//! The allocator beside a plain model of it.

use std::sync::Barrier;

use hshm_memory::{InitOptions, OnExit, ThreadLocalAllocator};
use hshm_tests::model::{Ledger, Model};
use hshm_tests::random::Random;
use hshm_tests::segment::{Kind, TestSegment, VARIANTS};
use proptest::prelude::*;

fn each_variant(size: u64, mut test: impl FnMut(&TestSegment)) {
    for (kind, on_exit) in VARIANTS {
        let segment = TestSegment::new(kind, size, InitOptions { on_exit, ..Default::default() });
        test(&segment);
        segment.assert_empty();
    }
}

#[test]
fn long_random_work_agrees_with_the_model() {
    each_variant(256 << 20, |segment| {
        let ledger = Ledger::default();
        let mut random = Random::new(0x5eed);
        let mut model = Model::new(&segment.heap, &ledger, 1);
        for round in 0..10 {
            // Turns of mostly small blocks, of all sizes to 64 MiB, and of one page kind each.
            let sizes = [(1, 1000), (1, 64 << 20), (8192, 65_536), (65_537, 4 << 20)];
            for range in sizes {
                model.run(&mut random, 6000, range, 100 << 20);
            }
            segment.assert_sound();
            assert!(model.refused < 200, "{} requests refused in round {round}", model.refused);
            model.refused = 0;
        }
        assert!(!model.is_empty());
        model.free_all();
    });
}

#[test]
fn threads_beside_one_ledger_are_given_different_memory() {
    each_variant(256 << 20, |segment| {
        let ledger = Ledger::default();
        let pause = Barrier::new(4);
        std::thread::scope(|scope| {
            let threads = [1, 2, 3, 4].map(|seed| {
                let (heap, ledger, pause) = (&segment.heap, &ledger, &pause);
                scope.spawn(move || {
                    let mut random = Random::new(seed);
                    let mut model = Model::new(heap, ledger, seed);
                    for range in [(1, 1 << 20), (16, 2048), (1, 100_000)] {
                        model.run(&mut random, 8000, range, 24 << 20);
                        // All hold still while one looks.
                        if pause.wait().is_leader() {
                            segment.assert_sound();
                        }
                        pause.wait();
                    }
                    model.free_all();
                })
            });
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
    });
}

#[test]
fn a_block_of_nearly_the_whole_segment_is_had_again_and_again() {
    each_variant(64 << 20, |segment| {
        let heap = &segment.heap;
        let ledger = Ledger::default();
        let mut model = Model::new(heap, &ledger, 1);
        for align in [16, 4096, 64 << 10, 2 << 20] {
            // All free memory is one run: up to its start, an alignment may cost its size.
            let run = usize::try_from(heap.report().largest_free_run_bytes).unwrap();
            assert!(run >= 60 << 20, "{run}");
            let len = if align <= 64 << 10 { run } else { run - align };
            model.allocate(len, align);
            model.allocate(run, 16);
            assert_eq!((model.len(), model.refused), (1, 1), "aligned to {align}");
            model.refused = 0;
            // It shrinks where it stands, and what it gives back serves others.
            model.reallocate(0, 100_000);
            model.allocate(60 << 20, 16);
            assert_eq!((model.len(), model.refused), (2, 0));
            model.free_all();
        }
    });
}

#[test]
fn every_alignment_holds_for_every_kind_of_block() {
    each_variant(128 << 20, |segment| {
        let ledger = Ledger::default();
        let mut model = Model::new(&segment.heap, &ledger, 1);
        for len in [0, 1, 15, 16, 17, 100, 1000, 8192, 8193, 50_000, 65_536, 65_537, 1 << 20] {
            for align in (0..22).map(|bits| 1 << bits) {
                model.allocate(len, align);
                model.allocate(len, align);
            }
            assert_eq!((model.len(), model.refused), (44, 0), "{len} bytes");
            model.free_all();
        }
    });
}

#[test]
fn reallocation_keeps_what_fits() {
    each_variant(64 << 20, |segment| {
        let ledger = Ledger::default();
        let mut model = Model::new(&segment.heap, &ledger, 1);
        let sizes = [1, 16, 17, 500, 4000, 9000, 70_000, 3 << 20, 200_000, 65_536, 8000, 40, 1];
        for from in sizes {
            for to in sizes {
                model.allocate(from, 16);
                model.reallocate(0, to);
                model.reallocate(0, from);
                assert_eq!((model.len(), model.refused), (1, 0), "{from} to {to}");
                model.free_all();
            }
        }
    });
}

/// One step of a generated run.
#[derive(Clone, Debug)]
enum Step {
    Allocate {
        len: usize,
        align_log2: u32,
    },
    Reallocate {
        choice: usize,
        len: usize,
    },
    Free {
        choice: usize,
    },
    /// Lets the thread's slot go; the next operation claims one again.
    Detach,
    /// A thread of its own allocates some, and frees one of the blocks there are.
    Elsewhere {
        choice: usize,
        len: usize,
    },
}

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        4 => 0..600_usize,
        2 => 600..9000_usize,
        2 => 9000..70_000_usize,
        1 => 70_000..6_000_000_usize,
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let choice = || 0..1000_usize;
    let step = prop_oneof![
        6 => (sizes(), prop_oneof![3 => Just(4_u32), 1 => 0..22_u32])
            .prop_map(|(len, align_log2)| Step::Allocate { len, align_log2 }),
        2 => (choice(), sizes()).prop_map(|(choice, len)| Step::Reallocate { choice, len }),
        4 => choice().prop_map(|choice| Step::Free { choice }),
        1 => Just(Step::Detach),
        1 => (choice(), sizes()).prop_map(|(choice, len)| Step::Elsewhere { choice, len }),
    ];
    prop::collection::vec(step, 1..300)
}

fn run_steps(heap: &ThreadLocalAllocator, steps: &[Step]) {
    let ledger = Ledger::default();
    let mut model = Model::new(heap, &ledger, 1);
    for step in steps {
        match *step {
            Step::Allocate { len, align_log2 } => model.allocate(len, 1 << align_log2),
            Step::Reallocate { choice, len } => model.reallocate(choice, len),
            Step::Free { choice } => model.free(choice),
            Step::Detach => heap.detach_thread(),
            Step::Elsewhere { choice, len } => {
                let model = &mut model;
                // Joined, because the end of a scope does not wait for a thread's destructors.
                std::thread::scope(|scope| {
                    let thread = scope.spawn(move || {
                        (0..3).for_each(|_| model.allocate(len, 16));
                        model.free(choice);
                    });
                    thread.join().unwrap();
                });
            }
        }
        let check = heap.check();
        assert!(check.is_clean(), "after {step:?}: {check:#?}");
    }
    model.free_all();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        // Failures are told with their steps; files beside the sources are not wanted.
        failure_persistence: None,
        // A failure is to be told in minutes, if not with the fewest steps.
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_sequence_of_operations_agrees_with_the_model(
        steps in steps(),
        is_memfd: bool,
        is_reclaim: bool,
        worker_slots in 2..6_u32,
    ) {
        let kind = if is_memfd { Kind::Memfd } else { Kind::PosixShm };
        let on_exit = if is_reclaim { OnExit::Reclaim } else { OnExit::Keep };
        let options = InitOptions { on_exit, worker_slots, ..Default::default() };
        let segment = TestSegment::new(kind, 32 << 20, options);
        run_steps(&segment.heap, &steps);
        segment.assert_empty();
    }
}
