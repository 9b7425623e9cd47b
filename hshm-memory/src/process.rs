//! Which process holds a worker slot, and whether it still lives.

#[cfg(unix)]
mod procfs;
#[cfg(windows)]
mod windows;

use std::fmt;
use std::io;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

#[cfg(unix)]
use self::procfs as os;
#[cfg(windows)]
use self::windows as os;

/// A process that cannot be mistaken for a later one with the same number: the process id together
/// with the time it started.
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
    /// When the process started, modulo 2^34, which at 100 ticks a second is five years: in clock
    /// ticks since boot (field 22 of `/proc/PID/stat`) on Linux, in hundredths of a second since 1601
    /// on Windows.
    pub start_ticks: u64,
}

/// Bits of [`ProcessId::start_ticks`] that are kept.
const START_TICKS_BITS: u32 = 34;
const START_TICKS_MASK: u64 = (1 << START_TICKS_BITS) - 1;
/// Bits that [`ProcessId::pid`] is kept in.
const PID_BITS: u32 = 22;

impl ProcessId {
    /// The calling process.
    ///
    /// # Errors
    /// On Linux, if `/proc` is not mounted or hides the caller's own entry. On Windows, if the process's
    /// number is beyond 2^24, as it may be where millions of threads live at once.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// assert_eq!(ProcessId::current()?.pid, std::process::id());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn current() -> io::Result<Self> {
        // Read once: the answer only changes by a fork, which changes the pid.
        static KNOWN: Mutex<Option<ProcessId>> = Mutex::new(None);
        let pid = std::process::id();
        // A fork may have copied a lock that another thread held: then go without.
        let known = KNOWN.try_lock();
        if let Ok(known) = &known
            && let Some(known) = known.filter(|known| known.pid == pid)
        {
            return Ok(known);
        }
        let current = Self::of(pid)?;
        if let Ok(mut known) = known {
            *known = Some(current);
        }
        Ok(current)
    }

    /// The process that has number `pid` now.
    ///
    /// # Errors
    /// `NotFound` if there is none; `PermissionDenied` if the system does not tell this caller;
    /// `InvalidData` if what it tells cannot be understood.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::ProcessId;
    ///
    /// assert_eq!(ProcessId::of(std::process::id())?, ProcessId::current()?);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn of(pid: u32) -> io::Result<Self> {
        os::identify(pid)
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
    /// let me = ProcessId::current()?;
    /// assert!(me.is_alive());
    /// // A later process with the same number would have started at another time.
    /// assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me }.is_alive());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn is_alive(self) -> bool {
        os::is_alive(self)
    }

    /// Bits that [`ProcessId::to_bits`] fills.
    pub(crate) const BITS: u32 = START_TICKS_BITS + PID_BITS;

    /// The whole of it: bits 0-33 the start time, 34-55 the pid, without the bits that are always
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
    fn the_caller_is_alive_and_a_later_namesake_is_not() {
        let me = ProcessId::current().unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me }.is_alive());
    }
}
