//! Waiting for another thread, which may be another process's: the one place where a lock in shared
//! memory leaves the processor to others.

use std::time::Duration;

#[cfg(not(hshm_loom))]
use super::holder;
use crate::sync::AtomicU32;
#[cfg(not(hshm_loom))]
use crate::thread_model;

/// A sleep that nobody ends.
#[cfg(not(hshm_loom))]
const SHORT: Duration = Duration::from_millis(1);

/// Offers the processor to whoever else is ready.
///
/// A user-level thread that holds another lock keeps its stream: the next one there would be taken
/// for the holder, since a lock names threads of the operating system.
pub(crate) fn turn() {
    #[cfg(not(hshm_loom))]
    if holder::holds_any() {
        thread_model::pause_os_thread();
    } else {
        thread_model::pause();
    }
    #[cfg(hshm_loom)]
    loom::thread::yield_now();
}

/// Sleeps as long as `word` is `expected`, until somebody wakes this thread, or for `timeout`. It may
/// wake up for no reason.
#[cfg(all(target_os = "linux", not(hshm_loom)))]
pub(crate) fn sleep_on(word: &AtomicU32, expected: u32, timeout: Duration) {
    use std::ptr;

    if !thread_model::may_block() && !holder::holds_any() {
        return thread_model::sleep(timeout.min(SHORT));
    }
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // Not FUTEX_PRIVATE_FLAG: other processes wake this one.
    // SAFETY: [ffi] the word and the time live during the call; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            &raw const time,
            ptr::null::<u32>(),
            0,
        )
    };
    let error = if result == 0 { 0 } else { nix::errno::Errno::last_raw() };
    // Where the kernel does not let anybody wait here, time must pass all the same.
    if ![0, libc::ETIMEDOUT, libc::EAGAIN, libc::EINTR].contains(&error) {
        std::thread::sleep(timeout.min(SHORT));
    }
}

/// Wakes up to `most` of those who sleep on `word`. How many that were.
#[cfg(all(target_os = "linux", not(hshm_loom)))]
pub(crate) fn wake(word: &AtomicU32, most: i32) -> u32 {
    // SAFETY: [ffi] only the word's address is used, not its bytes.
    let woken =
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, most.max(0)) };
    u32::try_from(woken).unwrap_or(0)
}

/// Wakes one of those who sleep on `word`.
pub(crate) fn wake_one(word: &AtomicU32) {
    wake(word, 1);
}

/// Where there is no futex that processes share: a short sleep.
#[cfg(all(not(target_os = "linux"), not(hshm_loom)))]
pub(crate) fn sleep_on(_: &AtomicU32, _: u32, timeout: Duration) {
    if holder::holds_any() {
        std::thread::sleep(timeout.min(SHORT));
    } else {
        thread_model::sleep(timeout.min(SHORT));
    }
}

#[cfg(hshm_loom)]
pub(crate) fn sleep_on(_: &AtomicU32, _: u32, _: Duration) {
    loom::thread::yield_now();
}

/// Nobody sleeps for long.
#[cfg(any(not(target_os = "linux"), hshm_loom))]
pub(crate) fn wake(_: &AtomicU32, _: i32) -> u32 {
    0
}
