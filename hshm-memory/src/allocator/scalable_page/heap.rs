//! The table and the pages, as whoever holds the lock sees them: finding, cutting and joining pages.
//!
//! What decides is each page's header alone (see [`Word`]): pages lie one after the other from the
//! first to `Table::end`, and every change of which pages there are, and which are free, is one store
//! of one header. All else (caches, links, the size of the page before, sums) follows from the headers
//! and is made anew where its holder died, or where it contradicts them ([`super::mend`]).

use super::layout::{
    CACHES, LEAST_GRANULES, PREFIX_BYTES, State, Table, Word, cache_of, roomy_cache_of,
};
use crate::allocator::segment::{GRANULE_BYTES, Segment};
use crate::error::AllocError;
use crate::sync::{AtomicU64, Ordering};

/// Free pages of the fitting cache that are looked at before a larger one is cut.
const GLANCES: u64 = 16;

/// The heap while its lock is held.
pub(super) struct Heap<'s> {
    pub(super) segment: &'s Segment,
    pub(super) table: &'s Table,
    /// Where the pages end, checked against the mapping.
    pub(super) end: u64,
}

/// A page whose header was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Where its header stands.
    pub(super) at: u64,
    pub(super) granules: u64,
    pub(super) state: State,
}

impl Page {
    pub(super) fn end(self) -> u64 {
        self.at + self.granules * GRANULE_BYTES
    }

    /// Where the block begins.
    pub(super) fn block(self) -> u64 {
        self.at + PREFIX_BYTES
    }

    /// How long the block is.
    pub(super) fn block_bytes(self) -> u64 {
        self.granules * GRANULE_BYTES - PREFIX_BYTES
    }
}

fn corrupt<T>(offset: u64, what: &'static str) -> Result<T, AllocError> {
    Err(AllocError::Corrupt { offset, what })
}

/// The size of a page for a block of `len` bytes, which is a multiple of the granule.
pub(super) fn granules_for(len: u64) -> u64 {
    (len / GRANULE_BYTES + PREFIX_BYTES / GRANULE_BYTES).max(LEAST_GRANULES)
}

impl<'s> Heap<'s> {
    /// To be made by the holder of the lock.
    pub(super) fn new(segment: &'s Segment) -> Result<Self, AllocError> {
        let table: &Table = segment.table();
        let end = table.end.load(Ordering::Relaxed);
        if end < segment.first_block()
            || !end.is_multiple_of(GRANULE_BYTES)
            || !segment.reaches(end)
        {
            return corrupt(end, "the last page's end lies outside the segment");
        }
        Ok(Self { segment, table, end })
    }

