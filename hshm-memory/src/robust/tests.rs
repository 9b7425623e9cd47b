//! The lock between real processes.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::*;
use crate::backend::{Backend, MemfdMmap};

/// A lock and two counters in memory that forked processes share. They are equal whenever nobody
/// holds the lock.
struct Shared {
    backend: MemfdMmap,
}

#[repr(C)]
struct Words {
    lock: RobustLock,
    first: AtomicU64,
    second: AtomicU64,
    ready: AtomicU64,
}

impl Shared {
    fn new() -> Arc<Self> {
        let backend = MemfdMmap::create("robust", 4096, 2 << 20).unwrap();
        backend.populate(0..4096).unwrap();
        Arc::new(Self { backend })
    }

    fn words(&self) -> &Words {
        let address: NonNull<Words> = self.backend.base().cast();
        // SAFETY: [mapped] the backend is a page long at least and lives as long as `self`; [atomic]
        // all there is in it is atomics.
        unsafe { address.as_ref() }
    }

    /// Adds one to both counters under the lock, after mending them.
    fn add(&self) {
        let words = self.words();
        let guard = words.lock.lock().unwrap();
        if guard.acquired() == Acquired::FromDead {
            words.second.store(words.first.load(Ordering::Relaxed), Ordering::Relaxed);
            assert!(guard.mended());
        }
        let count = words.first.load(Ordering::Relaxed);
        assert_eq!(count, words.second.load(Ordering::Relaxed));
        words.first.store(count + 1, Ordering::Relaxed);
        words.second.store(count + 1, Ordering::Relaxed);
    }
}

fn in_child(work: impl FnOnce()) -> Pid {
    // SAFETY: [ffi] the child uses this module and glibc's malloc, both made for that.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
            // SAFETY: [ffi] ends the process without running what belongs to the parent.
            unsafe { libc::_exit(i32::from(failed)) }
        }
    }
}

fn wait_for(what: &AtomicU64, least: u64) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while what.load(Ordering::SeqCst) < least {
        assert!(Instant::now() < deadline, "the other process is stuck");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn assert_killed(child: Pid) {
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Signaled(child, Signal::SIGKILL, false));
}

#[test]
fn threads_of_several_processes_count_together() {
    let shared = Shared::new();
    let work = |shared: &Arc<Shared>| {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..2000).for_each(|_| shared.add()));
            }
        });
    };
    let children = [(); 2].map(|()| in_child(|| work(&shared)));
    work(&shared);
    for child in children {
        assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    }
    assert_eq!(shared.words().first.load(Ordering::SeqCst), 12_000);
    assert_eq!(shared.words().second.load(Ordering::SeqCst), 12_000);
}

/// The first thread of a process holds it when another one has the process run another program, whose
/// first thread is by name the one that held the lock.
#[test]
fn a_lock_whose_holder_was_ended_by_an_exec_is_taken_over() {
    let shared = Shared::new();
    let words = shared.words();
    let child = in_child(|| {
        let guard = words.lock.lock().unwrap();
        words.first.store(1, Ordering::SeqCst);
        let arguments = [c"sleep", c"300"];
        let other = std::thread::spawn(move || nix::unistd::execvp(arguments[0], &arguments));
        let _ = other.join();
        drop(guard);
    });
    let deadline = Instant::now() + Duration::from_secs(120);
    let name = format!("/proc/{child}/comm");
    while std::fs::read_to_string(&name).unwrap() != "sleep\n" {
        assert!(Instant::now() < deadline, "the child does not run the other program");
        std::thread::sleep(Duration::from_millis(1));
    }
    let taken = words.lock.lock();
    // First of all, so that nothing goes on running should the test fail.
    kill(child, Signal::SIGKILL).unwrap();
    assert_killed(child);
    let guard = taken.unwrap();
    assert_eq!(guard.acquired(), Acquired::FromDead);
    assert_eq!(words.first.load(Ordering::SeqCst), 1);
    assert!(guard.mended());
}

