//! A worker's cache: for each small class, the blocks that it takes from and gives back to without
//! looking at their pages.
//!
//! The caches of a worker stand in one unit of the segment, so that its recoverer finds them. Each
//! class has a *row*: a word that counts, and room for the offsets of blocks. A block in a row is
//! allocated as far as its page is concerned, whoever owns that page; it is free as far as everybody
//! is told. Where the row is empty, blocks are taken from the worker's bin; where it is full, they go
//! to their page. One thread writes a row; the store of its count is the moment at which a block is
//! taken or freed.
//!
//! That a block goes from a row to its page's list takes two stores, and a death may come between
//! them. It stands in both places then, never in none: in a row and on a list of a page of the dead,
//! which its recoverer can look through; or in a row and on the remote list of another's page, of
//! which the journal tells ([`super::drain`]).
//!
//! Caching blocks in arrays by thread and class is Bonwick's ("Magazines and Vmem", USENIX 2001).

use std::cell::Cell;
use std::num::NonZeroU64;
use std::ops::{Range, RangeInclusive};
use std::sync::atomic::AtomicU64 as PrivateU64;

use super::heap::Heap;
use super::layout::{OFFSET_BITS, PAGE_BYTES, UNIT_BYTES, UNIT_SHIFT};
use super::refill::add;
use super::size_class::{GRANULE_BYTES, SMALL_CLASSES, SMALL_MAX_BYTES, block_bytes};
use super::units;
use super::view::View;
use super::words::{Tag, unit_of};
use crate::options::OnExit;
use crate::sync::{AtomicU64, Ordering};

/// Words of a row: all but the last for blocks.
const ROW_WORDS: usize = 64;
/// The word of a row that counts. Like all that the fast paths read, it is not where a block can begin,
/// in the low bits of the address: see [`super::heap`].
const COUNT: usize = ROW_WORDS - 1;
/// Bytes of all rows.
const ROWS_BYTES: u64 = (SMALL_CLASSES * ROW_WORDS * 8) as u64;
/// The blocks that a row can hold: the word behind the last of them is 0, which is no block.
const ROW_BLOCKS: u8 = 62;
/// The bytes of blocks in a row are at most these,
const ROW_MAX_BYTES: u64 = 64 << 10;
/// and this part of the segment.
const ROW_PART: u64 = 4096;
/// A row for fewer blocks than these is not worth while.
const LEAST_BLOCKS: u64 = 4;
/// In a segment of fewer units, 16 MiB, a unit for caches is too much.
const LEAST_UNITS: usize = 256;
/// Slow operations without a cache before one is claimed.
const MISSES: u32 = 64;
/// The same for a new heap: who only looks in needs none.
const FIRST_MISSES: u32 = 4;

/// The word of a row that counts: bits 0-5 how many blocks there is room for, 6-11 how many it can have,
/// 12-63 how many were ever taken from it.
///
/// A row is filled from its end: as many words as there is room for come before the block that was put
/// there last. Of a row that can have none, both say so.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowWord(pub(super) u64);

impl RowWord {
    const ROOM_MASK: u64 = 63;
    const LIMIT_SHIFT: u32 = 6;
    const TAKEN_SHIFT: u32 = 12;

    const fn empty(limit: u8) -> Self {
        let limit = limit as u64 & Self::ROOM_MASK;
        Self(limit << Self::LIMIT_SHIFT | limit)
    }

    #[inline(always)]
    pub(super) const fn room(self) -> u64 {
        self.0 & Self::ROOM_MASK
    }

    pub(super) const fn limit(self) -> u64 {
        self.0 >> Self::LIMIT_SHIFT & Self::ROOM_MASK
    }

    pub(super) const fn count(self) -> u64 {
        self.limit().saturating_sub(self.room())
    }

    /// Blocks that were taken by popping.
    pub(super) const fn taken(self) -> u64 {
        self.0 >> Self::TAKEN_SHIFT
    }

    pub(super) const fn with_count(self, count: u64) -> Self {
        let room = self.limit().saturating_sub(count);
        Self(self.0 & !Self::ROOM_MASK | room)
    }

