//! Pairs of bytes in a block, found by probing one place after the other.
//!
//! A place is a word that says whether it is full, and of which hash its key is; then key and value.
//! A pair is written to a place that is not full, and then the word says that it is.

use crate::collections::bytes::{self, words_for};
use crate::collections::guarded::{Block, Guarded, Held, Kind};
use crate::collections::{CellAllocator, CollectionError};
use crate::crash_point;
use crate::sync::{AtomicU64, Ordering};

/// A place that was never full.
const EMPTY: u64 = 0;
/// A place that was.
const GIVEN_UP: u64 = 1;
/// Set in the word of a full place, beside the key's hash.
const FULL: u64 = 1 << 63;
/// Places of the first block.
const LEAST: usize = 8;
/// The most words that a key is compared in without memory of its own.
const PIECE: usize = 64;

/// How a map's places are laid out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    key_bytes: usize,
    value_bytes: usize,
}

impl Layout {
    pub(super) const fn of(kind: Kind) -> Self {
        Self { key_bytes: kind.first_bytes, value_bytes: kind.second_bytes }
    }

    const fn value_at(self) -> usize {
        1 + words_for(self.key_bytes)
    }

    const fn words(self) -> usize {
        self.value_at() + words_for(self.value_bytes)
    }

    /// Words of so many places.
    fn block_words(self) -> impl Fn(usize) -> Option<usize> + Copy {
        move |places: usize| places.checked_mul(self.words())
    }
}

/// One place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'m> {
    /// Its number.
    index: usize,
    words: &'m [AtomicU64],
    layout: Layout,
}

impl<'m> Place<'m> {
    fn word(&self) -> u64 {
        // ORDER: Acquire pairs with the Release in `show`, for who finds the lock's holder dead.
        self.words[0].load(Ordering::Acquire)
    }

    fn key(&self) -> &'m [AtomicU64] {
        &self.words[1..self.layout.value_at()]
    }

    fn value(&self) -> &'m [AtomicU64] {
        &self.words[self.layout.value_at()..]
    }

    fn has_key(&self, key: &[u8]) -> bool {
        let mut piece = [0; PIECE];
        let mut words = self.key().chunks(PIECE / 8);
        key.chunks(PIECE).all(|part| {
            let piece = &mut piece[..part.len()];
            words.next().is_some_and(|words| {
                bytes::load(words, piece);
                *piece == *part
            })
        })
    }

    pub(super) fn load_key(&self, key: &mut [u8]) {
        bytes::load(self.key(), key);
    }

    pub(super) fn load_value(&self, value: &mut [u8]) {
        bytes::load(self.value(), value);
    }

    /// Makes it full.
    fn show(&self, hash: u64) {
        // ORDER: Release: key and value stand there before they count.
        self.words[0].store(hash | FULL, Ordering::Release);
    }
}

/// What a map has at this moment.
pub(super) struct Pairs<'h, 'g, 'a, A: CellAllocator + ?Sized> {
    held: &'h Held<'g, 'a, A>,
    layout: Layout,
    block: Block<'h>,
}

/// Finds out how many pairs there are, and how many places are in use, when somebody died.
pub(super) fn count<A: CellAllocator + ?Sized>(
    held: &Held<'_, '_, A>,
    layout: Layout,
) -> Result<(), CollectionError> {
    let pairs = Pairs::of(held, layout)?;
    held.set_len(pairs.iter().count());
    pairs.set_used(pairs.places().filter(|place| place.word() != EMPTY).count());
    Ok(())
}

impl<'h, 'g, 'a, A: CellAllocator + ?Sized> Pairs<'h, 'g, 'a, A> {
    pub(super) fn of(held: &'h Held<'g, 'a, A>, layout: Layout) -> Result<Self, CollectionError> {
        let block = held.block(layout.block_words())?;
        if block.capacity != 0 && !block.capacity.is_power_of_two() {
            return Err(held.guarded.corrupt("its number of places is no power of two"));
        }
        Ok(Self { held, layout, block })
    }

    fn guarded(&self) -> &'g Guarded<'a, A> {
        self.held.guarded
    }

    pub(super) fn capacity(&self) -> usize {
        most_used(self.block.capacity)
    }

    fn used(&self) -> usize {
        let used = self.block.used.map_or(0, |used| used.load(Ordering::Relaxed));
        usize::try_from(used).unwrap_or(usize::MAX)
    }

    fn set_used(&self, used: usize) {
        if let Some(word) = self.block.used {
            // ORDER: Relaxed: it is counted anew after a death.
            word.store(used as u64, Ordering::Relaxed);
        }
    }

    fn places(&self) -> impl Iterator<Item = Place<'h>> + use<'h, A> {
        places(&self.block, self.layout)
    }

    /// The full places.
    pub(super) fn iter(&self) -> impl Iterator<Item = Place<'h>> + use<'h, A> {
        self.places().filter(|place| place.word() & FULL != 0)
    }

    fn hash(&self, key: &[u8]) -> u64 {
        hash(self.guarded().seed(), key)
    }