/// Processes count under the lock, and are killed at any moment, many of them inside it.
#[test]
fn what_the_killed_leave_is_taken_over_and_mended() {
    let shared = Shared::new();
    let words = shared.words();
    let mut from_dead = 0;
    for _ in 0..40 {
        let before = words.first.load(Ordering::SeqCst);
        let victim = in_child(|| {
            loop {
                shared.add();
            }
        });
        wait_for(&words.first, before + 50);
        kill(victim, Signal::SIGKILL).unwrap();
        assert_killed(victim);
        from_dead += u32::from(Word(words.lock.word.load(Ordering::SeqCst)) != Word::FREE);
        shared.add();
    }
    assert!(from_dead > 0, "nobody was killed inside the lock");
    let guard = words.lock.lock().unwrap();
    assert_eq!(guard.acquired(), Acquired::Clean);
}

#[test]
fn who_dies_mending_leaves_the_lock_to_be_mended() {
    let shared = Shared::new();
    let words = shared.words();
    for round in 0..3 {
        let victim = in_child(|| {
            let guard = words.lock.lock().unwrap();
            let expected = if round == 0 { Acquired::Clean } else { Acquired::FromDead };
            assert_eq!(guard.acquired(), expected);
            words.ready.store(round + 1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        });
        wait_for(&words.ready, round + 1);
        kill(victim, Signal::SIGKILL).unwrap();
        assert_killed(victim);
    }
    // Given back as it is, it is still to be mended.
    assert_eq!(words.lock.lock().unwrap().acquired(), Acquired::FromDead);
    let guard = words.lock.lock().unwrap();
    assert_eq!(guard.acquired(), Acquired::FromDead);
    assert!(guard.mended());
    drop(guard);
    assert_eq!(words.lock.lock().unwrap().acquired(), Acquired::Clean);
}

#[test]
fn a_sleeper_takes_over_from_a_holder_that_is_killed() {
    let shared = Shared::new();
    let words = shared.words();
    let victim = in_child(|| {
        let _guard = words.lock.lock().unwrap();
        words.ready.store(1, Ordering::SeqCst);
        loop {
            std::thread::park();
        }
    });
    wait_for(&words.ready, 1);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| words.lock.lock().unwrap().acquired());
        wait_for_sleeper(words);
        kill(victim, Signal::SIGKILL).unwrap();
        // It is a zombie until it is waited for, and dead all the same.
        assert_eq!(waiter.join().unwrap(), Acquired::FromDead);
    });
    assert_killed(victim);
}

fn wait_for_sleeper(words: &Words) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while words.lock.waiting.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "nobody goes to sleep");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_living_holder_is_waited_for_until_the_time_is_over() {
    let shared = Shared::new();
    let words = shared.words();
    let guard = words.lock.lock().unwrap();
    let me = guard.me.pid;
    std::thread::scope(|scope| {
        for timeout in [Duration::ZERO, Duration::from_millis(30)] {
            scope.spawn(move || match words.lock.lock_timeout(timeout) {
                Err(LockError::TimedOut { holder, waited }) => {
                    assert_eq!((holder, waited), (me, timeout));
                }
                other => panic!("{other:?}"),
            });
        }
    });
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| words.lock.lock().unwrap().acquired());
        wait_for_sleeper(words);
        drop(guard);
        assert_eq!(waiter.join().unwrap(), Acquired::Clean);
    });
}

#[test]
fn a_forked_child_does_not_hold_its_parents_lock() {
    let shared = Shared::new();
    let words = shared.words();
    let guard = RefCell::new(Some(words.lock.lock().unwrap()));
    let child = in_child(|| {
        let timeout = Duration::from_millis(20);
        let refused = words.lock.lock_timeout(timeout);
        assert!(matches!(refused, Err(LockError::TimedOut { .. })));
        // The copy of the parent's guard gives nothing back.
        drop(guard.take());
        let refused = words.lock.lock_timeout(timeout);
        assert!(matches!(refused, Err(LockError::TimedOut { .. })));
    });
    assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
    let State::Held(holder) = Word(words.lock.word.load(Ordering::SeqCst)).state() else {
        panic!("the lock is not held any more");
    };
    assert_eq!(holder, holder::current().unwrap());
    drop(guard);
    assert_eq!(words.lock.lock().unwrap().acquired(), Acquired::Clean);
}
