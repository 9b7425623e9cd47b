//! The lock between threads.

use std::time::Duration;

use super::*;

#[test]
fn a_thread_that_holds_the_lock_is_told_so() {
    let lock = RobustLock::new();
    let guard = lock.lock().unwrap();
    assert!(matches!(lock.lock(), Err(LockError::Reentrant)));
    drop(guard);
    drop(lock.lock().unwrap());
}

#[test]
fn an_ended_thread_and_a_panic_leave_the_lock_to_be_mended() {
    let lock = RobustLock::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _never_dropped = std::mem::ManuallyDrop::new(lock.lock().unwrap());
        });
    });
    let guard = lock.lock().unwrap();
    assert_eq!(guard.acquired(), Acquired::FromDead);
    assert!(guard.mended());
    drop(guard);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _guard = lock.lock().unwrap();
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(panicked.is_err());
    assert_eq!(lock.lock().unwrap().acquired(), Acquired::FromDead);
}

#[test]
fn whatever_stands_in_a_lock_is_a_lock() {
    let me = holder::current().unwrap();
    let nobody = ProcessId { pid: 4_194_300, start_ticks: 5 };
    let past = ProcessId { start_ticks: me.start_ticks - 1, ..me };
    let words = [
        u64::MAX,
        1,
        Word::DIRTY,
        Word::HELD,
        Word::HELD | 1 << 63,
        0x0123_4567_89ab_cdef,
        Word::held(nobody, Acquired::Clean).0,
        Word::held(past, Acquired::FromDead).0,
        // This thread, which holds no lock.
        Word::held(me, Acquired::Clean).0,
    ];
    for garbage in words {
        for waiting in [0, 1, u32::MAX] {
            let lock = RobustLock::new();
            lock.word.store(garbage, Ordering::SeqCst);
            lock.waiting.store(waiting, Ordering::SeqCst);
            let guard = lock.lock().unwrap();
            assert_eq!(guard.acquired(), Acquired::FromDead, "{garbage:#x}");
            assert!(guard.mended());
            drop(guard);
            assert_eq!(lock.lock().unwrap().acquired(), Acquired::Clean);
        }
    }
}

#[test]
fn a_lock_that_was_overwritten_is_not_given_back_for_another() {
    let lock = RobustLock::new();
    let guard = lock.lock().unwrap();
    let other = Word::held(ProcessId { pid: 4, start_ticks: 1 }, Acquired::Clean).0;
    lock.word.store(other, Ordering::SeqCst);
    drop(guard);
    assert_eq!(lock.word.load(Ordering::SeqCst), other);
}

#[test]
fn a_lock_that_never_holds_still_ends_with_an_error() {
    let lock = RobustLock::new();
    let over = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = holder::current().unwrap();
            let mut word = Word::held(other, Acquired::Clean).0;
            while over.load(Ordering::Relaxed) == 0 {
                lock.word.store(word, Ordering::Relaxed);
                word ^= Word::DIRTY;
            }
        });
        let result = lock.lock_timeout(Duration::from_millis(50)).map(drop);
        over.store(1, Ordering::Relaxed);
        assert!(matches!(result, Ok(()) | Err(LockError::TimedOut { .. })));
    });
}
