//! What the processes of a storm share: a table in the application's header of the segment.
//!
//! Every block that anybody holds stands in a cell of the table, which `allocate_into` filled and
//! `free_from` will empty. So the cells say at any time what must be allocated, to the byte. A block
//! passes to another worker by its cell's number: the cell names it all the while, and a death between
//! sending and receiving loses a number, but no block.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::{OffsetPointer, ThreadLocalAllocator};
use hshm_tests::random::mix;
use hshm_tests::ring::shared_word;

/// Threads that one worker process may have.
pub(crate) const LANES_PER_WORKER: usize = 2;
/// Threads of all worker processes.
pub(crate) const LANES: usize = 64 * LANES_PER_WORKER;
/// Cells.
pub(crate) const CELLS: usize = 2048;
/// Numbers of cells that can be under way to one thread.
const LETTERS: usize = 32;

const LANE_WORDS: usize = 8;
const FIRST_LANE: usize = 8;
const FIRST_LETTER: usize = FIRST_LANE + LANES * LANE_WORDS;
const FIRST_CELL: usize = FIRST_LETTER + LANES * LETTERS;
const FIRST_CLAIM: usize = FIRST_CELL + CELLS;
const FIRST_CONTENT: usize = FIRST_CLAIM + CELLS;
/// Bytes of the application's header that the table takes.
pub(crate) const TABLE_BYTES: u64 = (FIRST_CONTENT + CELLS) as u64 * 8;

/// What the workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Work.
    Run,
    /// Finish the operation at hand, say so, and wait.
    Pause,
}

/// The table of a storm.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    heap: &'a ThreadLocalAllocator,
    start: u64,
}

/// What a thread tells about itself. Each word counts on over the threads that follow one another.
pub(crate) struct Lane<'a> {
    /// Operations that came to their end.
    pub(crate) operations: &'a AtomicU64,
    /// Blocks whose contents were found to be what they should be.
    pub(crate) verified: &'a AtomicU64,
    /// The longest operation during which the process was not stopped, in nanoseconds.
    pub(crate) longest_ns: &'a AtomicU64,
    /// Which process waits for the end of a pause.
    pub(crate) paused: &'a AtomicU64,
    /// How often the process was stopped.
    pub(crate) stops: &'a AtomicU64,
    /// What it is about: a cell's number plus one, or 0.
    pub(crate) place: &'a AtomicU64,
}

/// What was written into a block, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    /// Tells it from what was in the same cell before and will be after.
    pub(crate) generation: u64,
    /// To what it was to be aligned.
    pub(crate) align: usize,
    /// How many bytes were asked for.
    pub(crate) len: usize,
}

impl Content {
    const LEN_BITS: u32 = 22;
    const ALIGN_BITS: u32 = 5;
    const WRITTEN: u64 = 1 << 63;

    fn word(self) -> u64 {
        let shift = Self::LEN_BITS + Self::ALIGN_BITS;
        let generation = (self.generation << shift) & !Self::WRITTEN;
        let align = u64::from(self.align.ilog2()) << Self::LEN_BITS;
        Self::WRITTEN | generation | align | self.len as u64
    }

    fn from_word(word: u64) -> Option<Self> {
        let field = |value: u64, bits: u32| usize::try_from(value & ((1 << bits) - 1)).unwrap_or(0);
        let align = 1 << field(word >> Self::LEN_BITS, Self::ALIGN_BITS);
        let generation = (word & !Self::WRITTEN) >> (Self::LEN_BITS + Self::ALIGN_BITS);
        let content = Self { generation, align, len: field(word, Self::LEN_BITS) };
        (word & Self::WRITTEN != 0).then_some(content)
    }

    /// What the block in `cell` is filled with.
    pub(crate) fn stamp(self, cell: usize) -> u64 {
        mix(self.word() ^ (cell as u64).rotate_left(32))
    }
}

