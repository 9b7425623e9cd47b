//! A worker's heap as its process sees it: the slot in the segment, and what is private beside it.
//!
//! This file has the two fast paths, whose first halves are in [`super::cache`]; [`super::refill`] and
//! [`super::release`] have what they fall back to.

use std::cell::Cell;
use std::mem::offset_of;
use std::num::NonZeroU64;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as PrivateU64, Ordering as PrivateOrdering};

use super::cache::Cache;
use super::layout::{Counters, Descriptor, MEDIUM_SHIFT, MEDIUM_UNITS, Slot, UNIT_SHIFT};
use super::page::{Cut, NO_EVENT, Page};
use super::queue::{FULL, PARTIAL, Queues};
use super::refill::add;
use super::runs::KeptRuns;
use super::size_class::{
    CLASSES, GRANULE_SHIFT, MEDIUM_MAX_BYTES, SMALL_CLASSES, SMALL_MAX_BYTES, block_bytes,
    medium_class_of,
};
use super::units;
use super::view::View;
use super::words::{Kind, List, Tag, unit_of};
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::thread_model::NoPause;

/// Wholly free small pages that a worker keeps for itself, so that a burst of frees followed by a
/// burst of allocations does not claim and carve them anew.
const KEPT_PAGES: usize = 16;
/// The same for medium ones.
const KEPT_MEDIUM_PAGES: usize = 2;
/// Medium classes.
const MEDIUM_CLASSES: usize = CLASSES - SMALL_CLASSES;
/// Of those this many have filled bins at the same time, or more if the segment is large: each has a page
/// of 512 KiB,
const LEAST_MEDIUM_BINS: usize = 4;
/// all of which together are to be this part of the segment.
const MEDIUM_BINS_PART: usize = 64;

/// Blocks that are carved for a bin where the cache has a row of their class.
const CUT_BESIDE_A_ROW: u32 = 4;

/// One worker's heap. Only the thread that holds it calls its methods.
///
/// What the fast paths read comes first. Each of it stands 8 bytes beyond a multiple of 16, and so do the
/// rows' counts and the pages' lists in the segment: blocks begin at multiples of 16, and a processor
/// takes a load for one of what was just stored if the low 12 bits of both addresses are the same. Links,
/// and the first words that users write, are stored all the time, and stay in the way until they reach
/// the cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Heap {
    /// Which attached allocator it belongs to; unique in the process, never 0.
    pub(super) key: u64,
    base: *mut u8,
    /// The fork generation in which the slot was claimed: in a later one it is the parent's.
    pub(super) generation: u64,
    /// Units below the end of what may be touched.
    units: Cell<u64>,
    /// Whether the slot was given back.
    pub(super) released: PrivateU64,
    tags: *const AtomicU32,
    pub(super) view: Arc<View>,
    pub(super) cache: Cache,
    /// The slot's number.
    pub(super) id: u32,
    /// Where the search for pages to adopt goes on.
    pub(super) adopt_cursor: Cell<u32>,
    /// The first offset that a block can have.
    pub(super) first: u64,
    /// Bytes from there to the end of what may be touched.
    span: Cell<u64>,
    /// Bytes in which a block of any small class may begin.
    pub(super) reach: Cell<u64>,
    /// The header's `pressure` when we last gave back what we keep.
    pub(super) pressure: Cell<u64>,
    slot: *const Slot,
    /// Refills until we look at it again.
    pub(super) calm: Cell<u32>,
    /// Failures to find memory until the next search.
    pub(super) trim_calm: Cell<u32>,
    descriptors: *const Descriptor,
    /// Where the search for memory to give back goes on.
    pub(super) trim_cursor: Cell<u32>,
    /// Where it begins again.
    pub(super) trim_end: Cell<u32>,
    /// The owner in the tags of our pages.
    owner_bits: u32,
    /// The tag of our pages of the first medium class; those of the others follow.
    first_medium_tag: Tag,
    /// Pages with free blocks, by class.
    pub(super) partial: Queues,
    /// Pages without, where they stay ours (`OnExit::Reclaim`).
    pub(super) full: Queues,
    /// How many pages of each class were opened: the more, the larger the steps they are carved in.
    pub(super) opened: [Cell<u8>; CLASSES],
    /// Small pages of ours that were seen wholly free; 0 for none.
    pub(super) kept: [Cell<u32>; KEPT_PAGES],
    /// Medium ones.
    pub(super) kept_medium: [Cell<u32>; KEPT_MEDIUM_PAGES],
    pub(super) kept_runs: KeptRuns,
    /// The medium classes whose bins are filled, the latest first; 0 for none.
    pub(super) medium_bins: [Cell<u32>; MEDIUM_CLASSES],
    /// The page that each medium class's blocks came from before its bin was given up; 0 for none.
    pub(super) medium_left: [Cell<u32>; MEDIUM_CLASSES],
}

