//! Attaching to a segment through its file.

use std::os::fd::OwnedFd;

use super::ThreadLocalAllocator;
use crate::allocator::segment_capacity;
use crate::backend::BackendKind;
use crate::error::SegmentError;

impl ThreadLocalAllocator {
    /// Maps the segment behind `file` over its whole capacity and attaches to it.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::shm_deserialize`], and [`SegmentError::Backend`] if the file is
    /// no shared memory of this kind.
    pub fn open_fd(kind: BackendKind, file: OwnedFd) -> Result<Self, SegmentError> {
        let capacity = segment_capacity(&file)?;
        Self::shm_deserialize(kind.open_fd(file, capacity)?)
    }
}
