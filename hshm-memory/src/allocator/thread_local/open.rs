//! Attaching to a segment through its file.

use std::os::fd::{AsFd, OwnedFd};

use super::ThreadLocalAllocator;
use super::geometry::HEADER_BYTES;
use super::layout::{LAYOUT_VERSION, MAGIC};
use crate::backend::{BackendError, BackendKind, read_start};
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

/// The capacity that the header of the segment in `file` claims; everything about it is validated
/// again once it is mapped.
pub(crate) fn segment_capacity(file: &OwnedFd) -> Result<u64, SegmentError> {
    let mut start = [0; 32];
    let read = read_start(file.as_fd(), &mut start)
        .map_err(|source| BackendError::System { what: "cannot read the segment", source })?;
    if read < start.len() {
        let found_bytes = read as u64;
        return Err(SegmentError::Truncated { found_bytes, needed_bytes: HEADER_BYTES });
    }
    let word = |at: usize| {
        let bytes = start.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_le_bytes(bytes.unwrap_or_default())
    };
    let magic = word(0);
    if magic != MAGIC {
        return Err(SegmentError::Foreign { found: magic });
    }
    #[allow(clippy::cast_possible_truncation, reason = "the low half is the version")]
    let found = word(8) as u32;
    if found != LAYOUT_VERSION {
        return Err(SegmentError::LayoutVersion { found, supported: LAYOUT_VERSION });
    }
    Ok(word(24))
}
