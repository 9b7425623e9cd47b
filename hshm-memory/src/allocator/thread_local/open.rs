//! Attaching to a segment through its file.

use std::os::fd::OwnedFd;

use super::ThreadLocalAllocator;
use crate::allocator::segment_capacity;
use crate::backend::{BackendKind, BackendOptions};
use crate::error::SegmentError;

impl ThreadLocalAllocator {
    /// Maps the segment behind `file` over its whole capacity and attaches to it.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::shm_deserialize`], and [`SegmentError::Backend`] if the file is
    /// no shared memory of this kind.
    pub fn open_fd(kind: BackendKind, file: OwnedFd) -> Result<Self, SegmentError> {
        Self::open_fd_with(kind, file, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::open_fd`], and as [`BackendKind::open_fd_with`] if an option cannot
    /// be had.
    pub fn open_fd_with(
        kind: BackendKind,
        file: OwnedFd,
        options: &BackendOptions,
    ) -> Result<Self, SegmentError> {
        let capacity = segment_capacity(&file)?;
        Self::shm_deserialize(kind.open_fd_with(file, capacity, options)?)
    }
}
