//! The worker processes: started, stopped, killed and replaced.

use std::ops::Range;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Failure;
use crate::site::{DEADLINE, SEGMENT};
use crate::table::{LANES_PER_WORKER, Table};

/// Where a worker works.
#[derive(Clone, Debug)]
pub(crate) struct Ground {
    /// Cells that one thread at a time works on.
    pub(crate) claimed: Range<usize>,
    /// Where those end, after them, that are anybody's.
    pub(crate) wild_to: usize,
    /// Among how many workers blocks are passed; 0 if each keeps to itself.
    pub(crate) workers: usize,
}

/// One worker process.
pub(crate) struct Worker {
    child: Child,
    number: usize,
    threads: usize,
    pub(crate) incarnation: u64,
    pub(crate) ground: Ground,
    /// When it is to go on, if it is stopped.
    stopped_until: Option<Instant>,
    /// What its threads had done when that was last seen to have changed, and when that was.
    seen: [(u64, Instant); LANES_PER_WORKER],
    /// What it had done when it started.
    first: [u64; LANES_PER_WORKER],
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

impl Worker {
    pub(crate) fn start(
        socket: &Path,
        table: Table<'_>,
        number: usize,
        (incarnation, threads, seed): (u64, usize, u64),
        ground: Ground,
    ) -> Result<Self, Failure> {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(this);
        command.arg("worker").arg("--socket").arg(socket).args(["--segment", SEGMENT]);
        let options = [
            ("--worker", number as u64),
            ("--workers", ground.workers as u64),
            ("--incarnation", incarnation),
            ("--threads", threads as u64),
            ("--seed", seed),
            ("--claimed-from", ground.claimed.start as u64),
            ("--claimed-to", ground.claimed.end as u64),
            ("--wild-to", ground.wild_to as u64),
        ];
        for (option, value) in options {
            command.arg(option).arg(value.to_string());
        }
        command.stdin(Stdio::null()).process_group(0);
        let child = command.spawn().map_err(|error| format!("cannot start a worker: {error}"))?;
        let first = std::array::from_fn(|thread| done(table, number, thread));
        let seen = first.map(|done| (done, Instant::now()));
        let stopped_until = None;
        Ok(Self { child, number, threads, incarnation, ground, stopped_until, seen, first })
    }

    /// Its number, by which holders of slots are found to be it: no two processes have it at a time.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has done anything yet.
    pub(crate) fn is_at_work(&self, table: Table<'_>) -> bool {
        (0..self.threads).any(|thread| done(table, self.number, thread) > self.first[thread])
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped_until.is_some()
    }

    /// Whether all of its threads wait for the end of a pause.
    pub(crate) fn is_paused(&self, table: Table<'_>) -> bool {
        self.lanes().all(|lane| {
            table.lane(lane).paused.load(std::sync::atomic::Ordering::SeqCst) == self.incarnation
        })
    }

    fn lanes(&self) -> impl Iterator<Item = usize> + use<> {
        let first = self.number * LANES_PER_WORKER;
        first..first + self.threads
    }

    /// Stops it for a while.
    pub(crate) fn stop(&mut self, table: Table<'_>, time: Duration) -> Result<(), Failure> {
        for lane in self.lanes() {
            // Before it is, so that it never takes the time that it was stopped for a stall.
            table.lane(lane).stops.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        self.signal(Signal::SIGSTOP)?;
        self.stopped_until = Some(Instant::now() + time);
        Ok(())
    }

    /// Lets it go on if it was stopped, and long enough unless `now`.
    pub(crate) fn go_on(&mut self, now: bool) -> Result<(), Failure> {
        if self.stopped_until.is_some_and(|until| now || until <= Instant::now()) {
            self.signal(Signal::SIGCONT)?;
            self.stopped_until = None;
            self.seen = self.seen.map(|(done, _)| (done, Instant::now()));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let sent = kill(pid(&self.child), signal);
        sent.map_err(|errno| Failure::Failed(format!("cannot send {signal}: {errno}")))
    }

    /// Fails if it has ended by itself, or makes no progress.
    pub(crate) fn look_after(&mut self, table: Table<'_>) -> Result<(), Failure> {
        if let Ok(Some(status)) = self.child.try_wait() {
            let places: Vec<_> = self.lanes().map(|lane| place(table, lane)).collect();
            let places = places.join(" and ");
            return Err(Failure::Failed(format!(
                "worker {} ended by itself, at {places}: {status}",
                self.number
            )));
        }
        if self.is_stopped() {
            return Ok(());
        }
        for thread in 0..self.threads {
            let now = done(table, self.number, thread);
            let (before, since) = self.seen[thread];
            if now != before {
                self.seen[thread] = (now, Instant::now());
            } else if since.elapsed() > DEADLINE {
                let place = place(table, self.number * LANES_PER_WORKER + thread);
                return Err(Failure::Failed(format!(
                    "worker {} hangs: no operation ended for {DEADLINE:?}, at {place}",
                    self.number
                )));
            }
        }
        Ok(())
    }

    /// Nothing that it did before counts as a stall: it waited for a pause to end.
    pub(crate) fn resume(&mut self) {
        self.seen = self.seen.map(|(done, _)| (done, Instant::now()));
    }

    /// Sends it SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        self.signal(Signal::SIGKILL)
    }

    /// Whether it is dead, if it was killed before. Fails if it died of anything else.
    pub(crate) fn is_dead(&mut self) -> Result<bool, Failure> {
        let status = self.child.try_wait();
        let status = status.map_err(|error| format!("cannot wait for a worker: {error}"))?;
        match status.map(|status| (status.signal(), status)) {
            None => Ok(false),
            Some((Some(9), _)) => Ok(true),
            Some((_, status)) => {
                let number = self.number;
                let why = format!("worker {number} ended before it was killed: {status}");
                Err(Failure::Failed(why))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Done already, unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn done(table: Table<'_>, worker: usize, thread: usize) -> u64 {
    let lane = table.lane(worker * LANES_PER_WORKER + thread);
    lane.operations.load(std::sync::atomic::Ordering::SeqCst)
}

fn place(table: Table<'_>, lane: usize) -> String {
    match table.lane(lane).place.load(std::sync::atomic::Ordering::SeqCst) {
        0 => "no cell".to_owned(),
        cell => format!("cell {}", cell - 1),
    }
}
