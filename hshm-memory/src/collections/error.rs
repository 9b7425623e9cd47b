//! Why an operation on a shared collection failed.

use std::io;

use crate::error::AllocError;
use crate::robust::LockError;

/// Why an operation on a collection in shared memory failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollectionError {
    /// Its memory could not be had, or reached.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// It cannot be so large.
    #[error("a capacity of {found} cannot be had: it must be {least} to {most}")]
    Capacity {
        /// What was asked for.
        found: u64,
        /// The least that can be.
        least: u64,
        /// The most that can be.
        most: u64,
    },
    /// Something else stands there.
    #[error(
        "no {expected} stands at {offset:#x}: it was destroyed, or its creator died before it was done, or the offset is another's"
    )]
    NotThere {
        /// Where.
        offset: u64,
        /// What was looked for.
        expected: &'static str,
    },
    /// It holds values of another type.
    #[error(
        "the {what} at {offset:#x} holds values of {found_bytes} bytes, and this program's have {expected_bytes}: use the same type, from the same release, on both sides"
    )]
    ElementSize {
        /// What stands there.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Bytes of a value that stand in it.
        found_bytes: u64,
        /// Bytes of a value of the type that was named.
        expected_bytes: u64,
    },
    /// It belongs to processes that this one cannot see.
    #[error(
        "the {what} at {offset:#x} was made in another pid namespace, so that neither side can tell whether the other lives: let all who use it share one pid namespace"
    )]
    Namespace {
        /// What stands there.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// Another process wrote over it.
    #[error("the {what} at {offset:#x} is corrupt: {why}; destroy it and create it anew")]
    Corrupt {
        /// What stands there.
        what: &'static str,
        /// Where.
        offset: u64,
        /// What was found.
        why: &'static str,
    },
    /// It has no room for another value.
    #[error("it is full: let somebody take values out")]
    Full,
    /// It has no value.
    #[error("it is empty")]
    Empty,
    /// What was waited for did not come about in time.
    #[error("waited in vain for {waited:?}")]
    TimedOut {
        /// For how long.
        waited: std::time::Duration,
    },
    /// Too many are at it.
    #[error(
        "{most} threads are in the midst of the same operation: try again; if it stays so, some of them were stopped"
    )]
    Busy {
        /// How many there can be.
        most: u64,
    },
    /// What it is made of would go with a process.
    #[error(
        "the segment frees what a process allocated when it ends, and with it parts of a collection that others use: create the segment with the policy keep"
    )]
    GoesWithProcess,
    /// The lock could not be taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is no such value.
    #[error("there is no value at index {index}: there are {len}")]
    OutOfRange {
        /// Which was named.
        index: usize,
        /// How many there are.
        len: usize,
    },
    /// The identity of the calling thread could not be established.
    #[error("cannot tell which thread this is: {0}")]
    Identity(io::Error),
}
