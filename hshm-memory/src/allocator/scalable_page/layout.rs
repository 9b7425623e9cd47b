//! The bytes of a segment, as every process of every release with this layout version sees them.
//! Change nothing here without raising [`LAYOUT_VERSION`].

use crate::allocator::segment::{GRANULE_BYTES, TABLE_BYTES, seal};
use crate::robust::RobustLock;
use crate::sync::{AtomicU32, AtomicU64};

/// The version of the segments that this library writes and reads.
pub(in crate::allocator) const LAYOUT_VERSION: u32 = 1;
/// What a segment begins with: "hshmSPG1", read as a little-endian number.
pub(in crate::allocator) const MAGIC: u64 = u64::from_le_bytes(*b"hshmSPG1");

/// What a page's own header takes, before the block.
pub(super) const PREFIX_BYTES: u64 = GRANULE_BYTES;
/// The smallest page, in granules: its header, and room for two links.
pub(super) const LEAST_GRANULES: u64 = 2;

/// Sizes below this, in granules, have a cache each.
const EXACT: u64 = 1 << EXACT_BITS;
const EXACT_BITS: u32 = 6;
/// Caches for each doubling beyond: a cache's largest page is at most an eighth larger than its
/// smallest.
const STEPS_BITS: u32 = 3;
/// Bits of a page's size in granules: 64 TiB.
pub(super) const SIZE_BITS: u32 = 42;
/// All caches.
pub(super) const CACHES: usize =
    (1 << EXACT_BITS) + (((SIZE_BITS - EXACT_BITS) as usize) << STEPS_BITS);
/// Words with a bit for each cache.
pub(super) const CACHE_WORDS: usize = CACHES.div_ceil(64);

/// The allocator's part of the segment's first page. All but `lock`, `end` and `next_context` can be
/// made anew from the pages' headers.
#[repr(C)]
pub(super) struct Table {
    /// Whoever changes anything holds it.
    pub(super) lock: RobustLock,
    /// Where the last page ends.
    pub(super) end: AtomicU64,
    /// How large it is, in granules.
    pub(super) last_granules: AtomicU64,
    /// Bytes in blocks that are allocated.
    pub(super) allocated_bytes: AtomicU64,
    /// How many those are.
    pub(super) allocated_blocks: AtomicU64,
    /// The next context's number.
    pub(super) next_context: AtomicU32,
    _reserved0: AtomicU32,
    _reserved1: AtomicU64,
    /// One bit for each cache: it has a page.
    pub(super) filled: [AtomicU64; CACHE_WORDS],
    /// The first page of each cache; 0 if it has none.
    pub(super) caches: [AtomicU64; CACHES],
}

#[cfg(not(hshm_loom))]
const _: () = {
    use std::mem::offset_of;
    assert!(CACHES == 352 && CACHE_WORDS == 6);
    assert!(size_of::<Table>() <= TABLE_BYTES);
    assert!(offset_of!(Table, end) == 16);
    assert!(offset_of!(Table, last_granules) == 24);
    assert!(offset_of!(Table, allocated_bytes) == 32);
    assert!(offset_of!(Table, next_context) == 48);
    assert!(offset_of!(Table, filled) == 64);
    assert!(offset_of!(Table, caches) == 112);
    assert!(size_of::<Table>() == 112 + 352 * 8);
};
#[cfg(hshm_loom)]
const _: usize = TABLE_BYTES;

/// The cache for free pages of `granules`.
pub(super) fn cache_of(granules: u64) -> usize {
    let index = if granules < EXACT {
        granules
    } else {
        let doubling = granules.ilog2();
        let step = granules >> (doubling - STEPS_BITS) & ((1 << STEPS_BITS) - 1);
        EXACT + (u64::from(doubling - EXACT_BITS) << STEPS_BITS) + step
    };
    usize::try_from(index).unwrap_or(CACHES).min(CACHES - 1)
}

/// The first cache whose pages all have at least `granules`.
pub(super) fn roomy_cache_of(granules: u64) -> usize {
    let own = cache_of(granules);
    let is_least = granules < EXACT || {
        let grain = 1 << (granules.ilog2() - STEPS_BITS);
        granules.is_multiple_of(grain)
    };
    if is_least { own } else { own + 1 }
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Allocated,
}

/// A page's header, the one word that decides: bits 0-41 its size in granules, 42-43 its state, 44-63
/// a seal over these and the page's offset. The word after it holds the size of the page before, in
/// granules; a free page's first two words after the header, the next and the previous page of its
/// cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    const SIZE_MASK: u64 = (1 << SIZE_BITS) - 1;
    const FREE: u64 = 1 << SIZE_BITS;
    const ALLOCATED: u64 = 2 << SIZE_BITS;
    const SEAL_SHIFT: u32 = SIZE_BITS + 2;

    pub(super) const fn new(page: u64, granules: u64, state: State) -> Self {
        let state = match state {
            State::Free => Self::FREE,
            State::Allocated => Self::ALLOCATED,
        };
        let fields = granules & Self::SIZE_MASK | state;
        Self(fields | seal(page, fields, MAGIC) << Self::SEAL_SHIFT)
    }

    /// The size and state, if this can be the header of the page at `page`.
    pub(super) fn read(self, page: u64) -> Option<(u64, State)> {
        let granules = self.0 & Self::SIZE_MASK;
        let state = match self.0 & (Self::FREE | Self::ALLOCATED) {
            Self::FREE => State::Free,
            Self::ALLOCATED => State::Allocated,
            _ => return None,
        };
        (Self::new(page, granules, state) == self && granules >= LEAST_GRANULES)
            .then_some((granules, state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_has_a_cache_and_a_larger_size_no_smaller_one() {
        let mut before = 0;
        for granules in (2..5000).chain((13..SIZE_BITS).flat_map(|bit| {
            [(1 << bit) - 1, 1 << bit, (1 << bit) + 1, (1 << bit) + (1 << (bit - 3))]
        })) {
            let cache = cache_of(granules);
            assert!(cache >= before && cache < CACHES, "{granules}");
            before = cache;
            let roomy = roomy_cache_of(granules);
            assert!(roomy == cache || roomy == cache + 1);
            // The sizes of one cache lie within an eighth.
            let most = granules + granules / 8;
            assert!(granules < EXACT || cache_of(most + 1) > cache, "{granules}");
        }
        assert_eq!(cache_of((1 << SIZE_BITS) - 1), CACHES - 1);
    }

    #[test]
    fn a_roomy_cache_holds_no_smaller_page() {
        for granules in 2..5000 {
            let roomy = roomy_cache_of(granules);
            let smallest = (2..6000).find(|&other| cache_of(other) == roomy).unwrap();
            assert!(smallest >= granules, "{granules}: {smallest}");
        }
    }

    #[test]
    fn a_header_is_only_read_where_it_was_written() {
        let word = Word::new(4096, 77, State::Allocated);
        assert_eq!(word.read(4096), Some((77, State::Allocated)));
        assert_eq!(word.read(4112), None);
        assert_eq!(Word(word.0 ^ 1).read(4096), None);
        assert_eq!(Word(0).read(4096), None);
        assert_eq!(Word::new(4096, 1, State::Free).read(4096), None);
    }
}
