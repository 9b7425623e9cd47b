//! Ctrl-C and its relatives, as something to ask for rather than something that strikes.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::Failure;

static CAME: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: i32) {
    CAME.store(true, Ordering::SeqCst);
}

/// From now on the signals that ask a program to end are noted. Programs that are started do not
/// inherit that.
pub(crate) fn take_over() -> Result<(), Failure> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: [ffi] the handler stores to an atomic, which it may.
        let set = unsafe { sigaction(signal, &action) };
        set.map_err(|errno| format!("cannot handle {signal}: {errno}"))?;
    }
    Ok(())
}

/// Fails if one came.
pub(crate) fn check() -> Result<(), Failure> {
    if CAME.load(Ordering::SeqCst) { Err(Failure::Interrupted) } else { Ok(()) }
}
