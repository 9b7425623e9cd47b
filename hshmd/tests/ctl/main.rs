//! `hshmctl` and the client library against a real daemon.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

mod allocators;
mod bad_input;
mod client;
mod commands;
mod device_memory;
mod doctor;
#[path = "../../../hshm-memory/tests/gpu/doubles.rs"]
mod doubles;
mod dump;
mod gpu;
mod harness;
mod memory;
mod paper;
mod terminal;
mod top;
mod watch;