impl<'a> Table<'a> {
    /// The table in the application's header of `heap`.
    pub(crate) fn of(heap: &'a ThreadLocalAllocator) -> Self {
        Self { heap, start: heap.custom_header().0.offset_bytes() }
    }

    fn place(self, word: usize) -> OffsetPointer {
        OffsetPointer::new(self.start + word as u64 * 8)
    }

    fn word(self, word: usize) -> &'a AtomicU64 {
        shared_word(self.heap, self.place(word))
    }

    pub(crate) fn command(self) -> Command {
        if self.word(0).load(Ordering::SeqCst) == 0 { Command::Run } else { Command::Pause }
    }

    pub(crate) fn give(self, command: Command) {
        self.word(0).store(u64::from(command == Command::Pause), Ordering::SeqCst);
    }

    pub(crate) fn lane(self, number: usize) -> Lane<'a> {
        let word = |at| self.word(FIRST_LANE + number * LANE_WORDS + at);
        Lane {
            operations: word(0),
            verified: word(1),
            longest_ns: word(2),
            paused: word(3),
            stops: word(4),
            place: word(5),
        }
    }

    /// Where the cell is that `allocate_into` and `free_from` are given.
    pub(crate) fn cell(self, cell: usize) -> OffsetPointer {
        self.place(FIRST_CELL + cell)
    }

    /// What stands in the cell, be it a block's offset or the mark of who frees it.
    pub(crate) fn cell_word(self, cell: usize) -> &'a AtomicU64 {
        self.word(FIRST_CELL + cell)
    }

    /// Who works on the cell, or 0.
    pub(crate) fn claim(self, cell: usize) -> &'a AtomicU64 {
        self.word(FIRST_CLAIM + cell)
    }

    /// What the cell's block holds, unless it is not filled yet.
    pub(crate) fn content(self, cell: usize) -> Option<Content> {
        Content::from_word(self.word(FIRST_CONTENT + cell).load(Ordering::SeqCst))
    }

    pub(crate) fn set_content(self, cell: usize, content: Option<Content>) {
        let word = content.map_or(0, Content::word);
        self.word(FIRST_CONTENT + cell).store(word, Ordering::SeqCst);
    }

    /// Sends the number of a cell to the thread in `lane`. False if there is no room at a place that
    /// `chance` chooses.
    pub(crate) fn send(self, lane: usize, cell: usize, chance: usize) -> bool {
        let letter = self.word(FIRST_LETTER + lane * LETTERS + chance % LETTERS);
        letter.compare_exchange(0, cell as u64 + 1, Ordering::SeqCst, Ordering::Relaxed).is_ok()
    }

    /// Takes what was sent to the thread in `lane`, if something lies at the place that `chance`
    /// chooses or soon after.
    pub(crate) fn receive(self, lane: usize, chance: usize) -> Option<usize> {
        (0..LETTERS / 4).find_map(|more| {
            let letter = self.word(FIRST_LETTER + lane * LETTERS + (chance + more) % LETTERS);
            let cell = usize::try_from(letter.swap(0, Ordering::SeqCst)).ok()?;
            cell.checked_sub(1).filter(|cell| *cell < CELLS)
        })
    }

    /// Makes the cells free of those who claimed them as `claimant`.
    pub(crate) fn break_claims(self, mut is_dead: impl FnMut(u64) -> bool) {
        for cell in 0..CELLS {
            let claim = self.claim(cell);
            let claimant = claim.load(Ordering::SeqCst);
            if claimant != 0 && is_dead(claimant) {
                claim.store(0, Ordering::SeqCst);
            }
        }
    }

    /// Forgets what stands in cells whose blocks went with their owner.
    pub(crate) fn wipe(self, cells: Range<usize>) {
        for cell in cells {
            self.cell_word(cell).store(0, Ordering::SeqCst);
            self.claim(cell).store(0, Ordering::SeqCst);
            self.set_content(cell, None);
        }
    }
}