    /// The place that has `key`.
    pub(super) fn find(&self, key: &[u8]) -> Option<Place<'h>> {
        let hash = self.hash(key);
        for place in probe(&self.block, self.layout, hash) {
            match place.word() {
                EMPTY => return None,
                word if word == hash | FULL && place.has_key(key) => return Some(place),
                _ => {}
            }
        }
        None
    }

    /// Writes `value` to a place that has its key already.
    pub(super) fn overwrite(&self, place: Place<'_>, value: &[u8]) -> Result<(), CollectionError> {
        let at = (place.index * self.layout.words() + self.layout.value_at()) * 8;
        self.held.overwrite(&self.block, at, value, self.held.len())
    }

    /// Adds a pair whose key is not there.
    pub(super) fn add(self, key: &[u8], value: &[u8]) -> Result<(), CollectionError> {
        if self.used() >= self.capacity() {
            let least = self.held.len().saturating_add(1);
            self.rebuild(least)?;
            let rebuilt = Self::of(self.held, self.layout)?;
            return rebuilt.put(key, value);
        }
        self.put(key, value)
    }

    fn put(&self, key: &[u8], value: &[u8]) -> Result<(), CollectionError> {
        let hash = self.hash(key);
        let mut free =
            probe(&self.block, self.layout, hash).filter(|place| place.word() & FULL == 0);
        let place = free.next().ok_or_else(|| self.guarded().corrupt("it has no free place"))?;
        let was_empty = place.word() == EMPTY;
        bytes::store(place.key(), key);
        bytes::store(place.value(), value);
        // Died here: the place is not full.
        crash_point!("map.stored");
        place.show(hash);
        // Died here: the next holder of the lock counts.
        crash_point!("map.shown");
        self.held.set_len(self.held.len().saturating_add(1));
        if was_empty {
            self.set_used(self.used().saturating_add(1));
        }
        Ok(())
    }

    /// Takes a pair out.
    pub(super) fn take(&self, place: Place<'_>) {
        // ORDER: Release: a death is as if the stores had happened up to some point.
        place.words[0].store(GIVEN_UP, Ordering::Release);
        // Died here: the next holder of the lock counts.
        crash_point!("map.hidden");
        self.held.set_len(self.held.len().saturating_sub(1));
    }

    /// Puts an empty block in the place of this one.
    pub(super) fn clear(&self) -> Result<(), CollectionError> {
        self.held.replace(LEAST, self.layout.block_words(), |new| {
            places(new, self.layout)
                .for_each(|place| place.words[0].store(EMPTY, Ordering::Relaxed));
            Ok(0)
        })
    }

    /// Moves all pairs to a new block, with room for at least `least` pairs, and some more.
    pub(super) fn rebuild(&self, least: usize) -> Result<(), CollectionError> {
        let wanted = least.max(self.held.len()).saturating_add(least / 2);
        let places = wanted.checked_next_power_of_two().filter(|&n| n <= usize::MAX / 16);
        let too_many = CollectionError::Capacity {
            found: least as u64,
            least: 0,
            most: (usize::MAX / 32) as u64,
        };
        let places = places.ok_or(too_many)?.max(LEAST);
        self.held.replace(places, self.layout.block_words(), |new| {
            for place in self::places(new, self.layout) {
                place.words[0].store(EMPTY, Ordering::Relaxed);
            }
            let mut moved = 0;
            for old in self.iter() {
                let word = old.word();
                let target = probe(new, self.layout, word & !FULL).find(|new| new.word() == EMPTY);
                let target = target
                    .ok_or_else(|| self.guarded().corrupt("it has more pairs than it says"))?;
                for (from, to) in old.words[1..].iter().zip(&target.words[1..]) {
                    to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
                }
                target.show(word & !FULL);
                moved += 1;
            }
            if let Some(used) = new.used {
                used.store(moved as u64, Ordering::Relaxed);
            }
            Ok(moved)
        })
    }
}

/// Places that may be in use of so many.
const fn most_used(places: usize) -> usize {
    places - places / 8
}

fn places<'m>(block: &Block<'m>, layout: Layout) -> impl Iterator<Item = Place<'m>> + use<'m> {
    let all = block.words.chunks_exact(layout.words()).enumerate();
    all.map(move |(index, words)| Place { index, words, layout })
}

/// All places in the order in which those of `hash` are looked for.
fn probe<'m>(
    block: &Block<'m>,
    layout: Layout,
    hash: u64,
) -> impl Iterator<Item = Place<'m>> + use<'m> {
    let (words, places) = (block.words, block.capacity);
    #[allow(clippy::cast_possible_truncation, reason = "masked to the number of places")]
    let first = hash as usize & places.wrapping_sub(1);
    (first..places).chain(0..first.min(places)).filter_map(move |index| {
        let start = index * layout.words();
        let words = words.get(start..start + layout.words())?;
        Some(Place { index, words, layout })
    })
}

/// 63 bits that all bytes of the key and the seed have part in: each eight bytes are multiplied in, as
/// FNV does with one (Fowler, Noll and Vo), and the sum goes through the output function of splitmix64
/// (Steele, Lea and Flood, 2014).
fn hash(seed: u64, key: &[u8]) -> u64 {
    let mut sum = seed;
    for part in key.chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        sum = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 32;
    }
    sum = (sum ^ (sum >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    sum = (sum ^ (sum >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (sum ^ (sum >> 31)) & !FULL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_of_a_key_changes_its_hash() {
        let key = [0_u8; 13];
        let base = hash(1, &key);
        assert_ne!(base, hash(2, &key));
        for bit in 0..key.len() * 8 {
            let mut other = key;
            other[bit / 8] ^= 1 << (bit % 8);
            let changed = (base ^ hash(1, &other)).count_ones();
            assert!((15..50).contains(&changed), "bit {bit} changes {changed} bits");
        }
    }
}
