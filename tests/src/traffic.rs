//! Messages through a shared queue, and the account of who sent and who received which.
//!
//! The account stands in the segment: how many messages each sender has sent, and a bit for each that
//! was received. So what a killed process did up to its death is known but for its last step.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hshm_memory::collections::ShmQueue;
use hshm_memory::{OffsetPointer, ThreadLocalAllocator};

use crate::random::mix;
use crate::ring::shared_word;

/// Words of the custom header: the queue's offset, the account's, the messages of each sender that
/// the account has room for, then what each sender has sent.
const WORDS: u64 = 3 + SENDERS;
/// Senders that there can be.
pub const SENDERS: u64 = 61;
/// Bytes that the custom header must have.
pub const HEADER_BYTES: u64 = WORDS * 8;
/// How long anybody waits at most.
const PATIENCE: Duration = Duration::from_secs(300);
/// What tells a receiver that all is over.
const END: u64 = u64::MAX;

/// Who sent it and its number; and what both must be like.
type Message = [u64; 3];

fn message(word: u64) -> Message {
    [word, mix(word), !word]
}

/// One process's view of a queue and its account.
#[derive(Debug)]
pub struct Traffic<'a> {
    /// The queue.
    pub queue: ShmQueue<'a, Message>,
    heap: &'a ThreadLocalAllocator,
}

fn header_word(heap: &ThreadLocalAllocator, index: u64) -> &AtomicU64 {
    assert!(index < WORDS, "a word of the header");
    let start = heap.custom_header().0.offset_bytes();
    shared_word(heap, OffsetPointer::new(start + index * 8))
}

impl<'a> Traffic<'a> {
    /// Makes a queue of `capacity` and an account with room for `most` messages of each sender.
    ///
    /// # Panics
    /// If there is no memory for them.
    #[must_use]
    pub fn create(heap: &'a ThreadLocalAllocator, capacity: usize, most: u64) -> Self {
        let queue = ShmQueue::create_in(heap, capacity).expect("a queue");
        let words = most.div_ceil(64) * SENDERS;
        let bytes = usize::try_from(words * 8).expect("it fits in memory");
        let account = heap.allocate(bytes).expect("room for the account");
        let address = heap.resolve(account, bytes).expect("it was just allocated");
        // SAFETY: [owned] the block was just allocated.
        unsafe { address.write_bytes(0, bytes) };
        header_word(heap, 0).store(queue.place().offset_bytes(), Ordering::Release);
        header_word(heap, 1).store(account.offset_bytes(), Ordering::Release);
        header_word(heap, 2).store(most, Ordering::Release);
        Self { queue, heap }
    }

    /// Finds what [`Traffic::create`] made.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn attach(heap: &'a ThreadLocalAllocator) -> Self {
        let place = OffsetPointer::new(header_word(heap, 0).load(Ordering::Acquire));
        Self { queue: ShmQueue::attach(heap, place).expect("a queue"), heap }
    }

    /// How many messages `sender` has sent, or one fewer.
    #[must_use]
    pub fn sent(&self, sender: u64) -> u64 {
        header_word(self.heap, 3 + sender).load(Ordering::Acquire)
    }

    /// Sends `count` messages as `sender`.
    ///
    /// # Panics
    /// If one cannot be sent.
    pub fn send(&self, sender: u64, count: u64) {
        let sent = header_word(self.heap, 3 + sender);
        for number in 0..count {
            let message = message(sender << 48 | number);
            self.queue.push(message, PATIENCE).expect("room in the queue");
            sent.store(number + 1, Ordering::Release);
        }
    }

    /// Tells `receivers` that all is over.
    ///
    /// # Panics
    /// If it cannot.
    pub fn end(&self, receivers: usize) {
        for _ in 0..receivers {
            self.queue.push(message(END), PATIENCE).expect("room in the queue");
        }
    }

    /// Receives messages until it is told that all is over, enters each into the account, and
    /// asserts that it is whole, the first of its number, and after those of its sender before.
    ///
    /// # Panics
    /// If not.
    pub fn receive(&self) {
        let mut next = [0; 61];
        loop {
            let received = self.queue.pop(PATIENCE).expect("a message");
            assert_eq!(received, message(received[0]), "a torn message");
            let (sender, number) = (received[0] >> 48, received[0] & ((1 << 48) - 1));
            if received[0] == END {
                return;
            }
            let next = &mut next[usize::try_from(sender).expect("a sender")];
            assert!(number >= *next, "{number} of {sender} after {next}");
            *next = number + 1;
            let (word, bit) = self.account(sender, number);
            let before = word.fetch_or(bit, Ordering::Relaxed);
            assert_eq!(before & bit, 0, "{number} of {sender} came twice");
        }
    }

    fn account(&self, sender: u64, number: u64) -> (&AtomicU64, u64) {
        let account = header_word(self.heap, 1).load(Ordering::Relaxed);
        let most = header_word(self.heap, 2).load(Ordering::Relaxed);
        assert!(sender < SENDERS && number < most, "{number} of {sender} was never sent");
        let word = sender * most.div_ceil(64) + number / 64;
        (shared_word(self.heap, OffsetPointer::new(account + word * 8)), 1 << (number % 64))
    }

    /// How many of the first `count` messages of `sender` were received, and whether the one after
    /// them was.
    #[must_use]
    pub fn received(&self, sender: u64, count: u64) -> (u64, bool) {
        let seen = |number| {
            let (word, bit) = self.account(sender, number);
            word.load(Ordering::Relaxed) & bit != 0
        };
        let most = header_word(self.heap, 2).load(Ordering::Relaxed);
        let total = (0..count).filter(|&number| seen(number)).count() as u64;
        (total, count < most && seen(count))
    }

    /// Gives back queue and account.
    ///
    /// # Panics
    /// If the heap refuses them.
    pub fn destroy(self) {
        let account = OffsetPointer::new(header_word(self.heap, 1).load(Ordering::Acquire));
        // SAFETY: all others have ended.
        unsafe { self.queue.destroy() }.expect("the queue's block");
        // SAFETY: as above.
        unsafe { self.heap.free(account) }.expect("the account's block");
    }
}