// SAFETY: [owned] a heap is used by one thread at a time: by the one that claimed its slot, or under
// the lock of an explicit context; others only look at `key`, `generation` and `released`.
unsafe impl Send for Heap {}
// SAFETY: [owned] as above.
unsafe impl Sync for Heap {}

impl Heap {
    pub(super) fn new(key: u64, view: Arc<View>, id: u32, generation: u64) -> Self {
        let heap = Self {
            key,
            base: view.base().as_ptr(),
            first: view.geometry.metadata_bytes(),
            span: Cell::new(0),
            reach: Cell::new(0),
            units: Cell::new(0),
            tags: view.tag_word(0),
            descriptors: view.descriptor(0),
            slot: view.slot(id),
            owner_bits: Tag::claimed(id).0 & Tag::OWNER_BITS,
            first_medium_tag: Tag::page(id, SMALL_CLASSES),
            cache: Cache::new(id, view.on_exit()),
            id,
            generation,
            released: PrivateU64::new(0),
            partial: Queues::new(PARTIAL),
            full: Queues::new(FULL),
            opened: std::array::from_fn(|_| Cell::new(0)),
            kept: std::array::from_fn(|_| Cell::new(0)),
            kept_medium: std::array::from_fn(|_| Cell::new(0)),
            kept_runs: KeptRuns::new(),
            medium_bins: std::array::from_fn(|_| Cell::new(0)),
            medium_left: std::array::from_fn(|_| Cell::new(0)),
            pressure: Cell::new(0),
            calm: Cell::new(0),
            adopt_cursor: Cell::new(view.geometry.first_unit),
            trim_cursor: Cell::new(view.geometry.first_unit),
            trim_end: Cell::new(view.geometry.first_unit),
            trim_calm: Cell::new(0),
            view,
        };
        heap.set_limit(heap.view.limit());
        heap
    }

    fn set_limit(&self, limit: u64) {
        self.span.set(limit.saturating_sub(self.first));
        self.reach.set(self.span.get().saturating_sub(SMALL_MAX_BYTES as u64));
        self.units.set(unit_of(limit).into());
        self.kept_runs.set_most(unit_of(self.span.get()));
    }

    /// Looks whether the segment has grown.
    #[cold]
    pub(super) fn refresh_limit(&self) {
        self.set_limit(self.view.refresh_limit());
        units::know_grown(&self.view);
    }

    /// Takes note if somebody in this process saw that it has, or the fast paths would do nothing
    /// beyond what was there when the heap was made.
    pub(super) fn note_limit(&self) {
        let limit = self.view.limit();
        if u64::from(unit_of(limit)) != self.units.get() {
            self.set_limit(limit);
        }
    }

    #[inline(always)]
    pub(super) fn slot(&self) -> &Slot {
        // SAFETY: [mapped] the slot lies in the metadata of the view that this heap holds.
        unsafe { &*self.slot }
    }

    /// The word of the tag of `unit`, if the heap knows of such a unit.
    #[inline(always)]
    pub(super) fn tag_word(&self, unit: u32) -> Option<&AtomicU32> {
        // SAFETY: [mapped] `unit` is below `units`, and the table has an entry for each unit.
        (u64::from(unit) < self.units.get())
            .then(|| unsafe { &*self.tags.wrapping_add(unit as usize) })
    }

    /// Its descriptor.
    #[inline(always)]
    pub(super) fn descriptor(&self, unit: u32) -> Option<&Descriptor> {
        // SAFETY: [mapped] as for the tag.
        (u64::from(unit) < self.units.get())
            .then(|| unsafe { &*self.descriptors.wrapping_add(unit as usize) })
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.slot().counters
    }

    /// Whether the slot is no longer this heap's to use.
    pub(super) fn is_stale(&self, generation: u64) -> bool {
        self.generation != generation || self.released.load(PrivateOrdering::Relaxed) != 0
    }

