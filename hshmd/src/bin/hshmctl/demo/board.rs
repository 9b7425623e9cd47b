//! The table in shared memory by which the processes of the demo find their work.
//!
//! It begins in the segment's custom header ([`Control`]), which says where the table is. A row is one
//! item of work: a state word, and three cells that hold the offsets of the item's blocks. Whoever
//! finds a row in a state that is his to act on *claims* it by a compare-and-swap that writes his
//! number into it; from then on he alone touches the row, until he passes it on with another.
//!
//! ```text
//!   Free ─► Queued ─► Reading ─► Read ─► Filled ─► Counting ─► Counted ─► Done ─► Collecting ─┐
//!    ▲                  └──────────── Unreadable ──────────────────────────► Collecting ──────┤
//!    └────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! The cells are filled by `allocate_into` and emptied by `free_from`, which are exactly-once: when a
//! process is killed, then after its recovery a block is either in its cell or free. Reading and
//! Counting become Read and Counted when the new block is complete and before the old one is freed.
//! So whatever state a dead process left a row in, its work on it is either undone by emptying one
//! cell, or finished by emptying another.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};
use hshm_client::{AllocError, OffsetPointer, Segment};

use super::shared::{WORD_BYTES, word, word_after};

/// Rows of the table: how many items are under way at once.
pub(super) const ROWS: u64 = 1024;
/// Words of a row: one cache line.
const ROW_WORDS: u64 = 8;
/// Words of the custom header that the demo needs.
const CONTROL_WORDS: u64 = 8;
/// Bytes of custom header to be asked for.
pub(super) const CONTROL_BYTES: u64 = CONTROL_WORDS * WORD_BYTES;

/// By which number the board knows the coordinator. The others' are larger.
pub(super) const COORDINATOR: u32 = 2;
/// A volunteer is wanted, see [`Board::want_volunteer`].
const WANTED: u64 = 1;

/// What is the matter with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// The coordinator may use it for an item.
    Free = 0,
    /// The job block says which piece of which file.
    Queued = 1,
    /// A producer reads the piece into an input block.
    Reading = 2,
    /// The input block is complete; the producer frees the job block.
    Read = 3,
    /// The input block is there to be counted.
    Filled = 4,
    /// A worker counts, and writes a result block.
    Counting = 5,
    /// The result block is complete; the worker frees the input block.
    Counted = 6,
    /// The result block is there to be collected.
    Done = 7,
    /// The file could not be read; the number of the error stands in the owner's place.
    Unreadable = 8,
    /// The coordinator takes the result and frees its block.
    Collecting = 9,
}

/// A state word: in its lowest byte the kind, in the next three whose it is, and above it how many
/// items there were before, so that no two items look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) kind: Kind,
    pub(super) owner: u32,
    pub(super) item: u32,
}

const OWNER_BITS: u32 = 24;

impl State {
    fn encode(self) -> u64 {
        let owner = self.owner & ((1 << OWNER_BITS) - 1);
        u64::from(self.kind as u8) | u64::from(owner) << 8 | u64::from(self.item) << 32
    }

    fn decode(word: u64) -> Option<Self> {
        let [kind, a, b, c, item @ ..] = word.to_le_bytes();
        let kind = match kind {
            0 => Kind::Free,
            1 => Kind::Queued,
            2 => Kind::Reading,
            3 => Kind::Read,
            4 => Kind::Filled,
            5 => Kind::Counting,
            6 => Kind::Counted,
            7 => Kind::Done,
            8 => Kind::Unreadable,
            9 => Kind::Collecting,
            _ => return None,
        };
        let owner = u32::from_le_bytes([a, b, c, 0]);
        Some(Self { kind, owner, item: u32::from_le_bytes(item) })
    }
}

/// A word that holds a block's offset, or 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell<'s> {
    segment: &'s Segment,
    at: OffsetPointer,
    word: &'s AtomicU64,
}

impl Cell<'_> {
    /// The block in it.
    pub(super) fn block(&self) -> Result<OffsetPointer> {
        // Relaxed: whoever may look has claimed the row, which ordered this.
        let block = OffsetPointer::new(self.word.load(Ordering::Relaxed));
        ensure!(!block.is_null(), "the cell at {} is empty", self.at);
        Ok(block)
    }

    /// Allocates a block that is in the cell from the first moment on.
    pub(super) fn allocate(&self, bytes: usize) -> Result<OffsetPointer, AllocError> {
        self.segment.allocate_into(self.at, bytes)
    }

    /// Frees the block, if there is one.
    ///
    /// # Safety
    /// The caller has claimed the row (or is the only process left), and has nothing borrowed from
    /// the block.
    pub(super) unsafe fn free(&self) -> Result<(), AllocError> {
        // SAFETY: [owned] the caller's promise: one process at a time has a claim on the row, and
        // no other uses its blocks.
        unsafe { self.segment.free_from(self.at) }.map(|_was_there| ())
    }
}

