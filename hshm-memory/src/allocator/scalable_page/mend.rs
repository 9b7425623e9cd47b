//! Making everything anew that follows from the pages' headers, after a holder's death or where it
//! was overwritten; and taking in what the segment has grown by.

use super::heap::{Heap, Page};
use super::layout::{LEAST_GRANULES, State};
use crate::allocator::segment::GRANULE_BYTES;
use crate::error::AllocError;
use crate::sync::Ordering;

impl Heap<'_> {
    /// Walks the pages from the first to the last.
    pub(super) fn walk(
        &self,
        mut visit: impl FnMut(Page) -> Result<(), AllocError>,
    ) -> Result<(), AllocError> {
        let mut at = self.segment.first_block();
        // Each page has a size, so this comes to an end.
        while at < self.end {
            let page = self.page(at)?;
            visit(page)?;
            at = page.end();
        }
        Ok(())
    }

    /// Makes caches, links, sizes of pages before and sums from the headers, and joins free pages
    /// that stand side by side. It takes a look at each page, and may be begun again at any point.
    ///
    /// # Errors
    /// [`AllocError::Corrupt`] if a header was overwritten: then nothing was changed.
    pub(super) fn mend(&self) -> Result<(), AllocError> {
        self.walk(|_| Ok(()))?;
        let table = self.table;
        for word in table.filled.iter().chain(&table.caches) {
            word.store(0, Ordering::Relaxed);
        }
        crate::crash_point!("scalable.caches_emptied");
        let (mut bytes, mut blocks) = (0, 0);
        // The free page that was met last and may grow yet, and the size of the page before.
        let mut open: Option<Page> = None;
        let mut before = 0;
        self.walk(|page| {
            match (page.state, open) {
                (State::Free, Some(free)) => {
                    let granules = free.granules + page.granules;
                    let joined = self.transition_page(free.at, granules, State::Free)?;
                    crate::crash_point!("scalable.mend_joined");
                    open = Some(joined);
                    before = joined.granules;
                    return Ok(());
                }
                (State::Free, None) => open = Some(page),
                (State::Allocated, _) => {
                    if let Some(free) = open.take() {
                        self.cache_page(free)?;
                        crate::crash_point!("scalable.mend_cached");
                    }
                    bytes += page.block_bytes();
                    blocks += 1;
                }
            }
            self.store_granules_before(page, before);
            before = page.granules;
            Ok(())
        })?;
        if let Some(free) = open {
            self.cache_page(free)?;
        }
        table.last_granules.store(before, Ordering::Relaxed);
        table.allocated_bytes.store(bytes, Ordering::Relaxed);
        table.allocated_blocks.store(blocks, Ordering::Relaxed);
        crate::crash_point!("scalable.mended");
        Ok(())
    }

    fn store_granules_before(&self, page: Page, granules: u64) {
        if let Some(word) = self.segment.word(page.at + 8) {
            word.store(granules, Ordering::Relaxed);
        }
    }

    /// Makes what the segment has grown by a free page. The heap after that, or `None` if it did not
    /// grow by enough.
    ///
    /// # Errors
    /// [`AllocError::Backend`] if there is no memory for a page's header.
    pub(super) fn absorb(&self) -> Result<Option<Self>, AllocError> {
        let limit = self.segment.refresh_limit();
        let granules = limit.saturating_sub(self.end) / GRANULE_BYTES;
        if granules < LEAST_GRANULES {
            return Ok(None);
        }
        let at = self.end;
        self.segment.make_resident(at + LEAST_GRANULES * GRANULE_BYTES)?;
        let before = self.table.last_granules.load(Ordering::Relaxed);
        // No page yet, as long as the end does not say so.
        let grown = Self { end: at + granules * GRANULE_BYTES, ..*self };
        grown.store_granules_before(Page { at, granules, state: State::Free }, before);
        let page = grown.transition_page(at, granules, State::Free)?;
        crate::crash_point!("scalable.tail_written");
        // ORDER: Release: the page's header stands when the end says that there is one.
        self.table.end.store(grown.end, Ordering::Release);
        crate::crash_point!("scalable.end_moved");
        if grown.tell_next(page).and_then(|()| grown.join(page)).is_err() {
            grown.mend()?;
        }
        Ok(Some(grown))
    }
}