    #[inline(always)]
    const fn popped(self) -> Self {
        Self(self.0.wrapping_add((1 << Self::TAKEN_SHIFT) + 1))
    }

    #[inline(always)]
    const fn pushed(self) -> Self {
        Self(self.0.wrapping_sub(1))
    }
}

/// The rows of one worker, which lie in a unit of the segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'v> {
    view: &'v View,
    unit: u32,
}

impl<'v> Rows<'v> {
    /// The rows of slot `id`, if it has any.
    pub(super) fn of(view: &'v View, id: u32) -> Option<Self> {
        let unit = view.slot(id).cache.load(Ordering::Relaxed);
        (view.tag(unit) == Some(Tag::cache(id))).then_some(Self { view, unit })
    }

    fn word(&self, class: usize, index: u64) -> &'v AtomicU64 {
        let row = (class % SMALL_CLASSES * ROW_WORDS) as u64;
        self.view.word_in_unit(self.unit, row + index % ROW_WORDS as u64)
    }

    fn counter(&self, class: usize) -> &'v AtomicU64 {
        self.word(class, COUNT as u64)
    }

    pub(super) fn count(&self, class: usize) -> RowWord {
        RowWord(self.counter(class).load(Ordering::Acquire))
    }

    /// Says that the row has `count` blocks.
    pub(super) fn set_count(&self, class: usize, count: u64) {
        // ORDER: Release: blocks stand in the row, or are out of it, before they are counted so.
        self.counter(class).store(self.count(class).with_count(count).0, Ordering::Release);
    }

    /// Place `index` of a row, from 1 on, in the order in which blocks were put there: a block's offset,
    /// or 0 where one has gone.
    pub(super) fn place(&self, class: usize, index: u64) -> &'v AtomicU64 {
        // Whatever somebody scribbled, it is a word of the rows.
        self.word(class, self.count(class).limit().wrapping_sub(index))
    }

    /// Those places, in that order.
    pub(super) fn places(
        &self,
        class: usize,
        places: RangeInclusive<u64>,
    ) -> impl DoubleEndedIterator<Item = &'v AtomicU64> + use<'v> {
        let row = (class % SMALL_CLASSES * ROW_WORDS) as u64;
        let words = self.view.words_in_unit(self.unit, row, ROW_WORDS);
        let limit = self.count(class).limit();
        let word = |index| usize::try_from(limit.saturating_sub(index)).unwrap_or(0);
        let (last, behind) = (word(*places.end()), word(places.start().saturating_sub(1)));
        words.get(last..behind).unwrap_or(&[]).iter().rev()
    }

    /// The blocks of a row, those that have gone left out.
    pub(super) fn blocks(self, class: usize) -> impl DoubleEndedIterator<Item = u64> + 'v {
        self.places(class, 1..=self.count(class).count())
            .map(|place| place.load(Ordering::Relaxed))
            .filter(|&offset| offset != 0)
    }

    /// How many of the `class`'s blocks are of the page of unit `unit`.
    pub(super) fn count_of_page(&self, class: usize, unit: u32) -> u64 {
        let places = self.places(class, 1..=self.count(class).count());
        let of_page =
            |place: &&AtomicU64| place.load(Ordering::Relaxed) >> UNIT_SHIFT == u64::from(unit);
        places.filter(of_page).count() as u64
    }

    /// Makes all rows empty ones that nothing was ever taken from, which may have as many blocks as
    /// `limits` says.
    fn reset(&self, limits: &[Cell<u8>; SMALL_CLASSES]) {
        for (class, limit) in limits.iter().enumerate() {
            let limit = limit.get();
            self.counter(class).store(RowWord::empty(limit).0, Ordering::Relaxed);
            self.word(class, limit.into()).store(0, Ordering::Relaxed);
        }
    }

    /// Takes the `class`'s blocks of the page of unit `unit` out, which is wholly free with them.
    pub(super) fn forget_page(&self, class: usize, unit: u32) {
        let count = self.count(class).count();
        for place in self.places(class, 1..=count) {
            if unit_of(place.load(Ordering::Relaxed)) == unit {
                place.store(0, Ordering::Relaxed);
            }
        }
        let last_first = self.places(class, 1..=count).rev();
        let gone = last_first.take_while(|place| place.load(Ordering::Relaxed) == 0).count();
        self.set_count(class, count - gone as u64);
    }

    /// Blocks that are in rows, and that were ever taken from them.
    pub(super) fn totals(&self) -> (u64, u64) {
        (0..SMALL_CLASSES).fold((0, 0), |(count, taken), class| {
            let blocks = self.blocks(class).count() as u64;
            (count + blocks, taken.wrapping_add(self.count(class).taken()))
        })
    }
}

