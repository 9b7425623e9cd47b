//! Purging a page: its free blocks' memory goes back to the kernel, while blocks beside them are in
//! use.
//!
//! The links of a list stand in its blocks, and would go with them. So the free blocks of a purged
//! page stand in a map in its descriptor, and on no list, until blocks of it are wanted again. While
//! the map counts, a list or bin whose first block is in it counts for nothing: a purge makes the map
//! count before it empties the lists, the way back fills a bin before it gives up the map, and either
//! may end between the two (I6).

use super::layout::{PAGE_BYTES, PURGED_BLOCKS, PURGED_WORDS, UNIT_FRAMES};
use super::page::{Loaded, NO_EVENT, Page};
use super::queue::PARTIAL;
use super::walk::{Fault, Met};
use super::words::{List, unit_start};
use crate::backend::BackendError;
use crate::sync::{AtomicU64, Ordering};

/// What is not worth a system call, nor the faults when it is used again.
const LEAST_BYTES: u64 = 2 * PAGE_BYTES;

/// The blocks that the map of a page names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purged([u64; PURGED_WORDS]);

impl Purged {
    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        let word = self.0.get(index as usize / 64);
        word.is_some_and(|word| word & 1 << (index % 64) != 0)
    }

    /// The numbers of the blocks, the highest first.
    pub(super) fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        (0..PURGED_BLOCKS).rev().filter(|&index| self.contains(index))
    }

    /// Whether the map names the first block of `list`, which then counts for nothing.
    pub(super) fn replaces(&self, page: &Page<'_>, list: List) -> bool {
        !list.is_empty() && page.index_of(list.first()).is_some_and(|index| self.contains(index))
    }
}

/// What [`Page::purge`] did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gain {
    /// Memory that went back.
    pub(super) bytes: u64,
    /// Blocks that were on the owner's list of its own frees, and are not any more.
    pub(super) freed_locally: u32,
}

impl<'v> Page<'v> {
    /// The map, if it counts.
    pub(super) fn purged(&self) -> Option<Purged> {
        let descriptor = self.descriptor();
        // ORDER: Acquire pairs with the Release in `purge`, for those who only look.
        if descriptor.purged.load(Ordering::Acquire) != 1 {
            return None;
        }
        let words = &descriptor.purged_blocks;
        Some(Purged(std::array::from_fn(|at| words[at].load(Ordering::Relaxed))))
    }

    /// Gives back the memory that no block of this page needs but such as are on its lists. The page is
    /// the caller's, and in no bin. None if it is not worth it, or was done before.
    pub(super) fn purge(&self) -> Option<Gain> {
        if self.blocks() > PURGED_BLOCKS || self.purged().is_some() {
            return None;
        }
        let (free, local) = (self.free(), self.local());
        let mut met = Met::new();
        // A list that cannot be followed is left for `check` to find.
        [free, local].into_iter().try_for_each(|list| met.follow(self, list)).ok()?;
        let frames = self.resident_frames() & self.frames_without_others(&met);
        let bytes = u64::from(frames.count_ones()) * PAGE_BYTES;
        if bytes < LEAST_BYTES {
            return None;
        }
        let descriptor = self.descriptor();
        for (word, bits) in descriptor.purged_blocks.iter().zip(met.words()) {
            word.store(*bits, Ordering::Relaxed);
        }
        // ORDER: Release, here and below: the map stands before it counts, and counts before the
        // lists are empty.
        descriptor.purged.store(1, Ordering::Release);
        crate::crash_point!("purge.mapped");
        descriptor.local.store(0, Ordering::Release);
        descriptor.free.store(0, Ordering::Release);
        let waits = descriptor.event.load(Ordering::Relaxed) != NO_EVENT;
        if waits && descriptor.queued.load(Ordering::Relaxed) == PARTIAL {
            let others = self.carved().saturating_sub(met.count);
            descriptor.event.store(others.saturating_sub(1), Ordering::Relaxed);
        }
        self.expect_memory_up_to(frames);
        // Died here, or in what follows: some memory stays until it is used again.
        crate::crash_point!("purge.unlisted");
        let bytes = self.punch(frames);
        Some(Gain { bytes, freed_locally: local.count() })
    }

