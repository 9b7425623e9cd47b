//! Why an operation on an arena failed.

use crate::backend::BackendError;
use crate::error::AllocError;
use crate::process::ProcessId;
use crate::robust::LockError;

/// Why an arena could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
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
    /// No arena begins there.
    #[error("no arena for devices stands at {offset:#x}: it was not made there, or not to its end")]
    NotThere {
        /// Where it was looked for.
        offset: u64,
    },
    /// Another release made it.
    #[error(
        "the arena has version {found}, and this library reads version {supported}: use the same hshm release on both sides"
    )]
    Version {
        /// The version that stands in it.
        found: u64,
        /// The version that this library knows.
        supported: u64,
    },
    /// What stands in it contradicts the rest.
    #[error("the arena is corrupt: {field} is {found:#x}; destroy it and make it anew")]
    Corrupt {
        /// What.
        field: &'static str,
        /// What stands there.
        found: u64,
    },
    /// Another process owns it.
    #[error("the arena belongs to process {by}, which lives: let it release the arena, or end it")]
    Owned {
        /// The process.
        by: ProcessId,
    },
    /// The caller's process does not own it.
    #[error("this process does not own the arena: claim it first")]
    NotOwner,
    /// The segment's memory is of a kind that is not for devices.
    #[error(
        "the segment is not of a kind that devices can use: create it with the backend cuda-shm or rocm-shm"
    )]
    NotForDevices,
    /// Too many pieces.
    #[error(
        "the device sees the segment in {found} separate pieces, and 8 are the most: attach the segment anew, so that it is registered in one"
    )]
    Pieces {
        /// How many there are.
        found: usize,
    },
    /// A ring is full.
    #[error(
        "the ring {ring} is full: {entries} entries wait for device code to take them; run a kernel that does, or try again later"
    )]
    Full {
        /// What it is for.
        ring: &'static str,
        /// How many entries it has.
        entries: u64,
    },
    /// The block is none of the arena's.
    #[error("{offset:#x} is not the offset of an allocated block of the arena")]
    NotAllocated {
        /// The offset given.
        offset: u64,
    },
    /// The host's end of the rings was not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The heap around it failed.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The memory under it failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