/// What the heap of a thread knows of its cache. The fast paths read it.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Cache {
    /// Where the rows are in this process; [`NO_ROWS`] if there are none.
    rows: Cell<*mut u64>,
    /// The unit that holds the rows; 0 if there are none.
    unit: Cell<u32>,
    /// The bits of a tag that decide whether blocks of a page are cached.
    tag_mask: u64,
    /// Slow operations since the cache was given up.
    misses: Cell<u32>,
    /// What those bits are in the first class of such pages: subtracted, they leave the class.
    tag_base: u64,
    /// How many blocks each row may have.
    limits: [Cell<u8>; SMALL_CLASSES],
}

/// The rows of a heap that has none: empty for who takes, full for who gives.
static NO_ROWS: [PrivateU64; SMALL_CLASSES * ROW_WORDS] =
    [const { PrivateU64::new(0) }; SMALL_CLASSES * ROW_WORDS];

impl Cache {
    pub(super) fn new(id: u32, on_exit: OnExit) -> Self {
        let page = Tag::page(id, 0);
        let (tag_mask, page) = match on_exit {
            OnExit::Keep => (!Tag::OWNER_BITS, page.with_owner(0)),
            // Blocks die with the owner of their page: others must not hand them out.
            OnExit::Reclaim => (u32::MAX, page),
        };
        Self {
            tag_mask: u64::from(tag_mask),
            tag_base: u64::from(page.0),
            rows: Cell::new(no_rows()),
            limits: [const { Cell::new(0) }; SMALL_CLASSES],
            unit: Cell::new(0),
            misses: Cell::new(MISSES - FIRST_MISSES),
        }
    }

    /// How many blocks the row of `class` may have; none if there is no such row.
    pub(super) fn limit(&self, class: usize) -> u64 {
        self.limits.get(class).map_or(0, |limit| limit.get().into())
    }

    /// The class of a page with this tag, if its blocks may be cached.
    #[inline(always)]
    pub(super) fn class_of(&self, tag: u32) -> Option<usize> {
        let class = (u64::from(tag) & self.tag_mask).wrapping_sub(self.tag_base);
        #[allow(clippy::cast_possible_truncation, reason = "it is compared before")]
        (class < SMALL_CLASSES as u64).then_some(class as usize)
    }

    /// The row of a small class.
    #[inline(always)]
    pub(super) fn row(&self, class: usize) -> *mut u64 {
        self.rows.get().wrapping_add(class * ROW_WORDS)
    }

    /// Forgets that there is a cache.
    fn forget(&self) {
        self.rows.set(no_rows());
        self.limits.iter().for_each(|limit| limit.set(0));
        self.unit.set(0);
        self.misses.set(0);
    }

    /// Has each row have blocks of `budget` bytes.
    fn set_limits(&self, budget: u64) {
        for (class, limit) in self.limits.iter().enumerate() {
            let blocks = budget.checked_div(block_bytes(class).into()).unwrap_or(0);
            let blocks = if blocks < LEAST_BLOCKS { 0 } else { blocks };
            limit.set(u8::try_from(blocks).unwrap_or(ROW_BLOCKS).min(ROW_BLOCKS));
        }
    }

    /// Takes note of the cache in `unit`, which is at `rows` in this process.
    fn note(&self, unit: u32, rows: *mut u64) {
        self.rows.set(rows);
        self.unit.set(unit);
    }
}

