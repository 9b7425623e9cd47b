//! Whether an allocation into a cell came to its end, where its maker died and others have used the
//! cell since.
//!
//! The maker's journal says what was to go where. Who frees what a cell names marks the cell, then
//! *settles* the allocation, which is to clear its maker's journal if it is still about it, and only
//! then frees the block and makes the cell null. So as long as the journal stands, the cell names
//! the block, or is marked by who frees it, or the block never got there.

use super::layout::Journal;
use super::view::View;
use super::words::{Operation, Step, Tag, cell_marker, unit_of};
use crate::sync::{AtomicU64, Ordering};

/// How often a cell is looked at that others change.
const LOOKS: usize = 1000;

/// Others were quicker each time. The question is to be asked again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contended;

/// Makes sure that the allocation of the block at `offset` into the cell at `cell_offset`, which the
/// caller has marked, is not undone when its maker dies. To be called before the block is freed.
pub(super) fn settle_allocation(view: &View, cell_offset: u64, offset: u64) {
    let owner = match view.page_of(offset) {
        Some((_, tag)) => tag.owner(),
        None => view.tag(unit_of(offset)).map_or(0, Tag::owner),
    };
    if let Some(journal) = journal_of(view, owner) {
        settle(journal, cell_offset, offset);
    }
}

/// The same for the one whose journal this is.
pub(super) fn settle(journal: &Journal, cell_offset: u64, offset: u64) {
    // ORDER: SeqCst, of which Acquire pairs with `journal::write`.
    let operation = journal.operation.load(Ordering::SeqCst);
    // No later allocation of this block into this cell can be under way: the block is the caller's.
    let about_it = Operation(operation).step() == Step::AllocateInto
        && journal.block.load(Ordering::Acquire) == offset
        && journal.cell.load(Ordering::Acquire) == cell_offset;
    if about_it {
        // The sequence number in the word keeps this from hitting a later operation.
        let _ = journal.operation.compare_exchange(
            operation,
            Operation::IDLE.0,
            Ordering::SeqCst,
            Ordering::Relaxed,
        );
    }
}

/// Whether `operation`, which stood in the journal of a dead, stored the block at `offset` in
/// `cell`. `marker` gives the journal of a slot that marked the cell.
pub(super) fn has_arrived<'s>(
    journal: &Journal,
    operation: Operation,
    cell: &AtomicU64,
    offset: u64,
    marker: impl Fn(u32) -> Option<&'s Journal>,
) -> Result<bool, Contended> {
    for _ in 0..LOOKS {
        // ORDER: SeqCst throughout: the cell is read before the journal. If the block was there and
        // is there no more, it was settled before, and the journal is seen cleared.
        let value = cell.load(Ordering::SeqCst);
        let marked = cell_marker(value).and_then(|(slot, sequence)| {
            let journal = marker(slot)?;
            let freeing = Operation(journal.operation.load(Ordering::SeqCst));
            let is_it = freeing.step() == Step::FreeFrom && freeing.sequence() == sequence;
            is_it.then(|| journal.block.load(Ordering::Acquire))
        });
        // A mark that still stands now was made by the operation that was just read.
        if cell_marker(value).is_some() && cell.load(Ordering::SeqCst) != value {
            continue;
        }
        let is_there = value == offset || marked == Some(offset);
        return Ok(is_there || journal.operation.load(Ordering::SeqCst) != operation.0);
    }
    Err(Contended)
}

/// The journal of slot `id`, if there is one.
pub(super) fn journal_of(view: &View, id: u32) -> Option<&Journal> {
    (1..=view.geometry.worker_slots).contains(&id).then(|| &view.slot(id).journal)
}
