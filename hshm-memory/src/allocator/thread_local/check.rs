//! Walking a whole segment and asserting each invariant of the crate's documentation.
//!
//! The walk ends on any bytes whatever: each list is followed for at most as many steps as its page
//! has blocks, each unit is looked at once.

use super::cache::Rows;
use super::layout::MEDIUM_UNITS;
use super::page::Page;
use super::purge::Purged;
use super::size_class::SMALL_CLASSES;
use super::units;
use super::view::View;
use super::walk::{Fault, Met};
use super::words::{Kind, List, Operation, SlotState, Step, Tag, unit_of, unit_start};
use crate::report::{CheckReport, Violation};
use crate::sync::Ordering;
use crate::thread_model;

/// How often a page is looked at again that others are at work on.
const LOOKS: usize = 64;
/// How often units that look lost are looked at again, in all: a scribbled segment of a terabyte may
/// have millions.
const PATIENCE: usize = 64 * LOOKS;
/// How often a page that nobody changed must look broken before it is said to be.
const FAULTS: u32 = 3;

pub(super) fn check(view: &View) -> CheckReport {
    view.refresh_limit();
    let report = CheckReport::default();
    let caches = view.slots_in_use().map(|(id, _)| id).filter(|&id| Rows::of(view, id).is_some());
    let caches = caches.collect();
    let mut checker = Checker { view, report, caches, patience: PATIENCE, last_body: (0, false) };
    checker.slots_hold_themselves_to_their_words();
    checker.caches_hold_blocks();
    let mut unit = view.geometry.first_unit;
    while let Some(tag) = view.tag(unit) {
        unit = unit.saturating_add(checker.unit(unit, tag));
    }
    checker.report
}

struct Checker<'v> {
    view: &'v View,
    report: CheckReport,
    /// The slots that have caches.
    caches: Vec<u32>,
    /// Looks that are left of [`PATIENCE`].
    patience: usize,
    /// The last body that was looked at by itself, and whether it had a head.
    last_body: (u32, bool),
}

/// A page's lists at one moment.
#[derive(Clone, PartialEq, Eq)]
struct Lists {
    tag: Tag,
    carved: u32,
    lists: [List; 4],
    purged: Option<Purged>,
    /// The owner may be putting freshly carved blocks into its bin, or forgetting all.
    is_changing: bool,
    /// Its blocks in workers' caches, and whether they may stand on a list too, because they are
    /// being moved.
    cached: Vec<(u32, bool)>,
}

