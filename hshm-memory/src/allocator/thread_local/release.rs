//! Freeing what is not a plain block of a page of ours: blocks of others' pages, of pages without
//! owner, the free that leaves a page empty, large blocks; and changing a block's size.

use std::cell::Cell;

use super::heap::Heap;
use super::layout::UNIT_BYTES;
use super::page::{NO_EVENT, Page, pusher, tag_after_push};
use super::queue::{FULL, PARTIAL};
use super::recover;
use super::refill::{Request, add, sub};
use super::remote::{self, Mark, Place};
use super::size_class::class_of;
use super::units;
use super::words::{Kind, List, Tag, unit_of, unit_start};
use crate::error::AllocError;
use crate::options::OnExit;
use crate::sync::Ordering;

/// Of each class a worker keeps few pages with free blocks that it does not allocate from: this part
/// of the segment,
const PARTIAL_PART: usize = 512;
/// and this many.
const PARTIAL_MOST: usize = 64;

/// The block that an offset names.
#[derive(Clone, Copy, Debug)]
pub(super) enum Block<'v> {
    /// One of a page.
    InPage(Page<'v>),
    /// A run.
    Run { head: u32, tag: Tag },
}

impl Heap {
    /// Frees what the fast path could not.
    #[cold]
    #[inline(never)]
    pub(super) fn free_slow(&self, offset: u64) -> Result<(), AllocError> {
        self.note_limit();
        self.claim_cache();
        loop {
            match self.locate(offset)? {
                Block::InPage(page) => {
                    if self.free_in_page(page, offset)? {
                        return Ok(());
                    }
                }
                Block::Run { head, tag } => return self.free_run(head, tag),
            }
        }
    }

