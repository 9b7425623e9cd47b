//! Child processes that are there to die.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

/// What a child exits with that panicked.
const PANICKED: i32 = 101;

/// Forks a process that runs `work` and exits with 0. It dies with this one.
///
/// # Errors
/// If there can be no more processes.
pub fn spawn(work: impl FnOnce()) -> Result<Pid, String> {
    // SAFETY: [ffi] the child runs only `work`, which takes no lock that another thread of this
    // process could hold but the C library's and this one's, and those are safe across a fork.
    match unsafe { fork() }.map_err(|errno| format!("cannot fork: {errno}"))? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
            let code = match catch_unwind(AssertUnwindSafe(work)) {
                Ok(()) => 0,
                Err(reason) => {
                    let text = reason.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| reason.downcast_ref::<&str>().copied());
                    let text = text.unwrap_or("it says nothing");
                    let _ = writeln!(std::io::stderr(), "a child panicked: {text}");
                    PANICKED
                }
            };
            // SAFETY: [ffi] no argument but a number; nothing of the parent's is flushed or dropped.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Stops this process until another lets it go on.
///
/// # Panics
/// If it cannot be stopped.
pub fn stop() {
    raise(Signal::SIGSTOP).expect("a process can stop itself");
}

/// Waits until a child changes its state.
///
/// # Errors
/// If it is no child.
pub fn wait(child: Pid) -> Result<WaitStatus, String> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(format!("cannot wait for {child}: {errno}")),
            Ok(status) => return Ok(status),
        }
    }
}

/// Runs `work` in another process, which must come to its end.
///
/// # Errors
/// How it ended instead.
pub fn run(work: impl FnOnce()) -> Result<(), String> {
    let status = wait(spawn(work)?)?;
    if matches!(status, WaitStatus::Exited(_, 0)) {
        Ok(())
    } else {
        Err(format!("another process was to do its work, but {status:?}"))
    }
}

/// Whether a child that has been waited for was killed with signal 9. False if it came to its end.
///
/// # Errors
/// If it ended in a third way.
pub fn was_killed(status: WaitStatus) -> Result<bool, String> {
    let killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGKILL, _));
    if killed || matches!(status, WaitStatus::Exited(_, 0)) {
        Ok(killed)
    } else {
        Err(format!("the process was to be killed or to finish, but {status:?}"))
    }
}
