//! A bounded queue of offsets from one process to another, in shared memory.
//!
//! One side writes the tail, the other the head, each on a cache line of its own (Lamport,
//! "Specifying Concurrent Program Modules", 1983).

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::{OffsetPointer, ThreadLocalAllocator};

/// Entries of a ring.
const ENTRIES: u64 = 4096;
const HEAD: u64 = 0;
const TAIL: u64 = 64;
const FIRST: u64 = 128;

/// Bytes that a ring takes.
pub const RING_BYTES: u64 = FIRST + ENTRIES * 8;

/// One side's view of a ring.
#[derive(Debug)]
pub struct Ring<'a> {
    words: Vec<&'a AtomicU64>,
    /// This side's own count, and what it last saw of the other's.
    own: u64,
    other: u64,
    _heap: PhantomData<&'a ThreadLocalAllocator>,
}

/// The word at `place`, which all who use it access as an atomic.
///
/// # Panics
/// If it does not lie in the segment.
#[must_use]
pub fn shared_word(heap: &ThreadLocalAllocator, place: OffsetPointer) -> &AtomicU64 {
    let address = heap.resolve(place, 8).expect("a word in the segment");
    assert_eq!(place.offset_bytes() % 8, 0, "a word is aligned");
    // SAFETY: [mapped] resolve checked the range, which stays mapped as long as the allocator;
    // [atomic] whoever accesses it does so as an atomic.
    unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
}

impl<'a> Ring<'a> {
    /// The ring at `place`, whose bytes were zero before its first use.
    #[must_use]
    pub fn at(heap: &'a ThreadLocalAllocator, place: OffsetPointer) -> Self {
        let word = |at| shared_word(heap, OffsetPointer::new(place.offset_bytes() + at));
        let entries = (0..ENTRIES).map(|entry| word(FIRST + entry * 8));
        let words = [word(HEAD), word(TAIL)].into_iter().chain(entries).collect();
        Self { words, own: 0, other: 0, _heap: PhantomData }
    }

    fn entry(&self, count: u64) -> &'a AtomicU64 {
        let index = usize::try_from(count % ENTRIES).unwrap_or(0);
        self.words[2 + index]
    }

    /// Puts `value` in; false if there is no room.
    pub fn push(&mut self, value: u64) -> bool {
        if self.own - self.other == ENTRIES {
            // ORDER: Acquire pairs with the Release in `pop`: the entry was read.
            self.other = self.words[0].load(Ordering::Acquire);
            if self.own - self.other == ENTRIES {
                return false;
            }
        }
        self.entry(self.own).store(value, Ordering::Relaxed);
        self.own += 1;
        // ORDER: Release pairs with the Acquire in `pop`: entry and block are written.
        self.words[1].store(self.own, Ordering::Release);
        true
    }

    /// Takes the oldest value out.
    pub fn pop(&mut self) -> Option<u64> {
        if self.own == self.other {
            // ORDER: Acquire pairs with the Release in `push`.
            self.other = self.words[1].load(Ordering::Acquire);
            if self.own == self.other {
                return None;
            }
        }
        let value = self.entry(self.own).load(Ordering::Relaxed);
        self.own += 1;
        // ORDER: Release pairs with the Acquire in `push`.
        self.words[0].store(self.own, Ordering::Release);
        Some(value)
    }
}
