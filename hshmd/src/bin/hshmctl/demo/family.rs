//! The processes that the coordinator starts.

use std::fmt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use hshm_client::ProcessId;
use nix::sys::signal::Signal;

use super::board::COORDINATOR;
use super::patience::Patience;
use super::signals::Signals;

/// How long producers and workers may take to go home when all is done.
const PARTING_TIME: Duration = Duration::from_secs(60);

/// What a process of the demo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Daemon,
    Producer,
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "daemon",
            Self::Producer => "producer",
            Self::Worker => "worker",
        })
    }
}

/// This executable, as another process, which does not share the terminal's signals.
pub(super) fn command(role: Role) -> Command {
    // By this path it is the same executable even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("hshmctl").arg("demo-part").arg(role.to_string());
    command.arg("--parent").arg(std::process::id().to_string());
    // Ctrl-C reaches the coordinator alone, which then ends the others in good order.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A producer or worker.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) role: Role,
    /// By which number the board knows it. No two processes ever have the same.
    pub(super) part: u32,
    pub(super) process: ProcessId,
    child: Child,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (pid {})", self.role, self.part - COORDINATOR, self.process)
    }
}

/// All producers and workers. None outlives this value.
#[derive(Debug)]
pub(super) struct Family {
    socket: PathBuf,
    segment: String,
    members: Vec<Member>,
    last_part: u32,
}

impl Family {
    pub(super) fn new(socket: &Path, segment: &str) -> Self {
        let (socket, segment) = (socket.to_path_buf(), segment.to_owned());
        Self { socket, segment, members: Vec::new(), last_part: COORDINATOR }
    }

    /// Starts one more.
    pub(super) fn start(&mut self, role: Role) -> Result<()> {
        self.last_part += 1;
        let part = self.last_part;
        let mut command = command(role);
        command.arg("--socket").arg(&self.socket).arg("--segment").arg(&self.segment);
        command.arg("--part").arg(part.to_string());
        let child = command.spawn().with_context(|| format!("cannot start a {role}"))?;
        // It is not reaped yet, so the number is its own even if it is dead already.
        let process = ProcessId::of(child.id()).context("cannot look at a process just started")?;
        self.members.push(Member { role, part, process, child });
        Ok(())
    }

    /// Kills the member of number `part` with SIGKILL, and takes it out.
    pub(super) fn kill(&mut self, part: u32) -> Result<(Member, ExitStatus)> {
        let Some(at) = self.members.iter().position(|member| member.part == part) else {
            bail!("there is no process of number {part} to be killed");
        };
        let mut member = self.members.swap_remove(at);
        member.child.kill().context("cannot kill a process")?;
        let status = member.child.wait().context("cannot wait for a process")?;
        if status.signal() != Some(Signal::SIGKILL as i32) {
            bail!("{member} was to be killed, but ended by itself: {status}");
        }
        Ok((member, status))
    }

    /// Those who died of a signal that nobody here sent, taken out.
    ///
    /// # Errors
    /// If one gave up: it has said why.
    pub(super) fn take_dead(&mut self) -> Result<Vec<(Member, ExitStatus)>> {
        let mut dead = Vec::new();
        for at in (0..self.members.len()).rev() {
            let Some(member) = self.members.get_mut(at) else { continue };
            let Some(status) = member.child.try_wait().context("cannot wait for a process")? else {
                continue;
            };
            let member = self.members.swap_remove(at);
            if status.signal().is_none() {
                bail!("{member} ended before its work was done: {status}");
            }
            dead.push((member, status));
        }
        Ok(dead)
    }

    /// The `n`th of them, counted round and round.
    pub(super) fn nth(&self, n: usize) -> Option<u32> {
        let at = n.checked_rem(self.members.len())?;
        self.members.get(at).map(|member| member.part)
    }

    /// Waits until all have gone home.
    pub(super) fn see_off(&mut self, signals: &Signals) -> Result<()> {
        let deadline = Instant::now() + PARTING_TIME;
        let mut patience = Patience::new();
        while let Some(member) = self.members.last_mut() {
            signals.check()?;
            match member.child.try_wait().context("cannot wait for a process")? {
                Some(status) if status.success() => drop(self.members.pop()),
                Some(status) => bail!("{member} failed: {status}"),
                None if Instant::now() > deadline => bail!("{member} does not end"),
                None => patience.pause(),
            }
        }
        Ok(())
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        // All are told before one is waited for. Those who are dead already cannot be killed.
        for member in &mut self.members {
            let _ = member.child.kill();
        }
        for member in &mut self.members {
            let _ = member.child.wait();
        }
    }
}
