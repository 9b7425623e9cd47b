//! Who holds a lock: the calling thread, under a name that no later thread has.
//!
//! On Linux a thread's number comes out of the same store as the numbers of processes, and `/proc`
//! answers for it alike, with a start time of its own. So a thread has a [`ProcessId`] too. One case
//! is told wrongly: a process's first thread, if it ended before the others, counts as alive as long
//! as they do; locks that it left end with an error.
//!
//! Elsewhere the process stands for its threads, and a lock that an ended thread left is not
//! recognised as long as its process lives.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::process::ProcessId;

/// Whether two threads of one process have different names.
pub(super) const NAMES_THREADS: bool = cfg!(target_os = "linux");

thread_local! {
    /// The calling thread, once it was asked for. No destructor, so that it serves ending threads.
    static SELF: Cell<Option<ProcessId>> = const { Cell::new(None) };
    /// How many locks it holds.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread.
#[inline]
pub(crate) fn current() -> io::Result<ProcessId> {
    match SELF.get() {
        Some(thread) => Ok(thread),
        None => look_up(),
    }
}

#[cold]
fn look_up() -> io::Result<ProcessId> {
    watch_forks();
    let thread = this_thread()?;
    SELF.set(Some(thread));
    Ok(thread)
}

#[cfg(target_os = "linux")]
fn this_thread() -> io::Result<ProcessId> {
    // SAFETY: [ffi] no argument, and the call always succeeds.
    let number = unsafe { libc::gettid() };
    ProcessId::of(number.cast_unsigned())
}

#[cfg(not(target_os = "linux"))]
fn this_thread() -> io::Result<ProcessId> {
    ProcessId::current()
}

/// Notes that the calling thread took a lock.
#[inline]
pub(super) fn took() {
    HOLDS.set(HOLDS.get().saturating_add(1));
}

/// Notes that the calling thread gives a lock back that `holder` took. False if that is another:
/// this is the child of a fork.
#[inline]
pub(super) fn gave_back(holder: ProcessId) -> bool {
    let is_ours = SELF.get() == Some(holder);
    if is_ours {
        HOLDS.set(HOLDS.get().saturating_sub(1));
    }
    is_ours
}

/// Whether the calling thread holds any lock.
pub(super) fn holds_any() -> bool {
    HOLDS.get() > 0
}

/// Has a forked child learn that it is another. Threads that come at once may register the handler
/// several times, which does no harm; waiting for one another could leave a child waiting for ever.
#[cfg(unix)]
fn watch_forks() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // ORDER: Acquire pairs with the Release below: the handler is registered.
    if WATCHED.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: [ffi] the handler is a function that lives for ever. A failure (no memory at start)
    // leaves forked children unwatched, as before the call.
    unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    WATCHED.store(true, Ordering::Release);
}

#[cfg(not(unix))]
fn watch_forks() {}

/// The child has one thread, a copy of the one that forked, under another name.
#[cfg(unix)]
extern "C" fn in_child() {
    SELF.set(None);
    HOLDS.set(0);
}
