//! Where everything stands in a segment: computed once, validated at attach, and kept in private
//! memory, so that nothing another process writes can move it.

use super::layout::{
    DESCRIPTOR_BYTES, Header, KIND_THREAD_LOCAL, LAYOUT_VERSION, MAGIC, PAGE_BYTES, SLOT_BYTES,
    TABLES, UNIT_BYTES, UNIT_SHIFT,
};
use crate::allocator::AllocatorKind;
use crate::error::SegmentError;
use crate::options::{InitOptions, OnExit};
use crate::pointer::AllocatorId;
use crate::sync::Ordering;

/// The header and the application's part behind it begin and end on pages of their own.
pub(super) const HEADER_BYTES: u64 = PAGE_BYTES;
/// The largest capacity: 64 TiB, so that units are counted in 30 bits.
const MAX_CAPACITY_BYTES: u64 = 1 << 46;

/// The tables of a segment, each a range of bytes from the segment's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Length of the address range, a multiple of the unit.
    pub(crate) capacity: u64,
    /// Units in it, metadata included.
    pub(crate) units: u32,
    /// The first unit after the metadata.
    pub(crate) first_unit: u32,
    /// Worker slots, numbered from 1.
    pub(crate) worker_slots: u32,
    /// The application's header.
    pub(crate) custom_header: u64,
    pub(crate) custom_header_bytes: u64,
    /// One word for each slot, and one for the number 0, which is nobody's.
    pub(crate) slot_words: u64,
    /// One bit for each word of `free_bits`: it may have a bit set.
    pub(crate) free_summary: u64,
    /// One bit for each unit: it may be free.
    pub(crate) free_bits: u64,
    /// One bit for each unit: it may be an ownerless page with free blocks.
    pub(crate) adoptable_bits: u64,
    pub(crate) tags: u64,
    pub(crate) slots: u64,
    pub(crate) descriptors: u64,
}

/// What else the header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: AllocatorId,
    pub(crate) on_exit: OnExit,
}

impl Geometry {
    /// Lays out a segment of `capacity` bytes, rounded down to units.
    pub(crate) fn compute(capacity: u64, options: &InitOptions) -> Result<Self, SegmentError> {
        let bad = |what, found, expected: String| SegmentError::BadOption { what, found, expected };
        if options.custom_header_bytes > InitOptions::MAX_CUSTOM_HEADER_BYTES {
            return Err(bad(
                "the custom header's length",
                options.custom_header_bytes,
                format!("at most {} bytes", InitOptions::MAX_CUSTOM_HEADER_BYTES),
            ));
        }
        if !(1..=InitOptions::MAX_WORKER_SLOTS).contains(&options.worker_slots) {
            return Err(bad(
                "the number of worker slots",
                options.worker_slots.into(),
                format!("1 to {}", InitOptions::MAX_WORKER_SLOTS),
            ));
        }
        let too_small = || SegmentError::Truncated {
            found_bytes: capacity,
            needed_bytes: Self::least_capacity(options),
        };
        if capacity > MAX_CAPACITY_BYTES {
            return Err(bad("the capacity", capacity, "at most 64 TiB".to_owned()));
        }
        let units = u32::try_from(capacity >> UNIT_SHIFT).map_err(|_| too_small())?;
        let geometry = Self::lay_out(units, options);
        if geometry.first_unit >= units { Err(too_small()) } else { Ok(geometry) }
    }

