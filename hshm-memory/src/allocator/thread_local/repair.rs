//! Repairing a segment that nobody uses, as far as it can be told what is right.
//!
//! Where two words contradict one another, what stays is what can lose no block that somebody may
//! know of: a list that cannot be followed is dropped, and its blocks count as allocated; a unit that
//! a page or run claims and nobody else has belongs to it. What cannot be told is left as it is, and
//! the check that is made at the end names it.
//!
//! Meanwhile the repairer holds every worker slot, as one who recovers it: so nobody can begin to
//! allocate, two repairs never meet, and if it dies, others recover the slots and the segment is
//! repaired again (I6).

use super::journal::{self, Resolved};
use super::layout::MEDIUM_UNITS;
use super::page::Page;
use super::recover::{self, Leave};
use super::size_class::CLASSES;
use super::slots;
use super::units;
use super::view::View;
use super::walk::Met;
use super::words::{Kind, List, Remote, SlotState, SlotWord, Tag};
use super::{ThreadLocalAllocator, check};
use crate::error::AllocError;
use crate::options::OnExit;
use crate::process::ProcessId;
use crate::report::RepairReport;
use crate::sync::Ordering;

impl ThreadLocalAllocator {
    /// Repairs what can be repaired without guessing: recovers dead holders, gives back what slots own
    /// that nobody holds, drops lists that cannot be followed, makes pages and runs whole again, and
    /// rebuilds the hints. What it could not repair stands in [`RepairReport::remaining`].
    ///
    /// Nobody may use the segment meanwhile, neither to allocate nor to free; who tries finds no worker
    /// slot free.
    ///
    /// # Errors
    /// [`AllocError::InUse`] if a living process, be it the caller's, holds a worker slot;
    /// [`AllocError::Identity`], also in another pid namespace than the daemon's, where nobody can tell
    /// who lives; [`AllocError::Backend`] if there is no memory for a slot.
    pub fn repair(&self) -> Result<RepairReport, AllocError> {
        let view = &*self.inner.view;
        view.refresh_limit();
        if self.inner.is_apart() {
            let message =
                "in a pid namespace that the daemon does not share: have the daemon repair it";
            return Err(AllocError::Identity(std::io::Error::other(message)));
        }
        let by = ProcessId::current().map_err(AllocError::Identity)?;
        let mut repair = Repair { view, report: RepairReport::default(), used: Vec::new() };
        repair.take_all_slots(by)?;
        let made = repair.make_whole();
        repair.give_slots_back();
        made?;
        repair.report.remaining = check::check(view);
        Ok(repair.report)
    }
}

struct Repair<'v> {
    view: &'v View,
    report: RepairReport,
    /// The slots that somebody held, in ascending order.
    used: Vec<u32>,
}

