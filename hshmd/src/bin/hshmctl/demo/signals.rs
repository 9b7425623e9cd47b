//! Ctrl-C and its relatives, as something to ask for rather than something that strikes.

use std::io::{self, Write};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::exit::Exit;

/// The signals that ask the demo to end.
pub(crate) struct Signals(SignalFd);

/// A signal came.
#[derive(Debug, thiserror::Error)]
#[error("interrupted by {0}")]
pub(crate) struct Interrupted(Signal);

impl Signals {
    /// From now on the signals wait until they are asked for. Processes that are started inherit
    /// that, and [`Signals::restore`] the ordinary way for themselves.
    pub(crate) fn take_over() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&set, flags).context("cannot wait for signals")?))
    }

    /// Lets the signals strike again.
    pub(crate) fn restore() -> Result<()> {
        SigSet::all().thread_unblock().context("cannot unblock signals")
    }

    /// Fails with [`Interrupted`] if a signal came.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(signal) = self.0.read_signal().context("cannot read signals")? else {
            return Ok(());
        };
        let number = i32::try_from(signal.ssi_signo)?;
        Err(Interrupted(Signal::try_from(number)?).into())
    }
}

impl Interrupted {
    /// Tells the person, and the exit code.
    pub(crate) fn report(&self) -> Result<Exit> {
        writeln!(io::stderr().lock(), "hshmctl: {self}; nothing is left behind")?;
        Ok(self.exit())
    }

    /// What the exit code is to say.
    pub(crate) fn exit(&self) -> Exit {
        Exit::Interrupted(u8::try_from(self.0 as i32).unwrap_or(0))
    }
}
