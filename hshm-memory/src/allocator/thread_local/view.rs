//! A validated segment as this process maps it: the only place where an offset becomes an address.

use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use super::geometry::{Geometry, Identity};
use super::layout::{
    DESCRIPTOR_BYTES, Descriptor, Header, MEDIUM_UNITS, PAGE_BYTES, SLOT_BYTES, Slot, UNIT_FRAMES,
    UNIT_SHIFT,
};
use super::size_class::CLASSES;
use super::words::{Kind, List, SlotWord, Tag, unit_of, unit_start};
use crate::backend::{Backend, BackendError};
use crate::error::AllocError;
use crate::options::OnExit;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// A segment, mapped and validated. Everything in here but the bytes behind `base` is private to
/// this process.
#[derive(Debug)]
pub(crate) struct View {
    backend: Arc<dyn Backend>,
    base: NonNull<u8>,
    /// The largest alignment that blocks can have.
    align_limit: usize,
    pub(crate) geometry: Geometry,
    pub(crate) identity: Identity,
    /// How much of the address range has a file behind it, as far as this process has looked.
    limit: AtomicU64,
}

// SAFETY: [mapped] the mapping lives as long as the backend, which is held; [atomic] all that is
// reached through it is atomics, and blocks, whose use the allocator hands to one owner each.
unsafe impl Send for View {}
// SAFETY: [atomic] as above.
unsafe impl Sync for View {}

