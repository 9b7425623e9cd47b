//! Who is at work on a collection, as a word that shared memory can hold.

use std::io;

use crate::process::{self, ProcessId};
use crate::robust::holder;

/// The name of the calling thread: bits 0-33 when it started, 34-55 its number; never 0.
#[inline]
pub(super) fn me() -> io::Result<u64> {
    holder::current().map(ProcessId::to_bits)
}

/// Whether the thread of that name has ended.
pub(super) fn is_dead(name: u64) -> bool {
    !process::is_thread_alive(ProcessId::from_bits(name))
}

/// The number of this process's pid namespace; 0 where there is none to be found out.
#[cfg(target_os = "linux")]
pub(super) fn pid_namespace() -> u64 {
    use std::os::unix::fs::MetadataExt as _;

    std::fs::metadata("/proc/self/ns/pid").map_or(0, |file| file.ino())
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pid_namespace() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_alive_and_an_earlier_namesake_is_not() {
        let me = me().unwrap();
        assert!(!is_dead(me));
        assert!(is_dead(me - 1), "it ran before this one started");
        assert!(std::thread::spawn(|| super::me().unwrap()).join().unwrap() != me);
    }
}