    fn word(&self, offset: u64) -> Result<&'s AtomicU64, AllocError> {
        let word = self.segment.word(offset).filter(|_| offset < self.end);
        word.map_or_else(|| corrupt(offset, "a page lies outside the segment"), Ok)
    }

    /// The page whose header stands at `at`.
    pub(super) fn page(&self, at: u64) -> Result<Page, AllocError> {
        if !at.is_multiple_of(GRANULE_BYTES) {
            return corrupt(at, "a page begins between two granules");
        }
        // ORDER: Relaxed: the lock orders all accesses.
        let found = Word(self.word(at)?.load(Ordering::Relaxed)).read(at);
        match found.map(|(granules, state)| Page { at, granules, state }) {
            Some(page) if page.end() <= self.end => Ok(page),
            Some(_) | None => corrupt(at, "a page's header was overwritten"),
        }
    }

    /// Makes the header at `at` say so: the step that decides.
    pub(super) fn transition_page(
        &self,
        at: u64,
        granules: u64,
        state: State,
    ) -> Result<Page, AllocError> {
        // ORDER: Release: a page that this one makes visible has its own header already, and what it
        // swallows was free before, even if the holder dies right after.
        self.word(at)?.store(Word::new(at, granules, state).0, Ordering::Release);
        Ok(Page { at, granules, state })
    }

    pub(super) fn granules_before(&self, at: u64) -> Result<u64, AllocError> {
        Ok(self.word(at + 8)?.load(Ordering::Relaxed))
    }

    /// Tells the page after, or the table, how large `page` is.
    pub(super) fn tell_next(&self, page: Page) -> Result<(), AllocError> {
        let told = if page.end() == self.end {
            &self.table.last_granules
        } else {
            self.word(page.end() + 8)?
        };
        told.store(page.granules, Ordering::Relaxed);
        Ok(())
    }

    pub(super) fn next(&self, page: Page) -> Result<Option<Page>, AllocError> {
        if page.end() == self.end { Ok(None) } else { self.page(page.end()).map(Some) }
    }

    /// The page before the one at `at`, which may be the end.
    pub(super) fn previous(&self, at: u64) -> Result<Option<Page>, AllocError> {
        if at == self.segment.first_block() {
            return Ok(None);
        }
        let granules = if at == self.end {
            self.table.last_granules.load(Ordering::Relaxed)
        } else {
            self.granules_before(at)?
        };
        let distance = granules.checked_mul(GRANULE_BYTES);
        let before = distance.and_then(|distance| at.checked_sub(distance));
        let Some(before) = before.filter(|&before| before >= self.segment.first_block()) else {
            return corrupt(at, "the size of the page before was overwritten");
        };
        let page = self.page(before)?;
        if page.end() == at {
            Ok(Some(page))
        } else {
            corrupt(at, "the size of the page before was overwritten")
        }
    }

    /// The allocated page of the block at `offset`, whose neighbours agree that it is one.
    pub(super) fn allocated(&self, offset: u64) -> Result<Page, AllocError> {
        let no = |why| Err(AllocError::NotAllocated { offset, why });
        if offset == 0 {
            return no("it is null");
        }
        let at = offset.checked_sub(PREFIX_BYTES);
        let Some(at) = at.filter(|&at| at >= self.segment.first_block() && offset < self.end)
        else {
            return no("it lies outside the segment's pages");
        };
        if !at.is_multiple_of(GRANULE_BYTES) {
            return no("it is not aligned to 16 bytes");
        }
        let Ok(page) = self.page(at) else { return no("no block begins there") };
        if page.state == State::Free {
            return no("it is free already");
        }
        self.previous(at)?;
        let told = if page.end() == self.end {
            self.table.last_granules.load(Ordering::Relaxed)
        } else {
            self.page(page.end())?;
            self.granules_before(page.end())?
        };
        if told == page.granules {
            Ok(page)
        } else {
            corrupt(page.end(), "the size of the page before was overwritten")
        }
    }

    fn next_link(&self, page: u64) -> Result<&'s AtomicU64, AllocError> {
        self.word(page + PREFIX_BYTES)
    }

    fn previous_link(&self, page: u64) -> Result<&'s AtomicU64, AllocError> {
        self.word(page + PREFIX_BYTES + 8)
    }

    /// The next and the previous page of a free page's cache.
    pub(super) fn links(&self, page: u64) -> Result<(u64, u64), AllocError> {
        let next = self.next_link(page)?.load(Ordering::Relaxed);
        Ok((next, self.previous_link(page)?.load(Ordering::Relaxed)))
    }

    pub(super) fn cache(&self, cache: usize) -> &'s AtomicU64 {
        self.table.caches.get(cache).unwrap_or(&self.table.caches[CACHES - 1])
    }

    fn mark_cache(&self, cache: usize, filled: bool) {
        let Some(word) = self.table.filled.get(cache / 64) else { return };
        let bit = 1 << (cache % 64);
        let bits = word.load(Ordering::Relaxed);
        let bits = if filled { bits | bit } else { bits & !bit };
        word.store(bits, Ordering::Relaxed);
    }

    /// The page that a link of a cache names.
    pub(super) fn cached(&self, link: u64, cache: usize) -> Result<Page, AllocError> {
        let page = self.page(link)?;
        if page.state == State::Free && cache_of(page.granules) == cache {
            Ok(page)
        } else {
            corrupt(link, "a cache holds a page that does not belong there")
        }
    }

    /// Puts a free page into its cache.
    pub(super) fn cache_page(&self, page: Page) -> Result<(), AllocError> {
        let cache = cache_of(page.granules);
        let first = self.cache(cache);
        let next = first.load(Ordering::Relaxed);
        self.next_link(page.at)?.store(next, Ordering::Relaxed);
        self.previous_link(page.at)?.store(0, Ordering::Relaxed);
        if next != 0 {
            self.cached(next, cache)?;
            self.previous_link(next)?.store(page.at, Ordering::Relaxed);
            crate::crash_point!("scalable.half_cached");
        }
        first.store(page.at, Ordering::Relaxed);
        crate::crash_point!("scalable.cached");
        self.mark_cache(cache, true);
        Ok(())
    }

    /// Takes a free page out of its cache.
    pub(super) fn uncache_page(&self, page: Page) -> Result<(), AllocError> {
        let cache = cache_of(page.granules);
        let (next, previous) = self.links(page.at)?;
        let from = if previous == 0 {
            self.cache(cache)
        } else {
            self.cached(previous, cache)?;
            self.next_link(previous)?
        };
        if from.load(Ordering::Relaxed) != page.at {
            return corrupt(page.at, "a free page is not in its cache");
        }
        if next != 0 {
            self.cached(next, cache)?;
            let back = self.previous_link(next)?;
            if back.load(Ordering::Relaxed) != page.at {
                return corrupt(next, "a cache's links contradict one another");
            }
            back.store(previous, Ordering::Relaxed);
            crate::crash_point!("scalable.half_uncached");
        } else if previous == 0 {
            self.mark_cache(cache, false);
        }
        from.store(next, Ordering::Relaxed);
        crate::crash_point!("scalable.uncached");
        Ok(())
    }

    /// The first cache from `cache` on that has a page.
    fn filled_from(&self, cache: usize) -> Option<usize> {
        let mut mask = u64::MAX << (cache % 64);
        for (index, word) in self.table.filled.iter().enumerate().skip(cache / 64) {
            let bits = word.load(Ordering::Relaxed) & mask;
            if bits != 0 {
                let found = index * 64 + bits.trailing_zeros() as usize;
                return (found < CACHES).then_some(found);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The page of `cache` that `fits` finds the least waste in, of the first `glances`.
    fn best_of(
        &self,
        cache: usize,
        glances: u64,
        fits: impl Fn(Page) -> Option<u64>,
    ) -> Result<Option<Page>, AllocError> {
        let mut best: Option<(u64, Page)> = None;
        let mut link = self.cache(cache).load(Ordering::Relaxed);
        let mut from = 0;
        for _ in 0..glances {
            if link == 0 {
                break;
            }
            let page = self.cached(link, cache)?;
            let (next, back) = self.links(link)?;
            // Each page names the one before: a list that leads into itself ends here.
            if back != from {
                return corrupt(link, "a cache's links contradict one another");
            }
            if let Some(waste) = fits(page)
                && best.is_none_or(|(least, _)| waste < least)
            {
                best = Some((waste, page));
                if waste == 0 {
                    break;
                }
            }
            from = link;
            link = next;
        }
        Ok(best.map(|(_, page)| page))
    }

    /// The most free pages there can be.
    pub(super) fn most_pages(&self) -> u64 {
        (self.end - self.segment.first_block()) / (LEAST_GRANULES * GRANULE_BYTES)
    }

    /// A free page with room for a block of `granules`, header included, aligned to `align`.
    fn find(&self, granules: u64, align: u64) -> Result<Option<Page>, AllocError> {
        let fits = |page: Page| {
            let lead = lead_granules(page, align);
            page.granules.checked_sub(granules.checked_add(lead)?)
        };
        let own = cache_of(granules);
        let found = self.best_of(own, GLANCES, fits)?;
        // So large that the block fits wherever it is to begin.
        let slack = if align > GRANULE_BYTES { align / GRANULE_BYTES + LEAST_GRANULES } else { 0 };
        let roomy = roomy_cache_of(granules + slack);
        match found {
            Some(page) => return Ok(Some(page)),
            None if roomy < CACHES => {
                if let Some(cache) = self.filled_from(roomy)
                    && let Some(page) = self.best_of(cache, GLANCES, fits)?
                {
                    return Ok(Some(page));
                }
            }
            None => {}
        }
        // Nothing fits in any case; what is there may fit by chance.
        let mut cache = own;
        while let Some(filled) = self.filled_from(cache) {
            if let Some(page) = self.best_of(filled, self.most_pages(), fits)? {
                return Ok(Some(page));
            }
            cache = filled + 1;
            if cache >= CACHES {
                break;
            }
        }
        Ok(None)
    }

    /// Takes a block of `len` bytes, a multiple of the granule, at a multiple of `align`.
    pub(super) fn allocate(&self, len: u64, align: u64) -> Result<Option<u64>, AllocError> {
        let granules = granules_for(len);
        let Some(found) = self.find(granules, align)? else { return Ok(None) };
        let lead = lead_granules(found, align);
        let at = found.at + lead * GRANULE_BYTES;
        let rest = found.granules - lead - granules;
        let taken = if rest < LEAST_GRANULES { granules + rest } else { granules };
        let end = at + taken * GRANULE_BYTES;
        // And the header and links of what is left.
        let needed = (end + LEAST_GRANULES * GRANULE_BYTES).min(found.end());
        self.segment.make_resident(needed)?;
        self.uncache_page(found)?;
        // From here on nothing fails but for what another process wrote over, and then the pages'
        // headers decide.
        let rest = (rest >= LEAST_GRANULES).then_some(rest);
        if let Some(rest) = rest {
            self.transition_page(end, rest, State::Free)?;
            self.word(end + 8)?.store(taken, Ordering::Relaxed);
            crate::crash_point!("scalable.rest_written");
        }
        if lead > 0 {
            self.transition_page(at, taken, State::Free)?;
            self.word(at + 8)?.store(lead, Ordering::Relaxed);
            crate::crash_point!("scalable.lead_written");
            self.transition_page(found.at, lead, State::Free)?;
            // Died here: two free pages stand side by side; they are joined.
            crate::crash_point!("scalable.lead_cut");
        }
        let page = self.transition_page(at, taken, State::Allocated)?;
        // Died here: the block is allocated, and nobody knows it.
        crate::crash_point!("scalable.taken");
        self.settle(|| {
            if lead > 0 {
                self.cache_page(Page { at: found.at, granules: lead, state: State::Free })?;
            }
            match rest {
                Some(granules) => {
                    let rest = Page { at: end, granules, state: State::Free };
                    self.tell_next(rest)?;
                    self.cache_page(rest)?;
                }
                None => self.tell_next(page)?,
            }
            crate::crash_point!("scalable.rest_cached");
            self.count(page.block_bytes(), 1);
            Ok(())
        });
        Ok(Some(page.block()))
    }

    /// Does what follows from a decision that a header states already. Where something contradicts
    /// the headers, all that follows from them is made anew.
    fn settle(&self, follow: impl FnOnce() -> Result<(), AllocError>) {
        if follow().is_err() {
            // If even that fails, the next who meets the contradiction says so.
            let _ = self.mend();
        }
    }

    /// Adds to the sums. What is taken off is given as what completes it to zero.
    fn count(&self, bytes: u64, blocks: u64) {
        let add = |sum: &AtomicU64, by: u64| {
            let now = sum.load(Ordering::Relaxed);
            sum.store(now.wrapping_add(by), Ordering::Relaxed);
        };
        add(&self.table.allocated_bytes, bytes);
        crate::crash_point!("scalable.half_counted");
        add(&self.table.allocated_blocks, blocks);
    }

    /// Bytes in allocated blocks, and how many those are.
    pub(super) fn sums(&self) -> (u64, u64) {
        let sum = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        (sum(&self.table.allocated_bytes), sum(&self.table.allocated_blocks))
    }

    /// Frees the block at `offset`.
    pub(super) fn free(&self, offset: u64) -> Result<(), AllocError> {
        let page = self.allocated(offset)?;
        let freed = self.transition_page(page.at, page.granules, State::Free)?;
        // Died here: the block is free.
        crate::crash_point!("scalable.freed");
        self.settle(|| {
            self.count(page.block_bytes().wrapping_neg(), 1_u64.wrapping_neg());
            self.join(freed)
        });
        Ok(())
    }

    /// Joins a free page that is in no cache with its free neighbours, and puts it into its cache.
    pub(super) fn join(&self, page: Page) -> Result<(), AllocError> {
        let mut page = page;
        if let Some(next) = self.next(page)?
            && next.state == State::Free
        {
            self.uncache_page(next)?;
            page = self.transition_page(page.at, page.granules + next.granules, State::Free)?;
            crate::crash_point!("scalable.joined_next");
        }
        if let Some(before) = self.previous(page.at)?
            && before.state == State::Free
        {
            self.uncache_page(before)?;
            page = self.transition_page(before.at, before.granules + page.granules, State::Free)?;
            crate::crash_point!("scalable.joined_before");
        }
        self.tell_next(page)?;
        crate::crash_point!("scalable.told_next");
        self.cache_page(page)
    }

    /// Makes an allocated page `wanted` granules large where it stands. False if that cannot be.
    pub(super) fn resize(&self, page: Page, wanted: u64) -> Result<bool, AllocError> {
        if wanted <= page.granules {
            self.shrink(page, wanted)?;
            return Ok(true);
        }
        let Some(next) = self.next(page)?.filter(|next| next.state == State::Free) else {
            return Ok(false);
        };
        let all = page.granules + next.granules;
        let Some(rest) = all.checked_sub(wanted) else { return Ok(false) };
        let granules = if rest < LEAST_GRANULES { all } else { wanted };
        let end = page.at + granules * GRANULE_BYTES;
        let needed = (end + LEAST_GRANULES * GRANULE_BYTES).min(next.end());
        self.segment.make_resident(needed)?;
        self.uncache_page(next)?;
        let rest = all - granules;
        if rest > 0 {
            self.transition_page(end, rest, State::Free)?;
            self.word(end + 8)?.store(granules, Ordering::Relaxed);
        }
        let grown = self.transition_page(page.at, granules, State::Allocated)?;
        // Died here: the block has its new size.
        crate::crash_point!("scalable.grown");
        self.settle(|| {
            if rest > 0 {
                let rest = Page { at: end, granules: rest, state: State::Free };
                self.tell_next(rest)?;
                self.cache_page(rest)?;
            } else {
                self.tell_next(grown)?;
            }
            self.count(grown.block_bytes() - page.block_bytes(), 0);
            Ok(())
        });
        Ok(true)
    }

    /// Cuts off what lies beyond `granules`, if that makes a page.
    fn shrink(&self, page: Page, granules: u64) -> Result<(), AllocError> {
        let rest = page.granules - granules;
        if rest < LEAST_GRANULES {
            return Ok(());
        }
        let end = page.at + granules * GRANULE_BYTES;
        let rest = self.transition_page(end, rest, State::Free)?;
        self.word(end + 8)?.store(granules, Ordering::Relaxed);
        crate::crash_point!("scalable.cut_written");
        let shrunk = self.transition_page(page.at, granules, State::Allocated)?;
        // Died here: the block has its new size.
        crate::crash_point!("scalable.shrunk");
        self.settle(|| {
            let less = page.block_bytes() - shrunk.block_bytes();
            self.count(less.wrapping_neg(), 0);
            self.join(rest)
        });
        Ok(())
    }
}

/// What is to be cut off before a block aligned to `align` in a free page, in granules: nothing, or a
/// page at least.
fn lead_granules(page: Page, align: u64) -> u64 {
    let first = page.block();
    let aligned = first.next_multiple_of(align);
    let lead = if aligned == first {
        0
    } else if aligned - first < LEAST_GRANULES * GRANULE_BYTES {
        // The next multiple is far enough, or the one after.
        aligned + align.max(LEAST_GRANULES * GRANULE_BYTES) - first
    } else {
        aligned - first
    };
    lead / GRANULE_BYTES
}
