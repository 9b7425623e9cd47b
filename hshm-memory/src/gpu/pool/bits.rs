//! Rows of bits in shared memory, changed by whoever holds the pool's lock.

use crate::sync::{AtomicU64, Ordering};

/// One bit for each granule. Whatever bits stand there, nothing outside the row is touched, and nothing takes longer
/// than one walk over it.
#[derive(Clone, Copy)]
pub(super) struct Bits<'a>(pub(super) &'a [AtomicU64]);

impl Bits<'_> {
    fn word(self, at: u64) -> u64 {
        let word = usize::try_from(at / 64).ok().and_then(|word| self.0.get(word));
        // ORDER: Relaxed here and below: the pool's lock orders them.
        word.map_or(u64::MAX, |word| word.load(Ordering::Relaxed))
    }

    /// Whether a bit is set; those beyond the end are.
    pub(super) fn is_set(self, at: u64) -> bool {
        self.word(at) & (1 << (at % 64)) != 0
    }

    /// Sets the bits of a range, or clears them, in ascending order.
    pub(super) fn put(self, first: u64, count: u64, set: bool) {
        let (mut at, end) = (first, first.saturating_add(count));
        while at < end {
            let here = (64 - at % 64).min(end - at);
            let mask = if here == 64 { u64::MAX } else { ((1 << here) - 1) << (at % 64) };
            let Some(word) = usize::try_from(at / 64).ok().and_then(|word| self.0.get(word)) else {
                return;
            };
            let before = word.load(Ordering::Relaxed);
            word.store(if set { before | mask } else { before & !mask }, Ordering::Relaxed);
            super::window();
            at += here;
        }
    }

    /// The first bit of `[from, to)` that is set, or is not, as asked for; `to` if there is none.
    pub(super) fn next(self, from: u64, to: u64, set: bool) -> u64 {
        let mut at = from;
        while at < to {
            let word = if set { self.word(at) } else { !self.word(at) };
            let rest = word >> (at % 64);
            if rest != 0 {
                return (at + u64::from(rest.trailing_zeros())).min(to);
            }
            at = (at / 64 + 1) * 64;
        }
        to
    }

    /// Where `count` bits that are not set follow one another in `[from, to)`.
    pub(super) fn find_room(self, from: u64, to: u64, count: u64) -> Option<u64> {
        let mut at = self.next(from, to, false);
        while at < to && count <= to - at {
            let end = self.next(at, at + count, true);
            if end == at + count {
                return Some(at);
            }
            // Beyond the one that is set, so that whoever changes bits meanwhile keeps nobody here.
            at = self.next(end + 1, to, false);
        }
        None
    }

    /// How many of the first `count` bits are set.
    pub(super) fn count(self, count: u64) -> u64 {
        let whole = (0..count / 64).map(|word| u64::from(self.word(word * 64).count_ones()));
        let rest = count % 64;
        let last = if rest == 0 { 0 } else { self.word(count - rest) & ((1 << rest) - 1) };
        whole.sum::<u64>() + u64::from(last.count_ones())
    }
}
