//! Operations that happen exactly once across a death: `allocate_into` and `free_from`.
//!
//! Before anything changes, the slot's journal says what is about to. After a death the recoverer
//! reads it and finds out how far the operation came: from the cell, which names the block, is
//! marked, or is null; from the bin and the lists, which the block is on or is not; and, where the
//! block went to the list of a page that another owns, from the acknowledgement ([`super::remote`]).

use super::drain;
use super::heap::Heap;
use super::layout::Journal;
use super::page::Page;
use super::refill::Request;
use super::release::Block;
use super::remote::Mark;
use super::settle::{self, Contended};
use super::units;
use super::view::View;
use super::words::{
    Kind, Operation, Remote, Step, Tag, cell_being_freed, cell_names_block, unit_of, unit_start,
};
use crate::error::AllocError;
use crate::sync::{AtomicU64, Ordering};

impl Heap {
    /// Allocates a block and stores its offset in the cell, which must be null.
    pub(super) fn allocate_into(
        &self,
        cell_offset: u64,
        bytes: usize,
        align: usize,
    ) -> Result<u64, AllocError> {
        let view = &*self.view;
        let cell = view.cell(cell_offset)?;
        // ORDER: Acquire: who made the cell null had settled what it named before (`settle`).
        if cell.load(Ordering::Acquire) != 0 {
            return Err(AllocError::BadCell {
                offset: cell_offset,
                why: "it is not null, and what it names would be lost",
            });
        }
        match self.request(bytes, align)? {
            Request::Class(class) => {
                let (page, offset, rest) = loop {
                    if let Some(found) = self.peek(class) {
                        break found;
                    }
                    self.fill_bin(class)?;
                };
                self.begin(Step::AllocateInto, cell_offset, offset);
                crate::crash_point!("into.journalled");
                let bin = view.bin(self.slot(), class);
                // ORDER: Release here and below: each store stands only after those before it.
                bin.store(rest.0, Ordering::Release);
                // Died here: the block is in no hand but the journal's; recovery frees it.
                crate::crash_point!("into.taken");
                let filled = fill(cell, cell_offset, offset);
                if filled.is_err() {
                    page.push_local(offset);
                }
                // Died here: the cell names the block, and recovery leaves both alone.
                crate::crash_point!("into.stored");
                self.end();
                if rest.is_empty() {
                    self.bin_ran_out(offset);
                }
                filled.map(|()| offset)
            }
            Request::Run { units, align_units, bytes } => {
                let head = self.claim_run(units, align_units, bytes)?;
                let offset = unit_start(head);
                self.begin(Step::AllocateInto, cell_offset, offset);
                crate::crash_point!("into.journalled");
                units::publish_run(view, self.id, head..head + units);
                self.count_run();
                crate::crash_point!("into.taken");
                let filled = fill(cell, cell_offset, offset);
                // While the journal has it, so that the run is never nobody's.
                let unbound = filled.is_err() && self.unbind_run(head, Tag::large(self.id));
                crate::crash_point!("into.stored");
                self.end();
                if unbound {
                    self.keep_run(head);
                }
                filled.map(|()| offset)
            }
        }
    }

    /// Frees the block that the cell names, and makes the cell null. False if it named none.
    pub(super) fn free_from(&self, cell_offset: u64) -> Result<bool, AllocError> {
        let cell = self.view.cell(cell_offset)?;
        let (offset, operation) = loop {
            // ORDER: Acquire pairs with the Release of `fill`.
            let offset = cell.load(Ordering::Acquire);
            if !cell_names_block(offset) {
                // Null, or somebody else is freeing it already.
                return Ok(false);
            }
            if let Some(operation) = self.mark(cell, cell_offset, offset) {
                break (offset, operation);
            }
        };
        // Only now is the block ours: before, it could have been freed and its memory be another
        // block of the same offset.
        settle::settle_allocation(&self.view, cell_offset, offset);
        match self.free_marked(offset, operation) {
            Ok(rest) => {
                // Died here: the block is free, which recovery sees before it frees anything.
                crate::crash_point!("from.freed");
                cell.store(0, Ordering::Release);
                crate::crash_point!("from.nulled");
                self.end();
                match rest {
                    Rest::Nothing => {}
                    Rest::Pushed(page) => self.after_local_free(page),
                    Rest::Adopted(page) => self.settle(page),
                    Rest::Unbound(head) => self.keep_run(head),
                }
                Ok(true)
            }
            Err(error) => {
                // Nothing was freed: the cell names the block again, for whoever looks into this.
                cell.store(offset, Ordering::Release);
                self.end();
                Err(error)
            }
        }
    }

