//! Blocks too large for a page: runs of units, which are kept for the next of the same size, freed,
//! and made longer or shorter where they stand.

use std::cell::Cell;
use std::ops::Range;

use super::heap::Heap;
use super::layout::{UNIT_BYTES, UNIT_SHIFT};
use super::refill::add;
use super::release::freed_twice;
use super::units;
use super::words::{Kind, Tag, unit_start};
use crate::error::AllocError;
use crate::sync::Ordering;

/// Freed runs that a worker keeps.
const MOST_KEPT: usize = 8;
/// Units of all of them: 64 MiB,
const MOST_UNITS: u32 = 1024;
/// and this part of the segment.
const PART: u32 = 16;

/// Runs in transit of a worker, ready to be blocks again. They are its alone, so that none of this
/// takes more than loads and stores.
#[derive(Debug)]
pub(super) struct KeptRuns {
    latest: Cell<Run>,
    /// The others, the later behind the earlier.
    earlier: [Cell<Run>; MOST_KEPT - 1],
    /// Units of those.
    earlier_units: Cell<u32>,
    /// Units that all may have together.
    most: Cell<u32>,
}

/// Units that stood assembled when the run was kept.
#[derive(Clone, Copy, Debug)]
struct Run {
    head: u32,
    /// None, for no run.
    units: u32,
}

impl Run {
    const NONE: Self = Self { head: 0, units: 0 };
}

impl KeptRuns {
    pub(super) fn new() -> Self {
        Self {
            latest: Cell::new(Run::NONE),
            earlier: [const { Cell::new(Run::NONE) }; MOST_KEPT - 1],
            earlier_units: Cell::new(0),
            most: Cell::new(0),
        }
    }

    /// Takes note that the segment has `units` units for blocks.
    pub(super) fn set_most(&self, units: u32) {
        self.most.set((units / PART).min(MOST_UNITS));
    }

    fn units(&self) -> u32 {
        self.earlier_units.get().saturating_add(self.latest.get().units)
    }

    /// The latest run first.
    fn cells(&self) -> impl DoubleEndedIterator<Item = &Cell<Run>> {
        std::iter::once(&self.latest).chain(self.earlier.iter().rev())
    }

    /// Takes the latest run, if it is of just as many units as `bytes` take, which are more than none.
    #[inline]
    fn take_latest(&self, bytes: usize) -> Option<Run> {
        let run = self.latest.get();
        // Of no units, for no run, is none.
        let fits = (bytes as u64).div_ceil(UNIT_BYTES) == run.units.into();
        fits.then(|| self.latest.replace(Run::NONE))
    }

    /// Makes a run the latest, if there is none, and none has to go for it.
    #[inline]
    fn put_latest(&self, run: Run) -> bool {
        let units = self.earlier_units.get().saturating_add(run.units);
        let fits = self.latest.get().units == 0 && units <= self.most.get();
        if fits {
            self.latest.set(run);
        }
        fits
    }

    /// Takes the latest run of `units` units or slightly more.
    fn take(&self, units: u32, align_units: u32) -> Option<u32> {
        let fits = |run: Run| {
            (units..=units + units / 8).contains(&run.units) && run.head.is_multiple_of(align_units)
        };
        let cell = self.cells().find(|cell| fits(cell.get()))?;
        Some(self.empty(cell).head)
    }

    /// Makes a run the latest. Each of the others moves one down, until there is room; returns what
    /// falls out.
    fn put(&self, run: Run) -> Run {
        let mut moved = run;
        for cell in self.cells() {
            moved = cell.replace(moved);
            if moved.units == 0 {
                break;
            }
        }
        self.earlier_units.set(self.earlier.iter().map(|cell| cell.get().units).sum());
        moved
    }

    /// Takes the run that was kept first.
    fn oldest(&self) -> Option<Run> {
        self.cells().rev().find(|cell| cell.get().units > 0).map(|cell| self.empty(cell))
    }

    fn empty(&self, cell: &Cell<Run>) -> Run {
        let run = cell.replace(Run::NONE);
        self.earlier_units.set(self.earlier.iter().map(|cell| cell.get().units).sum());
        run
    }
}

