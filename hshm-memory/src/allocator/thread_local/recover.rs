//! Giving up a slot: by the thread that held it, or, after its process died, by whoever recovers it.
//!
//! Everything here may be interrupted and begun again (I6): each step is one store that leaves a
//! state which the steps before it accept.

use super::cache;
use super::drain::drain_all;
use super::journal::{self, Resolved};
use super::layout::MEDIUM_UNITS;
use super::page::Page;
use super::size_class::CLASSES;
use super::slots;
use super::units;
use super::view::View;
use super::walk::Met;
use super::words::{Kind, List, Tag, unit_of};
use crate::options::OnExit;
use crate::process::ProcessId;
use crate::report::RecoveryReport;
use crate::sync::Ordering;

/// Recovers slots that `dead` holds, `most` of them, by whichever name. Slots that another recoverer works on are
/// left to it.
pub(super) fn recover_process(
    view: &View,
    dead: ProcessId,
    by: ProcessId,
    most: usize,
) -> RecoveryReport {
    let mut report = RecoveryReport::default();
    // What the dead had may lie where the segment has grown since we last looked.
    view.refresh_limit();
    let mut vacated = Vec::new();
    for (id, word) in view.slots_in_use() {
        if vacated.len() >= most {
            break;
        }
        let holder = word.process();
        // One of the same number that does not live is it, or one that ended before.
        if holder != dead && (holder.pid != dead.pid || holder.is_alive()) {
            continue;
        }
        if slots::transition_recover(view.slot_word(id), word, by) {
            // Died here: the slot names its recoverer, whose own death is noticed in turn.
            crate::crash_point!("recover.taken");
            match recover_slot(view, id) {
                Some(recovered) => {
                    report += recovered;
                    vacated.push(id);
                }
                // For the next who looks for the dead. Nothing was changed that this one could not
                // begin again with.
                None => view.slot_word(id).store(word.0, Ordering::Release),
            }
        }
    }
    // Before the slots are free: as long as they are not, somebody does this, whoever dies.
    if !vacated.is_empty() {
        units::rebuild_hints(view);
    }
    for id in vacated {
        free_slot(view, id);
    }
    report
}

/// None if it must be tried again later.
fn recover_slot(view: &View, id: u32) -> Option<RecoveryReport> {
    let mut report = RecoveryReport { slots: 1, ..RecoveryReport::default() };
    match journal::resolve(view, id, |page, offset| page_has(page, id, offset)) {
        Resolved::Nothing => {}
        Resolved::Completed => report.operations_completed = 1,
        Resolved::Undone => report.operations_undone = 1,
        Resolved::Contended => return None,
    }
    crate::crash_point!("recover.journal_done");
    let leave = match view.on_exit() {
        OnExit::Keep => Leave::Mended,
        OnExit::Reclaim => Leave::Freed,
    };
    let (vacated, whole) = vacate(view, id, leave);
    report += vacated;
    whole.then_some(report)
}

/// In what state pages are left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leave {
    /// As they are: their owner is at work on none.
    Orderly,
    /// After mending what an interrupted operation left.
    Mended,
    /// Not at all: with all their blocks they are freed.
    Freed,
}

/// Empties the slot's bins and its cache, and lets go of every unit it owns. False if the cache could
/// not be emptied, and it must be tried again.
pub(super) fn vacate(view: &View, id: u32, leave: Leave) -> (RecoveryReport, bool) {
    let mut report = RecoveryReport::default();
    for class in 0..CLASSES {
        if let Some(page) = save_bin(view, id, class)
            && leave == Leave::Mended
        {
            mend(&page);
        }
        empty_bin(view, id, class);
    }
    if leave == Leave::Mended {
        // Before blocks are put on lists that may count for nothing.
        finish_purges(view, id);
    }
    // What is freed with its page needs no list.
    if leave != Leave::Freed && !drain_all(view, id, leave == Leave::Mended) {
        return (report, false);
    }
    cache::release(view, id);
    for unit in view.block_units() {
        let Some(tag) = view.tag(unit).filter(|tag| tag.owner() == id) else { continue };
        match tag.kind() {
            Kind::Claimed => {
                units::end_run_before(view, unit);
                release_claimed(view, unit);
            }
            Kind::Cache => units::release_unit(view, unit),
            Kind::Transit => {
                units::dismantle_run(view, id, unit);
                report.pages_freed += 1;
            }
            Kind::Large if leave == Leave::Freed => {
                // Somebody may be freeing it this moment: one of the two does.
                if units::unbind_run(view, id, unit, tag).is_some() {
                    units::dismantle_run(view, id, unit);
                    report.pages_freed += 1;
                }
            }
            // Somebody may be freeing it this moment, hence the comparison.
            Kind::Large => {
                let _ = view.tag_word(unit).compare_exchange(
                    tag.0,
                    Tag::large(0).0,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
            }
            Kind::Small | Kind::Medium => {
                leave_page(Page::new(view, unit, tag), leave, &mut report);
            }
            Kind::Free | Kind::MediumBody | Kind::RunBody | Kind::Unknown => {}
        }
    }
    (report, true)
}

/// Gives the blocks of a bin, which keeps naming them, back to their page. Returns it if it is the
/// slot's.
fn save_bin(view: &View, id: u32, class: usize) -> Option<Page<'_>> {
    let slot = view.slot(id);
    let list = view.bin_list(slot, class);
    if list.is_empty() {
        return None;
    }
    // Not by the tag of the block's own unit: of a page that was being taken apart it may say so already.
    let tag = Tag::page(id, class);
    let unit = unit_of(list.first());
    let unit = if tag.kind() == Kind::Medium { unit - unit % MEDIUM_UNITS } else { unit };
    let page =
        view.tag(unit).filter(|&found| found == tag).map(|tag| Page::new(view, unit, tag))?;
    let descriptor = page.descriptor();
    // Where the holder died while loading, one list stands in two places.
    if page.local() == list {
        descriptor.local.store(0, Ordering::Release);
    }
    let mut remote = Met::new();
    let _ = remote.follow(&page, page.remote().to_list(page.start()));
    let still_remote = page.index_of(list.first()).is_some_and(|index| remote.contains(index));
    if !still_remote {
        descriptor.free.store(list.0, Ordering::Release);
        // Died here: both name one list; whoever goes on stores the same again.
        crate::crash_point!("page.saved");
        let loaded = &slot.counters.loaded;
        super::refill::sub(loaded, list.count().into());
    }
    Some(page)
}