    /// Frees the block of a marked cell, whoever has its page.
    fn free_marked(&self, offset: u64, operation: Operation) -> Result<Rest<'_>, AllocError> {
        let mark = Mark { slot: self.id, sequence: operation.sequence() };
        loop {
            let page = match self.locate(offset)? {
                // The run's length and place are safe until it is dismantled, which is after the
                // cell is null: no later run can be mistaken for it.
                Block::Run { head, tag } => {
                    return if self.unbind_run(head, tag) {
                        Ok(Rest::Unbound(head))
                    } else {
                        Err(super::release::freed_twice(offset))
                    };
                }
                Block::InPage(page) => page,
            };
            if page.tag.owner() == self.id {
                page.push_local(offset);
                return Ok(Rest::Pushed(page));
            }
            if page.tag.owner() == 0 {
                if let Some(ours) = page.adopt(self.id) {
                    super::refill::add(&self.counters().adoptions, 1);
                    ours.push_local(offset);
                    return Ok(Rest::Adopted(ours));
                }
            } else if self.free_remotely(page, offset, mark)? {
                return Ok(Rest::Nothing);
            }
            // The page changed hands. Whoever has it now, the block is still ours to free.
        }
    }

    /// Begins freeing what the cell names: from here on the block is freed, whoever dies. None if
    /// the cell changed.
    fn mark(&self, cell: &AtomicU64, cell_offset: u64, offset: u64) -> Option<Operation> {
        let operation = self.begin(Step::FreeFrom, cell_offset, offset);
        crate::crash_point!("from.journalled");
        let marked = cell_being_freed(self.id, operation.sequence());
        // ORDER: AcqRel: the journal stands before the mark, and the block's contents were seen.
        if cell.compare_exchange(offset, marked, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            self.end();
            return None;
        }
        // Died here: the mark names us, and recovery frees the block.
        crate::crash_point!("from.marked");
        Some(operation)
    }

    fn begin(&self, step: Step, cell: u64, block: u64) -> Operation {
        begin(&self.view, self.id, step, cell, block)
    }

    fn end(&self) {
        clear(&self.slot().journal);
    }
}

/// Writes the journal of slot `id`, as its holder or recoverer.
///
/// The number that the operation gets has 24 bits where others name it, so that it comes again after 16 million
/// operations. Whether a push happened is told from two places, and neither may still speak of an earlier push with
/// that number: the acknowledgement is the slot's own, and on a list that another's blocks are on, only the slot
/// itself puts its marks. A number that stands in either is left out. What remains is a helper that was about to
/// acknowledge the earlier push and stood still for exactly so many operations, while nothing was acknowledged to
/// the slot.
pub(super) fn begin(view: &View, id: u32, step: Step, cell: u64, block: u64) -> Operation {
    let (slot, unit) = (view.slot(id), unit_of(block));
    let acknowledged = slot.acknowledged.load(Ordering::Relaxed);
    let page = view.page_of(block).map(|(unit, tag)| Page::new(view, unit, tag));
    // Marks of this slot do not come on the list meanwhile, they only go.
    let listed =
        page.map(|page| page.remote()).filter(|list| list.count() > 0 && list.slot() == id);
    let operation = loop {
        // One writer. The number lives on with the slot, so that no operation is mistaken for an
        // earlier one of another holder.
        let sequence = slot.sequence.load(Ordering::Relaxed).wrapping_add(1);
        slot.sequence.store(sequence, Ordering::Relaxed);
        #[allow(clippy::cast_possible_truncation, reason = "masked to 24 bits")]
        let short = (sequence & u64::from(Remote::SEQUENCE_MASK)) as u32;
        let operation = Operation::new(step, unit, short);
        let is_listed = listed.is_some_and(|list| list.sequence() == short);
        if operation.acknowledgement() != acknowledged && !is_listed {
            break operation;
        }
    };
    write(&slot.journal, operation, cell, block);
    operation
}