impl Heap {
    /// Claims a run, puts memory behind it, and makes it a block.
    pub(super) fn claim_block(&self, len: u32, align: u32, bytes: u64) -> Result<u32, AllocError> {
        let start = self.claim_run(len, align, bytes)?;
        units::publish_run(&self.view, self.id, start..start + len);
        self.count_run();
        Ok(start)
    }

    /// Claims a run and puts memory behind it.
    pub(super) fn claim_run(&self, len: u32, align: u32, bytes: u64) -> Result<u32, AllocError> {
        let mut start = self.claim_units(len, align, bytes)?;
        let mut missing = self.missing_bytes(start..start + len);
        if missing > 0 && self.drop_kept_runs() {
            // What was kept has memory, and with what is free beside it may be long enough.
            units::release_units(&self.view, start..start + len);
            start = self.claim_units(len, align, bytes)?;
            missing = self.missing_bytes(start..start + len);
        }
        self.make_up_for(start..start + len, missing);
        let resident =
            if missing > 0 { self.view.make_run_resident(start..start + len) } else { Ok(()) };
        if let Err(error) = resident {
            units::release_units(&self.view, start..start + len);
            return Err(error.into());
        }
        Ok(start)
    }

    /// Counts a run as handed out.
    pub(super) fn count_run(&self) {
        add(&self.counters().loaded, 1);
    }

    /// Makes the run that was kept last a block again, if it has just as many units as `bytes` take.
    #[inline]
    pub(super) fn take_latest_run(&self, bytes: usize) -> Option<u64> {
        let run = self.kept_runs.take_latest(bytes)?;
        self.reuse_run(run.head).map(unit_start)
    }

    /// Makes a kept run a block again, if one has `units` units or slightly more.
    pub(super) fn take_kept_run(&self, units: u32, align_units: u32) -> Option<u32> {
        self.reuse_run(self.kept_runs.take(units, align_units)?)
    }

    /// Makes a run that was kept a block again, unless somebody scribbled on its tag.
    #[inline]
    fn reuse_run(&self, head: u32) -> Option<u32> {
        let word = self.tag_word(head)?;
        if word.load(Ordering::Relaxed) != Tag::transit(self.id).0 {
            return None;
        }
        // ORDER: Release: what the bodies say was written when the run was first assembled.
        word.store(Tag::large(self.id).0, Ordering::Release);
        self.count_run();
        Some(head)
    }

    /// Frees the block at `offset` if it is a run of ours.
    #[inline]
    pub(super) fn free_own_run(&self, offset: u64) -> bool {
        let Ok(head) = u32::try_from(offset >> UNIT_SHIFT) else { return false };
        let Some(word) = self.tag_word(head) else { return false };
        // ORDER: Acquire pairs with the Release of `publish_run`: the slot may have been another's then.
        if word.load(Ordering::Acquire) != Tag::large(self.id).0
            || !offset.is_multiple_of(UNIT_BYTES)
        {
            return false;
        }
        // ORDER: Release, and no comparison: while we live, nobody else changes the tag of a run of
        // ours but who frees the block too.
        word.store(Tag::transit(self.id).0, Ordering::Release);
        add(&self.counters().local_frees, 1);
        self.trim_calm.set(0);
        self.keep_run(head);
        true
    }

    /// Frees the run at `head`, whose tag was `tag`.
    pub(super) fn free_run(&self, head: u32, tag: Tag) -> Result<(), AllocError> {
        self.trim_calm.set(0);
        if !self.unbind_run(head, tag) {
            return Err(freed_twice(unit_start(head)));
        }
        self.keep_run(head);
        Ok(())
    }

    /// Makes an allocated run one in transit of ours; from here on it is freed, whoever dies.
    pub(super) fn unbind_run(&self, head: u32, tag: Tag) -> bool {
        let Some(tag) = units::unbind_run(&self.view, self.id, head, tag) else { return false };
        let counters = self.counters();
        let counter = if tag.owner() == self.id || tag.owner() == 0 {
            &counters.local_frees
        } else {
            &counters.remote_frees
        };
        add(counter, 1);
        true
    }

