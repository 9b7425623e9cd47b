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
        Ok(Self { pid, start_ticks: parse_stat(&stat)?.start_ticks })
    }

    /// Whether this very process runs, rather than none or a later one with the same number.
    ///
    /// A zombie counts as dead: it executes nothing any more. But one whose first thread ended
    /// before others shows as a zombie too, and lives as long as they do. Where `/proc` cannot be read for
    /// another reason than the process's absence, the process counts as alive, because taking
    /// memory from the living is the worse mistake.
    #[must_use]
    pub fn is_alive(self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(stat) => match parse_stat(&stat) {
                Ok(stat) => {
                    let ended = matches!(stat.state, 'Z' | 'X' | 'x') && stat.threads <= 1;
                    stat.start_ticks == self.start_ticks && !ended
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

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    /// How many threads it has; the first counts until all have ended.
    threads: u64,
    /// Modulo 2^34.
    start_ticks: u64,
}

fn parse_stat(stat: &str) -> io::Result<Stat> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "unexpected /proc/PID/stat");
    // The command's name stands in parentheses and may hold anything, also parentheses and blanks.
    let (_, rest) = stat.rsplit_once(')').ok_or_else(bad)?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next().and_then(|f| f.chars().next()).ok_or_else(bad)?;
    // `state` is field 3: the 20th is 16 further on after it, the 22nd one more after that.
    let threads = fields.nth(16).and_then(|f| f.parse().ok()).ok_or_else(bad)?;
    let start: u64 = fields.nth(1).and_then(|f| f.parse().ok()).ok_or_else(bad)?;
    Ok(Stat { state, threads, start_ticks: start & ((1 << START_TICKS_BITS) - 1) })
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
        let expected = Stat { state: 'S', threads: 1, start_ticks: 4242 };
        assert_eq!(parse_stat(stat).unwrap(), expected);
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

    /// Its first thread ends, as after `pthread_exit`, while another goes on.
    #[test]
    fn a_process_without_its_first_thread_is_alive() {
        let (end, held) = nix::unistd::pipe().unwrap();
        // SAFETY: [ffi] the child of a process with threads calls only what is made for it: it
        // starts one thread and makes system calls.
        let child = match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => {
                drop(held);
                std::thread::spawn(move || {
                    // Until the parent lets go of the pipe, or ends.
                    let _ = nix::unistd::read(&end, &mut [0]);
                    // SAFETY: [ffi] ends the process.
                    unsafe { libc::_exit(0) };
                });
                // SAFETY: [ffi] ends this thread alone.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
                unreachable!("the thread has ended")
            }
        };
        drop(end);
        let path = format!("/proc/{child}/stat");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let is_zombie = || parse_stat(&fs::read_to_string(&path).unwrap()).unwrap().state == 'Z';
        while !is_zombie() {
            assert!(std::time::Instant::now() < deadline, "the first thread never ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let id = ProcessId::of(child.as_raw().cast_unsigned()).unwrap();
        assert!(id.is_alive());
        drop(held);
        while id.is_alive() {
            assert!(std::time::Instant::now() < deadline, "the child never ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        nix::sys::wait::waitpid(child, None).unwrap();
    }
}