    /// Takes a block of `class`, one of the small ones, if the cache has one, or the bin at least two, or
    /// more of the bin's page can be cut off.
    ///
    /// On x86-64 an allocation that the cache serves and its free are 55 instructions together,
    /// thread-local storage and the size's class included; `hshm-bench` has a test of it.
    #[inline(always)]
    pub(super) fn take_small(&self, class: usize) -> Option<NonZeroU64> {
        let block = self.pop_cached(class).or_else(|| self.pop_small(class));
        block.or_else(|| self.cut_into_row(class))
    }

    /// Takes a block of `class`, one of the small ones, if the bin has at least two.
    ///
    /// Three loads, one store, two branches that are never taken but once a list: the bin names the
    /// first block, the block names the rest. The first check keeps a scribbled bin inside the
    /// segment and catches the empty one; the second keeps the rest in the block's own page, and
    /// catches the last block of a list, since the end of a list is in no page. The store of the
    /// rest is the moment at which the block is allocated: who dies before has taken nothing.
    #[inline(always)]
    pub(super) fn pop_small(&self, class: usize) -> Option<NonZeroU64> {
        self.pop::<UNIT_SHIFT>(class)
    }

    /// The same for a medium class.
    #[inline]
    fn pop_medium(&self, class: usize) -> Option<NonZeroU64> {
        self.pop::<MEDIUM_SHIFT>(class)
    }

    /// Takes a block of `bytes` bytes, more than the small classes have, if the bin of their class has at
    /// least two or the run that was freed last is as long.
    #[cold]
    #[inline(never)]
    pub(super) fn take_larger(&self, bytes: usize) -> Option<NonZeroU64> {
        let _use = NoPause::begin();
        if bytes > MEDIUM_MAX_BYTES {
            return self.take_latest_run(bytes).and_then(NonZeroU64::new);
        }
        self.pop_medium(medium_class_of(bytes))
    }

    #[inline(always)]
    fn pop<const PAGE_SHIFT: u32>(&self, class: usize) -> Option<NonZeroU64> {
        let bin = self.slot().bins.get(class)?;
        let head = List(bin.load(Ordering::Relaxed));
        let offset = head.first();
        // Where any block of such a page lies inside the segment.
        let within = if PAGE_SHIFT == UNIT_SHIFT {
            self.reach.get()
        } else {
            self.span.get().saturating_sub(MEDIUM_MAX_BYTES as u64)
        };
        let block = self.inside(offset, within)?;
        let rest = List(self.link(offset).load(Ordering::Relaxed));
        if !rest.same_page::<PAGE_SHIFT>(head) {
            return None;
        }
        bin.store(rest.0, Ordering::Relaxed);
        Some(block)
    }

    /// The offset, if it lies among the blocks, less than `within` bytes behind the first. It is not 0, and
    /// says so: whether there is such a block needs no word beside it.
    #[inline(always)]
    pub(super) fn inside(&self, offset: u64, within: u64) -> Option<NonZeroU64> {
        // SAFETY: [owned] it is not below `first`, which lies behind the header.
        (offset.wrapping_sub(self.first) < within)
            .then(|| unsafe { NonZeroU64::new_unchecked(offset) })
    }

    /// Frees the block at `offset` if it lies in a small page, and there is room for it in the cache, or
    /// the page is ours and nothing is to be done besides. False if not, and then nothing was done.
    ///
    /// The store of the row's count, or of the list, is the moment at which the block is free: who
    /// dies before has freed nothing.
    #[inline(always)]
    pub(super) fn push_small(&self, offset: u64) -> bool {
        // The bits that no block's offset has set become the highest ones, and the unit no unit.
        let unit = offset.rotate_right(GRANULE_SHIFT) >> (UNIT_SHIFT - GRANULE_SHIFT);
        if unit >= self.units.get() {
            return false;
        }
        #[allow(clippy::cast_possible_truncation, reason = "below `units`")]
        let unit = unit as usize;
        // SAFETY: [mapped] `unit` is below `units`, and the table has an entry for each unit.
        let tag = unsafe { &*self.tags.wrapping_add(unit) };
        // ORDER: Relaxed: only this thread makes a page ours or lets go of it, and as long as a block
        // of a page is the caller's, its class does not change.
        let tag = tag.load(Ordering::Relaxed);
        let Some(class) = self.cache.class_of(tag) else { return false };
        if self.push_cached(class, offset) {
            return true;
        }
        if tag & Tag::OWNER_BITS != self.owner_bits {
            return false;
        }
        // SAFETY: [mapped] as for the tag.
        let descriptor = unsafe { &*self.descriptors.wrapping_add(unit) };
        let list = List(descriptor.local.load(Ordering::Relaxed));
        if list.has_length(descriptor.event.load(Ordering::Relaxed)) {
            return false;
        }
        self.link(offset).store(list.0, Ordering::Relaxed);
        // Died here: the block is linked and still allocated.
        crate::crash_point!("free.linked");
        // ORDER: Release keeps it after the link's store, for whoever recovers this list.
        descriptor.local.store(list.with_first(offset).0, Ordering::Release);
        true
    }

