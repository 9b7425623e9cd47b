//! Which process holds a worker slot, and whether it still lives.

use std::fmt;
use std::fs;
use std::io;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// A process that cannot be mistaken for a later one with the same number: the process id together
/// with the time it started.
///
/// The pid is as seen from the process that recovers the dead: the daemon's pid namespace where
/// there is a daemon, otherwise the namespace that the embedded users share.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct ProcessId {
    /// The process id, below 2^22 (the kernel's `PID_MAX_LIMIT`).
    pub pid: u32,
    /// When the process started, in clock ticks since boot (field 22 of `/proc/PID/stat`), modulo
    /// 2^34, which at 100 ticks a second is five years.
    pub start_ticks: u64,
}

/// Bits of [`ProcessId::start_ticks`] that are kept.
pub(crate) const START_TICKS_BITS: u32 = 34;
/// Bits of [`ProcessId::pid`].
pub(crate) const PID_BITS: u32 = 22;

impl ProcessId {
    /// The calling process.
    ///
    /// # Errors
    /// If `/proc` is not mounted, or hides the caller's own entry.
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
    /// `NotFound` if there is none; `InvalidData` if `/proc/PID/stat` cannot be understood.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, start_ticks) = parse_stat(&stat)?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether this very process runs, rather than none or a later one with the same number.
    ///
    /// A zombie counts as dead: it executes nothing any more. Where `/proc` cannot be read for
    /// another reason than the process's absence, the process counts as alive, because taking
    /// memory from the living is the worse mistake.
    #[must_use]
    pub fn is_alive(self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => match parse_stat(&stat) {
                Ok((state, start_ticks)) => {
                    start_ticks == self.start_ticks && !matches!(state, 'Z' | 'X' | 'x')
                }
                Err(_) => true,
            },
            // Not there, or gone between open and read (ESRCH). A /proc mounted with hidepid hides
            // other users' processes, so the kernel is asked once more.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                let pid = nix::unistd::Pid::from_raw(self.pid.cast_signed());
                self.pid != 0 && nix::sys::signal::kill(pid, None) != Err(nix::errno::Errno::ESRCH)
            }
            Err(_) => true,
        }
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pid)
    }
}

/// The state letter and the start time (modulo 2^34) out of the text of `/proc/PID/stat`.
fn parse_stat(stat: &str) -> io::Result<(char, u64)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/PID/stat");
    // The command's name stands in parentheses and may hold anything, also parentheses and blanks.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(bad)?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().and_then(|f| f.chars().next()).ok_or_else(bad)?;
    // `state` is field 3, so the 22nd is 18 further on after it.
    let start: u64 = fields.nth(18).and_then(|f| f.parse().ok()).ok_or_else(bad)?;
    Ok((state, start & ((1 << START_TICKS_BITS) - 1)))
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

    #[test]
    fn a_command_name_with_parentheses_is_no_obstacle() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(stat).unwrap(), ('S', 4242));
        assert!(parse_stat("7 (x S 1").is_err());
    }

    #[test]
    fn a_zombie_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while id.is_alive() {
            assert!(std::time::Instant::now() < deadline, "the child never became a zombie");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(!id.is_alive());
    }
}
