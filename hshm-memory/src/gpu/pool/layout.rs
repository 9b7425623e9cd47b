//! The bytes of a pool's tables.

use std::mem::{offset_of, size_of};

use super::PoolError;
use crate::robust::RobustLock;
use crate::sync::AtomicU64;

/// What a pool begins with, read as a little-endian number.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"hshmPOOL");
/// It changes whenever a byte of the layout changes its meaning.
pub(super) const VERSION: u64 = 1;

/// What the journal says: nothing is under way.
pub(super) const IDLE: u64 = 0;
/// A block is being taken.
pub(super) const TAKING: u64 = 1;
/// A block is being freed.
pub(super) const FREEING: u64 = 2;

/// A pool's first bytes; two rows of bits follow. Those up to `granules` are written once, before `magic`.
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) version: AtomicU64,
    /// Where this stands in the segment.
    pub(super) offset: AtomicU64,
    pub(super) granule_bytes: AtomicU64,
    pub(super) granules: AtomicU64,
    _pad0: [AtomicU64; 3],
    /// Held by whoever changes what follows.
    pub(super) lock: RobustLock,
    /// Where room was found last: a hint.
    pub(super) hint: AtomicU64,
    /// What its holder is about, written before it changes a bit.
    pub(super) doing: AtomicU64,
    pub(super) first: AtomicU64,
    pub(super) count: AtomicU64,
    /// The cell of the segment that gets or gives up the block; 0 if there is none.
    pub(super) cell: AtomicU64,
    _pad1: [AtomicU64; 1],
}

const _: () = {
    assert!(size_of::<Header>() == 128);
    assert!(offset_of!(Header, lock) == 64);
    assert!(offset_of!(Header, hint) == 80);
};

/// Where everything is: computed, or read once and checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) granule_bytes: u64,
    pub(super) granules: u64,
}

impl Geometry {
    pub(super) fn compute(bytes: u64, granule_bytes: u64) -> Result<Self, PoolError> {
        if !granule_bytes.is_power_of_two() || !(256..=2 << 20).contains(&granule_bytes) {
            return Err(PoolError::BadOption {
                what: "the granule of a pool",
                found: granule_bytes,
                expected: "a power of two from 256 bytes to 2 MiB",
            });
        }
        let granules = bytes / granule_bytes;
        if !(2..=1 << 34).contains(&granules) {
            return Err(PoolError::BadOption {
                what: "the size of a pool",
                found: bytes,
                expected: "2 to 2^34 granules",
            });
        }
        Ok(Self { granule_bytes, granules })
    }

    /// Words of each row of bits.
    pub(super) fn words(self) -> u64 {
        self.granules.div_ceil(64)
    }

    /// Where the second row begins, after the header and the first.
    pub(super) fn starts_offset(self) -> u64 {
        size_of::<Header>() as u64 + self.words() * 8
    }

    /// How long the tables are.
    pub(super) fn table_bytes(self) -> u64 {
        self.starts_offset() + self.words() * 8
    }
}
