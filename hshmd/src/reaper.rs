//! Recovers what dead processes left in segments.
//!
//! Two things tell of a death. Each process that is known is watched through a pidfd, so that its
//! death is noticed at once. Besides, all worker slots are searched every second or so for holders
//! that nobody watches: children that a client forked, clients that closed their connection, workers
//! from before the daemon's start. They are watched from then on, or recovered if they are dead.
//!
//! A recovery is done in steps of bounded work, on threads that may block.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hshm_memory::ProcessId;
use nix::errno::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, warn};

use crate::access::Peer;
use crate::pidfd::{self, AsyncPidfd, Liveness};
use crate::processes::Processes;
use crate::recovery::Recovery;
use crate::registry::Registry;

/// What stands behind an identity found in a worker slot, which anybody may have written there.
enum Holder {
    Alive(OwnedFd),
    Dead,
}

impl Holder {
    /// # Errors
    /// If it cannot be told now.
    fn find(process: ProcessId) -> io::Result<Self> {
        let pidfd = match pidfd::open(process.pid) {
            Ok(pidfd) => pidfd,
            // No such process; or a number that is none, or that of a thread.
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                None | Some(Errno::ESRCH | Errno::EINVAL | Errno::ENOENT) => return Ok(Self::Dead),
                Some(_) => return Err(error),
            },
        };
        // A /proc that hides it cannot tell; taking memory from the living is the worse mistake.
        let may_be_it = process.is_alive();
        // If the pidfd's process lives still, whatever /proc said was of this process.
        let lives = pidfd::liveness(&pidfd)? != Liveness::Dead;
        Ok(if lives && may_be_it { Self::Alive(pidfd) } else { Self::Dead })
    }
}

/// Where deaths are reported, and by whom they are watched for.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    processes: Arc<Processes>,
    deaths: UnboundedSender<ProcessId>,
}

impl Watcher {
    /// Watches a process, if it is not watched yet. `peer` is what is known of it from a connection.
    pub(crate) fn watch(
        &self,
        process: ProcessId,
        peer: Option<&Peer>,
        pidfd: OwnedFd,
    ) -> io::Result<()> {
        let pidfd = AsyncPidfd::new(pidfd)?;
        let deaths = self.deaths.clone();
        let task = tokio::spawn(async move {
            // An error would mean that the runtime is shutting down.
            if pidfd.exited().await.is_ok() {
                let _ = deaths.send(process);
            }
        });
        if self.processes.watch(process, peer, task.abort_handle()) {
            debug!(pid = process.pid, "watching a process");
        }
        Ok(())
    }
}

/// Becomes true when the daemon stops.
type Stop = watch::Receiver<bool>;

/// The task that recovers. Only one recovery runs at a time.
#[derive(Debug)]
pub(crate) struct Reaper {
    registry: Arc<Registry>,
    processes: Arc<Processes>,
    watcher: Watcher,
    deaths: UnboundedReceiver<ProcessId>,
    /// Holders that could not be told alive or dead, so that it is logged once.
    unclear: HashSet<ProcessId>,
}

impl Reaper {
    pub(crate) fn new(registry: Arc<Registry>, processes: Arc<Processes>) -> (Self, Watcher) {
        // Bounded by the processes there are.
        let (sender, deaths) = unbounded_channel();
        let watcher = Watcher { processes: Arc::clone(&processes), deaths: sender };
        let reaper =
            Self { registry, processes, watcher: watcher.clone(), deaths, unclear: HashSet::new() };
        (reaper, watcher)
    }

