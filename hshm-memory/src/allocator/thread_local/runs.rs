//! Blocks too large for a page: runs of units, which are kept for the next of the same size, freed,
//! and made longer or shorter where they stand.

use std::cell::Cell;
use std::ops::Range;

use super::heap::Heap;
use super::layout::UNIT_BYTES;
use super::refill::add;
use super::release::freed_twice;
use super::size_class::MEDIUM_MAX_BYTES;
use super::units;
use super::words::{Kind, Tag, unit_of, unit_start};
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
    /// The latest last.
    runs: [Cell<Run>; MOST_KEPT],
    units: Cell<u32>,
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
        Self { runs: [const { Cell::new(Run::NONE) }; MOST_KEPT], units: Cell::new(0) }
    }

    /// Takes the latest run of `units` units or slightly more.
    fn take(&self, units: u32, align_units: u32) -> Option<u32> {
        let fits = |run: Run| {
            (units..=units + units / 8).contains(&run.units) && run.head.is_multiple_of(align_units)
        };
        let cell = self.runs.iter().rev().find(|cell| fits(cell.get()))?;
        Some(self.empty(cell).head)
    }

    /// Puts a run last. Each of the others moves one down, until there is room; returns what falls out.
    fn put(&self, run: Run) -> Run {
        self.units.set(self.units.get() + run.units);
        let mut moved = run;
        for cell in self.runs.iter().rev() {
            moved = cell.replace(moved);
            if moved.units == 0 {
                return Run::NONE;
            }
        }
        self.units.set(self.units.get() - moved.units);
        moved
    }

    /// Takes the run that was kept first.
    fn oldest(&self) -> Option<Run> {
        self.runs.iter().find(|cell| cell.get().units > 0).map(|cell| self.empty(cell))
    }

    fn empty(&self, cell: &Cell<Run>) -> Run {
        let run = cell.replace(Run::NONE);
        self.units.set(self.units.get() - run.units);
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
        let start = self.claim_units(len, align, bytes)?;
        self.make_up_for(start..start + len);
        match self.view.make_run_resident(start..start + len) {
            Ok(()) => Ok(start),
            Err(error) => {
                for unit in (start..start + len).rev() {
                    units::release_unit(&self.view, unit);
                }
                Err(error.into())
            }
        }
    }

    /// Counts a run as handed out.
    pub(super) fn count_run(&self) {
        add(&self.counters().loaded, 1);
    }

    /// Makes the run that was kept last a block again, if it has no more units than `bytes` take.
    #[inline]
    pub(super) fn take_latest_run(&self, bytes: usize) -> Option<u64> {
        let run = self.kept_runs.runs.last()?.get();
        let fits = run.units > 0 && (bytes as u64).div_ceil(UNIT_BYTES) == u64::from(run.units);
        (fits && bytes > MEDIUM_MAX_BYTES)
            .then(|| self.take_kept_run(run.units, 1).map(unit_start))?
    }

    /// Frees the block at `offset` if it is a run of ours.
    #[inline]
    pub(super) fn free_own_run(&self, offset: u64) -> bool {
        let tag = Tag::large(self.id);
        let is_own =
            offset.is_multiple_of(UNIT_BYTES) && self.view.tag(unit_of(offset)) == Some(tag);
        is_own && self.free_run(unit_of(offset), tag).is_ok()
    }

    /// Makes a kept run a block again, if one has `units` units or slightly more.
    pub(super) fn take_kept_run(&self, units: u32, align_units: u32) -> Option<u32> {
        let head = self.kept_runs.take(units, align_units)?;
        if self.view.tag(head) != Some(Tag::transit(self.id)) {
            return None;
        }
        // ORDER: Release: what the bodies say was written when the run was first assembled.
        self.view.tag_word(head).store(Tag::large(self.id).0, Ordering::Release);
        self.count_run();
        Some(head)
    }

    /// Frees the run at `head`, whose tag is `tag`.
    pub(super) fn free_run(&self, head: u32, tag: Tag) -> Result<(), AllocError> {
        self.trim_calm.set(0);
        if tag.owner() == self.id {
            // ORDER: Release, and no comparison: while we live, nobody else changes the tag of a
            // run of ours but who frees the block too.
            self.view.tag_word(head).store(Tag::transit(self.id).0, Ordering::Release);
            add(&self.counters().local_frees, 1);
        } else if !self.unbind_run(head, tag) {
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
    pub(super) fn keep_run(&self, head: u32) {
        let run = Run { head, units: self.assembled_units(head) };
        let blocks = self.view.block_units();
        let most = ((blocks.end - blocks.start) / PART).min(MOST_UNITS);
        if run.units > most {
            units::dismantle_run(&self.view, self.id, head);
            return;
        }
        self.dismantle(self.kept_runs.put(run));
        while self.kept_runs.units.get() > most
            && let Some(run) = self.kept_runs.oldest()
        {
            self.dismantle(run);
        }
    }

    /// Frees all runs that are kept.
    pub(super) fn drop_kept_runs(&self) {
        while let Some(run) = self.kept_runs.oldest() {
            self.dismantle(run);
        }
    }

    fn dismantle(&self, run: Run) {
        if run.units > 0 && self.view.tag(run.head) == Some(Tag::transit(self.id)) {
            units::dismantle_run(&self.view, self.id, run.head);
        }
    }

    /// How long the run in transit at `head` is, which then says so. Who died changing its length left
    /// it saying the greater one, with the last of its units claimed; and whoever recovers that makes
    /// it say the less before the units become free.
    fn assembled_units(&self, head: u32) -> u32 {
        let said = &self.view.descriptor(head).run_units;
        let len = said.load(Ordering::Relaxed);
        let last = head.saturating_add(len).saturating_sub(1);
        // Said twice, or the last unit may have become part of another run meanwhile.
        // ORDER: `tag` acquires what `publish_run` released.
        let is_whole = last == head
            || (self.view.tag(last) == Some(Tag::RUN_BODY) && said.load(Ordering::Relaxed) == len);
        if is_whole && len > 0 {
            return len;
        }
        let run = units::run_of(&self.view, head);
        said.store(run.end - run.start, Ordering::Relaxed);
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
        for unit in tail {
            units::release_unit(&self.view, unit);
        }
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
            for unit in (more.start..end).rev() {
                units::release_unit(&self.view, unit);
            }
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