fn no_rows() -> *mut u64 {
    NO_ROWS.as_ptr().cast::<u64>().cast_mut()
}

/// A word of a row.
///
/// # Safety
/// `word` points into the rows of this process's heap or into [`NO_ROWS`].
#[inline(always)]
unsafe fn at<'r>(word: *mut u64) -> &'r AtomicU64 {
    // SAFETY: the caller promises it; [atomic] rows are only accessed as atomics.
    unsafe { AtomicU64::from_ptr(word) }
}

/// The count of a row of ours.
#[inline(always)]
pub(super) fn counter<'r>(row: *mut u64) -> &'r AtomicU64 {
    // SAFETY: [mapped] the rows that a heap knows of live as long as its view.
    unsafe { at(row.wrapping_add(COUNT)) }
}

/// Word `index` of a row of ours.
#[inline(always)]
pub(super) fn place<'r>(row: *mut u64, index: u64) -> &'r AtomicU64 {
    debug_assert!(index < ROW_WORDS as u64, "a word of the row");
    #[allow(clippy::cast_possible_truncation, reason = "six bits")]
    let index = index as usize;
    // SAFETY: [mapped] as above.
    unsafe { at(row.wrapping_add(index)) }
}

/// The words of a row of ours in a range, as far as there are such.
pub(super) fn places<'r>(row: *mut u64, range: Range<u64>) -> &'r [AtomicU64] {
    // SAFETY: [mapped] and [atomic] as above.
    let words = unsafe { std::slice::from_raw_parts(row.cast::<AtomicU64>(), COUNT) };
    let index = |word| usize::try_from(word).unwrap_or(usize::MAX);
    words.get(index(range.start)..index(range.end)).unwrap_or(&[])
}

impl Heap {
    /// Takes the block of `class`, one of the small ones, that was cached last.
    ///
    /// Two loads, one store, one branch that is taken when the row is empty or scribbled on. The
    /// store of the row's word is the moment at which the block is allocated: who dies before has taken
    /// nothing.
    #[inline(always)]
    pub(super) fn pop_cached(&self, class: usize) -> Option<NonZeroU64> {
        let row = self.cache.row(class);
        let word = RowWord(counter(row).load(Ordering::Relaxed));
        let offset = place(row, word.room()).load(Ordering::Relaxed);
        let offset = offset & !(GRANULE_BYTES as u64 - 1);
        let block = self.inside(offset, self.reach.get())?;
        // ORDER: Relaxed: only this thread and, after its death, its recoverer read it.
        counter(row).store(word.popped().0, Ordering::Relaxed);
        Some(block)
    }

    /// Puts the block at `offset`, one of `class`, into its row. False if there is no room; then nothing
    /// was done.
    ///
    /// The store of the row's word is the moment at which the block is free: who dies before has freed
    /// nothing.
    #[inline(always)]
    pub(super) fn push_cached(&self, class: usize, offset: u64) -> bool {
        let row = self.cache.row(class);
        let word = RowWord(counter(row).load(Ordering::Relaxed));
        let room = word.room();
        if room == 0 {
            return false;
        }
        place(row, room - 1).store(offset, Ordering::Relaxed);
        // Died here: the block is in the row, but not counted, and allocated.
        crate::crash_point!("cache.placed");
        // ORDER: Release keeps it after the place's store, for the recoverer.
        counter(row).store(word.pushed().0, Ordering::Release);
        true
    }

    /// What `pop_cached` leaves: blocks near the segment's end, and rows in which blocks have gone.
    pub(super) fn pop_carefully(&self, class: usize) -> Option<u64> {
        if class >= SMALL_CLASSES {
            return None;
        }
        let row = self.cache.row(class);
        let size = u64::from(block_bytes(class));
        let mut word = RowWord(counter(row).load(Ordering::Relaxed));
        while word.count() > 0 {
            let offset = place(row, word.room()).load(Ordering::Relaxed);
            let inside = offset >= self.first
                && offset.is_multiple_of(GRANULE_BYTES as u64)
                && offset.checked_add(size).is_some_and(|end| end <= self.view.limit());
            word = if inside { word.popped() } else { word.with_count(word.count() - 1) };
            counter(row).store(word.0, Ordering::Relaxed);
            if inside {
                return Some(offset);
            }
        }
        None
    }

