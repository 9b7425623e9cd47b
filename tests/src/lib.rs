//! What the scenarios under `tests/` share: segments that clean up after themselves, blocks that can
//! be told apart, a model of what is allocated, and the rules of the repository.
//!
//! The scenarios use real processes. What another process is to do, the binary `hshm-test-worker`
//! does; see `src/bin/hshm-test-worker`.

#[cfg(doctest)]
pub mod book;
pub mod cells;
pub mod crash;
pub mod guarded;
pub mod model;
pub mod own_shm;
pub mod process;
pub mod random;
pub mod ring;
pub mod segment;
pub mod stamp;
pub mod stock;
pub mod tidy;
pub mod traffic;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