    /// What the offset names, as far as that can be told without looking at every list: it is the
    /// start of a carved block or of a run.
    pub(super) fn locate(&self, offset: u64) -> Result<Block<'_>, AllocError> {
        let bad = |why| AllocError::NotAllocated { offset, why };
        let unit = unit_of(offset);
        if unit >= self.view.units() {
            self.refresh_limit();
        }
        let Some(tag) = self.view.tag(unit) else {
            return Err(bad(if offset == 0 {
                "it is null"
            } else {
                "it lies outside the part of the segment that holds blocks"
            }));
        };
        match tag.kind() {
            Kind::Small | Kind::Medium | Kind::MediumBody => {
                let found = self.view.page_of(offset);
                let (unit, tag) = found.ok_or_else(|| bad("its page has no beginning"))?;
                let page = Page::new(&self.view, unit, tag);
                match page.index_of(offset) {
                    Some(index) if index < page.carved() => Ok(Block::InPage(page)),
                    Some(_) => Err(bad("no block was ever allocated there")),
                    None => Err(bad("no block begins there")),
                }
            }
            Kind::Large if unit_start(unit) == offset => Ok(Block::Run { head: unit, tag }),
            Kind::Large | Kind::RunBody => Err(bad("it points into the middle of a large block")),
            Kind::Free => Err(bad("its memory is free")),
            Kind::Claimed | Kind::Transit => Err(bad("its memory is being freed or claimed")),
            Kind::Cache => Err(bad("it lies in a worker's cache")),
            Kind::Unknown => Err(AllocError::Corrupt { offset, what: "a unit of no known kind" }),
        }
    }

    /// Frees a block of a page. False if the page changed hands meanwhile, and nothing was done.
    fn free_in_page(&self, page: Page<'_>, offset: u64) -> Result<bool, AllocError> {
        if page.tag.owner() == self.id {
            if page.local().count() >= page.carved() {
                return Err(freed_twice(offset));
            }
            page.push_local(offset);
            self.after_local_free(page);
            return Ok(true);
        }
        if page.tag.owner() == 0 {
            let Some(page) = page.adopt(self.id) else { return Ok(false) };
            add(&self.counters().adoptions, 1);
            page.push_local(offset);
            self.settle(page);
            return Ok(true);
        }
        self.free_remotely(page, offset, Mark::default())
    }

    /// Puts a block on the remote list of another's page. False if it is not that page any more.
    pub(super) fn free_remotely(
        &self,
        page: Page<'_>,
        offset: u64,
        mark: Mark,
    ) -> Result<bool, AllocError> {
        let Some(link) = self.view.word(offset) else { return Ok(false) };
        let place = Place { page: page.start(), offset_in_page: offset - page.start() };
        let pushed = remote::push(
            &page.descriptor().remote,
            link,
            place,
            mark,
            |slot| pusher(&self.view, slot),
            || page.carved_while_it_stands(),
        );
        if !pushed.map_err(|remote::Overfull| freed_twice(offset))? {
            return Ok(false);
        }
        // Died here: if the page has no owner now, the next who frees to it or looks for a page of
        // its class finds the block.
        crate::crash_point!("remote.pushed");
        add(&self.counters().remote_frees, 1);
        self.rescue(page.unit);
        Ok(true)
    }

    /// Takes over the page that a block was just freed to remotely, if its owner let go of it
    /// meanwhile, perhaps without seeing the block.
    pub(super) fn rescue(&self, unit: u32) {
        let tag = self.view.plausible(unit, tag_after_push(self.view.tag_word(unit)));
        if tag.owner() == 0
            && matches!(tag.kind(), Kind::Small | Kind::Medium)
            && let Some(page) = Page::new(&self.view, unit, tag).adopt(self.id)
        {
            add(&self.counters().adoptions, 1);
            self.settle(page);
        }
    }

    /// After a block of a page of ours was put on its local list.
    pub(super) fn after_local_free(&self, page: Page<'_>) {
        let descriptor = page.descriptor();
        if page.local().count() > descriptor.event.load(Ordering::Relaxed) {
            self.settle_again(page);
        } else if page.tag.kind() == Kind::Medium {
            self.after_medium_free(page);
        }
    }

    /// After a block of a medium page of ours was put on one of its lists.
    #[inline]
    pub(super) fn after_medium_free(&self, page: Page<'_>) {
        if !self.is_kept(Kind::Medium, page.unit) {
            self.keep_or_discard(&page);
        }
    }

    /// Medium pages are too large to be left standing empty, even where the next blocks of their class
    /// would come from.
    #[cold]
    #[inline(never)]
    fn keep_or_discard(&self, page: &Page<'_>) {
        if self.is_idle(page) && !self.keep(page) {
            self.discard(page);
        }
    }

    /// Finds the right place for a page of ours of which so many blocks were freed that all may be free.
    fn settle_again(&self, page: Page<'_>) {
        let in_bin = self.bin_of(&page).count();
        if in_bin == 0 {
            self.unqueue(&page);
            self.settle(page);
            return;
        }
        let missing = page.carved().saturating_sub(page.listed() + in_bin);
        let cached = self.cached_of(&page, missing);
        if missing > cached {
            self.await_frees(&page, missing - cached);
        } else {
            recover::give_up_bin(&self.view, self.id, page.class());
            self.settle(page);
        }
    }

    /// Has the free that makes the local list longer by `frees` look at the page again.
    pub(super) fn await_frees(&self, page: &Page<'_>, frees: u32) {
        let event = (page.local().count() + frees - 1).saturating_add(page.remote().count());
        page.descriptor().event.store(event, Ordering::Relaxed);
    }

    /// Finds the right place for a page of ours that is in no bin and no queue.
    pub(super) fn settle(&self, page: Page<'_>) {
        self.trim_calm.set(0);
        let carved = page.carved();
        // On none of its own lists: allocated, or in a cache.
        let missing = carved.saturating_sub(page.listed());
        let cached = self.cached_of(&page, missing);
        if missing <= cached {
            if page.tag.kind() == Kind::Small {
                self.reset(&page, cached);
            }
            if page.remote().count() > 0 || !self.keep(&page) {
                self.release(&page);
                return;
            }
            page.descriptor().event.store(NO_EVENT, Ordering::Relaxed);
        } else if page.tag.kind() == Kind::Medium && self.view.on_exit() == OnExit::Keep {
            // Large as it is, it is anybody's: so it is freed by whoever frees its last block.
            self.let_go(page);
            return;
        } else if carved == page.blocks() && (page.listed() == 0 || self.has_plenty(&page)) {
            self.let_go(page);
            return;
        } else {
            // After these no block is left that is neither free nor, as far as can be told now, in our
            // cache; unless others have freed some too: those pages are found empty when they are
            // looked at.
            self.await_frees(&page, missing - cached);
        }
        self.partial.push_back(&page);
    }

    /// Whether so many pages with free blocks of this class are ours that others are to have this one:
    /// what we free and allocate may never come to it, while they look for memory.
    fn has_plenty(&self, page: &Page<'_>) -> bool {
        let most = (self.view.block_units().len() / PARTIAL_PART).clamp(2, PARTIAL_MOST);
        self.view.on_exit() == OnExit::Keep && self.partial.len(page.class()) as usize >= most
    }

    /// Takes a page of ours out of the queue that it is in.
    pub(super) fn unqueue(&self, page: &Page<'_>) {
        let queues = match page.descriptor().queued.load(Ordering::Relaxed) {
            PARTIAL => &self.partial,
            FULL => &self.full,
            _ => return,
        };
        queues.remove(page);
    }

    /// Gives back a page of ours that has no allocated block and is in no bin and no queue.
    pub(super) fn release(&self, page: &Page<'_>) {
        add(&self.counters().local_frees, page.local().count().into());
        units::release_page(&self.view, self.id, page.unit, page.tag);
    }

    /// Remembers a wholly free page for later, if few are remembered.
    fn keep(&self, page: &Page<'_>) -> bool {
        if self.is_kept(page.tag.kind(), page.unit) {
            return true;
        }
        let kept = self.kept_of(page.tag.kind());
        // Entries whose pages are in use again make room.
        let room = kept.iter().find(|kept| self.kept_page(kept.get()).is_none());
        room.map(|cell| cell.set(page.unit)).is_some()
    }

    /// Whether the page of ours at `unit` is remembered since it was last seen wholly free.
    #[inline]
    fn is_kept(&self, kind: Kind, unit: u32) -> bool {
        self.kept_of(kind).iter().any(|kept| kept.get() == unit)
    }

    #[inline]
    fn kept_of(&self, kind: Kind) -> &[Cell<u32>] {
        if kind == Kind::Medium { &self.kept_medium } else { &self.kept }
    }

    /// The page that was kept at `unit`, if it is still wholly free.
    fn kept_page(&self, unit: u32) -> Option<Page<'_>> {
        let tag = self.view.tag(unit).filter(|tag| tag.owner() == self.id)?;
        if !matches!(tag.kind(), Kind::Small | Kind::Medium) {
            return None;
        }
        let page = Page::new(&self.view, unit, tag);
        (page.remote().count() == 0 && self.is_idle(&page)).then_some(page)
    }

    /// Takes a kept page of the same kind as those of `class`: its units are claimed then.
    pub(super) fn claim_kept(&self, class: usize) -> Option<u32> {
        let kind = Tag::page(self.id, class).kind();
        self.kept_of(kind).iter().rev().find_map(|kept| {
            let page = self.kept_page(kept.replace(0)).filter(|page| page.tag.kind() == kind)?;
            self.withdraw(&page);
            Some(page.unit)
        })
    }

    /// The list of our bin, if it is of this page.
    pub(super) fn bin_of(&self, page: &Page<'_>) -> List {
        let list = self.view.bin_list(self.slot(), page.class());
        if page.contains(list.first()) { list } else { List::EMPTY }
    }

    /// Whether a page of ours has no allocated block.
    fn is_idle(&self, page: &Page<'_>) -> bool {
        page.listed() + self.bin_of(page).count() >= page.carved()
    }

    /// Makes the units of a page of ours that has no allocated block claimed ones, and takes it out
    /// of our bin or queue.
    fn withdraw(&self, page: &Page<'_>) {
        let list = self.bin_of(page);
        if list.is_empty() {
            self.unqueue(page);
        }
        add(&self.counters().local_frees, page.local().count().into());
        units::unbind_page(&self.view, self.id, page.unit, page.tag);
        // Died here: the bin names units that are no page any more, and recovery empties it. In the
        // other order the blocks that only the bin had would count as allocated.
        crate::crash_point!("page.withdrawn");
        if !list.is_empty() {
            // ORDER: Release keeps it after the tags.
            self.view.bin(self.slot(), page.class()).store(0, Ordering::Release);
            sub(&self.counters().loaded, list.count().into());
        }
    }

    /// Gives back a page of ours that has no allocated block, wherever it is.
    fn discard(&self, page: &Page<'_>) {
        self.withdraw(page);
        units::release_unbound_page(&self.view, page.unit, page.tag);
    }

    /// Gives back every page, of ours or of nobody, that has no allocated block.
    #[cold]
    pub(super) fn collect(&self) {
        self.drop_cache();
        self.kept.iter().chain(&self.kept_medium).for_each(|kept| kept.set(0));
        self.drop_kept_runs();
        for unit in self.view.block_units() {
            let Some(tag) = self.view.tag(unit) else { continue };
            if !matches!(tag.kind(), Kind::Small | Kind::Medium) {
                continue;
            }
            let page = Page::new(&self.view, unit, tag);
            if tag.owner() == self.id {
                if self.is_idle(&page) {
                    self.discard(&page);
                }
            } else if tag.owner() == 0
                && page.is_wholly_free()
                && let Some(page) = page.adopt(self.id)
            {
                if page.is_wholly_free() {
                    self.release(&page);
                } else {
                    self.settle(page);
                }
            }
        }
    }

    /// How many bytes the block at `offset` has.
    pub(super) fn usable_bytes(&self, offset: u64) -> Result<u64, AllocError> {
        Ok(match self.locate(offset)? {
            Block::InPage(page) => page.block_bytes().into(),
            Block::Run { head, .. } => units::run_of(&self.view, head).len() as u64 * UNIT_BYTES,
        })
    }

    /// Changes the block's size where it stands. False if it has to move.
    pub(super) fn resize(&self, offset: u64, bytes: usize) -> Result<bool, AllocError> {
        let request = self.request(bytes, 1)?;
        match (self.locate(offset)?, request) {
            (Block::InPage(page), Request::Class(class)) => {
                // Shrinking by less than half stays: moving costs more than the memory is worth.
                let half = class_of((page.block_bytes() as usize / 2).max(1));
                Ok(class <= page.class() && class >= half)
            }
            (Block::Run { head, tag }, Request::Run { units, .. }) => {
                let run = units::run_of(&self.view, head);
                let len = run.end - run.start;
                if units <= len {
                    self.shrink_run(head, tag, run.start + units..run.end);
                    return Ok(true);
                }
                Ok(self.grow_run(head, run.end..run.start.saturating_add(units)))
            }
            (Block::InPage(_), Request::Run { .. }) | (Block::Run { .. }, Request::Class(_)) => {
                Ok(false)
            }
        }
    }

    /// Frees what the block at `offset`, which has `bytes` at least and stays where it is, can do
    /// without: whole units of a run, but for the first.
    pub(super) fn cut(&self, offset: u64, bytes: usize) -> Result<(), AllocError> {
        if let Block::Run { head, tag } = self.locate(offset)? {
            let run = units::run_of(&self.view, head);
            let units = u32::try_from((bytes.max(1) as u64).div_ceil(UNIT_BYTES));
            let end = run.start.saturating_add(units.unwrap_or(u32::MAX)).min(run.end);
            self.shrink_run(head, tag, end..run.end);
        }
        Ok(())
    }
}

pub(super) fn freed_twice(offset: u64) -> AllocError {
    AllocError::NotAllocated { offset, why: "it was freed before" }
}
