//! Fork: the child never uses its parent's slots, and both go on.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hshm_memory::{
    AllocError, Allocator, AllocatorId, InitOptions, MemContext, MemfdMmap, OffsetPointer, OnExit,
    ProcessId, ThreadLocalAllocator,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// How long a child may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);

fn segment(on_exit: OnExit) -> ThreadLocalAllocator {
    let options = InitOptions { custom_header_bytes: 4096, on_exit, worker_slots: 64 };
    let backend = MemfdMmap::create("fork", 64 << 20, 64 << 20).unwrap();
    ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), Arc::new(backend), &options).unwrap()
}

/// Runs `f` in a child, which then ends without ceremony.
fn in_child(f: impl FnOnce()) -> Pid {
    // SAFETY: [ffi] the child only calls this library, which is made for that, and glibc's malloc,
    // which survives a fork in a process with threads.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let failed = catch_unwind(AssertUnwindSafe(f)).is_err();
            // SAFETY: [ffi] ends the process without running what belongs to the parent.
            unsafe { libc::_exit(i32::from(failed)) }
        }
    }
}

fn wait(child: Pid) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap();
        if status != WaitStatus::StillAlive {
            return assert_eq!(status, WaitStatus::Exited(child, 0));
        }
        assert!(Instant::now() < deadline, "the child is stuck");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Words in the application's header, for whatever the processes have to tell one another.
fn shared(heap: &ThreadLocalAllocator, index: u64) -> &AtomicU64 {
    let at = heap.custom_header().0.offset_bytes() + index * 8;
    let address = heap.resolve(OffsetPointer::new(at), 8).unwrap();
    // SAFETY: [mapped] it was resolved, and the header is aligned; [atomic] all use it like this.
    unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
}

fn wait_until(heap: &ThreadLocalAllocator, index: u64, value: u64) {
    let deadline = Instant::now() + PATIENCE;
    while shared(heap, index).load(Ordering::SeqCst) != value {
        assert!(Instant::now() < deadline, "the other process is stuck");
        std::thread::yield_now();
    }
}

fn fill(heap: &ThreadLocalAllocator, block: OffsetPointer, len: usize, byte: u8) {
    // SAFETY: [owned] the block is the caller's and `len` bytes long.
    unsafe { heap.resolve(block, len).unwrap().write_bytes(byte, len) };
}

fn verify(heap: &ThreadLocalAllocator, block: OffsetPointer, len: usize, byte: u8) {
    let address = heap.resolve(block, len).unwrap();
    // SAFETY: [owned] as in `fill`, and nobody writes it meanwhile.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
    assert!(bytes.iter().all(|&found| found == byte), "{block:?} was overwritten");
}

fn free(heap: &ThreadLocalAllocator, block: OffsetPointer) {
    // SAFETY: [owned] the tests free what was allocated, once.
    unsafe { heap.free(block) }.unwrap();
}

fn allocate_many(heap: &ThreadLocalAllocator, byte: u8) -> Vec<(OffsetPointer, usize)> {
    let sizes = (0..3000).map(|number| 16 + number * 37 % 2000);
    let blocks = sizes.map(|len| {
        let block = heap.allocate(len).unwrap();
        fill(heap, block, len, byte);
        (block, len)
    });
    blocks.collect()
}

