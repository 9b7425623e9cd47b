//! The storm itself.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hshm_client::Segment;
use hshm_memory::OnExit;
use hshm_tests::random::Random;

use crate::args::StormArgs;
use crate::audit::{Found, audit};
use crate::crew::{Ground, Worker};
use crate::site::{DEADLINE, Site, policy};
use crate::table::{CELLS, Command, LANES, Table};
use crate::{Failure, interrupt};

/// One cell in so many is anybody's, where blocks outlive who allocated them.
const WILD_PART: usize = 4;
/// Grounds for each worker, where blocks go with who allocated them: those of the dead are used again
/// when they were recovered.
const GROUNDS_PER_WORKER: usize = 3;
/// How often everything is stopped and counted, besides at the end.
const AUDITS: u64 = 10;

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    kills: u64,
    kills_of_stopped: u64,
    kills_of_starting: u64,
    stops: u64,
    daemon_kills: u64,
    audits: u64,
    audited_blocks: u64,
}

struct Storm<'a> {
    arguments: &'a StormArgs,
    site: Site,
    segment: &'a Segment,
    random: Random,
    workers: Vec<Worker>,
    /// Those who were killed and are not gone yet.
    dying: Vec<Worker>,
    grounds: Vec<Ground>,
    /// Grounds of the dead that are not recovered yet.
    graves: Vec<Ground>,
    incarnations: u64,
    restart_at: Option<Instant>,
    counts: Counts,
    /// What the last audit found.
    unaccounted: u64,
    started: Instant,
    shown: Instant,
}

pub(crate) fn run(arguments: &StormArgs) -> Result<(), Failure> {
    interrupt::take_over()?;
    let (site, segment) = Site::start(arguments)?;
    let mut storm = Storm {
        arguments,
        site,
        segment: &segment,
        random: Random::new(arguments.seed),
        workers: Vec::new(),
        dying: Vec::new(),
        grounds: grounds(arguments),
        graves: Vec::new(),
        incarnations: 0,
        restart_at: None,
        counts: Counts::default(),
        unaccounted: 0,
        started: Instant::now(),
        shown: Instant::now(),
    };
    let ended = storm.rage().and_then(|()| storm.settle());
    storm.clear_line();
    let summary = storm.summary(ended.is_ok());
    let _ = std::io::stdout().write_all(summary.as_bytes());
    ended
}

/// Where workers may work. Where the blocks of the dead go with them, each has cells of its own: those
/// of another could name, at any moment, what is no block any more.
fn grounds(arguments: &StormArgs) -> Vec<Ground> {
    let workers = usize::try_from(arguments.workers).unwrap_or(1);
    match arguments.on_exit {
        OnExit::Keep => {
            let wild_from = CELLS - CELLS / WILD_PART;
            vec![Ground { claimed: 0..wild_from, wild_to: CELLS, workers }; workers]
        }
        OnExit::Reclaim => {
            let count = workers * GROUNDS_PER_WORKER;
            let of = |number: usize| {
                let claimed: Range<usize> =
                    number * (CELLS / count)..(number + 1) * (CELLS / count);
                Ground { wild_to: claimed.end, claimed, workers: 0 }
            };
            (0..count).map(of).collect()
        }
    }
}

