//! A lock in shared memory that outlives whoever holds it.
//!
//! One word names the thread that holds the lock, by its number and the time at which it started.
//! Who finds the lock held for longer than a moment looks whether that thread still lives. If not,
//! it takes the lock over with one compare-and-swap, and is told, since what the lock guards may be
//! between two states: it mends that, says so with [`RobustGuard::mended`], and goes on. Should it
//! die before, the next one is told the same.
//!
//! Why not the C library's robust mutex: it keeps the locks that a thread holds in a list which
//! runs through the locks themselves, by address. In memory that others can write, that is a list
//! which they can lead anywhere, and this process would write there when it next locks or unlocks.
//! Here nothing that stands in the lock is ever followed: any bytes at all are a lock, and at worst
//! one that is held by somebody else, which ends with an error when the patience does.
//!
//! One name outlives its thread: by `exec`, which ends all threads of a process but one, that one becomes the
//! first thread, whatever it was before. A lock that is held for long is therefore taken over too if its holder's
//! process does not map it any more. It is not recognised if the new program attached the same memory before
//! somebody waited as long as that, or where `/proc` does not tell of the other's mappings: then the wait ends with
//! an error, as long as the process lives.

pub(crate) mod holder;
#[cfg(test)]
#[cfg(hshm_loom)]
mod loom_robust;
#[cfg(test)]
#[cfg(all(unix, not(hshm_loom)))]
mod tests;
#[cfg(test)]
#[cfg(not(hshm_loom))]
mod thread_tests;
pub(crate) mod wait;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use crate::process::{self, ProcessId};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// How long [`RobustLock::lock`] waits for a holder that lives: a minute. Whoever holds such a lock
/// does so for microseconds, unless it was stopped, or the lock's bytes were overwritten.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a thread offers its processor to others before it goes to sleep.
const TURNS: u32 = 16;
/// Tries that others may spoil when the time is over already.
const MOST_LOSSES: u32 = 1000;
/// How long the first sleep takes at most, before the holder is looked after.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);
/// And the later ones, each twice as long as the one before.
const LONGEST_SLEEP: Duration = Duration::from_millis(64);

/// A lock that may stand in shared memory. Zeroed bytes are a lock that is free.
///
/// All who use it see one another's threads under the same numbers: they live in one pid namespace.
/// It is not reentrant. A thread that holds it must not leave the processor to another user-level
/// thread which wants it too.
///
/// # Examples
/// ```
/// use hshm_memory::robust::{Acquired, RobustLock};
///
/// let lock = RobustLock::new();
/// let guard = lock.lock()?;
/// if guard.acquired() == Acquired::FromDead {
///     // Mend what the lock guards, then:
///     guard.mended();
/// }
/// drop(guard);
/// # Ok::<(), hshm_memory::robust::LockError>(())
/// ```
#[repr(C)]
pub struct RobustLock {
    /// Who holds the lock: see [`Word`].
    word: AtomicU64,
    /// Not zero if somebody may sleep on it.
    waiting: AtomicU32,
    _reserved: AtomicU32,
}

#[cfg(not(hshm_loom))]
const _: () = {
    assert!(size_of::<RobustLock>() == 16);
    assert!(align_of::<RobustLock>() == 8);
    assert!(std::mem::offset_of!(RobustLock, waiting) == 8);
};

/// In which state a lock was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The one before gave it back.
    Clean,
    /// The one before died with it, or gave it back without having mended what a dead one left, or
    /// its bytes were overwritten: what it guards may be between two states.
    FromDead,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody who lives held it for as long as the caller was ready to wait.
    #[error(
        "a lock in shared memory was held by thread {holder} for {waited:?}: the thread was stopped, or its process overwrote the lock; let it go on, or end it"
    )]
    TimedOut {
        /// The thread, as the kernel numbers it; 0 if they were several.
        holder: u32,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The calling thread holds it already.
    #[error("the calling thread holds this lock in shared memory already: give it back first")]
    Reentrant,
    /// The identity of the calling thread could not be established.
    #[error("cannot tell which thread this is: {0}")]
    Identity(io::Error),
}

/// Who holds a lock: bits 0-33 the thread's start time, 34-55 its number, 56 whether what the lock
/// guards is to be mended, 60 whether anybody holds it. All other bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

/// What a lock's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Held(ProcessId),
    /// Nobody's, and what it guards is to be mended; or no word that anybody stores.
    Left,
}

impl Word {
    const FREE: Self = Self(0);
    const DIRTY: u64 = 1 << 56;
    const HELD: u64 = 1 << 60;
    const HOLDER: u64 = (1 << ProcessId::BITS) - 1;

    const fn held(by: ProcessId, acquired: Acquired) -> Self {
        let dirty = match acquired {
            Acquired::Clean => 0,
            Acquired::FromDead => Self::DIRTY,
        };
        Self(Self::HELD | dirty | by.to_bits())
    }