/// An item of work.
#[derive(Debug)]
pub(super) struct Row<'s> {
    state: &'s AtomicU64,
    /// Bytes in the job block.
    pub(super) job_bytes: &'s AtomicU64,
    /// Bytes in the input block.
    pub(super) input_bytes: &'s AtomicU64,
    pub(super) job: Cell<'s>,
    pub(super) input: Cell<'s>,
    pub(super) result: Cell<'s>,
}

/// A row that this process alone may touch.
#[derive(Debug)]
#[must_use = "a row that is not passed on stays as it is for ever"]
pub(super) struct Claim<'b, 's> {
    row: &'b Row<'s>,
    state: State,
}

impl<'s> Row<'s> {
    fn open(segment: &'s Segment, at: OffsetPointer) -> Result<Self> {
        let cell = |i| {
            let at = word_after(at, i);
            word(segment, at).map(|word| Cell { segment, at, word })
        };
        Ok(Self {
            state: word(segment, at)?,
            job_bytes: word(segment, word_after(at, 1))?,
            input_bytes: word(segment, word_after(at, 2))?,
            job: cell(3)?,
            input: cell(4)?,
            result: cell(5)?,
        })
    }

    pub(super) fn state(&self) -> Result<State> {
        // ORDER: Acquire pairs with the Release in transition: what was done before the row was
        // passed on is seen by who finds it passed on.
        let word = self.state.load(Ordering::Acquire);
        let Some(state) = State::decode(word) else { bail!("a row's state word is {word:#x}") };
        Ok(state)
    }