fn both_go_on(on_exit: OnExit) {
    let heap = segment(on_exit);
    let early = allocate_many(&heap, 1);
    let parent = ProcessId::current().unwrap();
    let child = in_child(|| {
        shared(&heap, 0).store(1, Ordering::SeqCst);
        let mine = allocate_many(&heap, 2);
        let this = ProcessId::current().unwrap();
        let workers = heap.report().workers;
        assert!(workers.iter().any(|worker| worker.process == parent));
        assert!(workers.iter().any(|worker| worker.process == this));
        // Of the blocks from before the fork the child frees every other one.
        early.iter().step_by(2).for_each(|&(block, _)| free(&heap, block));
        let again = allocate_many(&heap, 2);
        wait_until(&heap, 0, 2);
        for &(block, len) in mine.iter().chain(&again) {
            verify(&heap, block, len, 2);
            free(&heap, block);
        }
        assert!(heap.check().is_clean(), "{:#?}", heap.check());
    });
    wait_until(&heap, 0, 1);
    let late = allocate_many(&heap, 3);
    late.iter().for_each(|&(block, len)| verify(&heap, block, len, 3));
    shared(&heap, 0).store(2, Ordering::SeqCst);
    wait(child);
    assert_eq!(heap.recover_dead().slots, 1);
    for &(block, len) in early.iter().skip(1).step_by(2) {
        verify(&heap, block, len, 1);
        free(&heap, block);
    }
    for (block, len) in late {
        verify(&heap, block, len, 3);
        free(&heap, block);
    }
    let check = heap.check();
    assert!(check.is_clean() && check.allocated_blocks == 0, "{check:#?}");
}

#[test]
fn parent_and_child_both_go_on_allocating() {
    both_go_on(OnExit::Keep);
}

#[test]
fn parent_and_child_both_go_on_where_blocks_die_with_their_process() {
    both_go_on(OnExit::Reclaim);
}

/// Threads claim and give back slots, under the lock of this process's registry, all the time.
#[test]
fn a_fork_in_the_midst_of_other_threads_leaves_a_child_that_allocates() {
    let heap = segment(OnExit::Keep);
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (heap, running) = (&heap, &running);
            scope.spawn(move || {
                let mut context = MemContext::DEFAULT;
                while running.load(Ordering::SeqCst) {
                    let block = heap.allocate(100 + number).unwrap();
                    free(heap, block);
                    heap.detach_thread();
                    let _ = heap.free_tls(context);
                    context = heap.create_tls().unwrap();
                }
            });
        }
        let forks = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..200 {
                wait(in_child(|| {
                    let block = heap.allocate(100).unwrap();
                    fill(&heap, block, 100, 9);
                    std::thread::scope(|scope| {
                        scope.spawn(|| free(&heap, block));
                    });
                }));
                assert!(heap.recover_dead().slots >= 1);
            }
        }));
        running.store(false, Ordering::SeqCst);
        assert!(forks.is_ok());
    });
    let check = heap.check();
    assert!(check.is_clean() && check.allocated_blocks == 0, "{check:#?}");
}

#[test]
fn a_child_that_detaches_or_executes_another_program_leaves_the_parent_alone() {
    let heap = segment(OnExit::Keep);
    let before = allocate_many(&heap, 1);
    let context = heap.create_tls().unwrap();
    let slots = || heap.report().workers.iter().map(|worker| worker.slot).collect::<Vec<_>>();
    let held = slots();
    wait(in_child(|| {
        let refused = heap.allocate_offset(context, 10);
        assert!(matches!(refused, Err(AllocError::BadContext { .. })), "{refused:?}");
        assert!(heap.free_tls(context).is_err());
        heap.detach_thread();
        drop(heap.clone());
        assert_eq!(slots(), held);
        // A slot of its own, given back in order.
        free(&heap, heap.allocate(10).unwrap());
        assert_eq!(slots().len(), held.len() + 1);
        heap.detach_thread();
        assert_eq!(slots(), held);
    }));
    assert_eq!(slots(), held);
    let file = heap.backend().fd().unwrap().as_raw_fd();
    wait(in_child(|| {
        heap.allocate(10).unwrap();
        // The segment's file is not inherited by programs that know nothing of it.
        let path = std::ffi::CString::new(format!("test ! -e /proc/self/fd/{file}")).unwrap();
        let _ = nix::unistd::execv(c"/bin/sh", &[c"sh", c"-c", path.as_c_str()]);
    }));
    // The program that was executed ended, and the slot of the process it ran in is found.
    assert_eq!(heap.recover_dead().slots, 1);
    assert_eq!(slots(), held);
    allocate_many(&heap, 3);
    before.iter().for_each(|&(block, len)| verify(&heap, block, len, 1));
    assert!(heap.check().is_clean());
}
