//! Position-independent pointers: an offset from a segment's start, alone or with its allocator's
//! identity, and the pair of both with the local address.

use std::fmt;
use std::ptr::NonNull;

use serde::{Deserialize, Serialize};

/// A position in a segment: the distance in bytes from the segment's first byte.
///
/// Offset 0 is where the segment's header stands, so no block ever has it, and it serves as null.
/// An offset means the same in each process that maps the segment; the address it resolves to does
/// not. It may be stored in shared memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[repr(transparent)]
pub struct OffsetPointer(u64);

impl OffsetPointer {
    /// The offset that names no block.
    pub const NULL: Self = Self(0);

    /// The position `offset_bytes` after the segment's start.
    #[must_use]
    #[inline]
    pub const fn new(offset_bytes: u64) -> Self {
        Self(offset_bytes)
    }

    /// The distance from the segment's start, in bytes.
    #[must_use]
    #[inline]
    pub const fn offset_bytes(self) -> u64 {
        self.0
    }

    /// Whether this is [`OffsetPointer::NULL`].
    #[must_use]
    #[inline]
    pub const fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for OffsetPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OffsetPointer({:#x})", self.0)
    }
}

impl fmt::Display for OffsetPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The identity of an allocator, chosen by whoever creates it and the same in every process.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[repr(C)]
pub struct AllocatorId {
    /// By convention the backend's number.
    pub major: u32,
    /// By convention the allocator's number within its backend.
    pub minor: u32,
}

impl AllocatorId {
    /// The identity `major.minor`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for AllocatorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A position together with the allocator it belongs to. It may be stored in shared memory.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[repr(C)]
pub struct Pointer {
    /// The allocator that `offset` belongs to.
    pub allocator: AllocatorId,
    /// The position within that allocator's segment.
    pub offset: OffsetPointer,
}

const _: () = {
    assert!(size_of::<OffsetPointer>() == 8);
    assert!(size_of::<AllocatorId>() == 8);
    assert!(size_of::<Pointer>() == 16);
};

impl Pointer {
    /// The pointer that names no block.
    pub const NULL: Self = Self { allocator: AllocatorId::new(0, 0), offset: OffsetPointer::NULL };

    /// Whether the offset is null.
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.offset.is_null()
    }
}

/// A block as this process sees it: the position-independent [`Pointer`] and the local address.
///
/// Only this process may use the address, and only while it has the segment mapped; it is never
/// stored in shared memory.
#[derive(Debug)]
pub struct FullPtr<T: ?Sized> {
    /// Where the block is in this process's address space.
    pub address: NonNull<T>,
    /// Where the block is for everybody.
    pub shared: Pointer,
}

impl<T: ?Sized> Clone for FullPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: ?Sized> Copy for FullPtr<T> {}

impl<T: ?Sized> PartialEq for FullPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.shared == other.shared
    }
}

impl<T: ?Sized> Eq for FullPtr<T> {}
