//! Windows.

use super::ForkHandler;

/// Nothing: processes are not forked here.
pub(crate) fn at_fork(
    _before: Option<ForkHandler>,
    _after: Option<ForkHandler>,
    _child: Option<ForkHandler>,
) {
}

/// Ends this process at once, as if another had killed it: nothing of it runs any more.
#[cfg(feature = "crash-points")]
pub(crate) fn kill_this_process() {
    use windows_sys::Win32::System::Threading::{GetCurrentProcess, TerminateProcess};

    // SAFETY: [ffi] no argument; the result is a constant that needs no closing.
    let this = unsafe { GetCurrentProcess() };
    // The exit code is what a shell says of SIGKILL.
    // SAFETY: [ffi] the handle is this process's.
    unsafe { TerminateProcess(this, 137) };
}