fn empty_bin(view: &View, id: u32, class: usize) {
    view.bin(view.slot(id), class).store(0, Ordering::Release);
}

/// Gives the blocks of a bin, whose page needs no mending or gets it otherwise, back to it.
pub(super) fn give_up_bin(view: &View, id: u32, class: usize) {
    let _ = save_bin(view, id, class);
    empty_bin(view, id, class);
}

/// Frees a unit that the slot had claimed, and the bodies of the page that it was becoming.
fn release_claimed(view: &View, unit: u32) {
    if unit.is_multiple_of(MEDIUM_UNITS) {
        for place in 1..MEDIUM_UNITS {
            if view.tag(unit + place) == Some(Tag::medium_body(place)) {
                units::release_unit(view, unit + place);
            }
        }
    }
    units::release_unit(view, unit);
}

/// Has the map of each purged page of the slot replace the lists that it was about to replace, or that
/// were about to replace it.
fn finish_purges(view: &View, id: u32) {
    for unit in view.block_units() {
        let tag = view.tag(unit).filter(|tag| tag.owner() == id);
        if let Some(tag) = tag.filter(|tag| matches!(tag.kind(), Kind::Small | Kind::Medium)) {
            Page::new(view, unit, tag).finish_purge();
        }
    }
}

fn leave_page(page: Page<'_>, leave: Leave, report: &mut RecoveryReport) {
    let id = page.tag.owner();
    if leave == Leave::Freed {
        units::release_page(page.view, id, page.unit, page.tag);
        report.pages_freed += 1;
        return;
    }
    let mut page = page;
    loop {
        if page.is_wholly_free() {
            let frees = &page.view.slot(id).counters.local_frees;
            super::refill::add(frees, page.local().count().into());
            units::release_page(page.view, id, page.unit, page.tag);
            report.pages_freed += 1;
            return;
        }
        match page.abandon() {
            None => {
                report.pages_abandoned += 1;
                return;
            }
            // Blocks were freed to it meanwhile, perhaps the last ones.
            Some(again) => page = again,
        }
    }
}

/// Makes the lists and the carved count of a dead owner's page agree. They may not if the owner was
/// carving blocks when it died, and then its bin names the page: of other pages no list is looked
/// through, which would bring the memory of all of them into this process.
fn mend(page: &Page<'_>) {
    let descriptor = page.descriptor();
    let mut met = Met::new();
    let mut intact = true;
    for list in [&descriptor.free, &descriptor.local] {
        if met.follow(page, List(list.load(Ordering::Relaxed))).is_err() {
            // Not a death's doing: somebody scribbled. What is on the list cannot be told from what
            // is allocated, so it counts as allocated.
            list.store(0, Ordering::Release);
            intact = false;
        }
    }
    if intact && met.end > page.carved() {
        descriptor.carved.store(met.end, Ordering::Release);
    }
}

/// Whether the block at `offset` is on any list of the page, the bin of slot `id` included.
pub(super) fn page_has(page: &Page<'_>, id: u32, offset: u64) -> bool {
    let bin = page.view.bin_list(page.view.slot(id), page.class());
    let Some(index) = page.index_of(offset) else { return true };
    if page.purged().is_some_and(|purged| purged.contains(index)) {
        return true;
    }
    [bin, page.free(), page.local(), page.remote().to_list(page.start())].into_iter().any(|list| {
        let mut met = Met::new();
        let _ = met.follow(page, list);
        met.contains(index)
    })
}

/// Makes a vacated slot free for another holder.
pub(super) fn free_slot(view: &View, id: u32) {
    slots::transition_free(view.slot_word(id), view.slot(id), &view.header().retired);
}
