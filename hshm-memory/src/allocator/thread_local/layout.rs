//! The bytes of a segment, as every process of every release with this layout version sees them.
//!
//! Each field is an atomic, because another process may write it at any moment; none is a `usize`,
//! `bool`, enum or address. Change nothing here without raising [`LAYOUT_VERSION`].

#[cfg(not(hshm_loom))]
use std::mem::{offset_of, size_of};

use super::size_class::CLASSES;
use crate::sync::{AtomicU32, AtomicU64};

/// The version of the segments that this library writes and reads. It changes whenever a byte of
/// the layout changes its meaning.
pub const LAYOUT_VERSION: u32 = 5;
/// What a segment begins with: "hshmTLA1", read as a little-endian number.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"hshmTLA1");
/// The allocator that laid the segment out.
pub(crate) const KIND_THREAD_LOCAL: u32 = 3;

/// A unit's size, as a power of two: 64 KiB.
pub(crate) const UNIT_SHIFT: u32 = 16;
/// A unit's size.
pub(crate) const UNIT_BYTES: u64 = 1 << UNIT_SHIFT;
/// The units of a page for medium blocks; it begins at a multiple of its size.
pub(crate) const MEDIUM_UNITS: u32 = 8;
/// The size of such a page, as a power of two: 512 KiB.
pub(crate) const MEDIUM_SHIFT: u32 = UNIT_SHIFT + MEDIUM_UNITS.trailing_zeros();
/// The grain in which memory is populated and given back: a frame.
pub(crate) const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
const PAGE_SHIFT: u32 = 12;
/// Frames of a unit.
pub(crate) const UNIT_FRAMES: u32 = 1 << (UNIT_SHIFT - PAGE_SHIFT);
/// Bits of an offset: 256 TiB.
pub(crate) const OFFSET_BITS: u32 = 48;

/// The segment's first bytes. All but `magic` and `committed` are written once, before `magic`.
#[repr(C)]
pub(crate) struct Header {
    /// [`MAGIC`]; stored last, when all else stands.
    pub(crate) magic: AtomicU64,
    /// [`LAYOUT_VERSION`].
    pub(crate) layout_version: AtomicU32,
    /// Which allocator this is.
    pub(crate) kind: AtomicU32,
    /// The allocator's identity.
    pub(crate) id_major: AtomicU32,
    /// Its second half.
    pub(crate) id_minor: AtomicU32,
    /// Length of the address range, in bytes.
    pub(crate) capacity: AtomicU64,
    /// Length that is in use, in bytes; only a hint, since the file itself is asked.
    pub(crate) committed: AtomicU64,
    /// What becomes of a dead process's blocks.
    pub(crate) on_exit: AtomicU32,
    /// Worker slots there are.
    pub(crate) worker_slots: AtomicU32,
    /// Length of the application's header, in bytes.
    pub(crate) custom_header_bytes: AtomicU64,
    /// Where each table begins, in the order of [`super::geometry::Geometry`].
    pub(crate) tables: [AtomicU64; TABLES],
    /// The first unit that is not metadata.
    pub(crate) first_unit: AtomicU64,
    /// A checksum over the fields above that never change.
    pub(crate) checksum: AtomicU64,
    /// What workers did that have released their slots since.
    pub(crate) retired: Counters,
    /// Raised by each worker that finds no free units, so that the others give back what they
    /// keep for themselves.
    pub(crate) pressure: AtomicU64,
    /// 1 if memory of free blocks is not to be given back, because the segment was made with memory that
    /// is kept at hand; else 0.
    pub(crate) keeps_memory: AtomicU64,
}

/// Tables that the header locates.
pub(crate) const TABLES: usize = 7;

/// What a worker has done. One writer each; read by whoever asks.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Counters {
    /// Blocks that were loaded into bins; the reader counts off those still there, and counts in what
    /// the cache handed out.
    pub(crate) loaded: AtomicU64,
    /// Blocks that came back to their page from its owner; the reader counts in what the cache has
    /// and had.
    pub(crate) local_frees: AtomicU64,
    /// Blocks freed by another.
    pub(crate) remote_frees: AtomicU64,
    /// Pages taken over.
    pub(crate) adoptions: AtomicU64,
}

/// A worker's part of the segment: a heap for one thread.
#[repr(C, align(64))]
pub(crate) struct Slot {
    /// The thread, as the kernel numbers it.
    pub(crate) thread: AtomicU32,
    /// The unit that holds the worker's cache; 0 for none.
    pub(crate) cache: AtomicU32,
    /// The sequence number of the last journalled operation, over all holders of this slot.
    pub(crate) sequence: AtomicU64,
    /// Which journalled remote free of this slot others saw on a list: unit and sequence.
    pub(crate) acknowledged: AtomicU64,
    _pad0: [AtomicU64; 5],
    /// The operation under way.
    pub(crate) journal: Journal,
    /// What the worker has done.
    pub(crate) counters: Counters,
    _pad1: [AtomicU64; 4],
    /// For each class, the list that blocks are taken from: a list word.
    pub(crate) bins: [AtomicU64; CLASSES],
}

/// The operation that a worker was about, should it die.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Journal {
    /// What, on which unit, with which sequence number; 0 if nothing is under way. Written after
    /// the other two, and cleared first.
    pub(crate) operation: AtomicU64,
    /// The cell that receives or held the block's offset.
    pub(crate) cell: AtomicU64,
    /// The block's offset.
    pub(crate) block: AtomicU64,
    _reserved: [AtomicU64; 5],
}

