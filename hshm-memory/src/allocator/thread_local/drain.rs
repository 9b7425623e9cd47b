//! Emptying the rows of a cache: its blocks go back to their pages.
//!
//! All blocks of one page go together: to a page of ours, or of nobody, by its local list; to another's by
//! its remote list, after the journal said which: whoever goes on after a death learns from the
//! acknowledgement whether they got there ([`super::remote`]). Only then are they taken out of the
//! row, the one in its last place last. So they stand in one place or, for a moment, in two.

use std::ops::RangeInclusive;

use super::cache::Rows;
use super::heap::Heap;
use super::journal;
use super::page::{Page, pusher, tag_after_push};
use super::parcel;
use super::refill::add;
use super::remote::{self, Link, Mark};
use super::size_class::SMALL_CLASSES;
use super::view::View;
use super::walk::Met;
use super::words::{Kind, Step, unit_of};
use crate::sync::Ordering;

/// Blocks of a row, which has no more places.
const MOST: usize = 63;
/// Parcels that these make at most: the smallest block names three others.
const MOST_PARCELS: usize = MOST.div_ceil(4);
/// How often blocks are tried to be put on a list whose page changes hands.
const TURNS: usize = 1000;

impl Heap {
    /// Gives the `count` blocks of `class` that were cached last back to their pages.
    pub(super) fn flush(&self, class: usize, count: u64) {
        let Some(rows) = self.rows() else { return };
        let keep = rows.count(class).count().saturating_sub(count);
        Drain { view: &self.view, id: self.id, rows, class, keep }.run(
            |_, _| false,
            |page, was_adopted| {
                if was_adopted {
                    add(&self.counters().adoptions, 1);
                    self.settle(page);
                } else {
                    self.after_local_free(page);
                }
            },
        );
    }
}

/// Gives all blocks in the cache of a slot back, whose holder is at work on nothing any more, or
/// `died`. Its pages are not looked after, which is left to the caller. False if some blocks are
/// left, because the pages of others changed hands all the time.
#[must_use]
pub(super) fn drain_all(view: &View, id: u32, died: bool) -> bool {
    let Some(rows) = Rows::of(view, id) else { return true };
    for class in 0..SMALL_CLASSES {
        let moved = if died { moved(view, rows, class) } else { None };
        let is_listed = |page: &Page<'_>, index| {
            moved.as_ref().is_some_and(|(unit, met)| *unit == page.unit && met.contains(index))
        };
        Drain { view, id, rows, class, keep: 0 }.run(is_listed, |_, _| {});
    }
    rows.totals().0 == 0
}

/// The page whose blocks its owner may have been moving from this row to one of the page's lists when
/// it died, and what is on those lists: blocks leave a row by their pages, that of the last one first.
fn moved(view: &View, rows: Rows<'_>, class: usize) -> Option<(u32, Met)> {
    let (unit, tag) = view.page_of(rows.blocks(class).next_back()?)?;
    let page = Page::new(view, unit, tag);
    let mut met = Met::new();
    for list in [page.free(), page.local(), page.remote().to_list(page.start())] {
        let _ = met.follow(&page, list);
    }
    Some((unit, met))
}

/// Takes the blocks of the page of `first`, which the journal says were flushed, out of the part of
/// a row that `part` names.
pub(super) fn forget_flushed(view: &View, id: u32, part: u64, first: u64) {
    let Some(rows) = Rows::of(view, id) else { return };
    let (class, places) = unpack(part);
    forget(rows, class, places, first);
}

fn forget(rows: Rows<'_>, class: usize, places: RangeInclusive<u64>, first: u64) {
    for place in rows.places(class, places) {
        if unit_of(place.load(Ordering::Relaxed)) == unit_of(first) {
            place.store(0, Ordering::Relaxed);
        }
    }
}

/// A part of a row as one number, for the journal.
fn pack(class: usize, places: &RangeInclusive<u64>) -> u64 {
    class as u64 | places.start() << 8 | places.end() << 16
}