impl Repair<'_> {
    /// Takes every slot, or none if somebody alive holds one.
    fn take_all_slots(&mut self, by: ProcessId) -> Result<(), AllocError> {
        let mut taken = Vec::new();
        for id in self.view.slot_ids() {
            let word = self.view.slot_word(id);
            // ORDER: Acquire pairs with the Release of whoever claimed or left the slot.
            let found = SlotWord(word.load(Ordering::Acquire));
            let is_dead = match found.state() {
                SlotState::Free | SlotState::Unknown => true,
                SlotState::Live | SlotState::Parked | SlotState::Recovering => {
                    !found.process().is_alive()
                }
            };
            if is_dead && slots::transition_recover(word, found, by) {
                taken.push((id, found));
                continue;
            }
            for (id, before) in taken {
                self.view.slot_word(id).store(before.0, Ordering::Release);
            }
            let process = SlotWord(word.load(Ordering::Acquire)).process();
            return Err(AllocError::InUse { slot: id, process });
        }
        for (id, found) in taken {
            match found.state() {
                SlotState::Free => continue,
                SlotState::Unknown => self.report.slots_freed += 1,
                SlotState::Live | SlotState::Parked | SlotState::Recovering => {
                    self.report.recovered.slots += 1;
                }
            }
            self.used.push(id);
        }
        Ok(())
    }

    fn give_slots_back(&self) {
        for id in self.view.slot_ids() {
            if self.used.binary_search(&id).is_ok() {
                recover::free_slot(self.view, id);
            } else {
                self.view.slot_word(id).store(SlotWord::FREE.0, Ordering::Release);
            }
        }
    }

    fn make_whole(&mut self) -> Result<(), AllocError> {
        let view = self.view;
        // Whatever has an owner that there is not is given to this one, and so left with the others'.
        let heir = *view.slot_ids().start();
        view.backend().populate(view.slot_range(heir))?;
        for &id in &self.used {
            match journal::resolve(view, id, |page, offset| recover::page_has(page, id, offset)) {
                // Only if somebody writes who holds no slot.
                Resolved::Nothing | Resolved::Contended => {}
                Resolved::Completed => self.report.recovered.operations_completed += 1,
                Resolved::Undone => self.report.recovered.operations_undone += 1,
            }
        }
        for &id in self.used.iter().chain([&heir]) {
            for class in 0..CLASSES {
                recover::give_up_bin(view, id, class);
            }
        }
        self.for_each_unit(|repair, unit, tag| {
            repair.inherit(heir, unit, tag);
            repair.mend_lists(unit);
        });
        let leave = match view.on_exit() {
            OnExit::Keep => Leave::Mended,
            OnExit::Reclaim => Leave::Freed,
        };
        let mut owners = self.used.clone();
        if !owners.contains(&heir) {
            owners.push(heir);
        }
        for id in owners {
            let (recovered, _) = recover::vacate(view, id, leave);
            self.report.recovered += recovered;
        }
        self.for_each_unit(|repair, unit, tag| match tag.kind() {
            Kind::Medium => repair.bind_bodies(unit),
            Kind::Large => repair.bind_run(unit),
            Kind::Free
            | Kind::Claimed
            | Kind::Small
            | Kind::MediumBody
            | Kind::RunBody
            | Kind::Transit
            | Kind::Cache
            | Kind::Unknown => {}
        });
        units::rebuild_hints(view);
        Ok(())
    }

    fn for_each_unit(&mut self, mut f: impl FnMut(&mut Self, u32, Tag)) {
        for unit in self.view.block_units() {
            if let Some(tag) = self.view.tag(unit) {
                f(self, unit, tag);
            }
        }
    }

    /// Gives a unit of a slot that nobody held to `heir`.
    fn inherit(&mut self, heir: u32, unit: u32, tag: Tag) {
        let owner = tag.owner();
        let has_owner = match tag.kind() {
            Kind::Claimed
            | Kind::Small
            | Kind::Medium
            | Kind::Large
            | Kind::Transit
            | Kind::Cache => self.used.binary_search(&owner).is_ok(),
            Kind::Free | Kind::MediumBody | Kind::RunBody | Kind::Unknown => true,
        };
        // Of nobody's, those that only an owner can have are nobody's by mistake.
        let may_have_none = matches!(tag.kind(), Kind::Small | Kind::Medium | Kind::Large);
        if has_owner || (owner == 0 && may_have_none) {
            return;
        }
        self.view.tag_word(unit).store(tag.with_owner(heir).0, Ordering::Release);
        self.report.owners_cleared += 1;
    }

    /// Drops the lists of a page that name what is no block of it, or a block twice.
    fn mend_lists(&mut self, unit: u32) {
        let Some(tag) = self.view.tag(unit) else { return };
        if !matches!(tag.kind(), Kind::Small | Kind::Medium) {
            return;
        }
        let page = Page::new(self.view, unit, tag);
        let descriptor = page.descriptor();
        let mut met = Met::new();
        page.finish_purge();
        if let Some(purged) = page.purged()
            && met.add_purged(&page, &purged).is_err()
        {
            descriptor.purged.store(0, Ordering::Release);
            met = Met::new();
            self.report.lists_dropped += 1;
        }
        for word in [&descriptor.free, &descriptor.local] {
            let mut with_it = met.clone();
            if with_it.follow(&page, List(word.load(Ordering::Relaxed))).is_ok() {
                met = with_it;
            } else {
                word.store(0, Ordering::Release);
                self.report.lists_dropped += 1;
            }
        }
        let mut with_it = met.clone();
        let remote = page.remote();
        if with_it.follow(&page, remote.to_list(page.start())).is_ok() {
            met = with_it;
        } else {
            descriptor.remote.store(Remote::empty(remote.sequence()).0, Ordering::Release);
            self.report.lists_dropped += 1;
        }
        if met.end > page.carved() {
            descriptor.carved.store(met.end, Ordering::Release);
            self.report.counts_corrected += 1;
        }
    }

    /// Whether a unit is nobody's, or nobody can tell whose it was.
    fn is_spare(&self, unit: u32) -> bool {
        let kind = self.view.tag(unit).map(Tag::kind);
        matches!(kind, Some(Kind::Free | Kind::Unknown))
    }

    /// The other units of a medium page belong to it as long as its first says so (I2).
    fn bind_bodies(&mut self, unit: u32) {
        for place in 1..MEDIUM_UNITS {
            let body = Tag::medium_body(place);
            let found = self.view.tag(unit + place);
            let is_body = found.is_some_and(|found| found.kind() == Kind::MediumBody);
            if found.is_some() && found != Some(body) && (is_body || self.is_spare(unit + place)) {
                self.view.tag_word(unit + place).store(body.0, Ordering::Release);
                self.report.units_bound += 1;
            }
        }
    }

    /// So do those of a run; its length is where its bodies end.
    fn bind_run(&mut self, head: u32) {
        let view = self.view;
        let words = &view.descriptor(head).run_units;
        let said = words.load(Ordering::Relaxed);
        let end = head.saturating_add(said);
        let is_body = |unit: u32| view.tag(unit) == Some(Tag::RUN_BODY);
        let within = head + 1..end;
        let is_plausible = said > 0 && end <= view.units();
        if is_plausible && within.clone().all(|unit| is_body(unit) || self.is_spare(unit)) {
            for unit in within.filter(|&unit| !is_body(unit)) {
                view.tag_word(unit).store(Tag::RUN_BODY.0, Ordering::Release);
                self.report.units_bound += 1;
            }
            return;
        }
        let run = (head + 1..view.units()).find(|&unit| !is_body(unit)).unwrap_or(view.units());
        words.store(run - head, Ordering::Release);
        self.report.counts_corrected += 1;
    }
}
