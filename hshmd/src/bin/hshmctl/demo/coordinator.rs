//! Hands out the pieces, collects the results, and buries the dead.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hshm_client::{CheckReport, Client, CreateOptions, HeapReport, Segment};

use super::DemoArgs;
use super::board::{Board, CONTROL_BYTES, COORDINATOR, Claim, Kind};
use super::family::{Family, Role};
use super::graves::{Graves, Recovery};
use super::ledger::Ledger;
use super::patience::{Patience, is_shortage};
use super::pieces::{Piece, Pieces};
use super::private_daemon::PrivateDaemon;
use super::producer::Job;
use super::progress::Progress;
use super::shared;
use super::signals::Signals;
use super::sizing::Sizing;
use super::walk::Tree;
use super::worker;

/// When nothing moves for so long, something is wrong.
const STALL_TIME: Duration = Duration::from_secs(120);
/// How often children, graves and the daemon are looked after.
const ROUND_TIME: Duration = Duration::from_millis(5);
/// How many processes may die without the demo's doing before it gives up.
const UNEXPECTED_DEATHS: usize = 64;

/// What is known of the segment when all is done.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) segment_bytes: u64,
    pub(super) workers: u32,
    pub(super) producers: u32,
    pub(super) items: u64,
    pub(super) bytes: u64,
    pub(super) recoveries: Vec<Recovery>,
    /// When all blocks were freed and all other processes gone.
    pub(super) check: CheckReport,
    pub(super) heap: HeapReport,
}

/// Runs all processes until every file has its result and everything is freed.
pub(super) fn share(
    args: &DemoArgs,
    tree: &Tree,
    signals: &Signals,
    progress: &Progress,
) -> Result<(Ledger, Shared)> {
    let sizing = Sizing::choose(tree.bytes, args.size, args.backend)?;
    progress.begin("starting");
    // Declared first and so dropped last, after the processes that use it.
    let (mut daemon, client) = PrivateDaemon::start(signals)?;
    let name = format!("demo-{}", std::process::id());
    let created = client.create(&CreateOptions {
        capacity_bytes: Some(sizing.capacity),
        backend: args.backend,
        custom_header_bytes: CONTROL_BYTES,
        ..CreateOptions::new(&name, sizing.segment)
    })?;
    daemon.owns(created.object);
    let segment = client.attach(&name)?;
    let mut family = Family::new(&daemon.socket(), &name);
    let done = Coordinator::new(args, tree, &segment, sizing)?.run(
        &mut family,
        &mut daemon,
        signals,
        progress,
    )?;
    family.see_off(signals)?;
    let (ledger, mut shared) = done;
    (shared.check, shared.heap) = settle(&client, &segment, &name)?;
    segment.detach()?;
    client.destroy(&name, false)?;
    drop(client);
    daemon.stop()?;
    Ok((ledger, shared))
}

/// Frees the board, the last block there is, and looks at what is left.
fn settle(client: &Client, segment: &Segment, name: &str) -> Result<(CheckReport, HeapReport)> {
    Board::open(segment)?.destroy()?;
    let check = client.check(name)?;
    Ok((check, segment.report()))
}

/// An item that is under way.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    piece: Piece,
    item: u32,
}

struct Coordinator<'a> {
    segment: &'a Segment,
    board: Board<'a>,
    tree: &'a Tree,
    sizing: Sizing,
    pieces: Pieces<'a>,
    ledger: Ledger,
    /// For each row, the item in it.
    under_way: Vec<Option<UnderWay>>,
    free_rows: Vec<usize>,
    window_bytes: u64,
    next_item: u32,
    items: u64,
    done: u64,
    shared_bytes: u64,
    graves: Graves,
    kills: Kills,
    unexpected_deaths: usize,
    args: &'a DemoArgs,
}

/// Who is killed, and when.
#[derive(Debug)]
struct Kills {
    planned: u64,
    begun: u64,
    /// A volunteer was asked for and is not dead yet.
    waiting: bool,
    all_items: u64,
}

impl Kills {
    /// After how many items the next kill is due: they are spread evenly, a single one being midway.
    fn next_at(&self) -> Option<u64> {
        let at = (self.begun + 1).saturating_mul(self.all_items) / (self.planned + 1);
        (self.begun < self.planned).then_some(at.min(self.all_items.saturating_sub(1)))
    }

    fn is_due(&self, done: u64) -> bool {
        !self.waiting && self.next_at().is_some_and(|at| done >= at)
    }

    /// How many items may be queued before the next kill: some more than it waits for, so that it
    /// strikes processes at work. The last item waits for the first kill, so that there is one to be
    /// in the middle of.
    fn queue_limit(&self) -> u64 {
        const AT_WORK: u64 = 64;
        match self.next_at() {
            Some(at) if self.begun == 0 => (at + AT_WORK).min(self.all_items - 1),
            // Whoever is to volunteer needs an item.
            Some(at) if !self.waiting => at + AT_WORK,
            _ => u64::MAX,
        }
    }