    /// Runs until `stop` changes.
    pub(crate) async fn run(mut self, sweep_interval: Duration, mut stop: Stop) {
        let mut sweeps = tokio::time::interval(sweep_interval);
        sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stop.changed() => return,
                death = self.deaths.recv() => match death {
                    Some(dead) => self.bury(dead, &BTreeSet::new(), &stop).await,
                    None => return,
                },
                _ = sweeps.tick() => self.sweep(&stop).await,
            }
        }
    }

    /// Searches all worker slots for holders that nobody watches.
    pub(crate) async fn sweep(&mut self, stop: &Stop) {
        let registry = Arc::clone(&self.registry);
        let found = tokio::task::spawn_blocking(move || {
            registry.quarantine_cut_short();
            let mut holders: HashMap<ProcessId, BTreeSet<String>> = HashMap::new();
            for segment in registry.all() {
                for process in segment.usable().map(|a| a.holders()).unwrap_or_default() {
                    holders.entry(process).or_default().insert(segment.record.name.clone());
                }
            }
            holders
        });
        let holders = match found.await {
            Ok(holders) => holders,
            Err(error) => {
                error!(%error, "the search for holders of worker slots failed");
                return;
            }
        };
        let holders = self.processes.by_known_names(holders);
        self.unclear.retain(|process| holders.contains_key(process));
        for (&process, held) in &holders {
            if self.processes.is_watched(process) {
                continue;
            }
            match Holder::find(process) {
                Ok(Holder::Dead) => self.bury(process, held, stop).await,
                Ok(Holder::Alive(pidfd)) => {
                    if let Err(error) = self.watcher.watch(process, None, pidfd) {
                        warn!(pid = process.pid, %error, "cannot watch a holder of worker slots");
                    }
                }
                Err(error) => {
                    if self.unclear.insert(process) {
                        warn!(pid = process.pid, %error, "cannot tell whether a holder of worker slots lives");
                    }
                }
            }
        }
        self.processes.update_holders(&holders);
    }

    /// Recovers all that a dead process left, as long as `stop` says nothing. `held` are segments that it
    /// was found to hold worker slots of.
    async fn bury(&self, dead: ProcessId, held: &BTreeSet<String>, stop: &Stop) {
        let used = self.processes.died(dead, held);
        let (registry, processes) = (Arc::clone(&self.registry), Arc::clone(&self.processes));
        let mut step = tokio::task::spawn_blocking(move || {
            Recovery::new(&registry, dead, used).step(&registry, &processes)
        });
        loop {
            match step.await {
                Ok(None) => break,
                // Whoever comes next goes on: the slots name their dead holder still.
                Ok(Some(_)) if *stop.borrow() => break,
                Ok(Some(left)) => {
                    let registry = Arc::clone(&self.registry);
                    let processes = Arc::clone(&self.processes);
                    step = tokio::task::spawn_blocking(move || left.step(&registry, &processes));
                }
                Err(error) => {
                    error!(pid = dead.pid, %error, "the recovery of a dead process failed");
                    break;
                }
            }
        }
        if self.processes.buried(dead) == 0 {
            debug!(pid = dead.pid, "a process ended that held nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn an_identity_is_alive_only_while_that_very_process_runs() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(matches!(Holder::find(id).unwrap(), Holder::Alive(_)));
        let namesake = ProcessId { start_ticks: id.start_ticks - 1, ..id };
        assert!(matches!(Holder::find(namesake).unwrap(), Holder::Dead));
        // At a later moment it ran too, as soon as that has come.
        std::thread::sleep(Duration::from_millis(20));
        let later = ProcessId { start_ticks: id.start_ticks + 1, ..id };
        assert!(matches!(Holder::find(later).unwrap(), Holder::Alive(_)));
        let pidfd = pidfd::open(id.pid).unwrap();
        assert_eq!(pidfd::liveness(&pidfd).unwrap(), Liveness::Alive);

        drop(child.stdin.take());
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        assert!(matches!(Holder::find(id).unwrap(), Holder::Dead), "a zombie is dead");
        child.wait().unwrap();
        assert!(matches!(Holder::find(id).unwrap(), Holder::Dead));
    }

    #[test]
    fn an_identity_that_no_process_can_have_is_dead() {
        for pid in [0, u32::MAX, 1 << 22] {
            let id = ProcessId { pid, start_ticks: 1 };
            assert!(matches!(Holder::find(id).unwrap(), Holder::Dead), "pid {pid}");
        }
    }
}