impl View {
    /// `geometry` must have been computed or validated for this very backend, of which `committed_bytes` can be
    /// used.
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        geometry: Geometry,
        identity: Identity,
        committed_bytes: u64,
    ) -> Self {
        assert!(geometry.capacity <= backend.capacity_bytes(), "the geometry fits the mapping");
        let (base, align_limit) = (backend.base(), backend.alignment());
        let limit = AtomicU64::new(limit_at(committed_bytes, &geometry));
        Self { backend, base, align_limit, geometry, identity, limit }
    }

    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    pub(crate) fn on_exit(&self) -> OnExit {
        self.identity.on_exit
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn align_limit(&self) -> usize {
        self.align_limit
    }

    /// Asks the kernel how long the segment is, and remembers it.
    pub(crate) fn refresh_limit(&self) -> u64 {
        let limit = limit_at(self.backend.committed_bytes(), &self.geometry);
        // ORDER: Relaxed: the value bounds accesses and orders nothing.
        self.limit.store(limit, Ordering::Relaxed);
        limit
    }

    /// Bytes from the start that may be touched, as of the last look.
    #[inline]
    pub(crate) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Units below the limit.
    pub(crate) fn units(&self) -> u32 {
        unit_of(self.limit())
    }

    /// The units that can hold blocks now.
    pub(crate) fn block_units(&self) -> Range<u32> {
        self.geometry.first_unit..self.units()
    }

    /// Whether memory that is not needed is to go back to the kernel.
    pub(super) fn gives_back(&self) -> bool {
        self.backend.gives_back() && self.header().keeps_memory.load(Ordering::Relaxed) == 0
    }

    /// The header's geometry, checked against the mapping it was read through.
    pub(super) fn header(&self) -> &Header {
        header_at(self.base)
    }

    fn at<T>(&self, offset: u64) -> &T {
        let end = offset + size_of::<T>() as u64;
        assert!(end <= self.geometry.metadata_bytes(), "tables lie in the metadata");
        debug_assert_eq!(offset % align_of::<T>() as u64, 0);
        let address = self.base.as_ptr().wrapping_add(to_usize(offset)).cast::<T>();
        // SAFETY: [mapped] the assertion keeps it in the metadata, which attach found to lie inside
        // the file; tables begin on pages, so T is aligned; [atomic] T is made of atomics.
        unsafe { &*address }
    }

    /// The word that says who holds slot `id`.
    pub(crate) fn slot_word(&self, id: u32) -> &AtomicU64 {
        assert!(id <= self.geometry.worker_slots, "slot numbers are checked before");
        self.at(self.geometry.slot_words + u64::from(id) * 8)
    }

    /// Slot `id`, which must be one of the segment's.
    pub(crate) fn slot(&self, id: u32) -> &Slot {
        assert!(id <= self.geometry.worker_slots, "slot numbers are checked before");
        self.at(self.geometry.slots + u64::from(id) * SLOT_BYTES)
    }

    pub(super) fn slot_range(&self, id: u32) -> Range<u64> {
        let start = self.geometry.slots + u64::from(id) * SLOT_BYTES;
        start..start + SLOT_BYTES
    }

    /// Numbers of all slots.
    pub(crate) fn slot_ids(&self) -> std::ops::RangeInclusive<u32> {
        1..=self.geometry.worker_slots
    }

    /// The slots that are in use, and who uses them.
    pub(crate) fn slots_in_use(&self) -> impl Iterator<Item = (u32, SlotWord)> + '_ {
        self.slot_ids().filter_map(|id| {
            // ORDER: Acquire pairs with the Release of whoever claimed the slot.
            let word = SlotWord(self.slot_word(id).load(Ordering::Acquire));
            (word != SlotWord::FREE).then_some((id, word))
        })
    }

    pub(crate) fn tag_word(&self, unit: u32) -> &AtomicU32 {
        assert!(unit < self.geometry.units, "units are checked before");
        self.at(self.geometry.tags + u64::from(unit) * 4)
    }

    /// Those of several units, one behind the other.
    pub(super) fn tag_words(&self, units: Range<u32>) -> &[AtomicU32] {
        assert!(units.end <= self.geometry.units, "units are checked before");
        if units.is_empty() {
            return &[];
        }
        let first = std::ptr::from_ref(self.tag_word(units.start));
        // SAFETY: [mapped] the table has a word for each unit; [atomic] as for the first one.
        unsafe { std::slice::from_raw_parts(first, units.len()) }
    }

    /// The tag of `unit`, or `None` if there is no such unit now.
    pub(crate) fn tag(&self, unit: u32) -> Option<Tag> {
        // ORDER: Acquire pairs with the Release of whoever made the unit what it is.
        let read = || self.plausible(unit, Tag(self.tag_word(unit).load(Ordering::Acquire)));
        self.block_units().contains(&unit).then(read)
    }

    /// `tag`, read from the word of `unit`, unless it cannot stand there: whoever acts on it may
    /// rely on a medium page's being inside the segment, with eight tags and descriptors (I7).
    pub(super) fn plausible(&self, unit: u32, tag: Tag) -> Tag {
        let is_there = tag.kind() != Kind::Medium
            || (unit.is_multiple_of(MEDIUM_UNITS)
                && unit.checked_add(MEDIUM_UNITS).is_some_and(|end| end <= self.geometry.units));
        if is_there { tag } else { Tag::UNKNOWN }
    }

    pub(crate) fn descriptor(&self, unit: u32) -> &Descriptor {
        assert!(unit < self.geometry.units, "units are checked before");
        self.at(self.geometry.descriptors + u64::from(unit) * DESCRIPTOR_BYTES)
    }

    /// Word `index` of one of the bitmaps at `table`.
    pub(super) fn bits(&self, table: u64, index: u32) -> &AtomicU64 {
        self.at(table + u64::from(index) * 8)
    }

    /// The eight bytes at `offset` in a unit that holds blocks, if they lie below the limit.
    pub(crate) fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let inside = offset >= self.geometry.metadata_bytes()
            && offset.checked_add(8).is_some_and(|end| end <= self.limit());
        (inside && offset.is_multiple_of(8)).then(|| {
            let address = self.base.as_ptr().wrapping_add(to_usize(offset));
            // SAFETY: [mapped] the range was just checked; eight-byte alignment too; [atomic] the
            // bytes are accessed as an atomic by everyone who follows a list.
            unsafe { AtomicU64::from_ptr(address.cast()) }
        })
    }

    /// Word `index` of a unit of which somebody else takes care that it is not a block.
    pub(super) fn word_in_unit(&self, unit: u32, index: u64) -> &AtomicU64 {
        assert!(unit < self.geometry.units && index < (1 << UNIT_SHIFT) / 8, "words of a unit");
        let address = self.base.as_ptr().wrapping_add(to_usize(unit_start(unit) + index * 8));
        // SAFETY: [mapped] units are validated, and their number is that of the mapping; [atomic]
        // whatever stands in a segment may be accessed as atomics.
        unsafe { AtomicU64::from_ptr(address.cast()) }
    }

    /// The `len` words of such a unit from word `index` on.
    pub(super) fn words_in_unit(&self, unit: u32, index: u64, len: usize) -> &[AtomicU64] {
        let end = index.checked_add(len as u64);
        assert!(end.is_some_and(|end| end <= (1 << UNIT_SHIFT) / 8), "words of a unit");
        let first = std::ptr::from_ref(self.word_in_unit(unit, index));
        // SAFETY: [mapped] all of them lie in the unit that the first one is in; [atomic] as there.
        unsafe { std::slice::from_raw_parts(first, len) }
    }

    /// The address of `len` bytes at `offset`, if they all lie below the limit and after the
    /// header.
    pub(crate) fn resolve(&self, offset: u64, len: usize) -> Result<NonNull<u8>, AllocError> {
        let end = offset.checked_add(len as u64);
        let fits = |limit| end.is_some_and(|end| end <= limit);
        let inside = offset >= self.geometry.custom_header
            && (fits(self.limit()) || fits(self.refresh_limit()));
        if !inside {
            return Err(AllocError::NotAllocated { offset, why: "it lies outside the segment" });
        }
        let address = self.base.as_ptr().wrapping_add(to_usize(offset));
        NonNull::new(address).ok_or(AllocError::NotAllocated { offset, why: "it is null" })
    }

    /// The cell at `offset`: eight aligned bytes of the application's header or of a block.
    pub(crate) fn cell(&self, offset: u64) -> Result<&AtomicU64, AllocError> {
        let bad = |why| AllocError::BadCell { offset, why };
        if !offset.is_multiple_of(8) {
            return Err(bad("it is not aligned to 8 bytes"));
        }
        let header = self.geometry.custom_header
            ..self.geometry.custom_header + self.geometry.custom_header_bytes;
        let end = offset.checked_add(8).ok_or_else(|| bad("it lies outside the segment"))?;
        if header.contains(&offset) && end <= header.end {
            return Ok(self.at(offset));
        }
        if end > self.limit() {
            self.refresh_limit();
        }
        self.word(offset)
            .ok_or_else(|| bad("it lies neither in the application's header nor in a block"))
    }

    /// Puts memory behind the tags and descriptors of units `from` to `to`, so that looking at them
    /// never meets a full file system.
    pub(super) fn populate_tables(&self, from: u32, to: u32) -> Result<(), BackendError> {
        let rows = |table: u64, bytes: u64| {
            table + u64::from(from) * bytes..table + u64::from(to.max(from)) * bytes
        };
        self.backend.populate(rows(self.geometry.tags, 4))?;
        self.backend.populate(rows(self.geometry.descriptors, DESCRIPTOR_BYTES))
    }

    /// Makes the first `bytes` of a unit usable, unless they are already.
    pub(super) fn make_resident(&self, unit: u32, bytes: u64) -> Result<(), BackendError> {
        let descriptor = self.descriptor(unit);
        let unit_bytes = 1 << UNIT_SHIFT;
        let bytes = bytes.min(unit_bytes);
        let wanted = u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(UNIT_FRAMES);
        // ORDER: Relaxed: the unit is the caller's, and so is this field.
        let resident = descriptor.resident.load(Ordering::Relaxed);
        if resident >= wanted {
            return Ok(());
        }
        let start = unit_start(unit) + u64::from(resident) * PAGE_BYTES;
        let end = unit_start(unit) + u64::from(wanted) * PAGE_BYTES;
        self.backend.populate(start..end)?;
        descriptor.resident.store(wanted, Ordering::Relaxed);
        Ok(())
    }

    /// Makes all units of a run usable, with as few calls as there are stretches to populate.
    pub(super) fn make_run_resident(&self, run: Range<u32>) -> Result<(), BackendError> {
        let is_full = |unit| self.descriptor(unit).resident.load(Ordering::Relaxed) >= UNIT_FRAMES;
        let mut unit = run.start;
        while unit < run.end {
            if is_full(unit) {
                unit += 1;
                continue;
            }
            let stretch_end = (unit..run.end).find(|&u| is_full(u)).unwrap_or(run.end);
            self.backend.populate(unit_start(unit)..unit_start(stretch_end))?;
            for populated in unit..stretch_end {
                self.descriptor(populated).resident.store(UNIT_FRAMES, Ordering::Relaxed);
            }
            unit = stretch_end;
        }
        Ok(())
    }

    /// The page that the block at `offset` lies in: its first unit and that unit's tag.
    pub(crate) fn page_of(&self, offset: u64) -> Option<(u32, Tag)> {
        let unit = unit_of(offset);
        let tag = self.tag(unit)?;
        match tag.kind() {
            Kind::Small | Kind::Medium => Some((unit, tag)),
            Kind::MediumBody => {
                let head = unit.checked_sub(tag.place())?;
                let tag = self.tag(head)?;
                (tag.kind() == Kind::Medium).then_some((head, tag))
            }
            Kind::Free
            | Kind::Claimed
            | Kind::Large
            | Kind::RunBody
            | Kind::Transit
            | Kind::Cache
            | Kind::Unknown => None,
        }
    }

    /// The list that `slot` takes blocks of `class` from.
    pub(crate) fn bin<'s>(&self, slot: &'s Slot, class: usize) -> &'s AtomicU64 {
        let _ = self;
        slot.bins.get(class).unwrap_or(&slot.bins[CLASSES - 1])
    }

    /// The first of the list of a bin.
    pub(crate) fn bin_list(&self, slot: &Slot, class: usize) -> List {
        // ORDER: Relaxed: the bin is written by the slot's holder alone; others only count.
        List(self.bin(slot, class).load(Ordering::Relaxed))
    }
}

/// How much of a segment may be touched of which `committed_bytes` can be used: whole units of it.
fn limit_at(committed_bytes: u64, geometry: &Geometry) -> u64 {
    committed_bytes.min(geometry.capacity) >> UNIT_SHIFT << UNIT_SHIFT
}

/// The header at a mapping's start.
pub(super) fn header_at<'m>(base: NonNull<u8>) -> &'m Header {
    // SAFETY: [mapped] callers checked that the file is at least a header long, and hold the
    // mapping for as long as they use the reference; [atomic] all fields are atomics.
    unsafe { base.cast::<Header>().as_ref() }
}

/// Offsets are below the length of a mapping, which is a `usize`.
#[inline]
fn to_usize(offset: u64) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "an offset into a mapping")]
    let offset = offset as usize;
    offset
}