/// Says in the journal what is about to be done.
pub(super) fn write(journal: &Journal, operation: Operation, cell: u64, block: u64) {
    // ORDER: Release: the journal was cleared before: who reads a block or cell together with the
    // operation before finds out by reading the operation again.
    journal.cell.store(cell, Ordering::Release);
    journal.block.store(block, Ordering::Release);
    // ORDER: SeqCst: cell and block stand before the operation that they belong to, and the
    // operation before the push that others acknowledge.
    journal.operation.store(operation.0, Ordering::SeqCst);
}

/// Says that it is done.
pub(super) fn clear(journal: &Journal) {
    // ORDER: Release: what the operation did stands before the journal forgets it. A helper may
    // have cleared it already; both write the same.
    journal.operation.store(Operation::IDLE.0, Ordering::Release);
}

/// What is left to be done once a cell is null.
#[derive(Clone, Copy, Debug)]
enum Rest<'h> {
    Nothing,
    /// A block was put on the local list of a page of ours.
    Pushed(Page<'h>),
    /// The same, and the page was nobody's before.
    Adopted(Page<'h>),
    /// The run is in transit of ours.
    Unbound(u32),
}

/// Stores a block's offset in a null cell.
pub(super) fn fill(cell: &AtomicU64, cell_offset: u64, offset: u64) -> Result<(), AllocError> {
    // ORDER: Release: the block is taken, and the journal says so, before the cell names it.
    let filled = cell.compare_exchange(0, offset, Ordering::Release, Ordering::Relaxed);
    filled
        .map(drop)
        .map_err(|_| AllocError::BadCell { offset: cell_offset, why: "another filled it first" })
}

/// What became of an operation that its maker did not finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolved {
    /// There was none.
    Nothing,
    /// It was carried to its end, or had got there.
    Completed,
    /// It was undone, or had not begun.
    Undone,
    /// Others changed what it was about again and again: the journal stands as it did.
    Contended,
}

/// How often a page is tried whose owner changes before it is left for later.
const TURNS: usize = 1000;

