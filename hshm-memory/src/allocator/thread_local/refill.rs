//! Allocating when the bin has run out: the last block of a list, more blocks of the page, another
//! page, a page of the dead, fresh units; and blocks too large for a page.

use std::cell::Cell;

use super::heap::Heap;
use super::layout::{MEDIUM_UNITS, UNIT_BYTES, UNIT_SHIFT};
use super::page::{Loaded, NO_EVENT, Page};
use super::parcel;
use super::recover;
use super::size_class::{MEDIUM_MAX_BYTES, SMALL_CLASSES, class_of};
use super::units;
use super::words::{Kind, List, Tag, unit_start};
use crate::backend::BackendError;
use crate::error::AllocError;
use crate::options::OnExit;
use crate::sync::Ordering;
use crate::thread_model;

/// Ownerless pages that are looked at for one of the right class before units are claimed.
const ADOPTION_LOOKS: usize = 64;
/// Full pages that are looked at for blocks freed by others, before units are claimed.
const FULL_LOOKS: usize = 8;

/// How often a worker that finds no memory looks again after asking the others.
const PRESSURE_LOOKS: usize = 4;
/// Refills between two times that a worker gives back what it keeps: in a segment that stays full
/// it would do nothing else.
const CALM_REFILLS: u32 = 64;

/// A request that was found possible.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    /// A block of a class.
    Class(usize),
    /// A run of units.
    Run { units: u32, align_units: u32, bytes: u64 },
}

impl Heap {
    /// What it takes to hold `bytes` at a multiple of `align`.
    pub(super) fn request(&self, bytes: usize, align: usize) -> Result<Request, AllocError> {
        let limit = self.view.align_limit();
        if !align.is_power_of_two() || align > limit {
            return Err(AllocError::BadAlignment { align, limit });
        }
        // A multiple of the alignment gets a class whose blocks all lie at one: classes are a power
        // of two apart, and pages begin at multiples of their size.
        let bytes = bytes.max(1);
        let rounded = bytes.checked_next_multiple_of(align);
        if let Some(rounded) = rounded.filter(|&rounded| rounded <= MEDIUM_MAX_BYTES) {
            return Ok(Request::Class(class_of(rounded)));
        }
        let geometry = &self.view.geometry;
        let limit_bytes = geometry.capacity - geometry.metadata_bytes();
        let bytes = bytes as u64;
        if bytes > limit_bytes {
            return Err(AllocError::TooLarge { bytes, limit_bytes });
        }
        let count = |bytes: u64| u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        Ok(Request::Run { units: count(bytes), align_units: count(align as u64), bytes })
    }

    /// Allocates what the fast path could not.
    #[cold]
    #[inline(never)]
    pub(super) fn allocate_slow(&self, bytes: usize, align: usize) -> Result<u64, AllocError> {
        self.note_limit();
        match self.request(bytes, align)? {
            Request::Class(class) => {
                self.claim_cache();
                loop {
                    if let Some(offset) = self.pop_carefully(class) {
                        return Ok(offset);
                    }
                    if let Some(offset) = self.take(class) {
                        return Ok(offset);
                    }
                    self.with_memory(|| self.fill_bin(class))?;
                }
            }
            Request::Run { units, align_units, bytes } => {
                let run = match self.take_kept_run(units, align_units) {
                    Some(run) => run,
                    None => self.with_memory(|| self.claim_block(units, align_units, bytes))?,
                };
                Ok(unit_start(run))
            }
        }
    }

    /// The block that the bin of `class` would give next, and what would be left.
    pub(super) fn peek(&self, class: usize) -> Option<(Page<'_>, u64, List)> {
        let bin = self.view.bin(self.slot(), class);
        let head = self.view.bin_list(self.slot(), class);
        if head.is_empty() {
            return None;
        }
        let offset = head.first();
        if self.view.word(offset).is_none() {
            self.refresh_limit();
        }
        let page = self.view.page_of(offset).map(|(unit, tag)| Page::new(&self.view, unit, tag));
        let page = page.filter(|page| page.tag == Tag::page(self.id, class));
        let (Some(page), Some(word)) = (page, self.view.word(offset)) else {
            // Somebody scribbled on the bin: what it named cannot be found again.
            bin.store(0, Ordering::Relaxed);
            return None;
        };
        if List(word.load(Ordering::Relaxed)).is_of_parcel() {
            parcel::unpack(&page, offset);
        }
        let rest = List(word.load(Ordering::Relaxed));
        let rest = if page.contains(rest.first()) { rest } else { List::EMPTY };
        Some((page, offset, rest))
    }

