//! Sleeping until a queue has a message, or room for one.
//!
//! A word that changes whenever something came about which others may sleep for, and says whether
//! anybody might. Who sleeps notes that first and looks at the queue then; who changes the queue does
//! so first and looks at the word then. Both are SeqCst, so that one of the two sees the other.
//!
//! Nothing here is lost to a death for good: the note of a sleeper that died is taken away when
//! nobody wakes up by it, and as whoever dies before it wakes others wakes nobody, everybody looks
//! again after a while.

use std::time::{Duration, Instant};

use crate::robust::wait;
use crate::sync::{AtomicU32, Ordering};

/// How often a thread offers its processor to others before it goes to sleep.
const TURNS: u32 = 32;
/// How long it sleeps before it looks again, whoever may have died without waking it.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// How long for what nobody wakes it for.
const SHORT_SLEEP: Duration = Duration::from_millis(1);

/// Something that threads of all processes wait for: bit 0 whether one might sleep, above it a
/// count.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Event {
    word: AtomicU32,
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried<R> {
    Done(R),
    /// Not before the event.
    Wait,
    /// Not now, and no event will tell.
    WaitBlindly,
}

impl Event {
    const SLEEPERS: u32 = 1;
    const STEP: u32 = 2;

    pub(super) fn initialise(&self) {
        // ORDER: Relaxed: who makes the queue known publishes this.
        self.word.store(0, Ordering::Relaxed);
    }

    /// Tries until it is done, or `timeout` is over: then it returns none. The first try is made
    /// in any case.
    pub(super) fn wait_for<R>(
        &self,
        timeout: Duration,
        mut attempt: impl FnMut() -> Tried<R>,
    ) -> Option<R> {
        for _ in 0..TURNS {
            if let Tried::Done(result) = attempt() {
                return Some(result);
            }
            if timeout.is_zero() {
                return None;
            }
            wait::turn();
        }
        let begun = Instant::now();
        loop {
            let seen = self.announce_sleep();
            let longest = match attempt() {
                Tried::Done(result) => return Some(result),
                Tried::Wait => LONGEST_SLEEP,
                Tried::WaitBlindly => SHORT_SLEEP,
            };
            let left = timeout.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return None;
            }
            wait::sleep_on(&self.word, seen, left.min(longest));
        }
    }

    /// Notes that the caller may sleep. Returns what the word says until something comes about.
    pub(super) fn announce_sleep(&self) -> u32 {
        // ORDER: SeqCst, see above.
        self.word.fetch_or(Self::SLEEPERS, Ordering::SeqCst) | Self::SLEEPERS
    }

    /// Wakes one who sleeps for it, after it came about. One load if nobody does.
    #[inline]
    pub(super) fn came_about(&self) {
        // ORDER: SeqCst, see above.
        if self.word.load(Ordering::SeqCst) & Self::SLEEPERS != 0 {
            self.wake();
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(&self) {
        let now = self.word.fetch_add(Self::STEP, Ordering::SeqCst).wrapping_add(Self::STEP);
        // Died here: who sleeps looks again by itself.
        crate::crash_point!("queue.waking");
        if wait::wake(&self.word, 1) > 0 {
            return;
        }
        // Nobody slept. Who is about to finds the word changed.
        let none = now.wrapping_add(Self::STEP) & !Self::SLEEPERS;
        let (order, relaxed) = (Ordering::SeqCst, Ordering::Relaxed);
        if self.word.compare_exchange(now, none, order, relaxed).is_ok() {
            // Who has gone to sleep since without changing it.
            wait::wake(&self.word, i32::MAX);
        }
    }

    #[cfg(test)]
    #[cfg(hshm_loom)]
    pub(super) fn for_model() -> Self {
        Self { word: AtomicU32::new(0) }
    }
}