    fn lay_out(units: u32, options: &InitOptions) -> Self {
        let mut end = HEADER_BYTES;
        // Each table begins on a page of its own, so that populating one never depends on another.
        let mut place = |bytes: u64| {
            let start = end;
            end = (end + bytes).next_multiple_of(PAGE_BYTES);
            start
        };
        let units_u64 = u64::from(units);
        let slots = u64::from(options.worker_slots);
        let words = units_u64.div_ceil(64);
        let custom_header = place(options.custom_header_bytes);
        // What a process reads before it has a block comes first: the kernel maps 64 KiB at the first look.
        let slot_words = place((slots + 1) * 8);
        let free_summary = place(words.div_ceil(64) * 8);
        let free_bits = place(words * 8);
        let adoptable_bits = place(words * 8);
        let tags = place(units_u64 * 4);
        let slot_table = place((slots + 1) * SLOT_BYTES);
        let descriptors = place(units_u64 * DESCRIPTOR_BYTES);
        let first_unit = u32::try_from(end.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        Self {
            capacity: units_u64 << UNIT_SHIFT,
            units,
            first_unit,
            worker_slots: options.worker_slots,
            custom_header,
            custom_header_bytes: options.custom_header_bytes,
            slot_words,
            free_summary,
            free_bits,
            adoptable_bits,
            tags,
            slots: slot_table,
            descriptors,
        }
    }

    /// The least capacity that leaves one unit for pages.
    pub(crate) fn least_capacity(options: &InitOptions) -> u64 {
        let units = (1..).find(|&units| Self::lay_out(units, options).first_unit < units);
        u64::from(units.unwrap_or(u32::MAX)) << UNIT_SHIFT
    }

    /// Bytes before the first unit that holds blocks.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        u64::from(self.first_unit) << UNIT_SHIFT
    }

    fn tables(&self) -> [u64; TABLES] {
        [
            self.slot_words,
            self.free_summary,
            self.free_bits,
            self.adoptable_bits,
            self.tags,
            self.slots,
            self.descriptors,
        ]
    }

    /// Writes the fields that never change, all but the magic.
    pub(super) fn store(&self, header: &Header, identity: Identity) {
        // ORDER: Relaxed suffices: the magic is stored after these with Release.
        let relaxed = Ordering::Relaxed;
        header.layout_version.store(LAYOUT_VERSION, relaxed);
        header.kind.store(KIND_THREAD_LOCAL, relaxed);
        header.id_major.store(identity.id.major, relaxed);
        header.id_minor.store(identity.id.minor, relaxed);
        header.capacity.store(self.capacity, relaxed);
        header.on_exit.store(identity.on_exit.to_u32(), relaxed);
        header.worker_slots.store(self.worker_slots, relaxed);
        header.custom_header_bytes.store(self.custom_header_bytes, relaxed);
        for (field, table) in header.tables.iter().zip(self.tables()) {
            field.store(table, relaxed);
        }
        header.first_unit.store(self.first_unit.into(), relaxed);
        header.checksum.store(self.checksum(identity), relaxed);
    }

