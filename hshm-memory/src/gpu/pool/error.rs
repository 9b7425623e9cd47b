//! Why an operation on a pool failed.

use crate::error::AllocError;
use crate::robust::LockError;

/// Why a pool could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A choice is out of its range.
    #[error("{what} is {found}, but must be {expected}")]
    BadOption {
        /// Which choice.
        what: &'static str,
        /// What was asked for.
        found: u64,
        /// What can be.
        expected: &'static str,
    },
    /// No pool begins there.
    #[error("no pool of a device's memory stands at {offset:#x}, or one that contradicts itself")]
    NotThere {
        /// Where it was looked for.
        offset: u64,
    },
    /// Another release made it.
    #[error(
        "the pool has version {found}, and this library reads version {supported}: use the same hshm release on both sides"
    )]
    Version {
        /// The version that stands in it.
        found: u64,
        /// The version that this library knows.
        supported: u64,
    },
    /// There is no room.
    #[error(
        "the device's memory has no {bytes} bytes in one piece: {free_bytes} of {total_bytes} are free"
    )]
    Full {
        /// What was asked for.
        bytes: u64,
        /// What is free, in pieces.
        free_bytes: u64,
        /// How much there is.
        total_bytes: u64,
    },
    /// The offset is no block's.
    #[error("{offset:#x} is not the offset of an allocated block of the device's memory")]
    NotAllocated {
        /// The offset given.
        offset: u64,
    },
    /// The cell is not empty.
    #[error("the cell at {cell:#x} names {found:#x} already: free that first")]
    CellInUse {
        /// Where the cell is.
        cell: u64,
        /// What stands in it.
        found: u64,
    },
    /// The pool's lock was not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The heap around it failed.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}
