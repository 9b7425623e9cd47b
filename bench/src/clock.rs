//! What time is.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What an operation's time is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Clock {
    /// The time that passes.
    Wall,
    /// The processor time of the thread that measures.
    Cpu,
    /// Not time: the instructions executed, counted by valgrind's callgrind. The same each time,
    /// whatever else the machine does; for workloads of one thread.
    Instructions,
}

impl Clock {
    /// What is counted.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Wall => "nanoseconds",
            Self::Cpu => "nanoseconds of processor time",
            Self::Instructions => "instructions",
        }
    }

    /// The time since some moment in the past.
    pub(crate) fn now(self) -> Duration {
        let id = match self {
            Self::Wall | Self::Instructions => libc::CLOCK_MONOTONIC,
            Self::Cpu => libc::CLOCK_THREAD_CPUTIME_ID,
        };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: [ffi] a clock that is always there, and a place to write to.
        unsafe { libc::clock_gettime(id, &raw mut time) };
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
    }
}