    fn are_over(&self) -> bool {
        self.begun == self.planned && !self.waiting
    }
}

impl<'a> Coordinator<'a> {
    fn new(
        args: &'a DemoArgs,
        tree: &'a Tree,
        segment: &'a Segment,
        sizing: Sizing,
    ) -> Result<Self> {
        let board = Board::create(segment)?;
        let pieces = Pieces::new(tree, sizing.piece);
        let rows = board.rows.len();
        let all_items = pieces.left();
        let planned = if all_items == 0 { 0 } else { args.kills.into() };
        Ok(Self {
            segment,
            board,
            tree,
            sizing,
            ledger: Ledger::new(tree, sizing.piece)?,
            pieces,
            under_way: vec![None; rows],
            free_rows: (0..rows).rev().collect(),
            window_bytes: 0,
            next_item: 0,
            items: 0,
            done: 0,
            shared_bytes: 0,
            graves: Graves::default(),
            kills: Kills { planned, begun: 0, waiting: false, all_items },
            unexpected_deaths: 0,
            args,
        })
    }

    fn run(
        mut self,
        family: &mut Family,
        daemon: &mut PrivateDaemon,
        signals: &Signals,
        progress: &Progress,
    ) -> Result<(Ledger, Shared)> {
        for _ in 0..self.args.producers {
            family.start(Role::Producer)?;
        }
        for _ in 0..self.args.workers {
            family.start(Role::Worker)?;
        }
        progress.begin_bytes("sharing", self.tree.bytes);
        let mut patience = Patience::new();
        let (mut moved, mut round) = (Instant::now(), Instant::now());
        while !(self.ledger.is_complete() && self.kills.are_over() && self.graves.are_closed()) {
            signals.check()?;
            let has_fed = self.feed()?;
            let has_collected = self.collect(progress)?;
            self.kill(family, progress)?;
            if round.elapsed() >= ROUND_TIME {
                round = Instant::now();
                daemon.require_alive()?;
                self.bury_unexpected(family, progress)?;
                self.graves.tend(self.segment, &self.board)?;
            }
            if has_fed || has_collected {
                patience.renew();
                moved = Instant::now();
            } else if moved.elapsed() > STALL_TIME {
                bail!(
                    "nothing has moved for {STALL_TIME:?}: is /dev/shm full? try a larger --size"
                );
            } else {
                patience.pause();
            }
        }
        self.board.finish();
        let shared = Shared {
            segment_bytes: self.sizing.segment,
            workers: self.args.workers,
            producers: self.args.producers,
            items: self.items,
            bytes: self.shared_bytes,
            recoveries: self.graves.recovered,
            check: CheckReport::default(),
            heap: self.segment.report(),
        };
        Ok((self.ledger, shared))
    }

    /// Queues pieces while there are free rows and room for contents.
    fn feed(&mut self) -> Result<bool> {
        let mut has_fed = false;
        while let Some(piece) = self.pieces.peek() {
            let fits =
                self.window_bytes == 0 || self.window_bytes + piece.len <= self.sizing.window;
            let is_held = self.items >= self.kills.queue_limit();
            let Some(&row) = self.free_rows.last() else { break };
            if !fits || is_held || !self.queue(row, piece)? {
                break;
            }
            self.free_rows.pop();
            self.pieces.advance();
            self.window_bytes += piece.len;
            has_fed = true;
        }
        Ok(has_fed)
    }

    /// Puts a piece into a free row. False if there is no memory for the job at the moment.
    fn queue(&mut self, row_index: usize, piece: Piece) -> Result<bool> {
        let (Some(row), Some(file)) =
            (self.board.rows.get(row_index), self.tree.files.get(piece.file))
        else {
            return Ok(false);
        };
        let path = std::path::absolute(&file.path)?;
        let job = Job { from: piece.from, len: piece.len, path }.encode();
        let block = match row.job.allocate(job.len()) {
            Err(error) if is_shortage(&error) => return Ok(false),
            result => result?,
        };
        shared::write_bytes(self.segment, block, &job)?;
        row.job_bytes.store(job.len() as u64, Ordering::Relaxed);
        let item = self.next_item;
        // Wraps after four thousand million items; what matters is that neighbours differ.
        self.next_item = item.wrapping_add(1);
        row.take(item)?.pass_on(Kind::Queued)?;
        if let Some(place) = self.under_way.get_mut(row_index) {
            *place = Some(UnderWay { piece, item });
        }
        self.items += 1;
        Ok(true)
    }

