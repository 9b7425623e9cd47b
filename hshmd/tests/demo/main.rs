//! `hshmctl demo`, from outside: what it computes, and what it leaves behind.
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

mod files;
mod harness;
mod interrupted;
mod results;