fn unpack(part: u64) -> (usize, RangeInclusive<u64>) {
    #[allow(clippy::cast_possible_truncation, reason = "eight bits")]
    let class = (part & 0xff) as usize;
    (class.min(SMALL_CLASSES - 1), (part >> 8 & 63).max(1)..=part >> 16 & 63)
}

/// What is to be done: all places of a row above `keep` are emptied.
struct Drain<'v> {
    view: &'v View,
    id: u32,
    rows: Rows<'v>,
    class: usize,
    keep: u64,
}

/// Blocks of a page: each one's distance from the page's beginning.
struct Chain {
    distances: [u16; MOST],
    len: usize,
}

impl Chain {
    fn as_slice(&self) -> &[u16] {
        self.distances.get(..self.len).unwrap_or(&[])
    }

    /// Makes parcels of them, as large ones as they can be, and returns their first blocks and how many
    /// those are.
    fn parcels<'v>(&self, page: &Page<'v>) -> ([Link<'v>; MOST_PARCELS], usize) {
        let none = Link { distance: 0, word: &page.descriptor().local, blocks: 0 };
        let mut links = [none; MOST_PARCELS];
        let mut len = 0;
        let most = parcel::most_named(page.block_bytes()) as usize + 1;
        for (parcel, link) in self.as_slice().chunks(most).zip(&mut links) {
            let Some((&first, others)) = parcel.split_first() else { break };
            let distance = u64::from(first);
            let Some(word) = page.view.word(page.start() + distance) else { break };
            let blocks = u32::try_from(parcel.len()).unwrap_or(0);
            *link = Link { distance, word, blocks };
            if !others.is_empty() {
                parcel::write(page, page.start() + distance, others);
            }
            len += 1;
        }
        (links, len)
    }
}

impl<'v> Drain<'v> {
    /// `is_listed` tells of a page of the slot whether that block is on one of its lists already.
    /// `came_home` is told of each page of the slot that got blocks, once those are out of the row, and
    /// whether it was nobody's before.
    fn run(&self, is_listed: impl Fn(&Page<'v>, u32) -> bool, came_home: impl Fn(Page<'v>, bool)) {
        let count = self.rows.count(self.class).count();
        for top in (self.keep + 1..=count).rev() {
            let offset = self.rows.place(self.class, top).load(Ordering::Relaxed);
            if offset == 0 {
                continue;
            }
            let Some(home) = self.give_back(offset, top, &is_listed) else {
                // Its page changes hands all the time: it stays where it is.
                self.rows.set_count(self.class, top);
                return;
            };
            if let Some((page, was_adopted)) = home {
                came_home(page, was_adopted);
            }
        }
        let left = self.rows.count(self.class).count().min(self.keep);
        self.rows.set_count(self.class, left);
    }

