//! Which process holds a worker slot, and whether it still lives.

#[cfg(unix)]
mod procfs;
#[cfg(windows)]
mod windows;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

#[cfg(unix)]
use self::procfs as os;
#[cfg(windows)]
use self::windows as os;

/// A name of a process that cannot be mistaken for a later one with the same number: the process id
/// together with a moment at which the process ran.
///
/// A process has one name for itself, [`ProcessId::current`], and one that anybody can find out,
/// [`ProcessId::of`], whose moment is its start. They may differ: whoever compares asks
/// [`ProcessId::is_alive`], since of all processes of a number at most one lives.
///
/// The pid is as seen from the process that recovers the dead: the daemon's pid namespace where
/// there is a daemon, otherwise the namespace that the embedded users share.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct ProcessId {
    /// The process id: below 2^22 (the kernel's `PID_MAX_LIMIT`) on Linux, a multiple of four below
    /// 2^24 on Windows.
    pub pid: u32,
    /// When the process started, or a later moment at which it ran, modulo 2^34, which at 100 ticks a
    /// second is five years: in clock ticks since boot (field 22 of `/proc/PID/stat`) on Linux, in
    /// hundredths of a second since 1601 on Windows.
    pub start_ticks: u64,
}

/// Bits of [`ProcessId::start_ticks`] that are kept.
const START_TICKS_BITS: u32 = 34;
const START_TICKS_MASK: u64 = (1 << START_TICKS_BITS) - 1;
/// Bits that [`ProcessId::pid`] is kept in.
const PID_BITS: u32 = 22;

impl ProcessId {
    /// The calling process, by the name that it claims what is shared under: the same at each call, until it
    /// forks. Where the system has no cheaper one, its moment is the process's start.
    ///
    /// # Errors
    /// As [`ProcessId::of_living`]. On Windows, if the process's number is beyond 2^24, as it may be where
    /// millions of threads live at once.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// let me = ProcessId::current()?;
    /// assert_eq!((me.pid, me), (std::process::id(), ProcessId::current()?));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn current() -> io::Result<Self> {
        let pid = std::process::id();
        OWN.get(pid).map_or_else(|| Self::of_living(pid).map(|name| OWN.set(name)), Ok)
    }

    /// Makes this, by which another process knows the calling one, its name for itself, unless it has
    /// one. Of another number nothing is taken.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// let told = ProcessId::of_living(std::process::id())?;
    /// told.make_current();
    /// assert_eq!(ProcessId::current()?, told);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn make_current(self) {
        if self.pid == std::process::id() {
            OWN.set(self);
        }
    }

    /// A name of the process that has number `pid` now, of which the caller knows that it lives, or asks
    /// afterwards whether it did: the moment is this one. Where the system knows of no cheap one, it is the
    /// process's start.
    ///
    /// # Errors
    /// As [`ProcessId::of`], where that is needed.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// assert!(ProcessId::of_living(std::process::id())?.is_alive());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn of_living(pid: u32) -> io::Result<Self> {
        os::name_living(pid)
    }

    /// The process that has number `pid` now, by its start. Of the caller it is found out once, and is its
    /// name from then on if it had none.
    ///
    /// # Errors
    /// `NotFound` if there is none; `PermissionDenied` if the system does not tell this caller;
    /// `InvalidData` if what it tells cannot be understood.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// let me = ProcessId::of(std::process::id())?;
    /// assert!(me.is_alive() && me.start_ticks <= ProcessId::current()?.start_ticks);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn of(pid: u32) -> io::Result<Self> {
        if pid != std::process::id() {
            return os::identify(pid);
        }
        if let Some(start) = OWN_START.get(pid) {
            return Ok(start);
        }
        let start = OWN_START.set(os::identify(pid)?);
        if OWN.get(pid).is_none() {
            OWN.set(start);
        }
        Ok(start)
    }

    /// Whether this very process runs, rather than none or a later one with the same number.
    ///
    /// A zombie counts as dead: it executes nothing any more. But one whose first thread ended
    /// before others shows as a zombie too, and lives as long as they do. Where `/proc` cannot be read for
    /// another reason than the process's absence, the process counts as alive, because taking
    /// memory from the living is the worse mistake.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// let me = ProcessId::of(std::process::id())?;
    /// assert!(me.is_alive());
    /// // An earlier process with the same number would have run before this one started.
    /// assert!(!ProcessId { start_ticks: me.start_ticks - 1, ..me }.is_alive());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn is_alive(self) -> bool {
        os::is_alive(self)
    }

    /// Bits that [`ProcessId::to_bits`] fills.
    pub(crate) const BITS: u32 = START_TICKS_BITS + PID_BITS;

    /// The whole of it: bits 0-33 the moment, 34-55 the pid, without the bits that are always
    /// zero on this system.
    pub(crate) const fn to_bits(self) -> u64 {
        let pid = (self.pid >> os::PID_ZERO_BITS) as u64 & ((1 << PID_BITS) - 1);
        pid << START_TICKS_BITS | self.start_ticks & START_TICKS_MASK
    }

    /// Out of such bits; those above are ignored.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        #[allow(clippy::cast_possible_truncation, reason = "masked to 22 bits")]
        let pid = (bits >> START_TICKS_BITS & ((1 << PID_BITS) - 1)) as u32;
        Self { pid: pid << os::PID_ZERO_BITS, start_ticks: bits & START_TICKS_MASK }
    }
}