    /// Takes the results that are there, and frees their blocks.
    fn collect(&mut self, progress: &Progress) -> Result<bool> {
        let mut has_collected = false;
        for (i, row) in self.board.rows.iter().enumerate() {
            let Some(Some(UnderWay { piece, item })) = self.under_way.get(i).copied() else {
                continue;
            };
            let state = row.state()?;
            let claim = match row.claim(Kind::Done, Kind::Collecting, COORDINATOR)? {
                Some(claim) => Some(claim),
                None => row.claim(Kind::Unreadable, Kind::Collecting, COORDINATOR)?,
            };
            let Some(claim) = claim else { continue };
            ensure!(claim.state().item == item, "a row is at item {state:?}, not {item}");
            let result = if state.kind == Kind::Unreadable {
                Err(i32::try_from(state.owner).unwrap_or(0))
            } else {
                Ok(worker::result(self.segment, row, item)?)
            };
            release(claim)?;
            self.ledger.enter(piece, result)?;
            self.shared_bytes += result.map_or(0, |counts| counts.bytes);
            self.window_bytes -= piece.len;
            self.done += 1;
            progress.advance(piece.len);
            if let Some(place) = self.under_way.get_mut(i) {
                *place = None;
            }
            self.free_rows.push(i);
            has_collected = true;
        }
        Ok(has_collected)
    }

    /// Kills somebody, if it is time to: first a worker who has said that it is in the middle of an
    /// item, then anybody, whatever he is at.
    fn kill(&mut self, family: &mut Family, progress: &Progress) -> Result<()> {
        if self.kills.waiting {
            let volunteer = self.board.volunteer();
            // Nobody will, if what was left could not be read and so came to no worker.
            self.kills.waiting = volunteer.is_none() && !self.ledger.is_complete();
            return match volunteer {
                Some(part) => self.kill_member(family, part, progress),
                None => Ok(()),
            };
        }
        if !self.kills.is_due(self.done) {
            return Ok(());
        }
        self.kills.begun += 1;
        if self.kills.begun == 1 {
            self.board.want_volunteer();
            self.kills.waiting = true;
            return Ok(());
        }
        // As good as any number.
        let n = usize::try_from(self.done).unwrap_or(0);
        match family.nth(n) {
            Some(part) => self.kill_member(family, part, progress),
            None => Ok(()),
        }
    }

    fn kill_member(&mut self, family: &mut Family, part: u32, progress: &Progress) -> Result<()> {
        let (dead, status) = family.kill(part)?;
        let role = dead.role;
        progress.say(format!("sharing ({dead} was killed)"));
        self.graves.add(dead, status);
        // The others could do its work too, but there may be no other.
        family.start(role)
    }

    /// Deals with those who died without our doing as with those we killed.
    fn bury_unexpected(&mut self, family: &mut Family, progress: &Progress) -> Result<()> {
        for (dead, status) in family.take_dead()? {
            self.unexpected_deaths += 1;
            if self.unexpected_deaths > UNEXPECTED_DEATHS {
                bail!("processes keep dying, the last one being {dead}: {status}");
            }
            progress.say(format!("sharing ({dead} died: {status})"));
            // It may have been the volunteer, who is then not there to be killed.
            if self.kills.waiting && self.board.volunteer() == Some(dead.part) {
                self.kills.waiting = false;
            }
            let role = dead.role;
            self.graves.add(dead, status);
            family.start(role)?;
        }
        Ok(())
    }
}

/// Frees what an item that is done still has, and its row.
fn release(claim: Claim<'_, '_>) -> Result<()> {
    claim.free(|row| row.result).context("cannot free a result")?;
    // Of a file that could not be read, these may be left.
    claim.free(|row| row.input)?;
    claim.free(|row| row.job)?;
    claim.pass_on(Kind::Free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_spread_over_the_items_and_always_have_one_left_to_strike() {
        for (all_items, planned, at) in [(1, 1, 0), (2, 1, 1), (100, 1, 50), (100, 3, 25)] {
            let kills = Kills { planned, begun: 0, waiting: false, all_items };
            assert!(kills.is_due(at), "{kills:?}");
            assert!(at == 0 || !kills.is_due(at - 1), "{kills:?}");
        }
        let last = Kills { planned: 1, begun: 0, waiting: false, all_items: 2 };
        assert_eq!(last.queue_limit(), 1);
        let waiting = Kills { planned: 9, begun: 1, waiting: true, all_items: 20 };
        assert!(waiting.queue_limit() >= 20 && !waiting.is_due(20));
        let over = Kills { planned: 1, begun: 1, waiting: false, all_items: 10 };
        assert!(!over.is_due(10) && over.queue_limit() > 10);
        let none = Kills { planned: 0, begun: 0, waiting: false, all_items: 0 };
        assert!(!none.is_due(0));
    }
}