impl Storm<'_> {
    fn table(&self) -> Table<'_> {
        Table::of(self.segment)
    }

    /// Kills until it is enough.
    fn rage(&mut self) -> Result<(), Failure> {
        for number in 0..usize::try_from(self.arguments.workers).unwrap_or(1) {
            let worker = self.recruit(number)?;
            self.workers.push(worker);
        }
        let time = self.arguments.seconds.map(Duration::from_secs);
        let kills = self.arguments.kills;
        let daemon_kills = self.arguments.daemon_kills.unwrap_or(kills / 100);
        while (self.counts.kills < kills || self.counts.daemon_kills < daemon_kills)
            && time.is_none_or(|time| self.started.elapsed() < time)
        {
            self.look_around()?;
            if self.counts.kills * (AUDITS + 1) / kills.max(1) > self.counts.audits {
                self.take_stock()?;
            }
            let due = daemon_kills.min(self.counts.kills * daemon_kills / kills.max(1));
            if due > self.counts.daemon_kills && self.site.is_running() {
                self.site.kill()?;
                self.counts.daemon_kills += 1;
                let magnitude = self.random.below(16);
                let pause = Duration::from_micros(self.random.below(1 << magnitude));
                self.restart_at = Some(Instant::now() + pause);
            }
            self.strike()?;
            let magnitude = self.random.below(13);
            std::thread::sleep(Duration::from_micros(self.random.below(1 << magnitude)));
        }
        Ok(())
    }

    /// Stops a worker, or kills and replaces it.
    fn strike(&mut self) -> Result<(), Failure> {
        let number = self.random.index(self.workers.len());
        let is_at_work = self.workers[number].is_at_work(self.table());
        if !is_at_work && self.random.below(50) > 0 {
            return Ok(());
        }
        if is_at_work && self.random.below(4) == 0 && !self.workers[number].is_stopped() {
            let time = Duration::from_micros(self.random.below(50_000));
            let table = Table::of(self.segment);
            self.workers[number].stop(table, time)?;
            self.counts.stops += 1;
            return Ok(());
        }
        let next = self.recruit(number)?;
        let mut dying = std::mem::replace(&mut self.workers[number], next);
        dying.kill()?;
        self.counts.kills += 1;
        self.counts.kills_of_stopped += u64::from(dying.is_stopped());
        self.counts.kills_of_starting += u64::from(!is_at_work);
        self.dying.push(dying);
        Ok(())
    }

    /// Sees who is dead. What such a one had claimed, others may work on, recovered or not.
    fn bury(&mut self) -> Result<(), Failure> {
        for mut worker in std::mem::take(&mut self.dying) {
            if !worker.is_dead()? {
                self.dying.push(worker);
                continue;
            }
            match self.arguments.on_exit {
                OnExit::Keep => self.table().break_claims(|by| by == worker.incarnation),
                OnExit::Reclaim => self.graves.push(worker.ground.clone()),
            }
        }
        Ok(())
    }

    /// Starts a worker in the place of `number`.
    fn recruit(&mut self, number: usize) -> Result<Worker, Failure> {
        let ground = match self.arguments.on_exit {
            OnExit::Keep => self.grounds[number].clone(),
            OnExit::Reclaim => {
                if self.grounds.is_empty() {
                    self.wait_for_recovery()?;
                }
                self.grounds.pop().ok_or_else(|| "there is no ground left".to_owned())?
            }
        };
        self.incarnations += 1;
        let two_threads = self.arguments.on_exit == OnExit::Reclaim || self.random.below(4) == 0;
        let threads = if two_threads { 2 } else { 1 };
        let who = (self.incarnations, threads, self.random.next());
        Worker::start(&self.site.socket(), self.table(), number, who, ground)
    }

    /// Sees to the daemon and to the workers.
    fn look_around(&mut self) -> Result<(), Failure> {
        interrupt::check()?;
        self.site.require_alive()?;
        if self.restart_at.is_some_and(|at| at <= Instant::now()) {
            self.restart_at = None;
            self.site.launch()?;
        }
        let table = Table::of(self.segment);
        self.bury()?;
        for worker in &mut self.workers {
            worker.go_on(false)?;
            worker.look_after(table)?;
        }
        self.show();
        Ok(())
    }

    /// Waits until all who died are recovered; then their grounds can be used again.
    fn wait_for_recovery(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + DEADLINE;
        let this = std::process::id();
        loop {
            self.look_around()?;
            let living: BTreeSet<_> = self.workers.iter().map(Worker::pid).collect();
            let mut others = self.segment.holders();
            others.retain(|holder| holder.pid != this && !living.contains(&holder.pid));
            if others.is_empty() && self.dying.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                let others: Vec<_> = others.iter().map(ToString::to_string).collect();
                let others = others.join(", ");
                return Err(Failure::Failed(format!(
                    "nobody has recovered, in {DEADLINE:?}, what these processes left: {others}"
                )));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        for ground in std::mem::take(&mut self.graves) {
            self.table().wipe(ground.claimed.clone());
            self.grounds.push(ground);
        }
        Ok(())
    }

    /// Lets everybody pause, and counts.
    fn take_stock(&mut self) -> Result<Found, Failure> {
        self.table().give(Command::Pause);
        let deadline = Instant::now() + DEADLINE;
        let table = Table::of(self.segment);
        while !self.workers.iter().all(|worker| worker.is_paused(table)) {
            self.look_around()?;
            if Instant::now() > deadline {
                return Err(Failure::Failed(format!("a worker hangs: no pause in {DEADLINE:?}")));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        self.wait_for_recovery()?;
        let found = self.audit()?;
        self.counts.audits += 1;
        self.counts.audited_blocks += found.verified;
        self.table().give(Command::Run);
        self.workers.iter_mut().for_each(Worker::resume);
        Ok(found)
    }

    /// Compares what is allocated with what the cells name, to the byte.
    fn audit(&mut self) -> Result<Found, Failure> {
        let found = audit(self.segment)?;
        self.unaccounted = found.unaccounted;
        if found.unaccounted == 0 {
            return Ok(found);
        }
        Err(Failure::Failed(format!(
            "{} bytes are unaccounted for: the cells name {}, and {} are allocated",
            found.unaccounted,
            found.named_bytes,
            self.segment.report().allocated_bytes
        )))
    }

    /// The end: counts, kills everybody, counts again, frees everything.
    fn settle(&mut self) -> Result<(), Failure> {
        self.take_stock()?;
        self.dying = std::mem::take(&mut self.workers);
        for worker in &mut self.dying {
            worker.kill()?;
            self.counts.kills += 1;
        }
        self.wait_for_recovery()?;
        self.audit()?;
        for cell in 0..CELLS {
            // SAFETY: [owned] nobody else is there.
            let emptied = unsafe { self.segment.free_from(self.table().cell(cell)) };
            emptied.map_err(|error| format!("cell {cell} cannot be emptied: {error}"))?;
        }
        let found = self.audit()?;
        let left = self.segment.report().allocated_bytes;
        if found.blocks > 0 || left > 0 {
            return Err(Failure::Failed(format!("{left} bytes are left when all was freed")));
        }
        self.site.stop()
    }

    fn show(&mut self) {
        let mut err = std::io::stderr();
        if err.is_terminal() && self.shown.elapsed() > Duration::from_millis(200) {
            self.shown = Instant::now();
            let Counts { kills, daemon_kills, audits, .. } = self.counts;
            let wanted = self.arguments.kills;
            let _ = write!(
                err,
                "\r{kills} of {wanted} kills, {daemon_kills} of the daemon, {audits} audits"
            );
        }
    }

    fn clear_line(&self) {
        let mut err = std::io::stderr();
        if err.is_terminal() {
            let _ = write!(err, "\r\x1b[K");
        }
    }

    fn summary(&self, is_whole: bool) -> String {
        let table = self.table();
        let lanes: Vec<_> = (0..LANES).map(|lane| table.lane(lane)).collect();
        let operations: u64 = lanes.iter().map(|l| l.operations.load(Ordering::SeqCst)).sum();
        let verified: u64 = lanes.iter().map(|l| l.verified.load(Ordering::SeqCst)).sum();
        let longest = lanes.iter().map(|l| l.longest_ns.load(Ordering::SeqCst)).max();
        let longest = Duration::from_nanos(longest.unwrap_or(0));
        let Counts { kills, kills_of_stopped, kills_of_starting, .. } = self.counts;
        let Counts { stops, daemon_kills, audits, audited_blocks, .. } = self.counts;
        let unaccounted = match self.unaccounted {
            0 if !is_whole => "not known: it was cut short".to_owned(),
            bytes => bytes.to_string(),
        };
        let (workers, seed) = (self.arguments.workers, self.arguments.seed);
        let policy = policy(self.arguments.on_exit);
        format!(
            "{workers} workers, blocks of the dead: {policy}, seed {seed}, {:.1} s\n\
             kills survived        {kills} ({kills_of_stopped} while stopped, \
             {kills_of_starting} while starting)\n\
             stops survived        {stops}\n\
             daemon kills          {daemon_kills}\n\
             operations            {operations}\n\
             blocks verified       {}\n\
             audits                {audits}\n\
             bytes unaccounted     {unaccounted}\n\
             longest stall         {longest:.3?}\n",
            self.started.elapsed().as_secs_f64(),
            verified + audited_blocks,
        )
    }
}