    /// Reads and validates what [`Geometry::store`] wrote. `file_bytes` is how long the segment
    /// really is.
    pub(super) fn load(header: &Header, file_bytes: u64) -> Result<(Self, Identity), SegmentError> {
        // ORDER: Acquire pairs with the Release of the magic at the end of shm_init.
        let magic = header.magic.load(Ordering::Acquire);
        if magic != MAGIC {
            return Err(AllocatorKind::ThreadLocal.not_found(magic));
        }
        let found = header.layout_version.load(Ordering::Relaxed);
        if found != LAYOUT_VERSION {
            return Err(SegmentError::LayoutVersion { found, supported: LAYOUT_VERSION });
        }
        let corrupt = |field, found, why| Err(SegmentError::Corrupt { field, found, why });
        let kind = header.kind.load(Ordering::Relaxed);
        if kind != KIND_THREAD_LOCAL {
            return corrupt("the allocator's kind", kind.into(), "which is none that is known");
        }
        let on_exit = header.on_exit.load(Ordering::Relaxed);
        let Ok(policy) = OnExit::try_from(on_exit) else {
            return corrupt("the on-exit policy", on_exit.into(), "which is none that is known");
        };
        let identity = Identity {
            id: AllocatorId::new(
                header.id_major.load(Ordering::Relaxed),
                header.id_minor.load(Ordering::Relaxed),
            ),
            on_exit: policy,
        };
        let options = InitOptions {
            custom_header_bytes: header.custom_header_bytes.load(Ordering::Relaxed),
            on_exit: policy,
            worker_slots: header.worker_slots.load(Ordering::Relaxed),
        };
        let capacity = header.capacity.load(Ordering::Relaxed);
        let Ok(geometry) = Self::compute(capacity, &options) else {
            return corrupt("the capacity", capacity, "which no segment of these options has");
        };
        if geometry.capacity != capacity {
            return corrupt("the capacity", capacity, "which is no multiple of the unit");
        }
        for (field, expected) in header.tables.iter().zip(geometry.tables()) {
            let found = field.load(Ordering::Relaxed);
            if found != expected {
                return corrupt("a table's offset", found, "which the capacity contradicts");
            }
        }
        let first_unit = header.first_unit.load(Ordering::Relaxed);
        if first_unit != u64::from(geometry.first_unit) {
            return corrupt("the first unit", first_unit, "which the capacity contradicts");
        }
        let checksum = header.checksum.load(Ordering::Relaxed);
        // A fuzzer cannot guess it, and is to get past it: it finds accidents alone.
        if checksum != geometry.checksum(identity) && !cfg!(fuzzing) {
            return corrupt("the checksum", checksum, "which the fields contradict");
        }
        let needed_bytes = geometry.metadata_bytes() + UNIT_BYTES;
        if file_bytes < needed_bytes {
            return Err(SegmentError::Truncated { found_bytes: file_bytes, needed_bytes });
        }
        Ok((geometry, identity))
    }

    /// FNV-1a over the fields: it finds accidents, not intent.
    fn checksum(&self, identity: Identity) -> u64 {
        let fields = [
            u64::from(LAYOUT_VERSION),
            u64::from(identity.id.major),
            u64::from(identity.id.minor),
            identity.on_exit.to_u32().into(),
            self.capacity,
            self.worker_slots.into(),
            self.custom_header_bytes,
            self.first_unit.into(),
        ];
        let bytes = fields.into_iter().chain(self.tables()).flat_map(u64::to_le_bytes);
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_do_not_overlap_and_end_before_the_first_unit() {
        for capacity in [1 << 22, 1 << 30, 1 << 40, 1 << 46] {
            let g = Geometry::compute(capacity, &InitOptions::default()).unwrap();
            let sizes = [
                (u64::from(g.worker_slots) + 1) * 8,
                u64::from(g.units).div_ceil(64 * 64) * 8,
                u64::from(g.units).div_ceil(64) * 8,
                u64::from(g.units).div_ceil(64) * 8,
                u64::from(g.units) * 4,
                (u64::from(g.worker_slots) + 1) * SLOT_BYTES,
                u64::from(g.units) * DESCRIPTOR_BYTES,
            ];
            let mut end = g.custom_header + g.custom_header_bytes;
            for (start, size) in g.tables().into_iter().zip(sizes) {
                assert!(start >= end && start % PAGE_BYTES == 0);
                end = start + size;
            }
            assert!(g.metadata_bytes() >= end);
            assert!(g.metadata_bytes() < capacity / 100 + (3 << 20), "metadata is about 0.2 %");
        }
    }

    #[test]
    fn the_least_capacity_is_the_least() {
        let options = InitOptions { worker_slots: 3, ..InitOptions::default() };
        let least = Geometry::least_capacity(&options);
        Geometry::compute(least, &options).unwrap();
        assert!(Geometry::compute(least - 1, &options).is_err());
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let with = |options| Geometry::compute(1 << 30, &options).unwrap_err();
        let base = InitOptions::default();
        with(InitOptions { worker_slots: 0, ..base });
        with(InitOptions { worker_slots: 5000, ..base });
        with(InitOptions { custom_header_bytes: u64::MAX, ..base });
        assert!(Geometry::compute(u64::MAX, &base).is_err());
    }
}
