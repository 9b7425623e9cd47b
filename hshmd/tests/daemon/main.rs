//! The daemon's binary, driven through its socket by a client of the test's own: the packets are
//! what counts here, not the client library.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

mod access;
mod death;
#[path = "../../../hshm-memory/tests/gpu/doubles.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod doubles;
mod harness;
mod journal;
mod lifecycle;
mod manager;
mod metrics;
mod read_only;
mod reload;
mod robustness;
mod segments;
mod service;
mod wire;
mod worker;
