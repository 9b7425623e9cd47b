//! Giving memory back to the kernel: as the segment comes to use more elsewhere, when none is to be
//! had, and on request.

use std::ops::Range;

use super::heap::Heap;
use super::layout::{MEDIUM_UNITS, PAGE_BYTES, UNIT_BYTES};
use super::page::Page;
use super::refill::add;
use super::units;
use super::words::{Kind, Tag, unit_start};
use crate::backend::BackendError;
use crate::error::AllocError;
use crate::options::OnExit;
use crate::sync::Ordering;

/// Who takes more units than these at once takes no memory from free ones in return.
const SHORT_RUN: usize = MEDIUM_UNITS as usize;
/// Units that are looked at for each that comes to have memory.
const LOOKS: u64 = 4;
/// A page of which this part is free is looked into.
const LEAST_PART: u64 = 4;
/// Failures to find memory after a vain search for some to give back, until the next search; unless
/// something was freed.
const CALM_FAILURES: u32 = 64;

impl Heap {
    /// Gives back about as much memory as `claimed` units lack, `wanted` bytes, if there is as much
    /// behind free blocks: so the segment takes no more than it did at its fullest.
    ///
    /// Blocks are taken from the beginning of the segment, so memory is from its end. Where long runs
    /// come and go, free units are what the next of them are made of, and would be populated again at
    /// once: only pages give something back for those.
    pub(super) fn make_up_for(&self, claimed: Range<u32>, mut wanted: u64) {
        if !self.view.gives_back() {
            return;
        }
        // Behind what we ever claimed there is hardly any.
        self.trim_end.set(self.trim_end.get().max(claimed.end));
        let is_short = claimed.len() <= SHORT_RUN;
        let units = self.view.geometry.first_unit..self.trim_end.get();
        let looks = (wanted / UNIT_BYTES).saturating_mul(LOOKS).min(units.len() as u64);
        for _ in 0..looks {
            if wanted == 0 {
                break;
            }
            let next = self.trim_cursor.get();
            let unit = if units.contains(&next) { next } else { units.end - 1 };
            self.trim_cursor.set(unit - 1);
            if is_short || self.view.tag(unit) != Some(Tag::FREE) {
                wanted = wanted.saturating_sub(self.trim_unit(unit));
            }
        }
    }

    /// Does what takes memory, and once more if there is none until some is given back.
    pub(super) fn with_memory<R>(
        &self,
        f: impl Fn() -> Result<R, AllocError>,
    ) -> Result<R, AllocError> {
        match f() {
            Err(AllocError::Backend(BackendError::Full { .. })) if self.finds_memory() => f(),
            result => result,
        }
    }

    fn finds_memory(&self) -> bool {
        let calm = self.trim_calm.get();
        if calm > 0 {
            self.trim_calm.set(calm - 1);
            return false;
        }
        let found = self.trim() > 0;
        self.trim_calm.set(if found { 0 } else { CALM_FAILURES });
        found
    }

    /// Gives back the memory of all free blocks that are ours or nobody's. How many bytes.
    #[cold]
    pub(super) fn trim(&self) -> u64 {
        self.collect();
        if !self.view.gives_back() {
            return 0;
        }
        self.view.block_units().map(|unit| self.trim_unit(unit)).sum()
    }

    /// The same of a unit, and of the page that begins there.
    fn trim_unit(&self, unit: u32) -> u64 {
        let Some(tag) = self.view.tag(unit) else { return 0 };
        match tag.kind() {
            Kind::Free => self.trim_free(unit),
            Kind::Small | Kind::Medium => self.trim_page(Page::new(&self.view, unit, tag)),
            Kind::Claimed
            | Kind::MediumBody
            | Kind::Large
            | Kind::RunBody
            | Kind::Transit
            | Kind::Cache
            | Kind::Unknown => 0,
        }
    }

    fn trim_free(&self, unit: u32) -> u64 {
        let bytes = self.resident_bytes(unit);
        if bytes == 0 || !units::claim_this(&self.view, self.id, unit) {
            return 0;
        }
        self.view.descriptor(unit).resident.store(0, Ordering::Relaxed);
        // Died here: the unit is freed, and what memory it has left stays until it is used again.
        crate::crash_point!("trim.unit_claimed");
        let start = unit_start(unit);
        let punched = self.view.backend().punch(start..start + UNIT_BYTES);
        units::release_unit(&self.view, unit);
        if punched.is_ok() { bytes } else { 0 }
    }

    fn trim_page(&self, page: Page<'_>) -> u64 {
        let free = u64::from(page.listed()) * u64::from(page.block_bytes());
        if free * LEAST_PART < u64::from(page.units()) * UNIT_BYTES || page.purged().is_some() {
            return 0;
        }
        if page.tag.owner() == self.id {
            return if self.bin_of(&page).is_empty() { self.purge(&page) } else { 0 };
        }
        if page.tag.owner() != 0 || self.view.on_exit() == OnExit::Reclaim {
            return 0;
        }
        let Some(page) = page.adopt(self.id) else { return 0 };
        let bytes = self.purge(&page);
        if page.is_wholly_free() {
            self.release(&page);
        } else if let Some(page) = page.abandon() {
            self.settle(page);
        }
        bytes
    }

    fn purge(&self, page: &Page<'_>) -> u64 {
        page.purge().map_or(0, |gain| {
            add(&self.counters().local_frees, gain.freed_locally.into());
            gain.bytes
        })
    }

    /// How much of some units is not known to have memory.
    pub(super) fn missing_bytes(&self, units: Range<u32>) -> u64 {
        units.map(|unit| UNIT_BYTES - self.resident_bytes(unit)).sum()
    }

    /// How much of a unit is known to have memory.
    fn resident_bytes(&self, unit: u32) -> u64 {
        let resident = self.view.descriptor(unit).resident.load(Ordering::Relaxed);
        (u64::from(resident) * PAGE_BYTES).min(UNIT_BYTES)
    }
}