    /// Frees the block at `offset` if it is a run of ours or lies in a medium page of ours that stays where
    /// it is.
    ///
    /// Cold, as is [`Heap::take_larger`]: in what is compiled into the allocator's users, it would only be
    /// in the way.
    #[cold]
    #[inline(never)]
    pub(super) fn free_larger(&self, offset: u64) -> bool {
        let _use = NoPause::begin();
        self.free_own_run(offset) || self.push_medium(offset)
    }

    /// Frees the block at `offset` if it lies in a medium page of ours that stays where it is.
    #[inline(never)]
    fn push_medium(&self, offset: u64) -> bool {
        self.push_bin(offset) || self.push_medium_local(offset)
    }

    /// Frees the block at `offset` if it lies in the medium page of ours that the next blocks of its class
    /// come from: it is the first of them, being the one that the processor's caches have.
    ///
    /// The store of the bin is the moment at which the block is free: who dies before has freed nothing.
    #[inline]
    fn push_bin(&self, offset: u64) -> bool {
        // Medium pages begin at multiples of their size.
        let head = (offset >> MEDIUM_SHIFT) * u64::from(MEDIUM_UNITS);
        if head + u64::from(MEDIUM_UNITS) > self.units.get() {
            return false;
        }
        #[allow(clippy::cast_possible_truncation, reason = "below `units`")]
        let head = head as usize;
        // SAFETY: [mapped] `head` is below `units`, and the table has an entry for each unit.
        let tag = unsafe { &*self.tags.wrapping_add(head) };
        // ORDER: Relaxed, as in `push_small`: only this thread makes a page ours or lets go of it.
        let tag = Tag(tag.load(Ordering::Relaxed));
        let medium = tag.0.wrapping_sub(self.first_medium_tag.0) as usize;
        if medium >= MEDIUM_CLASSES {
            return false;
        }
        let class = SMALL_CLASSES + medium;
        let bin = &self.slot().bins[class];
        let list = List(bin.load(Ordering::Relaxed));
        // SAFETY: [mapped] as for the tag.
        let descriptor = unsafe { &*self.descriptors.wrapping_add(head) };
        let carved = descriptor.carved.load(Ordering::Relaxed);
        let longer = list.with_first(offset);
        // As `Page::index_of` tells, in fewer instructions: the page was found by the offset.
        #[allow(clippy::cast_possible_truncation, reason = "nineteen bits")]
        let distance = (offset & ((1 << MEDIUM_SHIFT) - 1)) as u32;
        let is_plain = list.same_page::<MEDIUM_SHIFT>(longer)
            && (2..=carved).contains(&longer.count())
            && distance.is_multiple_of(block_bytes(class))
            && distance / block_bytes(class) < carved;
        if !is_plain {
            return false;
        }
        self.link(offset).store(list.0, Ordering::Relaxed);
        // Died here: the block is linked and still allocated.
        crate::crash_point!("free.linked");
        // ORDER: Release keeps it after the link's store, for whoever recovers this list.
        bin.store(longer.0, Ordering::Release);
        // Died here: it is free, and its page perhaps wholly.
        crate::crash_point!("free.pushed");
        let counters = self.counters();
        add(&counters.local_frees, 1);
        add(&counters.loaded, 1);
        let unit = unit_of(offset) & !(MEDIUM_UNITS - 1);
        self.after_medium_free(Page::new(&self.view, unit, tag));
        true
    }