    /// Frees the block at `offset` by way of the cache, if it is of another's page and its row is full:
    /// half of the row is given back to make room.
    pub(super) fn free_cached(&self, offset: u64) -> bool {
        let is_one = offset >> OFFSET_BITS == 0 && offset.is_multiple_of(GRANULE_BYTES as u64);
        let Some(tag) = self.view.tag(unit_of(offset)) else { return false };
        let Some(class) = self.cache.class_of(tag.0) else { return false };
        let limit = self.cache.limit(class);
        if tag.owner() == 0 || tag.owner() == self.id || limit == 0 || !is_one {
            return false;
        }
        self.flush(class, limit.div_ceil(2));
        self.push_cached(class, offset)
    }

    /// This heap's rows, wherever the slot says that they are.
    pub(super) fn rows(&self) -> Option<Rows<'_>> {
        let unit = self.cache.unit.get();
        (unit != 0).then_some(Rows { view: &self.view, unit })
    }

    /// Claims a unit for the cache, if there is none, and now and then only.
    pub(super) fn claim_cache(&self) {
        if self.cache.unit.get() != 0 {
            return;
        }
        let misses = self.cache.misses.get();
        if misses < MISSES {
            self.cache.misses.set(misses + 1);
            return;
        }
        self.cache.misses.set(0);
        let view = &*self.view;
        if view.block_units().len() < LEAST_UNITS {
            return;
        }
        let Some(unit) = units::claim_one(view, self.id) else { return };
        if view.make_resident(unit, ROWS_BYTES).is_err() {
            units::release_unit(view, unit);
            return;
        }
        self.cache.set_limits((view.limit() / ROW_PART).min(ROW_MAX_BYTES));
        Rows { view, unit }.reset(&self.cache.limits);
        // ORDER: Release: the rows are empty before they are a cache's.
        view.tag_word(unit).store(Tag::cache(self.id).0, Ordering::Release);
        // Died here: a cache that no slot names; recovery frees its unit.
        crate::crash_point!("cache.claimed");
        self.slot().cache.store(unit, Ordering::Release);
        let rows = std::ptr::from_ref(view.word_in_unit(unit, 0)).cast_mut().cast();
        self.cache.note(unit, rows);
    }

    /// Gives all cached blocks back to their pages, and the cache's unit too.
    pub(super) fn drop_cache(&self) {
        let Some(rows) = self.rows() else { return };
        for class in 0..SMALL_CLASSES {
            self.flush(class, rows.count(class).count());
        }
        if rows.totals().0 > 0 {
            // Pages that change hands all the time: another time.
            return;
        }
        self.cache.forget();
        release(&self.view, self.id);
    }
}

/// Gives up the rows of slot `id`, which are empty.
pub(super) fn release(view: &View, id: u32) {
    let slot = view.slot(id);
    let unit = slot.cache.load(Ordering::Relaxed);
    if let Some(rows) = Rows::of(view, id) {
        let (count, taken) = rows.totals();
        add(&slot.counters.loaded, taken);
        add(&slot.counters.local_frees, taken.wrapping_add(count));
        slot.cache.store(0, Ordering::Release);
        // Died here: a cache that no slot names; recovery frees its unit.
        crate::crash_point!("cache.released");
        units::release_unit(view, unit);
    }
}

const _: () = {
    assert!(ROWS_BYTES < UNIT_BYTES && ROWS_BYTES.is_multiple_of(PAGE_BYTES));
    assert!(ROW_BLOCKS as u64 <= RowWord::ROOM_MASK && ROW_BLOCKS as usize == ROW_WORDS - 2);
    assert!(SMALL_MAX_BYTES as u64 <= UNIT_BYTES);
};
