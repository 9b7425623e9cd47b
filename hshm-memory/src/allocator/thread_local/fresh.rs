//! Blocks that were never on a list: they are cut off a page in the order of their addresses, straight
//! into the cache, and have no links. A page whose blocks were all freed has such blocks again.
//!
//! Following a list of blocks that were freed in any order leads from one end of the page to the other,
//! each step waiting for the one before; these are one behind the other.

use std::num::NonZeroU64;

use super::cache::{RowWord, counter, places};
use super::heap::Heap;
use super::layout::{PAGE_BYTES, UNIT_FRAMES};
use super::page::Page;
use super::refill::{add, sub};
use super::size_class::block_bytes;
use super::words::{Kind, List, Tag, unit_of, unit_start};
use crate::sync::{AtomicU64, Ordering};

impl Heap {
    /// Takes a block of `class`, a small one, of the page that its bin is of, and puts more of it into
    /// the class's row, which is empty: blocks that were never on a list, with memory behind them.
    ///
    /// They need no links, and are taken in the order of their addresses.
    #[cold]
    #[inline(never)]
    pub(super) fn cut_into_row(&self, class: usize) -> Option<NonZeroU64> {
        let row = self.cache.row(class);
        let word = RowWord(counter(row).load(Ordering::Relaxed));
        let limit = u32::try_from(word.limit()).ok()?;
        let list = List(self.slot().bins.get(class)?.load(Ordering::Relaxed));
        if limit == 0 || word.count() > 0 || list.is_empty() {
            return None;
        }
        let unit = unit_of(list.first());
        let descriptor = self.descriptor(unit)?;
        let is_ours = self.tag_word(unit)?.load(Ordering::Relaxed) == Tag::page(self.id, class).0;
        // What was freed is used first.
        let is_fresh = is_ours
            && descriptor.local.load(Ordering::Relaxed) == 0
            && descriptor.purged.load(Ordering::Relaxed) == 0;
        let size = block_bytes(class);
        let resident = descriptor.resident.load(Ordering::Relaxed).min(UNIT_FRAMES);
        let carved = descriptor.carved.load(Ordering::Relaxed);
        let with_memory = (u64::from(resident) * PAGE_BYTES).checked_div(size.into())?;
        let with_memory = u32::try_from(with_memory).unwrap_or(0);
        let count = with_memory.saturating_sub(carved).min(limit);
        if !is_fresh || count == 0 {
            return None;
        }
        let first = unit_start(unit) + u64::from(carved) * u64::from(size);
        let filled = word.with_count(u64::from(count - 1));
        let mut offset = first;
        let mut put = |place: &AtomicU64| {
            offset += u64::from(size);
            place.store(offset, Ordering::Relaxed);
        };
        // Several at a time: the loop's own instructions would be as many as its body's.
        let (fours, others) = places(row, filled.room()..word.room()).as_chunks::<4>();
        fours.iter().for_each(|four| four.iter().for_each(&mut put));
        others.iter().for_each(&mut put);
        // ORDER: Release, here and below: blocks stand in the row before they are counted, and are
        // counted there before they are carved.
        counter(row).store(filled.0, Ordering::Release);
        // Died here: the row has blocks that were never carved; recovery leaves them out.
        crate::crash_point!("cache.filled");
        let carved = carved + count;
        descriptor.carved.store(carved, Ordering::Release);
        // All of them may be free again when all but those are on the local list that are in the bin
        // or in the row. It takes some time to find out, so that the page should have many.
        let awaited = carved.saturating_sub(list.count() + limit);
        let page = Page::new(&self.view, unit, Tag::page(self.id, class));
        if awaited > page.blocks() / 2 {
            self.await_frees(&page, awaited);
        }
        let counters = self.counters();
        add(&counters.loaded, 1);
        // The reader takes all that is in the cache for freed, and these never were.
        sub(&counters.local_frees, u64::from(count - 1));
        NonZeroU64::new(first)
    }

    /// How many blocks of a page of ours, which has `missing` blocks on no list, are in our cache: exactly,
    /// if those may be all; else no fewer.
    pub(super) fn cached_of(&self, page: &Page<'_>, missing: u32) -> u32 {
        let Some(rows) = self.rows().filter(|_| page.tag.kind() == Kind::Small) else { return 0 };
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let most = count(rows.count(page.class()).count());
        if missing > most {
            return most;
        }
        count(rows.count_of_page(page.class(), page.unit))
    }

    /// Forgets all lists of a page of ours, which is in no bin and has no block but free ones on its own
    /// lists and `cached` ones in our cache: its blocks are carved anew, one after the other, where
    /// following a list leads from one end of the page to the other.
    pub(super) fn reset(&self, page: &Page<'_>, cached: u32) {
        let freed = page.local().count() + cached;
        page.forget_blocks();
        if cached > 0
            && let Some(rows) = self.rows()
        {
            rows.forget_page(page.class(), page.unit);
        }
        add(&self.counters().local_frees, freed.into());
    }
}