/// Finishes or undoes what the dead holder of slot `id` was about. `page_has` tells whether a page
/// of the slot has the block on a list of its own. Idempotent: the journal is cleared last.
pub(super) fn resolve(view: &View, id: u32, page_has: impl Fn(&Page<'_>, u64) -> bool) -> Resolved {
    let slot = view.slot(id);
    let operation = Operation(slot.journal.operation.load(Ordering::SeqCst));
    let cell_offset = slot.journal.cell.load(Ordering::Relaxed);
    let offset = slot.journal.block.load(Ordering::Relaxed);
    let cell = view.cell(cell_offset).ok();
    let value = cell.map_or(0, |cell| cell.load(Ordering::SeqCst));
    let arrived = |cell| {
        let marker = |id| settle::journal_of(view, id);
        settle::has_arrived(&slot.journal, operation, cell, offset, marker)
    };
    let resolved = match operation.step() {
        Step::Idle => Resolved::Nothing,
        // What it names instead of a cell is a part of the cache.
        Step::Flush if was_pushed(view, id, offset, operation) => {
            drain::forget_flushed(view, id, cell_offset, offset);
            Resolved::Nothing
        }
        Step::Flush => Resolved::Nothing,
        Step::AllocateInto => match cell.map_or(Ok(false), arrived) {
            Ok(true) => Resolved::Completed,
            Ok(false) if free_for_dead(view, id, offset, page_has, operation, false).is_ok() => {
                Resolved::Undone
            }
            Ok(false) | Err(Contended) => return Resolved::Contended,
        },
        Step::FreeFrom if value == cell_being_freed(id, operation.sequence()) => {
            settle::settle_allocation(view, cell_offset, offset);
            if free_for_dead(view, id, offset, page_has, operation, true).is_err() {
                return Resolved::Contended;
            }
            if let Some(cell) = cell {
                cell.store(0, Ordering::Release);
            }
            Resolved::Completed
        }
        // The mark is not there: the free had not begun, or it is done.
        Step::FreeFrom if value == 0 => Resolved::Completed,
        Step::FreeFrom => Resolved::Undone,
    };
    slot.journal.operation.store(Operation::IDLE.0, Ordering::Release);
    resolved
}

/// Frees the block for the dead holder of slot `id`, unless that was done.
fn free_for_dead(
    view: &View,
    id: u32,
    offset: u64,
    page_has: impl Fn(&Page<'_>, u64) -> bool,
    operation: Operation,
    pushed_remotely: bool,
) -> Result<(), Contended> {
    let slot = view.slot(id);
    let found = view.page_of(offset);
    // ORDER: SeqCst, after the page's tag: whoever took the block from the list that it was pushed
    // on, or gave that page up, acknowledged the push before, and what stands there now may be
    // somebody's that came after.
    if pushed_remotely && slot.acknowledged.load(Ordering::SeqCst) == operation.acknowledgement() {
        return Ok(());
    }
    let Some((unit, tag)) = found else {
        let head = unit_of(offset);
        if let Some(tag) = view.tag(head).filter(|tag| tag.kind() == Kind::Large)
            && unit_start(head) == offset
        {
            // The head's tag still names the block's allocation: recovery's walk dismantles it.
            let _ = units::unbind_run(view, id, head, tag);
        }
        return Ok(());
    };
    let mut page = Page::new(view, unit, tag);
    if page.index_of(offset).is_none() {
        return Ok(());
    }
    let list = &page.descriptor().remote;
    if pushed_remotely && super::remote::push_happened(list, id, operation, &slot.acknowledged) {
        return Ok(());
    }
    // A bounded number of turns: each failure means that somebody alive made progress.
    for _ in 0..TURNS {
        if page.tag.owner() == 0
            && let Some(ours) = page.adopt(id)
        {
            page = ours;
        }
        if page.tag.owner() == id {
            if !page_has(&page, offset) {
                page.push_local(offset);
            }
            return Ok(());
        }
        if push_as_dead(view, id, &page, offset, operation) {
            return Ok(());
        }
        match view.page_of(offset) {
            Some((unit, tag)) => page = Page::new(view, unit, tag),
            None => return Ok(()),
        }
    }
    Err(Contended)
}

/// Whether the blocks that begin at `offset` were pushed by the dead holder of slot `id`.
fn was_pushed(view: &View, id: u32, offset: u64, operation: Operation) -> bool {
    let acknowledged = &view.slot(id).acknowledged;
    let found = view.page_of(offset);
    // ORDER: SeqCst, after the page's tag, for the reason that `free_for_dead` has.
    if acknowledged.load(Ordering::SeqCst) == operation.acknowledgement() {
        return true;
    }
    found.is_some_and(|(unit, tag)| {
        let page = Page::new(view, unit, tag);
        super::remote::push_happened(&page.descriptor().remote, id, operation, acknowledged)
    })
}

/// The dead's own push, with its own mark: should this recoverer die too, the next one can tell.
fn push_as_dead(view: &View, id: u32, page: &Page<'_>, offset: u64, operation: Operation) -> bool {
    let Some(link) = view.word(offset) else { return true };
    let place = super::remote::Place { page: page.start(), offset_in_page: offset - page.start() };
    let mark = Mark { slot: id, sequence: operation.sequence() };
    let carved = || page.carved_while_it_stands();
    let pusher_of = |slot| super::page::pusher(view, slot);
    let list = &page.descriptor().remote;
    !matches!(super::remote::push(list, link, place, mark, pusher_of, carved), Ok(false))
}