    /// Gives back the block in place `top`, the last one of the row, and with it all others of its
    /// page. Returns the page if it is the slot's, and whether it was nobody's.
    #[allow(
        clippy::option_option,
        reason = "failed, or nothing more to do, or a page to look after"
    )]
    fn give_back(
        &self,
        offset: u64,
        top: u64,
        is_listed: &impl Fn(&Page<'v>, u32) -> bool,
    ) -> Option<Option<(Page<'v>, bool)>> {
        for _ in 0..TURNS {
            let found = self.view.page_of(offset).filter(|(_, tag)| tag.class() == self.class);
            let page = found.map(|(unit, tag)| Page::new(self.view, unit, tag));
            let page = page
                .filter(|page| page.index_of(offset).is_some_and(|index| index < page.carved()));
            let Some(page) = page else {
                // It is no block of this class, or was never carved: it is left out.
                self.rows.place(self.class, top).store(0, Ordering::Relaxed);
                return Some(None);
            };
            let (page, was_nobodys) = match page.tag.owner() {
                0 => match page.adopt(self.id) {
                    Some(ours) => (ours, true),
                    None => continue,
                },
                _ => (page, false),
            };
            if page.tag.owner() == self.id {
                self.put_home(&page, offset, top, is_listed);
                return Some(Some((page, was_nobodys)));
            }
            if self.push_away(&page, offset, top) {
                return Some(self.rescue(page.unit).map(|page| (page, true)));
            }
        }
        None
    }

    /// The places of the row that are given back, up to `top`.
    fn places(&self, top: u64) -> RangeInclusive<u64> {
        self.keep + 1..=top
    }

    /// The blocks in the row, to place `top`, that are of the page, but for those that `left_out` names.
    fn chain(&self, page: &Page<'v>, top: u64, left_out: impl Fn(u32) -> bool) -> Chain {
        let mut chain = Chain { distances: [0; MOST], len: 0 };
        let blocks = page.carved_blocks();
        for place in self.rows.places(self.class, self.places(top)) {
            if let Some((number, distance)) = blocks.find(place.load(Ordering::Relaxed))
                && let Some(next) = chain.distances.get_mut(chain.len)
                && !left_out(number)
            {
                *next = distance;
                chain.len += 1;
            }
        }
        chain
    }

    /// Puts all blocks of the row, to place `top`, that are of the page, which is the slot's, on its local
    /// list, and takes them out of the row.
    fn put_home(
        &self,
        page: &Page<'v>,
        first: u64,
        top: u64,
        is_listed: &impl Fn(&Page<'v>, u32) -> bool,
    ) {
        let chain = self.chain(page, top, |number| is_listed(page, number));
        // Else some were freed before: which, nobody knows.
        if page.local().count() as usize + chain.len <= page.carved() as usize {
            let distances = chain.as_slice().iter();
            page.push_chain_local(distances.map(|&distance| page.start() + u64::from(distance)));
        }
        // Died here: the blocks are on the list, and in the row, of which one is the last.
        crate::crash_point!("cache.flushed");
        forget(self.rows, self.class, self.places(top), first);
    }

    /// Puts all blocks of the row, to place `top`, that are of the page on its remote list, and takes
    /// them out of the row. False if the page is not what it was any more, and nothing was done.
    fn push_away(&self, page: &Page<'v>, first: u64, top: u64) -> bool {
        let places = self.places(top);
        let chain = self.chain(page, top, |_| false);
        let slot = self.view.slot(self.id);
        let operation =
            journal::begin(self.view, self.id, Step::Flush, pack(self.class, &places), first);
        crate::crash_point!("cache.journalled");
        let mark = Mark { slot: self.id, sequence: operation.sequence() };
        let (links, parcels) = chain.parcels(page);
        let pushed = remote::push_chain(
            &page.descriptor().remote,
            page.start(),
            links.get(..parcels).unwrap_or(&[]),
            mark,
            |slot| pusher(self.view, slot),
            || page.carved_while_it_stands(),
        );
        // Died here: the blocks are on the list and in the row; the journal tells, and recovery
        // takes them out of the row.
        crate::crash_point!("cache.pushed");
        // Or more blocks than the page has were freed before: what these are, nobody knows.
        let gone = pushed != Ok(false);
        if gone {
            forget(self.rows, self.class, places, first);
        }
        crate::crash_point!("cache.forgotten");
        journal::clear(&slot.journal);
        if pushed == Ok(true) {
            add(&slot.counters.remote_frees, chain.len as u64);
        }
        gone
    }

    /// Takes over a page whose owner let go of it meanwhile, perhaps without seeing the blocks.
    fn rescue(&self, unit: u32) -> Option<Page<'v>> {
        let tag = self.view.plausible(unit, tag_after_push(self.view.tag_word(unit)));
        let is_nobodys = tag.owner() == 0 && tag.kind() == Kind::Small;
        is_nobodys.then(|| Page::new(self.view, unit, tag).adopt(self.id))?
    }
}