    /// Keeps a run in transit of ours for the next block of its size, if it is not too large; frees
    /// it, or those that were kept first, if there are too many.
    #[inline]
    pub(super) fn keep_run(&self, head: u32) {
        let assembled = self.assembled_units(head);
        if assembled.is_none_or(|units| !self.kept_runs.put_latest(Run { head, units })) {
            self.keep_rather(head);
        }
    }

    /// Keeps a run rather than those that were kept first.
    #[cold]
    #[inline(never)]
    fn keep_rather(&self, head: u32) {
        let units = self.assembled_units(head).unwrap_or_else(|| self.measure_units(head));
        let most = self.kept_runs.most.get();
        if units > most {
            units::dismantle_run(&self.view, self.id, head);
            return;
        }
        self.dismantle(self.kept_runs.put(Run { head, units }));
        while self.kept_runs.units() > most
            && let Some(run) = self.kept_runs.oldest()
        {
            self.dismantle(run);
        }
    }

    /// Frees all runs that are kept. Whether there were any.
    pub(super) fn drop_kept_runs(&self) -> bool {
        let had_some = self.kept_runs.units() > 0;
        while let Some(run) = self.kept_runs.oldest() {
            self.dismantle(run);
        }
        had_some
    }

    fn dismantle(&self, run: Run) {
        if run.units > 0 && self.view.tag(run.head) == Some(Tag::transit(self.id)) {
            units::dismantle_run(&self.view, self.id, run.head);
        }
    }

    /// How long the run in transit at `head` is, if it has bodies and is as long as it says. Who died changing
    /// its length left it saying the greater one, with the last of its units claimed; and whoever recovers
    /// that makes it say the less before the units become free.
    #[inline]
    fn assembled_units(&self, head: u32) -> Option<u32> {
        let said = &self.descriptor(head)?.run_units;
        let len = said.load(Ordering::Relaxed);
        // Said twice, or the last unit may have become part of another run meanwhile.
        // ORDER: Acquire pairs with the Release of `publish_run`.
        let last = self.tag_word(head.checked_add(len)?.checked_sub(1)?)?.load(Ordering::Acquire);
        (last == Tag::RUN_BODY.0 && said.load(Ordering::Relaxed) == len).then_some(len)
    }

    /// How long it is by its units' tags; it then says so.
    fn measure_units(&self, head: u32) -> u32 {
        let run = units::run_of(&self.view, head);
        self.view.descriptor(head).run_units.store(run.end - run.start, Ordering::Relaxed);
        run.end - run.start
    }

    /// Frees the last units of a run. The run's length is where its bodies end, whatever its head
    /// says, so that a death between any two steps leaves a shorter run and claimed units.
    pub(super) fn shrink_run(&self, head: u32, tag: Tag, tail: Range<u32>) {
        debug_assert_eq!(tag.kind(), Kind::Large);
        for unit in tail.clone().rev() {
            self.view.tag_word(unit).store(Tag::claimed(self.id).0, Ordering::Release);
            crate::crash_point!("run.cut");
        }
        self.view.descriptor(head).run_units.store(tail.start - head, Ordering::Release);
        units::release_units(&self.view, tail);
    }

    /// Claims the units after a run and makes them part of it.
    pub(super) fn grow_run(&self, head: u32, more: Range<u32>) -> bool {
        if more.end > self.view.units() {
            return false;
        }
        let mut end = more.start;
        while end < more.end && units::claim_this(&self.view, self.id, end) {
            end += 1;
        }
        crate::crash_point!("run.neighbours_claimed");
        let resident = end == more.end && self.view.make_run_resident(more.clone()).is_ok();
        if !resident {
            units::release_units(&self.view, more.start..end);
            return false;
        }
        // The length first: of the units after it, those that are still claimed when we die are
        // freed, those that are bodies belong to the run.
        self.view.descriptor(head).run_units.store(more.end - head, Ordering::Release);
        for unit in more {
            crate::crash_point!("run.extended");
            self.view.tag_word(unit).store(Tag::RUN_BODY.0, Ordering::Release);
        }
        true
    }
}