impl Checker<'_> {
    fn violated(&mut self, invariant: &str, offset: u64, what: String) {
        self.report.violations_total += 1;
        if self.report.violations.len() < CheckReport::MAX_VIOLATIONS {
            let invariant = invariant.to_owned();
            self.report.violations.push(Violation { invariant, offset, what });
        }
    }

    /// Looks at what begins at `unit` and returns how many units that is.
    fn unit(&mut self, unit: u32, tag: Tag) -> u32 {
        self.owner_exists(unit, tag);
        let len = match tag.kind() {
            Kind::Small => {
                self.page(unit, tag);
                1
            }
            Kind::Medium => {
                self.bodies_follow_their_head(unit);
                self.page(unit, tag);
                MEDIUM_UNITS
            }
            Kind::Large => self.run(unit),
            Kind::MediumBody | Kind::RunBody => {
                self.body_has_a_head(unit, tag);
                1
            }
            Kind::Unknown => {
                let what = format!("unit {unit} has the unknown tag {:#x}", tag.0);
                self.violated("I1", unit_start(unit), what);
                1
            }
            Kind::Transit => {
                let len = self.view.descriptor(unit).run_units.load(Ordering::Relaxed);
                len.clamp(1, self.view.units().saturating_sub(unit).max(1))
            }
            Kind::Free | Kind::Claimed | Kind::Cache => 1,
        };
        self.report.units += u64::from(len);
        len
    }

    /// I1: a unit's owner is nobody or a slot in use.
    fn owner_exists(&mut self, unit: u32, tag: Tag) {
        let owner = tag.owner();
        if owner == 0 {
            return;
        }
        let known = owner <= self.view.geometry.worker_slots
            && self.view.slot_word(owner).load(Ordering::Acquire) != 0;
        // Between reading the tag and the slot's word the owner may have left.
        if !known && self.view.tag(unit) == Some(tag) {
            let what = format!("unit {unit} is owned by slot {owner}, which nobody holds");
            self.violated("I1", unit_start(unit), what);
        }
    }

    /// I2: a medium page's other units say so, in order.
    fn bodies_follow_their_head(&mut self, unit: u32) {
        for place in 1..MEDIUM_UNITS {
            let body = self.view.tag(unit + place);
            if body != Some(Tag::medium_body(place)) && self.still_medium(unit) {
                let what = format!("unit {} is no part of the page at unit {unit}", unit + place);
                self.violated("I2", unit_start(unit + place), what);
            }
        }
    }

    fn still_medium(&self, unit: u32) -> bool {
        self.view.tag(unit).is_some_and(|tag| tag.kind() == Kind::Medium)
    }

    /// I2: a body has a head, so no unit is lost.
    fn body_has_a_head(&mut self, unit: u32, tag: Tag) {
        let looks = LOOKS.min(self.patience).max(1);
        let mut settled = false;
        for look in 1..=looks {
            settled = self.view.tag(unit) != Some(tag) || self.has_head(unit, tag);
            if settled || look == looks {
                break;
            }
            self.patience -= 1;
            thread_model::pause();
        }
        self.last_body = (unit, settled);
        if !settled {
            let what = format!("unit {unit} is part of a page or run that does not exist");
            self.violated("I2", unit_start(unit), what);
        }
    }

    fn has_head(&self, unit: u32, tag: Tag) -> bool {
        let kind_at = |head: u32| self.view.tag(head).map(Tag::kind);
        if tag.kind() == Kind::MediumBody {
            let head = unit.saturating_sub(tag.place());
            // A page is being made or unmade around it.
            return matches!(kind_at(head), Some(Kind::Medium | Kind::Claimed));
        }
        let mut head = unit;
        while matches!(kind_at(head), Some(Kind::RunBody | Kind::Claimed)) {
            // What was found out about the one before holds for those that follow it, lest a long
            // row of them be walked for each.
            if head == self.last_body.0 {
                return self.last_body.1;
            }
            head = head.saturating_sub(1);
        }
        matches!(kind_at(head), Some(Kind::Large | Kind::Transit))
    }

    fn run(&mut self, unit: u32) -> u32 {
        let run = units::run_of(self.view, unit);
        let len = run.end - run.start;
        let said = self.view.descriptor(unit).run_units.load(Ordering::Relaxed);
        let still = self.view.tag(unit).is_some_and(|tag| tag.kind() == Kind::Large);
        // While its size changes it may say the greater one, and the rest is claimed.
        let resized =
            said > len && self.view.tag(run.end).is_some_and(|tag| tag.kind() == Kind::Claimed);
        if said != len && !resized && still && units::run_of(self.view, unit) == run {
            let what = format!("the run at unit {unit} says {said} units and has {len}");
            self.violated("I2", unit_start(unit), what);
        }
        self.report.allocated_blocks += 1;
        self.report.allocated_bytes += u64::from(len) * super::layout::UNIT_BYTES;
        len
    }

    /// I3: each carved block is on one list, once, or allocated.
    fn page(&mut self, unit: u32, tag: Tag) {
        self.report.pages += 1;
        let mut seen = self.lists(unit, tag);
        let (mut met, mut result) = self.follow(unit, &seen);
        let mut faults = u32::from(result.is_err());
        for _ in 0..LOOKS {
            let now = self.lists(unit, tag);
            if now == seen && (result.is_ok() || faults >= FAULTS) {
                break;
            }
            // A list that others change while it is followed may look broken; one that nobody
            // changes stays so.
            faults = if now == seen { faults } else { 0 };
            thread_model::pause();
            seen = now;
            (met, result) = self.follow(unit, &seen);
            faults += u32::from(result.is_err());
        }
        if faults < FAULTS && result.is_err() {
            // It never held still: nothing can be said against it.
            result = Ok(());
        }
        let page = Page::new(self.view, unit, seen.tag);
        if !page.still_stands() {
            // Given up meanwhile: what its lists say means nothing any more.
            return;
        }
        if let Err(fault) = result {
            let what = match fault {
                Fault::NoBlock(at) => format!("a list of unit {unit} names {at:#x}, no block"),
                Fault::Twice(at) => format!("the block {at:#x} of unit {unit} is free twice"),
                Fault::Length { said, found } => {
                    format!("a list of unit {unit} says {said} blocks and has {found}")
                }
            };
            self.violated("I3", page.start(), what);
        } else if faults == 0 && met.end > seen.carved && !seen.is_changing {
            let what = format!("a list of unit {unit} reaches beyond the carved blocks");
            self.violated("I3", page.start(), what);
        }
        let allocated = u64::from(seen.carved.saturating_sub(met.count));
        self.report.free_blocks += u64::from(met.count);
        self.report.allocated_blocks += allocated;
        self.report.allocated_bytes += allocated * u64::from(page.block_bytes());
    }

    fn lists(&self, unit: u32, tag: Tag) -> Lists {
        let tag = self.view.tag(unit).filter(|now| now.class() == tag.class()).unwrap_or(tag);
        let page = Page::new(self.view, unit, tag);
        let owner = tag.owner();
        let bin = if owner == 0 || owner > self.view.geometry.worker_slots {
            List::EMPTY
        } else {
            self.view.bin_list(self.view.slot(owner), tag.class())
        };
        let mut bin = if page.contains(bin.first()) { bin } else { List::EMPTY };
        let mut lists = [page.free(), page.local(), page.remote().to_list(page.start())];
        let is_changing = !bin.is_empty() || (owner != 0 && page.carved() == 0);
        // An owner that is loading its bin has one list in two places for a moment, or for ever if
        // it was stopped there: a state that recovery accepts, and so does this.
        for list in lists.iter_mut().take(2).filter(|list| **list == bin) {
            *list = List::EMPTY;
        }
        // So may one who purges or restores the page have blocks on a list and in the map.
        let purged = page.purged();
        if let Some(purged) = &purged {
            let doubled = lists.iter_mut().take(2).chain([&mut bin]);
            doubled
                .filter(|list| purged.replaces(&page, **list))
                .for_each(|list| *list = List::EMPTY);
        }
        let mut remote = Met::new();
        let _ = remote.follow(&page, lists[2]);
        if page.index_of(bin.first()).is_some_and(|index| remote.contains(index)) {
            bin = List::EMPTY;
        }
        let [free, local, remote] = lists;
        let lists = [bin, free, local, remote];
        let cached = self.cached(&page);
        Lists { tag, carved: page.carved(), lists, purged, is_changing, cached }
    }

    /// The blocks of a page that stand in workers' caches.
    fn cached(&self, page: &Page<'_>) -> Vec<(u32, bool)> {
        let mut cached = Vec::new();
        if page.tag.kind() != Kind::Small {
            return cached;
        }
        for &id in &self.caches {
            let Some(rows) = Rows::of(self.view, id) else { continue };
            let is_own = page.tag.owner() == id;
            let indices = rows.blocks(page.class()).filter_map(|offset| page.index_of(offset));
            // Those that it is carving or forgetting are in its cache for nothing: recovery leaves
            // them out.
            let indices = indices.filter(|&index| !is_own || index < page.carved());
            // Who moves blocks, or was stopped at it, has them in two places: a state that recovery
            // accepts.
            let journal = &self.view.slot(id).journal;
            let moves = is_own
                || (Operation(journal.operation.load(Ordering::SeqCst)).step() == Step::Flush
                    && unit_of(journal.block.load(Ordering::Relaxed)) == page.unit);
            cached.extend(indices.map(|index| (index, moves)));
        }
        cached
    }

    fn follow(&self, unit: u32, seen: &Lists) -> (Met, Result<(), Fault>) {
        let page = Page::new(self.view, unit, seen.tag);
        let mut met = Met::new();
        let purged = seen.purged.map_or(Ok(()), |purged| met.add_purged(&page, &purged));
        let lists = purged
            .and_then(|()| seen.lists.into_iter().try_for_each(|list| met.follow(&page, list)));
        let mut cached = Met::new();
        let result = lists.and_then(|()| {
            seen.cached.iter().try_for_each(|&(index, moves)| {
                let twice = !cached.insert(index) || (!met.insert(index) && !moves);
                if twice { Err(Fault::Twice(page.block(index))) } else { Ok(()) }
            })
        });
        (met, result)
    }

    /// I4: what stands in a row of a cache is a block of its class.
    fn caches_hold_blocks(&mut self) {
        let is_block = |id, class, offset| {
            let Some((unit, tag)) = self.view.page_of(offset) else { return false };
            let page = Page::new(self.view, unit, tag);
            let is_there = |&index: &u32| index < page.carved() || tag.owner() == id;
            tag.class() == class && page.index_of(offset).filter(is_there).is_some()
        };
        let mut wrong = Vec::new();
        for &id in &self.caches {
            for class in 0..SMALL_CLASSES {
                let mut suspects = Vec::new();
                for look in 0..FAULTS {
                    let Some(rows) = Rows::of(self.view, id) else { break };
                    let bad = rows.blocks(class).filter(|&offset| !is_block(id, class, offset));
                    // What was taken meanwhile is no longer in the row.
                    let same = bad.filter(|offset| look == 0 || suspects.contains(offset));
                    suspects = same.collect::<Vec<_>>();
                    if suspects.is_empty() {
                        break;
                    }
                    thread_model::pause();
                }
                wrong.extend(suspects.into_iter().map(|offset| (id, class, offset)));
            }
        }
        for (id, class, offset) in wrong {
            let what = format!("slot {id} caches {offset:#x}, no block of class {class}");
            self.violated("I4", offset, what);
        }
    }

    /// I5: a slot's word is one that is ever stored.
    fn slots_hold_themselves_to_their_words(&mut self) {
        let unknown: Vec<_> = self
            .view
            .slots_in_use()
            .filter(|(_, word)| word.state() == SlotState::Unknown)
            .collect();
        for (id, word) in unknown {
            let what = format!("slot {id} has the unknown word {:#x}", word.0);
            self.violated("I5", self.view.geometry.slot_words + u64::from(id) * 8, what);
        }
    }
}