#[cfg(hshm_loom)]
mod for_model {
    use super::{AtomicU32, AtomicU64, CLASSES, Counters, Journal, Slot};

    fn zeros<const N: usize>() -> [AtomicU64; N] {
        std::array::from_fn(|_| AtomicU64::new(0))
    }

    impl Journal {
        /// An idle journal.
        pub(crate) fn for_model() -> Self {
            let [operation, cell, block] = zeros();
            Self { operation, cell, block, _reserved: zeros() }
        }
    }

    impl Counters {
        /// All zero.
        pub(crate) fn for_model() -> Self {
            let [loaded, local_frees, remote_frees, adoptions] = zeros();
            Self { loaded, local_frees, remote_frees, adoptions }
        }
    }

    impl Slot {
        /// An empty slot.
        pub(crate) fn for_model() -> Self {
            let [sequence, acknowledged] = zeros();
            Self {
                thread: AtomicU32::new(0),
                cache: AtomicU32::new(0),
                sequence,
                acknowledged,
                _pad0: zeros(),
                journal: Journal::for_model(),
                counters: Counters::for_model(),
                _pad1: zeros(),
                bins: zeros::<CLASSES>(),
            }
        }
    }
}

/// What is known of a unit, apart from who owns it, which its tag says.
///
/// The first line is the owner's alone; the second is where others put what they free.
#[repr(C, align(64))]
pub(crate) struct Descriptor {
    /// Which queue of its owner the page is in; a hint.
    pub(crate) queued: AtomicU32,
    /// Whether `purged_blocks` counts: 1 or 0.
    pub(crate) purged: AtomicU32,
    /// Blocks that the owner freed: a list word. This and `event` are read by the fast paths, and stand
    /// where no block can begin, in the low bits of the address: see [`super::heap`].
    pub(crate) local: AtomicU64,
    /// The next page of the owner's queue; a hint.
    pub(crate) next: AtomicU32,
    /// The one before; a hint.
    pub(crate) previous: AtomicU32,
    /// The length of `local` at which the next free has more to do.
    pub(crate) event: AtomicU32,
    /// Blocks that were ever put on a list, from the page's start on.
    pub(crate) carved: AtomicU32,
    /// What was left of the list that its last owner took blocks from: a list word.
    pub(crate) free: AtomicU64,
    /// For a run, its length in units.
    pub(crate) run_units: AtomicU32,
    /// How much of this unit has memory behind it, from its start, in pages of 4 KiB; kept when
    /// the unit changes hands. There may be more of it, behind some that has none.
    pub(crate) resident: AtomicU32,
    _reserved0: [AtomicU64; 2],
    /// Blocks that others freed: a remote word.
    pub(crate) remote: AtomicU64,
    /// Free blocks that are on no list, because the memory of some went back to the kernel: a bit for
    /// each.
    pub(crate) purged_blocks: [AtomicU64; PURGED_WORDS],
    _reserved1: [AtomicU64; 3],
}

/// Words of [`Descriptor::purged_blocks`].
pub(crate) const PURGED_WORDS: usize = 4;
/// The most blocks that a page can have of which that tells.
pub(crate) const PURGED_BLOCKS: u32 = 256;
/// Distance between slots.
pub(crate) const SLOT_BYTES: u64 = 1344;
/// Distance between descriptors.
pub(crate) const DESCRIPTOR_BYTES: u64 = 128;

#[cfg(not(hshm_loom))]
const _: () = {
    assert!(size_of::<Header>() == 176);
    assert!(offset_of!(Header, layout_version) == 8);
    assert!(offset_of!(Header, capacity) == 24);
    assert!(offset_of!(Header, committed) == 32);
    assert!(offset_of!(Header, on_exit) == 40);
    assert!(offset_of!(Header, custom_header_bytes) == 48);
    assert!(offset_of!(Header, tables) == 56);
    assert!(offset_of!(Header, first_unit) == 112);
    assert!(offset_of!(Header, checksum) == 120);
    assert!(offset_of!(Header, retired) == 128);
    assert!(offset_of!(Header, pressure) == 160);
    assert!(offset_of!(Header, keeps_memory) == 168);

    assert!(size_of::<Slot>() as u64 == SLOT_BYTES);
    assert!(offset_of!(Slot, journal) == 64);
    assert!(offset_of!(Slot, counters) == 128);
    assert!(offset_of!(Slot, bins) == 192);

    assert!(size_of::<Descriptor>() as u64 == DESCRIPTOR_BYTES);
    assert!(offset_of!(Descriptor, local) == 8);
    assert!(offset_of!(Descriptor, event) == 24);
    assert!(offset_of!(Descriptor, free) == 32);
    assert!(offset_of!(Descriptor, run_units) == 40);
    assert!(offset_of!(Descriptor, purged) == 4);
    assert!(offset_of!(Descriptor, remote) == 64);
    assert!(offset_of!(Descriptor, purged_blocks) == 72);
    assert!(PURGED_WORDS * 64 == PURGED_BLOCKS as usize);
    assert!(UNIT_FRAMES * MEDIUM_UNITS <= u128::BITS, "a bit for each frame of a page");
    assert!(align_of::<Descriptor>() == 64);
};
