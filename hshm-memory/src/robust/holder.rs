//! Who holds a lock: the calling thread, under a name that no later thread has.
//!
//! Of user-level threads, the one of the operating system that runs them is the holder. They give it
//! up only between locks (see [`super::RobustGuard`]), and what is read here of its storage is read
//! anew each time (`by_pointer`).
//!
//! Where the operating system cannot name a thread like that, the process stands for its threads, and a
//! lock that an ended thread left is not recognised as long as its process lives.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::platform;
use crate::process::{self, ProcessId};
use crate::thread_model::by_pointer;

thread_local! {
    /// The calling thread, once it was asked for. No destructor, so that it serves ending threads.
    static SELF: Cell<Option<ProcessId>> = const { Cell::new(None) };
    /// How many locks it holds.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread.
#[inline]
pub(crate) fn current() -> io::Result<ProcessId> {
    match by_pointer!(known as fn() -> Option<ProcessId>)() {
        Some(thread) => Ok(thread),
        None => by_pointer!(look_up as fn() -> io::Result<ProcessId>)(),
    }
}

fn known() -> Option<ProcessId> {
    SELF.get()
}

#[cold]
fn look_up() -> io::Result<ProcessId> {
    watch_forks();
    let thread = process::this_thread()?;
    SELF.set(Some(thread));
    Ok(thread)
}

/// Notes that the calling thread took a lock.
#[inline]
pub(super) fn took() {
    by_pointer!(count_up as fn())();
}

fn count_up() {
    HOLDS.set(HOLDS.get().saturating_add(1));
}

/// Notes that the calling thread gives a lock back that `holder` took. False if that is another:
/// this is the child of a fork.
#[inline]
pub(super) fn gave_back(holder: ProcessId) -> bool {
    by_pointer!(count_down as fn(ProcessId) -> bool)(holder)
}

fn count_down(holder: ProcessId) -> bool {
    let is_ours = SELF.get() == Some(holder);
    if is_ours {
        HOLDS.set(HOLDS.get().saturating_sub(1));
    }
    is_ours
}

/// Whether the calling thread holds any lock.
pub(super) fn holds_any() -> bool {
    by_pointer!(holds as fn() -> bool)()
}

fn holds() -> bool {
    HOLDS.get() > 0
}

/// Has a forked child learn that it is another. Threads that come at once may register the handler
/// several times, which does no harm; waiting for one another could leave a child waiting for ever.
fn watch_forks() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // ORDER: Acquire pairs with the Release below: the handler is registered.
    if WATCHED.load(Ordering::Acquire) {
        return;
    }
    platform::at_fork(None, None, Some(in_child));
    WATCHED.store(true, Ordering::Release);
}

/// The child has one thread, a copy of the one that forked, under another name.
extern "C" fn in_child() {
    SELF.set(None);
    HOLDS.set(0);
}