    /// Takes a block from the bin of `class`, also the last one.
    pub(super) fn take(&self, class: usize) -> Option<u64> {
        let (_, offset, rest) = self.peek(class)?;
        self.view.bin(self.slot(), class).store(rest.0, Ordering::Relaxed);
        if rest.is_empty() {
            self.bin_ran_out(offset);
        }
        Some(offset)
    }

    /// After the last block of a list, the one at `offset`, was taken: more of the same page, or
    /// letting go of it.
    pub(super) fn bin_ran_out(&self, offset: u64) {
        // Died here, or in what follows: a page without free blocks, which recovery abandons.
        crate::crash_point!("page.exhausted");
        if let Some((unit, tag)) = self.view.page_of(offset) {
            let page = Page::new(&self.view, unit, tag);
            // If memory is short this page is let go of, and the error is the next caller's.
            if !matches!(self.load(&page), Ok(true)) {
                self.let_go(page);
            }
        }
    }

    /// Puts blocks of a page of ours into the empty bin of its class.
    pub(super) fn load(&self, page: &Page<'_>) -> Result<bool, BackendError> {
        let bin = self.view.bin(self.slot(), page.class());
        let Some(Loaded { blocks, freed_locally }) = page.load(bin, self.carving(page.class()))?
        else {
            return Ok(false);
        };
        page.descriptor().event.store(NO_EVENT, Ordering::Relaxed);
        if page.tag.kind() == Kind::Medium {
            self.bound_medium_bins(page.class());
        }
        let counters = self.counters();
        add(&counters.loaded, blocks.into());
        add(&counters.local_frees, freed_locally.into());
        Ok(true)
    }

    /// Keeps few medium pages in our bins: the bin of `class` was just filled, and the one that was
    /// filled longest ago is given up.
    fn bound_medium_bins(&self, class: usize) {
        let number = u32::try_from(class).unwrap_or(0);
        let bins = &self.medium_bins[..self.most_medium_bins()];
        if self.view.on_exit() == OnExit::Reclaim || bins.iter().any(|bin| bin.get() == number) {
            return;
        }
        let Some(last) = bins.last() else { return };
        let oldest = last.get();
        for at in (1..bins.len()).rev() {
            bins[at].set(bins[at - 1].get());
        }
        bins[0].set(number);
        let list = self.view.bin_list(self.slot(), oldest as usize);
        if oldest == 0 || list.is_empty() {
            return;
        }
        if let Some((unit, tag)) = self.view.page_of(list.first()) {
            recover::give_up_bin(&self.view, self.id, oldest as usize);
            if let Some(left) = self.medium_left(oldest as usize) {
                left.set(unit);
            }
            if tag == Tag::page(self.id, oldest as usize) {
                self.settle(Page::new(&self.view, unit, tag));
            }
        }
    }

    /// Deals with a page of ours that has no free block.
    pub(super) fn let_go(&self, page: Page<'_>) {
        match self.view.on_exit() {
            // Whoever frees a block of it first takes it over, ourselves included.
            OnExit::Keep => {
                if let Some(page) = page.abandon() {
                    self.settle(page);
                }
            }
            // All blocks of a page must have one owner: it stays ours, and is looked at again.
            OnExit::Reclaim => {
                page.descriptor().event.store(0, Ordering::Relaxed);
                self.full.push_back(&page);
            }
        }
    }

    /// Gives back what we only keep, if somebody found no memory since we last did.
    fn yield_to_pressure(&self) {
        let pressure = self.view.header().pressure.load(Ordering::Relaxed);
        let calm = self.calm.get();
        if calm > 0 {
            self.calm.set(calm - 1);
        } else if self.pressure.replace(pressure) != pressure {
            self.calm.set(CALM_REFILLS);
            self.collect();
        }
    }

