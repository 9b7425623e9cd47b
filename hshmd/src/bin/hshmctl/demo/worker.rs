//! A process that counts what producers read, in place.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use hshm_client::{OffsetPointer, Segment};

use super::board::{Board, Claim, Kind, Row, State};
use super::counts::Counts;
use super::patience::{Patience, is_shortage};
use super::shared;

/// Words of a result block.
const RESULT_WORDS: usize = 5;
const RESULT_BYTES: usize = RESULT_WORDS * size_of::<u64>();

const BEGINS_IN_WORD: u64 = 1;
const ENDS_IN_WORD: u64 = 2;

/// Counts what is there to be counted until there is no more.
pub(super) fn work(segment: &Segment, part: u32) -> Result<()> {
    let board = Board::open(segment)?;
    let (mut patience, mut cursor) = (Patience::new(), 0);
    loop {
        match board.claim_next(&mut cursor, Kind::Filled, Kind::Counting, part)? {
            Some(claim) => {
                patience.renew();
                count(segment, &board, claim)?;
            }
            None if board.is_finished() => return Ok(()),
            None => patience.pause(),
        }
    }
}

fn count(segment: &Segment, board: &Board<'_>, mut claim: Claim<'_, '_>) -> Result<()> {
    let row = claim.row();
    let State { item, owner, .. } = claim.state();
    let len = usize::try_from(row.input_bytes.load(Ordering::Relaxed))?;
    // SAFETY: [owned] the producer wrote the block before it passed the row on, and nobody writes to
    // it any more; we free it, further down.
    let counts = Counts::of(unsafe { segment.bytes(row.input.block()?, len) }?);
    // Died up to here: the input is untouched, and another worker does it again.
    let block = allocate(row)?;
    if board.volunteers(owner) {
        wait_for_the_end();
    }
    // Died here: the result block is in the row's cell; it is freed, and another worker does the
    // item again.
    write(segment, block, item, counts)?;
    claim.mark(Kind::Counted)?;
    // Died here: the result is complete; what is left is to free the input.
    claim.free(|row| row.input)?;
    claim.pass_on(Kind::Done)
}

/// Stays in the middle of an item until SIGKILL comes.
fn wait_for_the_end() -> ! {
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

/// A block for a row's result.
fn allocate(row: &Row<'_>) -> Result<OffsetPointer> {
    let mut patience = Patience::new();
    loop {
        match row.result.allocate(RESULT_BYTES) {
            Err(error) if is_shortage(&error) => patience.pause(),
            result => return Ok(result?),
        }
    }
}

fn write(segment: &Segment, block: OffsetPointer, item: u32, counts: Counts) -> Result<()> {
    let begins = if counts.begins_in_word { BEGINS_IN_WORD } else { 0 };
    let ends = if counts.ends_in_word { ENDS_IN_WORD } else { 0 };
    let words: [u64; RESULT_WORDS] =
        [item.into(), counts.bytes, counts.words, counts.crc32.into(), begins | ends];
    shared::write_words(segment, block, &words)
}

/// The result in a row that is done.
pub(super) fn result(segment: &Segment, row: &Row<'_>, item: u32) -> Result<Counts> {
    let [found, bytes, words, crc32, flags] =
        shared::read_words::<RESULT_WORDS>(segment, row.result.block()?)?;
    ensure!(found == u64::from(item), "a result is of item {found} where {item}'s belongs");
    Ok(Counts {
        bytes,
        words,
        crc32: u32::try_from(crc32)?,
        begins_in_word: flags & BEGINS_IN_WORD != 0,
        ends_in_word: flags & ENDS_IN_WORD != 0,
    })
}
