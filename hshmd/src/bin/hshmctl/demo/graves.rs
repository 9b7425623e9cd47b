//! The dead: what they were at is taken up again when the daemon has recovered what they held.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hshm_client::Segment;
use nix::sys::signal::Signal;
use serde::Serialize;

use super::board::{Board, Kind};
use super::family::Member;

/// How long a recovery may take.
const RECOVERY_TIME: Duration = Duration::from_secs(60);

/// The processes that died and are not recovered yet.
#[derive(Debug, Default)]
pub(super) struct Graves {
    open: Vec<Grave>,
    /// What came of those who are.
    pub(super) recovered: Vec<Recovery>,
}

#[derive(Debug)]
struct Grave {
    dead: Member,
    how: String,
    since: Instant,
}

/// A process that died, and what was done about it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Recovery {
    pub(super) who: String,
    /// The signal that it died of.
    pub(super) how: String,
    /// From its end until the daemon had recovered its worker slots.
    pub(super) recovery_us: u64,
    /// Items that others did again.
    pub(super) redone: u64,
    /// Items whose new block was complete, and whose old block was freed in its place.
    pub(super) finished: u64,
}

impl Graves {
    pub(super) fn add(&mut self, dead: Member, status: ExitStatus) {
        let how = status.signal().and_then(|number| Signal::try_from(number).ok());
        let how = how.map_or_else(|| status.to_string(), |signal| signal.to_string());
        self.open.push(Grave { dead, how, since: Instant::now() });
    }

    pub(super) fn are_closed(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes up the work of those whom the daemon has recovered. The others go on meanwhile.
    pub(super) fn tend(&mut self, segment: &Segment, board: &Board<'_>) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        let holders = segment.holders();
        for grave in std::mem::take(&mut self.open) {
            let (dead, waited) = (&grave.dead, grave.since.elapsed());
            if holders.contains(&dead.process) {
                ensure!(waited < RECOVERY_TIME, "the daemon does not recover {dead}");
                self.open.push(grave);
                continue;
            }
            let (redone, finished) = take_over(board, dead.part)?;
            self.recovered.push(Recovery {
                who: dead.to_string(),
                how: grave.how,
                recovery_us: u64::try_from(waited.as_micros()).unwrap_or(u64::MAX),
                redone,
                finished,
            });
        }
        Ok(())
    }
}

/// Undoes or finishes what number `dead` was at, and returns how many items each.
fn take_over(board: &Board<'_>, dead: u32) -> Result<(u64, u64)> {
    let (mut redone, mut finished) = (0, 0);
    for row in &board.rows {
        let Some(claim) = row.inherit(dead)? else { continue };
        match claim.state().kind {
            // The new block, if there is one, is not complete.
            Kind::Reading => {
                claim.free(|row| row.input)?;
                claim.pass_on(Kind::Queued)?;
                redone += 1;
            }
            Kind::Counting => {
                claim.free(|row| row.result)?;
                claim.pass_on(Kind::Filled)?;
                redone += 1;
            }
            // The new block is complete; the old one, if it is still there, is not needed.
            Kind::Read => {
                claim.free(|row| row.job)?;
                claim.pass_on(Kind::Filled)?;
                finished += 1;
            }
            Kind::Counted => {
                claim.free(|row| row.input)?;
                claim.pass_on(Kind::Done)?;
                finished += 1;
            }
            // Not states that a dead process could have left the row in.
            Kind::Free
            | Kind::Queued
            | Kind::Filled
            | Kind::Done
            | Kind::Unreadable
            | Kind::Collecting => {}
        }
    }
    Ok((redone, finished))
}