    /// Frees the block at `offset` if it lies in another medium page of ours.
    #[inline(never)]
    fn push_medium_local(&self, offset: u64) -> bool {
        let Some(page) = self.medium_page(offset) else { return false };
        let carved = page.carved();
        let count = page.local().count();
        let is_plain = page.index_of(offset).is_some_and(|index| index < carved)
            && count < carved
            && count != page.descriptor().event.load(Ordering::Relaxed);
        if is_plain {
            page.push_local(offset);
            self.after_medium_free(page);
        }
        is_plain
    }

    /// The medium page of ours that `offset` lies in.
    fn medium_page(&self, offset: u64) -> Option<Page<'_>> {
        // ORDER: Relaxed, as in `push_small`: only this thread makes a page ours or lets go of it.
        let read = |unit| Some(Tag(self.tag_word(unit)?.load(Ordering::Relaxed)));
        let unit = u32::try_from(offset >> UNIT_SHIFT).ok()?;
        let tag = read(unit)?;
        let head =
            if tag.kind() == Kind::MediumBody { unit.checked_sub(tag.place())? } else { unit };
        let tag = self.view.plausible(head, read(head)?);
        (tag.kind() == Kind::Medium && tag.owner() == self.id)
            .then(|| Page::new(&self.view, head, tag))
    }

    /// Where a block is that [`Heap::take_small`] or [`Heap::take_larger`] just gave: all of it lies inside
    /// the segment.
    #[inline(always)]
    pub(super) fn address(&self, offset: u64) -> NonNull<u8> {
        #[allow(clippy::cast_possible_truncation, reason = "an offset into a mapping")]
        let address = self.base.wrapping_add(offset as usize);
        // SAFETY: [mapped] it lies in a mapping, which is not at 0.
        unsafe { NonNull::new_unchecked(address) }
    }

    /// The first eight bytes of a block whose offset was just checked.
    #[inline(always)]
    fn link(&self, offset: u64) -> &AtomicU64 {
        #[allow(clippy::cast_possible_truncation, reason = "an offset into a mapping")]
        let address = self.base.wrapping_add(offset as usize).cast();
        // SAFETY: [mapped] callers checked that offset lies below the limit, which is a multiple of
        // the unit, and at a multiple of 16; [atomic] links are only accessed as atomics.
        unsafe { AtomicU64::from_ptr(address) }
    }

    /// Takes over the pages that the slot had when another thread left it.
    pub(super) fn find_pages(&self) {
        for unit in self.view.block_units() {
            let Some(tag) = self.view.tag(unit).filter(|tag| tag.owner() == self.id) else {
                continue;
            };
            if !matches!(tag.kind(), Kind::Small | Kind::Medium) {
                continue;
            }
            let page = Page::new(&self.view, unit, tag);
            if !page.contains(self.view.bin_list(self.slot(), page.class()).first()) {
                self.settle(page);
            }
        }
    }

    /// Medium classes whose bins may be filled at the same time.
    pub(super) fn most_medium_bins(&self) -> usize {
        let pages = self.view.block_units().len() / MEDIUM_UNITS as usize;
        (pages / MEDIUM_BINS_PART).clamp(LEAST_MEDIUM_BINS, MEDIUM_CLASSES)
    }

    /// How to carve: little of the first pages of a class, all of later ones; and a few blocks at a time
    /// where a row of the cache gets the others.
    pub(super) fn carving(&self, class: usize) -> Cut {
        let opened = self.opened.get(class).map_or(0, Cell::get);
        let bytes = 4096 << opened.saturating_sub(1).min(4);
        let most = if self.cache.limit(class) > 0 { CUT_BESIDE_A_ROW } else { u32::MAX };
        Cut { bytes, most }
    }
}

const _: () = {
    let fields = [
        offset_of!(Heap, base),
        offset_of!(Heap, units),
        offset_of!(Heap, tags),
        offset_of!(Heap, cache),
        offset_of!(Heap, first),
        offset_of!(Heap, reach),
        offset_of!(Heap, slot),
        offset_of!(Heap, descriptors),
        offset_of!(Heap, owner_bits),
    ];
    let mut index = 0;
    while index < fields.len() {
        assert!(fields[index] % 16 == 8, "not where a block can begin");
        index += 1;
    }
};
const _: () = assert!(NO_EVENT > u16::MAX as u32, "a list's length never reaches it");