    #[must_use]
    fn transition(&self, from: State, to: State) -> bool {
        // ORDER: Release passes on what this process did to the row; Acquire, pairing with it,
        // takes over what others did.
        self.state
            .compare_exchange(from.encode(), to.encode(), Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Claims the row if it is in state `from`.
    pub(super) fn claim(&self, from: Kind, to: Kind, owner: u32) -> Result<Option<Claim<'_, 's>>> {
        let found = self.state()?;
        let taken = State { kind: to, owner, item: found.item };
        let won = found.kind == from && self.transition(found, taken);
        Ok(won.then_some(Claim { row: self, state: taken }))
    }

    /// The claim that `dead` had on the row, if it had one: the process is dead and recovered, so
    /// this one may act in its place.
    pub(super) fn inherit(&self, dead: u32) -> Result<Option<Claim<'_, 's>>> {
        let state = self.state()?;
        let mine = match state.kind {
            Kind::Reading | Kind::Read | Kind::Counting | Kind::Counted => state.owner == dead,
            Kind::Free
            | Kind::Queued
            | Kind::Filled
            | Kind::Done
            | Kind::Unreadable
            | Kind::Collecting => false,
        };
        Ok(mine.then_some(Claim { row: self, state }))
    }

    /// Takes a free row for item number `item`. The coordinator alone does this.
    pub(super) fn take(&self, item: u32) -> Result<Claim<'_, 's>> {
        let found = self.state()?;
        ensure!(found.kind == Kind::Free, "a row that should be free is {found:?}");
        let taken = State { kind: Kind::Free, owner: COORDINATOR, item };
        ensure!(self.transition(found, taken), "another process changed a free row");
        Ok(Claim { row: self, state: taken })
    }
}

impl<'b, 's> Claim<'b, 's> {
    pub(super) fn row(&self) -> &'b Row<'s> {
        self.row
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Records progress, and keeps the claim.
    pub(super) fn mark(&mut self, kind: Kind) -> Result<()> {
        let next = State { kind, ..self.state };
        let done = self.row.transition(self.state, next);
        ensure!(done, "another process changed a row that was claimed: {:?}", self.row.state()?);
        self.state = next;
        Ok(())
    }

    /// Gives the row to whom `kind` concerns.
    pub(super) fn pass_on(mut self, kind: Kind) -> Result<()> {
        self.mark(kind)
    }

    /// Gives the row back to the coordinator: its file could not be read.
    pub(super) fn pass_on_unreadable(mut self, errno: i32) -> Result<()> {
        let errno = u32::try_from(errno).unwrap_or(0);
        let next = State { kind: Kind::Unreadable, owner: errno, ..self.state };
        ensure!(self.row.transition(self.state, next), "another process changed a claimed row");
        self.state = next;
        Ok(())
    }

    /// Frees the block in one of the row's cells, if there is one.
    pub(super) fn free(&self, cell: impl FnOnce(&Row<'s>) -> Cell<'s>) -> Result<()> {
        // SAFETY: [owned] there is one claim on a row at a time, and it is this one; what is
        // borrowed from its blocks is borrowed within the step that ends with the claim's next use.
        Ok(unsafe { cell(self.row).free() }?)
    }
}

/// The words in the segment's custom header.
#[derive(Debug)]
struct Control<'s> {
    /// Where the table is.
    table: Cell<'s>,
    /// Not 0 when there will be no more work.
    finished: &'s AtomicU64,
    /// 0, [`WANTED`], or who volunteered.
    volunteer: &'s AtomicU64,
}

/// The board, as one process has it open.
#[derive(Debug)]
pub(super) struct Board<'s> {
    control: Control<'s>,
    pub(super) rows: Vec<Row<'s>>,
}

impl<'s> Board<'s> {
    /// Makes the table. The coordinator does this before it starts the others.
    pub(super) fn create(segment: &'s Segment) -> Result<Self> {
        let bytes = ROWS * ROW_WORDS * WORD_BYTES;
        let block = control(segment)?.table.allocate(usize::try_from(bytes)?)?;
        // A block's contents are what its last user left.
        for i in 0..ROWS * ROW_WORDS {
            word(segment, word_after(block, i))?.store(0, Ordering::Relaxed);
        }
        Self::open(segment)
    }

    /// Opens the table that the coordinator made.
    pub(super) fn open(segment: &'s Segment) -> Result<Self> {
        let control = control(segment)?;
        let table = control.table.block()?;
        let row = |i| Row::open(segment, word_after(table, i * ROW_WORDS));
        let rows = (0..ROWS).map(row).collect::<Result<_>>()?;
        Ok(Self { control, rows })
    }

    /// Claims the next row that is in state `from`. The search begins at `cursor`, where the last
    /// one ended, so that rows are served in turn.
    pub(super) fn claim_next(
        &self,
        cursor: &mut usize,
        from: Kind,
        to: Kind,
        owner: u32,
    ) -> Result<Option<Claim<'_, 's>>> {
        let (before, after) = self.rows.split_at((*cursor).min(self.rows.len()));
        for (i, row) in (*cursor..).zip(after).chain((0..).zip(before)) {
            if let Some(claim) = row.claim(from, to, owner)? {
                *cursor = i + 1;
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    pub(super) fn is_finished(&self) -> bool {
        // Relaxed: nothing else is learnt from it.
        self.control.finished.load(Ordering::Relaxed) != 0
    }

    /// Tells producers and workers to go home.
    pub(super) fn finish(&self) {
        self.control.finished.store(1, Ordering::Relaxed);
    }

    /// Asks that the next worker who is in the middle of an item stays there, to be killed: with the
    /// input in its hands, and a result block that is allocated and not yet written. Left to chance,
    /// the kill would most often strike a worker that waits.
    pub(super) fn want_volunteer(&self) {
        self.control.volunteer.store(WANTED, Ordering::Relaxed);
    }

    /// The worker who stays where it is.
    pub(super) fn volunteer(&self) -> Option<u32> {
        let word = self.control.volunteer.load(Ordering::Relaxed);
        u32::try_from(word).ok().filter(|owner| *owner > COORDINATOR)
    }

    /// Whether `owner` is now the volunteer.
    pub(super) fn volunteers(&self, owner: u32) -> bool {
        let wanted = &self.control.volunteer;
        wanted.compare_exchange(WANTED, owner.into(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Frees the table. Everybody else has gone.
    pub(super) fn destroy(self) -> Result<()> {
        // SAFETY: [owned] the coordinator is the only process left, and `self` ends here.
        Ok(unsafe { self.control.table.free() }?)
    }
}

fn control(segment: &Segment) -> Result<Control<'_>> {
    let (start, len) = segment.custom_header();
    ensure!(len as u64 >= CONTROL_BYTES, "the segment's custom header has only {len} bytes");
    let table = word(segment, start)?;
    Ok(Control {
        table: Cell { segment, at: start, word: table },
        finished: word(segment, word_after(start, 1))?,
        volunteer: word(segment, word_after(start, 2))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_its_word() {
        for kind in 0..=9_u8 {
            let word = u64::from(kind) | 0x00ab_cdef << 8 | 0x1234_5678 << 32;
            let state = State::decode(word).unwrap();
            assert_eq!(state.kind as u8, kind);
            assert_eq!((state.owner, state.item), (0x00ab_cdef, 0x1234_5678));
            assert_eq!(state.encode(), word);
        }
        assert_eq!(State::decode(10), None);
    }
}
