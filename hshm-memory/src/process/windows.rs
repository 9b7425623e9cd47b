//! Processes and threads as Windows tells of them.
//!
//! Both have their numbers out of one store, multiples of four, so that no thread has a process's
//! number. Whoever holds a handle keeps an ended one's number from being given again.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};

use windows_sys::Win32::Foundation::{ERROR_INVALID_PARAMETER, FILETIME, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{
    GetCurrentThreadId, GetProcessTimes, GetThreadTimes, OpenProcess, OpenThread,
    PROCESS_QUERY_LIMITED_INFORMATION, PROCESS_SYNCHRONIZE, THREAD_QUERY_LIMITED_INFORMATION,
    THREAD_SYNCHRONIZE, WaitForSingleObject,
};

use super::{PID_BITS, ProcessId, START_TICKS_MASK};

/// Bits at the lower end of a process's number that are always zero.
pub(crate) const PID_ZERO_BITS: u32 = 2;

/// A thread's number is no process's, and it has a start time of its own.
pub(super) const NAMES_THREADS: bool = true;

/// A [`FILETIME`] counts in units of 100 ns.
const FILETIMES_PER_TICK: u64 = 100_000;

/// Process or thread.
#[derive(Clone, Copy)]
enum What {
    Process,
    Thread,
}

impl What {
    /// # Errors
    /// `NotFound` if there is none of this number.
    fn open(self, number: u32) -> io::Result<OwnedHandle> {
        let handle = match self {
            Self::Process => {
                let rights = PROCESS_QUERY_LIMITED_INFORMATION | PROCESS_SYNCHRONIZE;
                // SAFETY: [ffi] no pointer is passed; the result is checked.
                unsafe { OpenProcess(rights, 0, number) }
            }
            Self::Thread => {
                let rights = THREAD_QUERY_LIMITED_INFORMATION | THREAD_SYNCHRONIZE;
                // SAFETY: [ffi] as above.
                unsafe { OpenThread(rights, 0, number) }
            }
        };
        if handle.is_null() {
            let error = io::Error::last_os_error();
            let is_absent = error.raw_os_error() == Some(ERROR_INVALID_PARAMETER.cast_signed());
            return Err(if is_absent { io::ErrorKind::NotFound.into() } else { error });
        }
        // SAFETY: [owned] the handle was just opened, and nobody else has it.
        Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
    }

    /// When it started.
    fn start_ticks(self, handle: &OwnedHandle) -> io::Result<u64> {
        const ZERO: FILETIME = FILETIME { dwLowDateTime: 0, dwHighDateTime: 0 };
        let ask: unsafe extern "system" fn(
            HANDLE,
            *mut FILETIME,
            *mut FILETIME,
            *mut FILETIME,
            *mut FILETIME,
        ) -> i32 = match self {
            Self::Process => GetProcessTimes,
            Self::Thread => GetThreadTimes,
        };
        let (mut created, mut ended, mut kernel, mut user) = (ZERO, ZERO, ZERO, ZERO);
        // SAFETY: [ffi] the handle is open with the right to ask, and all four live during the call.
        let told = unsafe {
            ask(
                handle.as_raw_handle(),
                &raw mut created,
                &raw mut ended,
                &raw mut kernel,
                &raw mut user,
            )
        };
        if told == 0 {
            return Err(io::Error::last_os_error());
        }
        let time = u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime);
        Ok((time / FILETIMES_PER_TICK) & START_TICKS_MASK)
    }

    fn identify(self, number: u32) -> io::Result<ProcessId> {
        if number >> (PID_BITS + PID_ZERO_BITS) != 0 || !number.is_multiple_of(1 << PID_ZERO_BITS) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{number} is no number that a process or thread has here"),
            ));
        }
        let handle = self.open(number)?;
        Ok(ProcessId { pid: number, start_ticks: self.start_ticks(&handle)? })
    }

    /// Where the system does not tell, it counts as alive.
    fn is_alive(self, id: ProcessId) -> bool {
        match self.open(id.pid) {
            Ok(handle) => {
                self.start_ticks(&handle).map_or(true, |ticks| ticks == id.start_ticks)
                    && !has_ended(&handle)
            }
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

/// Somebody may hold a handle to what has ended, and then it can still be opened.
fn has_ended(handle: &OwnedHandle) -> bool {
    // SAFETY: [ffi] the handle is open with the right to wait; the wait is none.
    unsafe { WaitForSingleObject(handle.as_raw_handle(), 0) == WAIT_OBJECT_0 }
}

/// A name for a process that runs now.
pub(super) fn name_living(pid: u32) -> io::Result<ProcessId> {
    identify(pid)
}

/// The process that has number `pid` now.
pub(super) fn identify(pid: u32) -> io::Result<ProcessId> {
    What::Process.identify(pid)
}

/// The calling thread.
pub(super) fn this_thread() -> io::Result<ProcessId> {
    // SAFETY: [ffi] no argument, and the call always succeeds.
    What::Thread.identify(unsafe { GetCurrentThreadId() })
}

/// A process runs one program for as long as it lives.
pub(super) fn may_have_mapped(_: u32, _: usize) -> bool {
    true
}

/// Whether the thread lives.
pub(super) fn is_thread_alive(thread: ProcessId) -> bool {
    What::Thread.is_alive(thread)
}

/// Whether the process lives. A handle that somebody holds does not count as life.
pub(super) fn is_alive(process: ProcessId) -> bool {
    What::Process.is_alive(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_waited_for_or_only_held_is_dead() {
        // Waits for a line that does not come.
        let mut child = std::process::Command::new("cmd")
            .args(["/c", "set /p nothing="])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        assert!(id.is_alive());
        assert!(!is_thread_alive(id), "a process is no thread");
        child.kill().unwrap();
        child.wait().unwrap();
        // The handle in `child` is still open.
        assert!(!id.is_alive());
        drop(child);
        assert!(!id.is_alive());
    }

    #[test]
    fn an_ended_thread_is_dead_and_another_has_another_name() {
        let me = this_thread().unwrap();
        assert!(is_thread_alive(me));
        assert!(!is_alive(me), "a thread is no process");
        let other = std::thread::spawn(|| {
            let thread = this_thread().unwrap();
            assert!(is_thread_alive(thread));
            thread
        });
        let other = other.join().unwrap();
        assert_ne!(me, other);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while is_thread_alive(other) {
            assert!(std::time::Instant::now() < deadline, "the thread never ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for number in [2, 7, 1 << 24, u32::MAX] {
            assert_eq!(identify(number).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(identify(0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
