//! Instruments that kill real processes while they use a segment, and see what is left.
//!
//! [`operations`] lists what a process may be about when it dies. Two tests go through the list: one
//! kills at each crash point, one at single instructions ([`stepper`]). After each death a survivor
//! recovers the segment and puts it to the [`verdict`]. [`scalable`] has the same for the allocator whose
//! one table is under a lock.

pub mod operations;
pub mod outcomes;
pub mod process;
pub mod scalable;
mod situations;
pub mod stage;
#[cfg(target_arch = "x86_64")]
pub mod stepper;
pub mod verdict;
pub mod world;
#[cfg(target_arch = "x86_64")]
pub mod zygote;

use hshm_memory::crash::{CRASH_POINTS, CrashPoint};

/// The points of what has tests of its own.
const ELSEWHERE: &[&str] = &["scalable.", "guarded.", "map.", "queue.", "segment.", "daemon."];

/// The crash points that the operations listed come by.
pub fn allocator_points() -> impl Iterator<Item = &'static CrashPoint> {
    let elsewhere = |point: &&CrashPoint| ELSEWHERE.iter().any(|of| point.name.starts_with(of));
    CRASH_POINTS.iter().filter(move |point| !elsewhere(point))
}
