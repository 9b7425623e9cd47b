//! The bytes of an arena, as hosts and devices see them. `include/hshm/device.h` says the same in C; a test
//! compares.

use std::mem::{offset_of, size_of};

use super::ArenaError;
use crate::robust::RobustLock;
use crate::sync::AtomicU64;

/// The version of arenas. It changes whenever a byte of the layout changes its meaning.
pub(super) const VERSION: u64 = 2;
/// What an arena begins with, read as a little-endian number.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"hshmGPU1");
/// What blocks are cut from.
pub(super) const CHUNK_BYTES: u64 = 1 << 16;
/// The smallest block, as a power of two.
pub(super) const MIN_BLOCK_SHIFT: u32 = 4;
/// Sizes of blocks: 16 bytes to 64 KiB.
pub(super) const CLASSES: u64 = 13;
/// Words of a chunk's bitmap: a bit for each of the smallest blocks.
pub(super) const BITMAP_WORDS: usize = 64;
pub(super) const RINGS: usize = 4;
/// The most pieces of the segment that a view names.
pub(super) const MAX_PIECES: usize = 8;
/// What stands in a place that its device died before filling. No block is there.
pub(super) const NEVER_FILLED: u64 = u64::MAX;

/// The rings, by their purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// Blocks of the arena that the host gives back.
    HostFrees = 0,
    /// Blocks that the host hands to the device.
    HostBlocks = 1,
    /// Blocks of the host's that the device gives back.
    DeviceFrees = 2,
    /// Blocks that the device hands to the host.
    DeviceBlocks = 3,
}

/// A ring's counters, each on lines of its own. The host's are for both sides to see. The device's are for itself:
/// the host looks at them only where no device code is at work, or to tell about how many entries there are.
#[repr(C)]
pub(super) struct RingWords {
    /// The filling side's: places that it filled (the host), or gave out (the device).
    pub(super) head: AtomicU64,
    _pad0: [AtomicU64; 15],
    /// The emptying side's: places that it emptied (the host), or gave out to be (the device).
    pub(super) tail: AtomicU64,
    _pad1: [AtomicU64; 15],
}

/// A chunk's descriptor.
#[repr(C)]
pub(super) struct Chunk {
    /// See [`ChunkWord`].
    pub(super) word: AtomicU64,
    _pad: [AtomicU64; 15],
    /// One bit for each block that is taken.
    pub(super) bits: [AtomicU64; BITMAP_WORDS],
}

/// An arena's first bytes. Those up to `blocks_offset` are written once, before `magic`.
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) version: AtomicU64,
    pub(super) offset: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) ring_entries: AtomicU64,
    pub(super) chunks: AtomicU64,
    pub(super) cells_offset: AtomicU64,
    pub(super) table_offset: AtomicU64,
    pub(super) blocks_offset: AtomicU64,
    _pad0: [AtomicU64; 7],
    /// The process whose device code works here, as [`crate::ProcessId`]'s bits; 0 if it is nobody's.
    pub(super) owner: AtomicU64,
    /// Frees of the device's that named no block of the host's.
    pub(super) refused: AtomicU64,
    /// Held by whoever is at the host's end of any ring.
    pub(super) lock: RobustLock,
    /// The counter of the host's that there is once what it is about is done: the tail of a ring that it empties, the
    /// head of one that it fills.
    pub(super) taking: [AtomicU64; RINGS],
    _pad1: [AtomicU64; 8],
    /// The device's: for each class the chunk that had room last.
    hints: [AtomicU64; 16],
    pub(super) rings: [RingWords; RINGS],
}

const _: () = {
    assert!(size_of::<RingWords>() == 256);
    assert!(size_of::<Chunk>() == 640);
    assert!(offset_of!(Header, owner) == 128);
    assert!(offset_of!(Header, lock) == 144);
    assert!(offset_of!(Header, taking) == 160);
    assert!(offset_of!(Header, hints) == 256);
    assert!(offset_of!(Header, rings) == 384);
    assert!(size_of::<Header>() == 384 + RINGS * 256);
};

/// What a chunk is cut into: bits 0-15 count blocks that are taken or about to be, 16-23 are the class and one.
/// All zero: it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkWord(pub(super) u64);

impl ChunkWord {
    pub(super) const fn new(class: u64, count: u64) -> Self {
        if count == 0 { Self(0) } else { Self((class + 1) << 16 | count) }
    }

    pub(super) const fn count(self) -> u64 {
        self.0 & 0xffff
    }

    /// The class; `None` if it is free, or no word that anybody stores.
    pub(super) const fn class(self) -> Option<u64> {
        match self.0 >> 16 {
            class @ 1..=CLASSES => Some(class - 1),
            _ => None,
        }
    }
}

/// The size of a class's blocks, in bytes.
pub(super) const fn block_bytes(class: u64) -> u64 {
    1 << (MIN_BLOCK_SHIFT as u64 + class)
}

/// How many of them a chunk has.
pub(super) const fn blocks_of(class: u64) -> u64 {
    CHUNK_BYTES / block_bytes(class)
}

/// Where everything is in an arena: computed, or read once and then checked against what would be computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) bytes: u64,
    pub(super) ring_entries: u64,
    pub(super) chunks: u64,
    pub(super) cells_offset: u64,
    pub(super) table_offset: u64,
    pub(super) blocks_offset: u64,
}

