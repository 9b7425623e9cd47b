//! Why an operation on an allocator failed.

use crate::allocator::AllocatorKind;
use crate::backend::BackendError;
use crate::process::ProcessId;
use crate::robust::LockError;

/// Why a segment could not be created or attached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The memory under it could not be made, opened or used.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A choice at creation is out of its range.
    #[error("{what} is {found}, but must be {expected}")]
    BadOption {
        /// Which choice.
        what: &'static str,
        /// What was asked for.
        found: u64,
        /// What can be.
        expected: String,
    },
    /// The allocator's memory is one process's own.
    #[error(
        "a {kind} allocator lives in the process that made it: nobody can attach to it; use a thread-local or scalable-page one instead"
    )]
    NotShared {
        /// The kind of the allocator.
        kind: AllocatorKind,
    },
    /// A segment was to be created where one stands already.
    #[error("the memory holds a segment already: attach to it, or destroy it first")]
    Exists,
    /// The segment is shorter than its own header.
    #[error(
        "the segment is truncated: {found_bytes} bytes where at least {needed_bytes} are needed; it was cut short, or its creator died before it was done; destroy it and create it anew"
    )]
    Truncated {
        /// How long it is.
        found_bytes: u64,
        /// How long it must be.
        needed_bytes: u64,
    },
    /// What stands there is something else.
    #[error(
        "this is no hshm segment: it begins with {found:#018x}; it belongs to another program, or its creator died before it was done"
    )]
    Foreign {
        /// The first eight bytes.
        found: u64,
    },
    /// Another allocator stands there.
    #[error(
        "the segment holds a {found} allocator, not a {wanted} one: attach to it as what it is"
    )]
    OtherAllocator {
        /// The kind that stands there.
        found: AllocatorKind,
        /// The kind that was to be attached to.
        wanted: AllocatorKind,
    },
    /// The allocator names its users by their process ids, and these differ.
    #[error(
        "a {kind} allocator can only be used in the pid namespace of the daemon, which sees this process under another number; use a thread-local one"
    )]
    PidNamespace {
        /// The kind of the allocator.
        kind: AllocatorKind,
    },
    /// It was written by another version of this library.
    #[error(
        "the segment has layout version {found}, and this library reads version {supported}: use the same hshm release on both sides, or create the segment anew"
    )]
    LayoutVersion {
        /// The version that stands in it.
        found: u32,
        /// The version that this library knows.
        supported: u32,
    },
    /// A field of the header contradicts the rest.
    #[error(
        "the segment's header is corrupt: {field} is {found}, {why}; inspect it with hshmctl check, or destroy it and create it anew"
    )]
    Corrupt {
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: u64,
        /// Why that cannot be.
        why: &'static str,
    },
}

/// Why an operation on an attached allocator failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// No run of free memory is long enough.
    #[error(
        "out of memory: no room for {bytes} bytes in a segment of {committed_bytes} bytes; free some, or grow the segment"
    )]
    OutOfMemory {
        /// How many bytes were asked for.
        bytes: u64,
        /// How long the segment is.
        committed_bytes: u64,
    },
    /// The request can never be met by this segment.
    #[error(
        "a block of {bytes} bytes is larger than the whole segment can ever hold ({limit_bytes} bytes)"
    )]
    TooLarge {
        /// How many bytes were asked for.
        bytes: u64,
        /// The most that could be.
        limit_bytes: u64,
    },
    /// The alignment is no power of two, or beyond what the memory's own beginning has.
    #[error("an alignment of {align} cannot be had: it must be a power of two, at most {limit}")]
    BadAlignment {
        /// What was asked for.
        align: usize,
        /// The largest that the allocator's memory can promise, in bytes.
        limit: usize,
    },
    /// The segment has memory, but the machine does not.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// All worker slots are taken by live threads.
    #[error(
        "all {slots} worker slots of the segment are in use: let threads end or detach, or create the segment with more slots"
    )]
    NoWorkerSlot {
        /// How many slots the segment has.
        slots: u32,
    },
    /// It cannot be repaired while somebody uses it.
    #[error(
        "the segment is in use: process {process} holds its worker slot {slot}; end it, or wait for its end, and try again"
    )]
    InUse {
        /// A slot that is held.
        slot: u32,
        /// Who holds it.
        process: ProcessId,
    },
    /// The offset is not that of a block that is allocated.
    #[error("{offset:#x} is not the offset of an allocated block: {why}")]
    NotAllocated {
        /// The offset given.
        offset: u64,
        /// What was found there.
        why: &'static str,
    },
    /// The destination or source cell of a journalled operation is unusable.
    #[error("the cell at {offset:#x} cannot be used: {why}")]
    BadCell {
        /// The cell's offset.
        offset: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The context names a thread that has no slot here, or one of another process.
    #[error("the memory context names worker slot {slot}, which this process does not hold")]
    BadContext {
        /// The slot named.
        slot: u32,
    },
    /// The identity of this process could not be established.
    #[error("cannot tell which process this is: {0}")]
    Identity(std::io::Error),
    /// The lock that all processes share was not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another process wrote over the allocator's own data.
    #[error("the heap is corrupt at {offset:#x}: {what}; inspect it with hshmctl check")]
    Corrupt {
        /// Where, as an offset in the segment.
        offset: u64,
        /// What was found.
        what: &'static str,
    },
}