    /// What stands there when nobody holds the lock.
    const fn released(acquired: Acquired) -> Self {
        match acquired {
            Acquired::Clean => Self::FREE,
            Acquired::FromDead => Self(Self::DIRTY),
        }
    }

    const fn state(self) -> State {
        if self.0 == Self::FREE.0 {
            return State::Free;
        }
        if self.0 & !(Self::HOLDER | Self::DIRTY) != Self::HELD {
            return State::Left;
        }
        State::Held(ProcessId::from_bits(self.0))
    }
}

/// What came of one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Taken(Acquired),
    /// This thread holds it and lives, as far as is known.
    Held(ProcessId, Word),
    /// Somebody else changed the word meanwhile.
    Lost,
}

impl RobustLock {
    /// A lock that is free.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0), waiting: AtomicU32::new(0), _reserved: AtomicU32::new(0) }
    }

    /// Makes a free lock of whatever bytes stand there, which nobody uses.
    pub(crate) fn initialise(&self) {
        // ORDER: Relaxed: who makes the lock known publishes this.
        self.word.store(Word::FREE.0, Ordering::Relaxed);
        self.waiting.store(0, Ordering::Relaxed);
        self._reserved.store(0, Ordering::Relaxed);
    }

    /// Takes the lock, and waits for it for [`PATIENCE`] at most.
    ///
    /// # Errors
    /// As [`RobustLock::lock_timeout`].
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::robust::RobustLock;
    /// let lock = RobustLock::new();
    /// let guard = lock.lock()?;
    /// assert!(lock.lock().is_err(), "this thread holds it already");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn lock(&self) -> Result<RobustGuard<'_>, LockError> {
        self.lock_timeout(PATIENCE)
    }

    /// Takes the lock, and waits for a living holder for `timeout` at most; for none at all if that
    /// is zero.
    ///
    /// # Errors
    /// [`LockError::TimedOut`]; [`LockError::Reentrant`] if the calling thread holds the lock;
    /// [`LockError::Identity`] if the system does not tell which thread this is.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::robust::RobustLock;
    /// use std::time::Duration;
    ///
    /// let lock = RobustLock::new();
    /// let guard = lock.lock()?;
    /// std::thread::scope(|scope| {
    ///     let other = scope.spawn(|| lock.lock_timeout(Duration::ZERO).map(drop));
    ///     assert!(other.join().unwrap().is_err());
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn lock_timeout(&self, timeout: Duration) -> Result<RobustGuard<'_>, LockError> {
        let me = holder::current().map_err(LockError::Identity)?;
        let held = Word::held(me, Acquired::Clean);
        // ORDER: Acquire pairs with the release of the one before.
        let free = Word::FREE.0;
        if self.word.compare_exchange(free, held.0, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            return Ok(RobustGuard::new(self, me, Acquired::Clean));
        }
        self.lock_slow(timeout)
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self, timeout: Duration) -> Result<RobustGuard<'_>, LockError> {
        let begun = Instant::now();
        let mut turns = if timeout.is_zero() { TURNS } else { 0 };
        let mut sleep = SHORTEST_SLEEP;
        let mut slept = false;
        loop {
            // Anew each time: a user-level thread that waited may go on in another thread.
            let me = holder::current().map_err(LockError::Identity)?;
            let look = turns >= TURNS;
            // The word may name this thread because it was overwritten, or because the thread holds
            // the lock; where it holds none at all, only the first can be.
            let is_dead = |holder: ProcessId| {
                if holder == me {
                    return process::NAMES_THREADS && !holder::holds_any();
                }
                // A process's first thread that held it and was ended by another's `exec` has left its name to
                // that one. But the new program does not have this memory, unless it attached it again.
                let is_long = sleep == LONGEST_SLEEP;
                look && (!process::is_thread_alive(holder)
                    || is_long && !process::may_have_mapped(holder, (&raw const *self).cast()))
            };
            match self.attempt(me, is_dead) {
                Try::Taken(acquired) => {
                    if slept {
                        // Others may sleep: whoever wakes one has forgotten about the rest.
                        self.waiting.store(1, Ordering::Relaxed);
                    }
                    return Ok(RobustGuard::new(self, me, acquired));
                }
                Try::Held(holder, _) if holder == me && process::NAMES_THREADS => {
                    return Err(LockError::Reentrant);
                }
                Try::Held(holder, _) if look && begun.elapsed() >= timeout => {
                    return Err(LockError::TimedOut { holder: holder.pid, waited: timeout });
                }
                // Always somebody else was quicker, which is not for long unless the word is being
                // scribbled on.
                Try::Lost if turns >= MOST_LOSSES && begun.elapsed() >= timeout => {
                    return Err(LockError::TimedOut { holder: 0, waited: timeout });
                }
                Try::Held(_, word) if look => {
                    slept = true;
                    let left = timeout.saturating_sub(begun.elapsed());
                    self.sleep(word, sleep.min(left));
                    sleep = (sleep * 2).min(LONGEST_SLEEP);
                }
                Try::Held(..) | Try::Lost => {
                    turns += 1;
                    wait::turn();
                }
            }
        }
    }

    /// Sleeps until the lock, whose word is `seen`, is released, or for `timeout`.
    fn sleep(&self, seen: Word, timeout: Duration) {
        // ORDER: SeqCst, as in `release`: either this thread sees the word change, or the one who
        // changes it sees that somebody waits.
        self.waiting.store(1, Ordering::SeqCst);
        if self.word.load(Ordering::SeqCst) == seen.0 {
            wait::sleep_on(&self.waiting, 1, timeout);
        }
    }

    /// Takes the lock if it is free, or its holder dead.
    fn attempt(&self, me: ProcessId, is_dead: impl FnOnce(ProcessId) -> bool) -> Try {
        let seen = Word(self.word.load(Ordering::Relaxed));
        let acquired = match seen.state() {
            State::Free => Acquired::Clean,
            State::Left => Acquired::FromDead,
            State::Held(holder) if is_dead(holder) => Acquired::FromDead,
            State::Held(holder) => return Try::Held(holder, seen),
        };
        let held = Word::held(me, acquired);
        // ORDER: Acquire pairs with the release of the one before. A dead one released nothing, but
        // the kernel ended it before it told us so. The dead one's word does not come again: nobody
        // else has its name.
        match self.word.compare_exchange(seen.0, held.0, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Try::Taken(acquired),
            Err(_) => Try::Lost,
        }
    }

    /// From `held`, the caller's, to `released`. False if the word was overwritten: then it stays as
    /// it is.
    fn release(&self, held: Word, released: Word) -> bool {
        // ORDER: Release for the next one's Acquire; SeqCst for `sleep`.
        let (done, relaxed) = (Ordering::SeqCst, Ordering::Relaxed);
        let was_ours = self.word.compare_exchange(held.0, released.0, done, relaxed).is_ok();
        // Died here: those who sleep wake up by themselves, and find the lock free.
        if self.waiting.load(Ordering::SeqCst) != 0 {
            self.waiting.store(0, Ordering::SeqCst);
            wait::wake_one(&self.waiting);
        }
        was_ours
    }

    /// What the guard's word becomes when what a dead one left is mended.
    fn transition_mended(&self, me: ProcessId) -> bool {
        let from = Word::held(me, Acquired::FromDead).0;
        let to = Word::held(me, Acquired::Clean).0;
        // ORDER: Release: whoever finds the lock clean finds it mended, even if its holder dies.
        self.word.compare_exchange(from, to, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

impl Default for RobustLock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RobustLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = Word(self.word.load(Ordering::Relaxed)).state();
        f.debug_struct("RobustLock").field("state", &state).finish_non_exhaustive()
    }
}