/// The entries that a ring can have.
pub(super) const RING_ENTRIES: std::ops::RangeInclusive<u64> = 16..=65536;

impl Geometry {
    /// The one of an arena of `bytes` bytes.
    pub(super) fn compute(bytes: u64, ring_entries: u64) -> Result<Self, ArenaError> {
        if !ring_entries.is_power_of_two() || !RING_ENTRIES.contains(&ring_entries) {
            return Err(ArenaError::BadOption {
                what: "the number of a ring's entries",
                found: ring_entries,
                expected: "a power of two from 16 to 65536",
            });
        }
        let cells_offset = size_of::<Header>() as u64;
        let table_offset = cells_offset + RINGS as u64 * 8 * ring_entries;
        let descriptor = size_of::<Chunk>() as u64;
        let mut chunks = bytes.saturating_sub(table_offset) / (CHUNK_BYTES + descriptor);
        let begin =
            |chunks: u64| (table_offset + chunks * descriptor).next_multiple_of(CHUNK_BYTES);
        // Rounding up costs one at most.
        while chunks > 0 && begin(chunks) + chunks * CHUNK_BYTES > bytes {
            chunks -= 1;
        }
        if chunks == 0 || bytes > 1 << 46 {
            return Err(ArenaError::BadOption {
                what: "the size of an arena",
                found: bytes,
                expected: "room for its tables, at least 64 KiB of blocks, and at most 64 TiB",
            });
        }
        let blocks_offset = begin(chunks);
        Ok(Self { bytes, ring_entries, chunks, cells_offset, table_offset, blocks_offset })
    }

    pub(super) fn blocks_bytes(&self) -> u64 {
        self.chunks * CHUNK_BYTES
    }
}

/// What C code must agree on, by the names that it has there.
#[doc(hidden)]
#[must_use]
pub fn layout_constants() -> Vec<(&'static str, u64)> {
    let bytes = |bytes: usize| bytes as u64;
    vec![
        ("HSHM_SEGMENT_MAGIC", crate::allocator::thread_local::MAGIC),
        ("HSHM_ARENA_MAGIC", MAGIC),
        ("HSHM_ARENA_VERSION", VERSION),
        ("HSHM_MAX_PIECES", bytes(MAX_PIECES)),
        ("HSHM_CHUNK_BYTES", CHUNK_BYTES),
        ("HSHM_MIN_BLOCK_SHIFT", MIN_BLOCK_SHIFT.into()),
        ("HSHM_CLASSES", CLASSES),
        ("HSHM_BITMAP_WORDS", bytes(BITMAP_WORDS)),
        ("HSHM_HOST_FREES", Ring::HostFrees as u64),
        ("HSHM_HOST_BLOCKS", Ring::HostBlocks as u64),
        ("HSHM_DEVICE_FREES", Ring::DeviceFrees as u64),
        ("HSHM_DEVICE_BLOCKS", Ring::DeviceBlocks as u64),
        ("HSHM_RINGS", bytes(RINGS)),
        ("sizeof(hshm_arena)", bytes(size_of::<Header>())),
        ("sizeof(hshm_chunk)", bytes(size_of::<Chunk>())),
        ("sizeof(hshm_ring)", bytes(size_of::<RingWords>())),
        ("sizeof(hshm_view)", bytes(size_of::<super::DeviceView>())),
        ("sizeof(hshm_piece)", bytes(size_of::<crate::gpu::DevicePiece>())),
        ("offsetof(hshm_arena, version)", bytes(offset_of!(Header, version))),
        ("offsetof(hshm_arena, offset)", bytes(offset_of!(Header, offset))),
        ("offsetof(hshm_arena, bytes)", bytes(offset_of!(Header, bytes))),
        ("offsetof(hshm_arena, ring_entries)", bytes(offset_of!(Header, ring_entries))),
        ("offsetof(hshm_arena, chunks)", bytes(offset_of!(Header, chunks))),
        ("offsetof(hshm_arena, cells_offset)", bytes(offset_of!(Header, cells_offset))),
        ("offsetof(hshm_arena, table_offset)", bytes(offset_of!(Header, table_offset))),
        ("offsetof(hshm_arena, blocks_offset)", bytes(offset_of!(Header, blocks_offset))),
        ("offsetof(hshm_arena, owner)", bytes(offset_of!(Header, owner))),
        ("offsetof(hshm_arena, lock)", bytes(offset_of!(Header, lock))),
        ("offsetof(hshm_arena, taking)", bytes(offset_of!(Header, taking))),
        ("offsetof(hshm_arena, hints)", bytes(offset_of!(Header, hints))),
        ("offsetof(hshm_arena, rings)", bytes(offset_of!(Header, rings))),
        ("offsetof(hshm_chunk, bits)", bytes(offset_of!(Chunk, bits))),
        ("offsetof(hshm_ring, tail)", bytes(offset_of!(RingWords, tail))),
        ("offsetof(hshm_view, pieces)", bytes(offset_of!(super::DeviceView, pieces))),
        ("offsetof(hshm_view, arena)", bytes(offset_of!(super::DeviceView, arena))),
        ("offsetof(hshm_piece, address)", bytes(offset_of!(crate::gpu::DevicePiece, address))),
    ]
}
