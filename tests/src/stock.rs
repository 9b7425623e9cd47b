//! Shared collections that several processes change at once, each in a part of its own, so that it can
//! be told what one was about when it died.

use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::ThreadLocalAllocator;
use hshm_memory::collections::{ShmHashMap, ShmString, ShmVec};

use crate::guarded::cell;
use crate::random::mix;
use crate::ring::shared_word;

/// Processes that can be at work.
const SEATS: u64 = 4;
/// Keys of each.
const KEYS: u64 = 60;

/// A number and what follows from it.
type Record = [u64; 4];

fn record(seat: u64, round: u64) -> Record {
    let number = seat << 48 | round;
    [number, mix(number), !number, number.rotate_left(20)]
}

/// Where a seat's record of a round is in the map.
fn key_of(seat: u64, round: u64) -> u64 {
    seat << 32 | (mix(round) % KEYS)
}

fn assert_whole(record: Record) {
    assert_eq!(record, self::record(record[0] >> 48, record[0] & ((1 << 48) - 1)), "torn");
}

/// A vector with a record for each seat, a map with some for each, and a text that one after the other
/// writes.
#[derive(Debug)]
pub struct Stock<'a> {
    records: ShmVec<'a, Record>,
    map: ShmHashMap<'a, u64, Record>,
    text: ShmString<'a>,
    heap: &'a ThreadLocalAllocator,
}

impl<'a> Stock<'a> {
    /// Bytes that the custom header must have: three cells, and the rounds of each seat.
    pub const HEADER_BYTES: u64 = (3 + SEATS) * 8;

    /// Makes it.
    ///
    /// # Panics
    /// If there is no memory for it.
    #[must_use]
    pub fn create(heap: &'a ThreadLocalAllocator) -> Self {
        let records = ShmVec::create_into(heap, cell(heap, 0)).expect("a vector");
        for seat in 0..SEATS {
            records.push(record(seat, 0)).expect("room");
        }
        let map = ShmHashMap::create_into(heap, cell(heap, 1)).expect("a map");
        let text = ShmString::create_into(heap, cell(heap, 2)).expect("a string");
        text.set(&sentence(0, 0)).expect("room");
        Self { records, map, text, heap }
    }

    /// Finds it.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn attach(heap: &'a ThreadLocalAllocator) -> Self {
        let at = |number| heap.read_cell(cell(heap, number)).expect("a cell");
        Self {
            records: ShmVec::attach(heap, at(0)).expect("a vector"),
            map: ShmHashMap::attach(heap, at(1)).expect("a map"),
            text: ShmString::attach(heap, at(2)).expect("a string"),
            heap,
        }
    }

    fn round(&self, seat: u64) -> &AtomicU64 {
        shared_word(self.heap, cell(self.heap, 3 + seat))
    }

    /// Rounds that were begun at a seat.
    #[must_use]
    pub fn rounds(&self, seat: u64) -> u64 {
        self.round(seat).load(Ordering::SeqCst)
    }

    /// Works at a seat until it is killed.
    ///
    /// # Panics
    /// If anything is not as it should be.
    pub fn work(&self, seat: u64) -> ! {
        let index = usize::try_from(seat).expect("a seat");
        loop {
            let round = self.rounds(seat) + 1;
            self.round(seat).store(round, Ordering::SeqCst);
            self.records.set(index, record(seat, round)).expect("a record");
            let key = key_of(seat, round);
            if round.is_multiple_of(3) {
                self.map.remove(&key).expect("the map");
            } else {
                self.map.insert(key, record(seat, round)).expect("room");
            }
            if let Some(found) = self.map.get(&key_of(round % SEATS, key)).expect("the map") {
                assert_whole(found);
            }
            // One more record in the end, and one away, whosever it is.
            self.records.push(record(seat, round)).expect("room");
            if self.records.len().expect("the vector") > 40 {
                assert_whole(self.records.swap_remove(20).expect("a record"));
            }
            if round.is_multiple_of(8) {
                self.text.set(&sentence(seat, round)).expect("room");
            }
            assert_sentence(&self.text.get().expect("the text"));
        }
    }

    /// Looks after what somebody left who was killed at a seat.
    ///
    /// # Panics
    /// If it is not what its rounds say.
    pub fn verify_seat(&self, seat: u64) {
        let round = self.rounds(seat);
        let records = self.records.to_vec().expect("the vector");
        records.iter().copied().for_each(assert_whole);
        let own = records[usize::try_from(seat).expect("a seat")];
        let possible = [record(seat, round), record(seat, round.saturating_sub(1))];
        assert!(possible.contains(&own), "{own:x?} after round {round} of {seat}");
        let pairs = self.map.to_vec().expect("the map");
        for (key, found) in pairs {
            assert_whole(found);
            let (seat, number) = (found[0] >> 48, found[0] & ((1 << 48) - 1));
            assert_eq!(key, key_of(seat, number), "a record under another key");
        }
        assert_sentence(&self.text.get().expect("the text"));
    }

    /// Gives everything back.
    ///
    /// # Panics
    /// If the heap refuses a block.
    pub fn destroy(self) {
        // SAFETY: all others have ended.
        unsafe { self.records.destroy_from(cell(self.heap, 0)) }.expect("the vector");
        // SAFETY: as above.
        unsafe { self.map.destroy_from(cell(self.heap, 1)) }.expect("the map");
        // SAFETY: as above.
        unsafe { self.text.destroy_from(cell(self.heap, 2)) }.expect("the string");
    }
}

/// A text of some length that depends on its beginning.
fn sentence(seat: u64, round: u64) -> String {
    let word = format!("{seat}.{round} ");
    let times = usize::try_from(mix(round) % 50 + 1).unwrap_or(1);
    word.repeat(times)
}

fn assert_sentence(text: &str) {
    let first = text.split(' ').next().unwrap_or_default();
    let numbers: Vec<u64> = first.split('.').filter_map(|number| number.parse().ok()).collect();
    assert_eq!(numbers.len(), 2, "{text:?}");
    assert_eq!(text, sentence(numbers[0], numbers[1]));
}