    /// Makes the empty bin of `class` non-empty.
    pub(super) fn fill_bin(&self, class: usize) -> Result<(), AllocError> {
        self.yield_to_pressure();
        let tag = Tag::page(self.id, class);
        while let Some(page) = self.partial.take_first(&self.view, tag) {
            match self.load(&page) {
                Ok(true) => return Ok(()),
                Ok(false) => self.let_go(page),
                // Its blocks may be had when there is memory again.
                Err(error) => {
                    self.settle(page);
                    return Err(error.into());
                }
            }
        }
        for _ in 0..FULL_LOOKS {
            let Some(page) = self.full.take_first(&self.view, tag) else { break };
            let loaded = if page.listed() > 0 { self.load(&page) } else { Ok(false) };
            if matches!(loaded, Ok(true)) {
                return Ok(());
            }
            self.full.push_back(&page);
            loaded?;
        }
        if self.view.on_exit() == OnExit::Keep && self.adopt_of_class(class)? {
            return Ok(());
        }
        let page = self.open_page(class)?;
        match self.load(&page) {
            Ok(true) => Ok(()),
            // A page without a single block: give the units back before reporting.
            Ok(false) => {
                self.release(&page);
                Err(self.out_of_memory(page.block_bytes().into()))
            }
            Err(error) => {
                self.release(&page);
                Err(error.into())
            }
        }
    }

    /// Where the number of a page of a medium class stands that we left.
    fn medium_left(&self, class: usize) -> Option<&Cell<u32>> {
        self.medium_left.get(class.checked_sub(SMALL_CLASSES)?)
    }

    /// Takes over an ownerless page of `class` that has free blocks.
    fn adopt_of_class(&self, class: usize) -> Result<bool, AllocError> {
        let wanted = Tag::page(0, class);
        let left = self.medium_left(class).map(|left| left.replace(0));
        let adoptable = units::adoptable(&self.view, self.adopt_cursor.get());
        for unit in left.into_iter().chain(adoptable.take(ADOPTION_LOOKS)) {
            if left != Some(unit) {
                self.adopt_cursor.set(unit);
            }
            if self.view.tag(unit) != Some(wanted) {
                continue;
            }
            let Some(page) = Page::new(&self.view, unit, wanted).adopt(self.id) else { continue };
            add(&self.counters().adoptions, 1);
            match self.load(&page) {
                Ok(true) => return Ok(true),
                Ok(false) => self.let_go(page),
                Err(error) => {
                    self.settle(page);
                    return Err(error.into());
                }
            }
        }
        Ok(false)
    }

    /// Makes fresh units a page of `class`.
    fn open_page(&self, class: usize) -> Result<Page<'_>, AllocError> {
        let units = if class < SMALL_CLASSES { 1 } else { MEDIUM_UNITS };
        let unit = match self.claim_kept(class) {
            Some(unit) => unit,
            None => {
                let unit = self.claim_units(units, units, u64::from(units) << UNIT_SHIFT)?;
                // The first access to this part of the table may be this one. A store maps one page of it,
                // which takes half as long as the sixteen that a load maps.
                self.view.descriptor(unit).purged.store(0, Ordering::Relaxed);
                self.make_up_for(unit..unit + units, self.missing_bytes(unit..unit + units));
                unit
            }
        };
        if let Some(opened) = self.opened.get(class) {
            opened.set(opened.get().saturating_add(1));
        }
        Ok(Page::initialise(&self.view, self.id, unit, class))
    }

    pub(super) fn claim_units(&self, len: u32, align: u32, bytes: u64) -> Result<u32, AllocError> {
        let try_once = || {
            if len == 1 && align == 1 {
                units::claim_one(&self.view, self.id)
            } else {
                units::claim_run(&self.view, self.id, len, align)
            }
        };
        let claimed = try_once().or_else(|| {
            // Nothing at hand: has the segment grown, and what pages stand empty?
            self.refresh_limit();
            try_once()
        });
        let claimed = claimed.or_else(|| {
            self.collect();
            try_once()
        });
        let claimed = claimed.or_else(|| {
            self.view.header().pressure.fetch_add(1, Ordering::Relaxed);
            // Give the others a moment to let go of what they only keep. This heap is in use
            // meanwhile, so no user-level thread that shares it may run.
            (0..PRESSURE_LOOKS).find_map(|_| {
                thread_model::pause_os_thread();
                try_once()
            })
        });
        claimed.ok_or_else(|| self.out_of_memory(bytes))
    }

    pub(super) fn out_of_memory(&self, bytes: u64) -> AllocError {
        AllocError::OutOfMemory { bytes, committed_bytes: self.view.limit() }
    }
}

/// Adds to a counter that has this one writer.
pub(super) fn add(counter: &crate::sync::AtomicU64, amount: u64) {
    let value = counter.load(Ordering::Relaxed);
    counter.store(value.wrapping_add(amount), Ordering::Relaxed);
}

/// Takes from a counter that has this one writer.
pub(super) fn sub(counter: &crate::sync::AtomicU64, amount: u64) {
    let value = counter.load(Ordering::Relaxed);
    counter.store(value.wrapping_sub(amount), Ordering::Relaxed);
}
