//! A segment attached for reading alone.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hshm_memory::SegmentError;
use hshm_proto::SegmentDescriptor;

use crate::client::Inner;
use crate::error::Error;
use crate::segment::Attachment;

/// A segment that this process can read, and the kernel does not let it write
/// ([`Client::attach_read_only`](crate::Client::attach_read_only)). It takes no worker slot. Cheap to clone;
/// the last clone's drop detaches it, which may wait for the daemon's answer.
///
/// It dereferences to [`hshm_memory::ReadOnlySegment`], which reads: `read_bytes`, `load`, `resolve`, `report`
/// and `check`.
#[derive(Clone)]
pub struct ReadOnlySegment {
    memory: hshm_memory::ReadOnlySegment,
    attachment: Arc<Attachment>,
}

impl ReadOnlySegment {
    /// Maps what the daemon handed over. If that fails, the attachment is undone.
    pub(crate) fn open(
        inner: Arc<Inner>,
        descriptor: SegmentDescriptor,
        file: OwnedFd,
    ) -> Result<Self, Error> {
        let attachment = Attachment::new(inner, descriptor);
        let found = &attachment.descriptor;
        let cannot = |source| Error::Segment { name: found.name.clone(), source };
        let memory = hshm_memory::ReadOnlySegment::open_fd(found.backend, file).map_err(cannot)?;
        if memory.id() != found.id || memory.capacity_bytes() != found.capacity_bytes {
            return Err(cannot(SegmentError::Corrupt {
                field: "capacity_bytes",
                found: memory.capacity_bytes(),
                why: "which is not what the daemon said of it",
            }));
        }
        Ok(Self { memory, attachment: Arc::new(attachment) })
    }

    /// The segment's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.attachment.descriptor.name
    }
}

impl Deref for ReadOnlySegment {
    type Target = hshm_memory::ReadOnlySegment;

    fn deref(&self) -> &Self::Target {
        &self.memory
    }
}

impl fmt::Debug for ReadOnlySegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReadOnlySegment").field(&self.attachment.descriptor).finish_non_exhaustive()
    }
}