/// A lock that is held; dropping it gives the lock back.
///
/// If it is dropped by a panic, or before what a dead holder left was mended, the next one to take
/// the lock is told [`Acquired::FromDead`]. In a forked child it is its parent's, and dropping it does
/// nothing. Nor does it in another thread of the operating system, so a user-level thread that holds
/// it does not yield.
#[must_use = "the lock is given back when this is dropped"]
#[derive(Debug)]
pub struct RobustGuard<'l> {
    lock: &'l RobustLock,
    me: ProcessId,
    /// What the word says now.
    state: Cell<Acquired>,
    acquired: Acquired,
    /// The thread is the holder: the guard does not move to another.
    _thread: PhantomData<*const ()>,
}

impl<'l> RobustGuard<'l> {
    #[inline]
    fn new(lock: &'l RobustLock, me: ProcessId, acquired: Acquired) -> Self {
        holder::took();
        Self { lock, me, state: Cell::new(acquired), acquired, _thread: PhantomData }
    }

    /// In which state the lock was taken.
    #[must_use]
    pub fn acquired(&self) -> Acquired {
        self.acquired
    }

    /// Says that what the lock guards is in order: from now on, and if nobody dies, the next holder
    /// finds the lock clean. False if the lock's bytes were overwritten meanwhile, and the caller may
    /// not be alone.
    ///
    /// # Examples
    /// ```
    /// # use hshm_memory::robust::{Acquired, RobustLock};
    /// let lock = RobustLock::new();
    /// std::thread::scope(|scope| {
    ///     // A thread that ends without giving the lock back.
    ///     scope.spawn(|| std::mem::forget(lock.lock()));
    /// });
    /// let guard = lock.lock()?;
    /// assert_eq!(guard.acquired(), Acquired::FromDead);
    /// assert!(guard.mended());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn mended(&self) -> bool {
        if self.state.get() == Acquired::Clean {
            return true;
        }
        self.state.set(Acquired::Clean);
        self.lock.transition_mended(self.me)
    }
}

impl Drop for RobustGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        if !holder::gave_back(self.me) {
            return;
        }
        let held = Word::held(self.me, self.state.get());
        let left = if std::thread::panicking() { Acquired::FromDead } else { self.state.get() };
        self.lock.release(held, Word::released(left));
    }
}
