//! POSIX systems.

use super::ForkHandler;

/// Has `before` called before each fork, and then `after` in the parent and `child` in the child, by
/// the thread that forks. A failure (no memory at start) leaves forks unwatched.
pub(crate) fn at_fork(
    before: Option<ForkHandler>,
    after: Option<ForkHandler>,
    child: Option<ForkHandler>,
) {
    let [before, after, child] =
        [before, after, child].map(|handler| handler.map(|f| f as unsafe extern "C" fn()));
    // SAFETY: [ffi] the handlers are functions that live for ever.
    unsafe { libc::pthread_atfork(before, after, child) };
}

/// Ends this process at once, as if another had killed it: nothing of it runs any more.
#[cfg(feature = "crash-points")]
pub(crate) fn kill_this_process() {
    let this = nix::unistd::getpid();
    let _ = nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGKILL);
}
