//! The allocator under real work: beside a model, between processes, on segments that are not what
//! they should be, under SIGKILL, and where memory ends.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

mod attach;
mod conformance;
mod death;
mod exchange;
mod full;
mod workers;

/// The other process.
const WORKER: &str = env!("CARGO_BIN_EXE_hshm-test-worker");
