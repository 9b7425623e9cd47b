//! Instruments that kill real processes while they use a segment, and see what is left.
//!
//! [`operations`] lists what a process may be about when it dies. Two tests go through the list: one
//! kills at each crash point, one at single instructions ([`stepper`]). After each death a survivor
//! recovers the segment and puts it to the [`verdict`].

pub mod operations;
pub mod process;
pub mod stage;
#[cfg(target_arch = "x86_64")]
pub mod stepper;
pub mod verdict;
pub mod world;