    /// The frames of this page that have memory, a bit for each.
    fn resident_frames(&self) -> u128 {
        (0..self.units()).fold(0, |frames, place| {
            let resident = self.view.descriptor(self.unit + place).resident.load(Ordering::Relaxed);
            frames | frames_below(resident.min(UNIT_FRAMES)) << (place * UNIT_FRAMES)
        })
    }

    /// Those in which no block lies that was carved and is not among `free`.
    fn frames_without_others(&self, free: &Met) -> u128 {
        let frame = u32::try_from(PAGE_BYTES).unwrap_or(4096);
        let size = self.block_bytes();
        let others = (0..self.carved()).filter(|&index| !free.contains(index));
        others.fold(frames_below(self.units() * UNIT_FRAMES), |frames, index| {
            let (start, end) = (index * size, index * size + size);
            frames & !(frames_below(end.div_ceil(frame)) & !frames_below(start / frame))
        })
    }

    /// Takes back what was said of the memory of this page's units: behind the first of `frames` there
    /// will be some that has none.
    fn expect_memory_up_to(&self, frames: u128) {
        for place in 0..self.units() {
            let of_unit = frames >> (place * UNIT_FRAMES) & frames_below(UNIT_FRAMES);
            let resident = &self.view.descriptor(self.unit + place).resident;
            let least = of_unit.trailing_zeros().min(resident.load(Ordering::Relaxed));
            resident.store(least, Ordering::Relaxed);
        }
    }

    /// Gives `frames` to the kernel, each row of them at once. How many bytes it took.
    fn punch(&self, frames: u128) -> u64 {
        let (mut left, mut bytes) = (frames, 0);
        while left != 0 {
            let first = left.trailing_zeros();
            let len = (left >> first).trailing_ones();
            left &= !(frames_below(first + len) & !frames_below(first));
            let start = unit_start(self.unit) + u64::from(first) * PAGE_BYTES;
            let end = start + u64::from(len) * PAGE_BYTES;
            if self.view.backend().punch(start..end).is_err() {
                break;
            }
            bytes += end - start;
        }
        bytes
    }

    /// Puts memory behind the blocks in the map, and them into the empty bin. None if there are none.
    pub(super) fn restore(&self, bin: &AtomicU64) -> Result<Option<Loaded>, BackendError> {
        let Some(purged) = self.purged() else { return Ok(None) };
        let carved = self.carved();
        self.make_resident(carved)?;
        let mut list = List::EMPTY;
        for index in purged.indices().filter(|&index| index < carved) {
            let offset = self.block(index);
            if let Some(link) = self.view.word(offset) {
                link.store(list.0, Ordering::Relaxed);
                list = list.with_first(offset);
            }
        }
        // ORDER: Release: the links stand before the list does.
        bin.store(list.0, Ordering::Release);
        crate::crash_point!("purge.restored");
        // ORDER: Release keeps it after the bin's store.
        self.descriptor().purged.store(0, Ordering::Release);
        let loaded = Loaded { blocks: list.count(), freed_locally: 0 };
        Ok((!list.is_empty()).then_some(loaded))
    }

    /// Empties the lists that the map replaces, where a purge was not finished.
    pub(super) fn finish_purge(&self) {
        let Some(purged) = self.purged() else { return };
        let descriptor = self.descriptor();
        for list in [&descriptor.free, &descriptor.local] {
            if purged.replaces(self, List(list.load(Ordering::Relaxed))) {
                list.store(0, Ordering::Release);
            }
        }
    }
}

impl Met {
    /// Meets the blocks of a map as well.
    pub(super) fn add_purged(&mut self, page: &Page<'_>, purged: &Purged) -> Result<(), Fault> {
        purged.indices().try_for_each(|index| {
            if index >= page.blocks() {
                Err(Fault::NoBlock(page.block(index)))
            } else if self.insert(index) {
                Ok(())
            } else {
                Err(Fault::Twice(page.block(index)))
            }
        })
    }
}

/// The first `count` bits.
const fn frames_below(count: u32) -> u128 {
    if count >= u128::BITS { u128::MAX } else { (1 << count) - 1 }
}