/// What the process has found out about itself; the child of a fork has its parent's number there, and
/// finds out anew.
struct Own(AtomicU64);

/// The name of this process.
static OWN: Own = Own(AtomicU64::new(0));
/// The same by its start.
static OWN_START: Own = Own(AtomicU64::new(0));

impl Own {
    fn get(&self, pid: u32) -> Option<ProcessId> {
        let own = ProcessId::from_bits(self.0.load(Ordering::Relaxed));
        (own.pid == pid).then_some(own)
    }

    /// Takes `name`, unless another thread was first, and returns what is taken.
    fn set(&self, name: ProcessId) -> ProcessId {
        // ORDER: Relaxed: the word is all there is to it.
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |old| {
            (ProcessId::from_bits(old).pid != name.pid).then_some(name.to_bits())
        });
        taken.map_or_else(ProcessId::from_bits, |_| name)
    }
}

/// To be called in the child of a fork: it may have the number of an ancestor that has ended.
pub(crate) fn forget_own() {
    for own in [&OWN, &OWN_START] {
        own.0.store(0, Ordering::Relaxed);
    }
}

/// Whether two threads of one process have different names.
pub(crate) const NAMES_THREADS: bool = os::NAMES_THREADS;

/// The calling thread, named as a process is: by its number, which is nobody else's, and the time at
/// which it started. Where threads cannot be told apart like that, its process.
pub(crate) fn this_thread() -> io::Result<ProcessId> {
    os::this_thread()
}

/// Whether the thread that [`this_thread`] named runs; unsure as in [`ProcessId::is_alive`].
pub(crate) fn is_thread_alive(thread: ProcessId) -> bool {
    os::is_thread_alive(thread)
}

/// Whether the process that `thread` belongs to may have the file mapped which is mapped at `address` here.
/// False only if it certainly does not: for one, because it runs another program since.
pub(crate) fn may_have_mapped(thread: ProcessId, address: *const u8) -> bool {
    os::may_have_mapped(thread.pid, address.addr())
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_alive_and_an_earlier_namesake_is_not() {
        let me = ProcessId::of(std::process::id()).unwrap();
        let name = ProcessId::current().unwrap();
        assert!(me.is_alive() && name.is_alive());
        assert!(!ProcessId { start_ticks: me.start_ticks - 1, ..me }.is_alive());
        // At a moment that has not come nobody ran.
        assert!(!ProcessId { start_ticks: name.start_ticks + (1 << 30), ..me }.is_alive());
    }
}
