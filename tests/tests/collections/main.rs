//! Collections in shared memory under real work: between processes, under SIGKILL, and at each of
//! their crash points.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

mod guarded;
mod queue;

/// The other process.
const WORKER: &str = env!("CARGO_BIN_EXE_hshm-test-worker");
