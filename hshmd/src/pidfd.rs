//! Processes by descriptor: the kernel's handle that cannot come to mean another process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::awaited;

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    Dead,
}

/// A pidfd for the process that has number `pid` now.
pub(crate) fn open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether a pidfd's process runs. A zombie counts as dead.
pub(crate) fn liveness(pidfd: &impl AsFd) -> io::Result<Liveness> {
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut polled, PollTimeout::ZERO)?;
    Ok(if ready == 0 { Liveness::Alive } else { Liveness::Dead })
}

/// A pidfd that can be awaited.
#[derive(Debug)]
pub(crate) struct AsyncPidfd {
    pidfd: AsyncFd<OwnedFd>,
}

impl AsyncPidfd {
    pub(crate) fn new(pidfd: OwnedFd) -> io::Result<Self> {
        awaited::register(pidfd, Interest::READABLE).map(|pidfd| Self { pidfd })
    }

    /// Waits until the process has died.
    ///
    /// # Errors
    /// If the runtime is shutting down.
    pub(crate) async fn exited(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }
}
