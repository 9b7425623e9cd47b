//! Processes and threads as `/proc` tells of them.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::ops::Range;

use super::{ProcessId, START_TICKS_MASK};

/// Bits at the lower end of a process's number that are always zero.
pub(crate) const PID_ZERO_BITS: u32 = 0;

/// A thread's number comes out of the same store as the numbers of processes, and `/proc` answers for
/// it alike, with a start time of its own.
pub(super) const NAMES_THREADS: bool = cfg!(target_os = "linux");

/// The process, or thread, that has number `pid` now.
pub(super) fn identify(pid: u32) -> io::Result<ProcessId> {
    let stat = read_stat(pid)?;
    Ok(ProcessId { pid, start_ticks: parse_stat(&stat)?.start_ticks })
}

/// A name for a process that runs now: to read the clock takes no system call, where to learn when it
/// started takes as long as to map a segment.
pub(super) fn name_living(pid: u32) -> io::Result<ProcessId> {
    now_ticks().map_or_else(|| identify(pid), |now| Ok(ProcessId { pid, start_ticks: now }))
}

/// The time since boot as `/proc` tells it, modulo 2^34. None where that is not known.
fn now_ticks() -> Option<u64> {
    // SAFETY: [ffi] no pointer is passed.
    let hertz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: [ffi] the pointer is to a live value of the type that is filled in.
    let read = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let (seconds, nanos) = (u64::try_from(now.tv_sec).ok()?, u64::try_from(now.tv_nsec).ok()?);
    // With others the kernel rounds in ways of its own.
    (read == 0 && hertz == 100).then_some((seconds * 100 + nanos / 10_000_000) & START_TICKS_MASK)
}

/// How far ahead, in ticks, another's clock may be of ours: a second, though it should not be at all. To
/// take the living for dead is the worse mistake.
const CLOCKS_APART: u64 = 100;

/// Whether a process that started at `start` ran at `moment`, if it runs now. Each is as long ago as it is:
/// the numbers begin again after five years.
fn has_run_at(start: u64, moment: u64, now: u64) -> bool {
    let ago = |ticks: u64| (now + CLOCKS_APART).wrapping_sub(ticks) & START_TICKS_MASK;
    ago(moment) <= ago(start)
}

/// One line of 52 fields, which the kernel gives at the first read. Asking how long it is first, and
/// reading until there is no more, would be half of what attaching to a segment costs.
fn read_stat(pid: u32) -> io::Result<String> {
    let mut line = [0; 2048];
    let len = File::open(format!("/proc/{pid}/stat"))?.read(&mut line)?;
    Ok(String::from_utf8_lossy(line.get(..len).unwrap_or(&[])).into_owned())
}

/// The calling thread.
#[cfg(target_os = "linux")]
pub(super) fn this_thread() -> io::Result<ProcessId> {
    // SAFETY: [ffi] no argument, and the call always succeeds.
    let number = unsafe { libc::gettid() };
    identify(number.cast_unsigned())
}

/// The process stands for its threads.
#[cfg(not(target_os = "linux"))]
pub(super) fn this_thread() -> io::Result<ProcessId> {
    ProcessId::current()
}

/// Whether the thread lives. One case is told wrongly: a process's first thread, if it ended before
/// the others, counts as alive as long as they do.
pub(super) fn is_thread_alive(thread: ProcessId) -> bool {
    is_alive(thread)
}

/// A zombie counts as dead: it executes nothing any more. But one whose first thread ended before
/// others shows as a zombie too, and lives as long as they do.
pub(super) fn is_alive(process: ProcessId) -> bool {
    match read_stat(process.pid) {
        Ok(stat) => match parse_stat(&stat) {
            Ok(stat) => {
                let ended = matches!(stat.state, 'Z' | 'X' | 'x') && stat.threads <= 1;
                let is_it = now_ticks().map_or(stat.start_ticks == process.start_ticks, |now| {
                    has_run_at(stat.start_ticks, process.start_ticks, now)
                });
                is_it && !ended
            }
            Err(_) => true,
        },
        // Not there, or gone between open and read (ESRCH). A /proc mounted with hidepid hides
        // other users' processes, so the kernel is asked once more.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            let pid = nix::unistd::Pid::from_raw(process.pid.cast_signed());
            process.pid != 0 && nix::sys::signal::kill(pid, None) != Err(nix::errno::Errno::ESRCH)
        }
        Err(_) => true,
    }
}

/// Whether the process may have the file mapped which is mapped at `address` here: unsure where there is no
/// such file, or the system does not tell of the other's mappings.
pub(super) fn may_have_mapped(pid: u32, address: usize) -> bool {
    let Some(file) = fs::read_to_string("/proc/self/maps").ok().and_then(|own| {
        let found =
            own.lines().filter_map(parse_mapping).find(|found| found.range.contains(&address));
        found.and_then(|found| found.file).map(|(device, inode)| (device.to_owned(), inode))
    }) else {
        return true;
    };
    match fs::read_to_string(format!("/proc/{pid}/maps")) {
        // It is about to end, if it has none.
        Ok(maps) if !maps.is_empty() => {
            let mut mappings = maps.lines().filter_map(parse_mapping);
            mappings.any(|found| found.file == Some((&file.0, file.1)))
        }
        _ => true,
    }
}

/// A line of `/proc/PID/maps`.
struct Mapping<'l> {
    range: Range<usize>,
    /// The file's device and inode, if there is a file.
    file: Option<(&'l str, u64)>,
}

fn parse_mapping(line: &str) -> Option<Mapping<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let range = address(start)?..address(end)?;
    // Past the permissions and the offset.
    let device = fields.nth(2)?;
    let inode: u64 = fields.next()?.parse().ok()?;
    Some(Mapping { range, file: (inode != 0).then_some((device, inode)) })
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
    Ok(Stat { state, threads, start_ticks: start & START_TICKS_MASK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_is_no_obstacle() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let expected = Stat { state: 'S', threads: 1, start_ticks: 4242 };
        assert_eq!(parse_stat(stat).unwrap(), expected);
        assert!(parse_stat("7 (x S 1").is_err());
    }

    #[test]
    fn a_process_ran_from_its_start_on() {
        let last = START_TICKS_MASK;
        for (start, moment, now, expected) in [
            (100, 100, 100, true),
            (100, 101, 101, true),
            (100, 99, 200, false),
            // By another's clock.
            (100, 201, 200, true),
            // Not come yet.
            (100, 301, 200, false),
            // The numbers began again since the moment, or since the start.
            (last, last, 5, true),
            (last, 3, 5, true),
            (last, last - 1, 5, false),
            (3, last, 5, false),
        ] {
            assert_eq!(has_run_at(start, moment, now), expected, "{start} {moment} {now}");
        }
    }

    #[test]
    fn the_moment_of_a_name_is_no_earlier_than_the_start() {
        // At once: a tick may pass between the two, and none may be missing.
        for _ in 0..20 {
            let child = std::process::Command::new("true").spawn();
            let mut child = child.unwrap();
            let (start, now) = (identify(child.id()).unwrap().start_ticks, now_ticks().unwrap());
            assert!(has_run_at(start, now, now), "{start} {now}");
            assert!(now - start < 1000, "{start} {now}");
            child.wait().unwrap();
        }
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
        let number = child.as_raw().cast_unsigned();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let is_zombie = || parse_stat(&read_stat(number).unwrap()).unwrap().state == 'Z';
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
