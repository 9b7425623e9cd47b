//! Memory of a device's own that belongs to a segment.

use std::ops::Deref;
use std::os::fd::OwnedFd;

use hshm_memory::gpu::DeviceBuffer;
use hshm_memory::gpu::pool::{DevicePool, PoolError};
use hshm_memory::{OffsetPointer, ThreadLocalAllocator};
use hshm_proto::DeviceMemoryInfo;

use crate::error::Error;

/// Memory of a device's own, shared by all who have the segment attached, and mapped for a device by this process.
///
/// It dereferences to the pool that says which part of it is whose: `allocate`, `allocate_into`, `free`, `free_from`.
/// None of them involves the daemon or a driver, and none touches the memory itself: that is for kernels, which
/// get addresses from [`DevicePart::device_address`]. Blocks and offsets are the same for all processes, addresses
/// are not.
#[derive(Debug)]
pub struct DevicePart {
    pool: DevicePool,
    buffer: DeviceBuffer,
}

impl DevicePart {
    pub(crate) fn open(
        heap: &ThreadLocalAllocator,
        segment: &str,
        info: DeviceMemoryInfo,
        file: OwnedFd,
        device: Option<u32>,
    ) -> Result<Self, Error> {
        let device = device.unwrap_or(info.device);
        let unusable = |source| Error::DevicePool { name: segment.to_owned(), source };
        let pool = DevicePool::open(heap, info.pool).map_err(unusable)?;
        if pool.bytes() > info.bytes {
            return Err(unusable(PoolError::NotThere { offset: info.pool.offset_bytes() }));
        }
        let buffer = DeviceBuffer::from_fd(info.vendor, device, file, info.bytes)
            .map_err(|source| Error::DeviceMemory { name: segment.to_owned(), source })?;
        Ok(Self { pool, buffer })
    }

    /// Where the device finds the `len` bytes at `block`, by this process's addresses; `None` if they are not all inside.
    #[must_use]
    pub fn device_address(&self, block: OffsetPointer, len: u64) -> Option<u64> {
        self.buffer.device_address(block.offset_bytes(), len)
    }

    /// The memory as a whole.
    #[must_use]
    pub fn buffer(&self) -> &DeviceBuffer {
        &self.buffer
    }

    /// Which part of it is whose.
    #[must_use]
    pub fn pool(&self) -> &DevicePool {
        &self.pool
    }
}

impl Deref for DevicePart {
    type Target = DevicePool;

    fn deref(&self) -> &DevicePool {
        &self.pool
    }
}
