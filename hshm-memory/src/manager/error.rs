//! Why the memory manager could not do what it was asked for.

use super::MemoryBackendId;
use crate::backend::BackendError;
use crate::error::{AllocError, SegmentError};
use crate::pointer::AllocatorId;

/// Why the memory manager could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The memory could not be made, opened or destroyed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The allocator could not be laid out or attached.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A block could not be allocated, freed or resolved.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The number is taken.
    #[error(
        "a backend with the number {id} is registered already: choose another number, or detach that one first"
    )]
    BackendExists {
        /// The number.
        id: MemoryBackendId,
    },
    /// Nothing has this number.
    #[error("no backend with the number {id} is registered: create or attach it first")]
    NoSuchBackend {
        /// The number.
        id: MemoryBackendId,
    },
    /// The identity is taken.
    #[error(
        "an allocator with the identity {id} is registered already: choose another, or unregister that one first"
    )]
    AllocatorExists {
        /// The identity.
        id: AllocatorId,
    },
    /// Nothing has this identity.
    #[error("no allocator with the identity {id} is registered: create or attach it first")]
    NoSuchAllocator {
        /// The identity.
        id: AllocatorId,
    },
    /// The allocator takes its memory elsewhere, so that none of it can be cut off.
    #[error("allocator {id} has no backend of its own: use one that stands in a backend")]
    NoBackend {
        /// The identity.
        id: AllocatorId,
    },
    /// There is no default allocator.
    #[error("no default allocator is set: register one and call set_default_allocator")]
    NoDefault,
    /// Something else stands on it.
    #[error("{what} is in use by allocator {by}: unregister that first")]
    InUse {
        /// What was to be removed.
        what: String,
        /// An allocator that needs it.
        by: AllocatorId,
    },
}
