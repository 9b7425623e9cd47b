//! Processes that fork while they use a heap.

use std::sync::atomic::{AtomicBool, Ordering};

use hshm_memory::{OffsetPointer, ThreadLocalAllocator};
use hshm_tests::model::{Ledger, Model};
use hshm_tests::random::Random;
use hshm_tests::ring::shared_word;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// Runs `work` in a child, which ends with it.
fn in_child(work: impl FnOnce()) -> Pid {
    // SAFETY: [ffi] the child allocates process memory and takes locks. Where other threads run, they
    // use the heap and the C library's allocator alone, and both can be forked at any time.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // Without the parent's destructors: a child that is not replaced by another program ends
            // so.
            // SAFETY: [ffi] ends the process at once.
            unsafe { nix::libc::_exit(i32::from(done.is_err())) }
        }
    }
}

fn wait_for(child: Pid) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
}

/// Parent and child allocate side by side, and nothing that one is given is the other's.
pub(crate) fn two_slots(heap: &ThreadLocalAllocator) {
    let (header, bytes) = heap.custom_header();
    let cells = bytes as u64 / 8;
    let word =
        |index: u64| shared_word(heap, OffsetPointer::new(header.offset_bytes() + index * 8));
    // So that the parent has a slot, with a bin full of blocks, before it forks.
    let ledger = Ledger::default();
    let mut model = Model::new(heap, &ledger, 1);
    (0..100).for_each(|_| model.allocate(64, 16));
    let before = heap.report().workers.len();

    let half = cells / 2;
    let fill = |from: u64| {
        for index in from..from + half {
            let block = heap.allocate(64).expect("there is room");
            // ORDER: Relaxed suffices: the child's end, which is waited for, orders them.
            word(index).store(block.offset_bytes(), Ordering::Relaxed);
        }
    };
    let child = in_child(|| {
        fill(0);
        // One of the parent's is freed by the child, as by any other process.
        assert_eq!(heap.report().workers.len(), before + 1, "the child has a slot of its own");
    });
    fill(half);
    wait_for(child);

    for index in 0..2 * half {
        let block = word(index).load(Ordering::Relaxed);
        ledger.enter(block, 64);
    }
    model.free_all();
    for index in 0..2 * half {
        let block = OffsetPointer::new(word(index).swap(0, Ordering::Relaxed));
        // SAFETY: the block is ours, whether the child or we allocated it.
        unsafe { heap.free(block) }.expect("the block is allocated");
    }
    let recovered = heap.recover_dead();
    assert_eq!(recovered.slots, 1, "the child ended without giving its slot back");
}

/// Forks again and again while other threads allocate; each child allocates as well.
pub(crate) fn while_threads(heap: &ThreadLocalAllocator) {
    let ledger = Ledger::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 1..=3 {
            let (ledger, stop) = (&ledger, &stop);
            scope.spawn(move || {
                let mut model = Model::new(heap, ledger, seed);
                let mut random = Random::new(seed);
                while !stop.load(Ordering::Relaxed) {
                    model.run(&mut random, 100, (1, 20_000), 2 << 20);
                }
                model.free_all();
            });
        }
        for _ in 0..50 {
            let child = in_child(|| {
                for _ in 0..200 {
                    let block = heap.allocate(100).expect("there is room");
                    // SAFETY: the block is ours.
                    unsafe { heap.free(block) }.expect("the block is allocated");
                }
                heap.detach_thread();
            });
            wait_for(child);
        }
        stop.store(true, Ordering::Relaxed);
    });
    // Children give their slots back by themselves here.
    assert_eq!(heap.recover_dead().slots, 0);
}
