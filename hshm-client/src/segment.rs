//! An attached segment.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::process;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use hshm_memory::gpu::{DeviceMemory, GpuError};
use hshm_memory::{AllocError, BackendError, OffsetPointer, SegmentError, ThreadLocalAllocator};
use hshm_proto::SegmentDescriptor;

use crate::allocator::SegmentAllocator;
use crate::client::Inner;
use crate::device_part::DevicePart;
use crate::error::Error;

/// A segment in this process. Cheap to clone; the last clone's drop detaches it, which may wait for
/// the daemon's answer.
///
/// It dereferences to the allocator, whose operations it has: `allocate`, `free`, `resolve`,
/// `allocate_into`, `report` and so on. None of them involves the daemon.
#[derive(Clone)]
pub struct Segment<A = ThreadLocalAllocator> {
    allocator: A,
    attachment: Arc<Attachment>,
}

/// Which device a segment of the backend `cuda-shm` or `rocm-shm` is registered for when it is
/// attached. Further ones can be given access to it later:
/// `segment.backend().device()` is what to ask ([`DeviceMemory`](hshm_memory::gpu::DeviceMemory)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first, if this process finds a driver and a device. If not, the segment is shared memory
    /// like any other here, and its [`registration`](hshm_memory::gpu::DeviceMemory::registration)
    /// is `None`.
    #[default]
    FirstIfAny,
    /// The one with this number, without which the segment is not attached.
    Number(u32),
    /// None: it is shared memory like any other here, and no driver is looked for.
    None,
}

impl DeviceChoice {
    fn register(self, memory: &dyn DeviceMemory) -> Result<(), BackendError> {
        let number = match self {
            Self::None => return Ok(()),
            Self::FirstIfAny => 0,
            Self::Number(number) => number,
        };
        let done = memory.register(number);
        if self == Self::FirstIfAny
            && let Err(BackendError::Gpu(
                GpuError::NotBuilt { .. }
                | GpuError::NoDriver { .. }
                | GpuError::NoDevice { .. }
                | GpuError::Forked { .. },
            )) = done
        {
            return Ok(());
        }
        done
    }
}

/// What is undone when the last clone is dropped.
pub(crate) struct Attachment {
    inner: Arc<Inner>,
    pub(crate) descriptor: SegmentDescriptor,
    /// The process that attached it, whose session alone can detach it; [`NOBODY`] when that is done.
    pid: u32,
}

/// No process has this number.
const NOBODY: u32 = 0;

impl<A> fmt::Debug for Segment<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Segment").field(&self.attachment.descriptor).finish_non_exhaustive()
    }
}

impl<A> Deref for Segment<A> {
    type Target = A;

    #[inline]
    fn deref(&self) -> &A {
        &self.allocator
    }
}

impl<A: SegmentAllocator> Segment<A> {
    /// Maps what the daemon handed over, of which [`Connection::counts_alike`] says whether processes have
    /// the same numbers there as here. If that fails, the attachment is undone.
    ///
    /// [`Connection::counts_alike`]: crate::connection::Connection::counts_alike
    pub(crate) fn open(
        inner: Arc<Inner>,
        descriptor: SegmentDescriptor,
        file: OwnedFd,
        device: DeviceChoice,
        counts_alike: bool,
    ) -> Result<Self, Error> {
        let attachment = Attachment::new(inner, descriptor);
        let found = &attachment.descriptor;
        let cannot = |source| Error::Segment { name: found.name.clone(), source };
        let allocator = A::open_fd(found.backend, file).map_err(cannot)?;
        if allocator.id() != found.id || allocator.capacity_bytes() != found.capacity_bytes {
            return Err(cannot(SegmentError::Corrupt {
                field: "capacity_bytes",
                found: allocator.capacity_bytes(),
                why: "which is not what the daemon said of it",
            }));
        }
        if let Some(memory) = allocator.backend().and_then(|backend| backend.device()) {
            device.register(memory).map_err(|error| cannot(error.into()))?;
        }
        if counts_alike && found.identity.pid == std::process::id() {
            found.identity.make_current();
        } else {
            // The daemon is in another pid namespace, and recovers the dead by the pids it sees.
            allocator.be_known_as(found.identity).map_err(cannot)?;
        }
        Ok(Self { allocator, attachment: Arc::new(attachment) })
    }

    /// The segment's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.attachment.descriptor.name
    }

    /// The allocator in it, for code that knows nothing of daemons. A clone of it stays usable when
    /// the segment is detached.
    #[must_use]
    pub fn allocator(&self) -> &A {
        &self.allocator
    }

    /// Allocates a block and puts `bytes` in it.
    ///
    /// # Errors
    /// [`AllocError`], if there is no room.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<OffsetPointer, AllocError> {
        let block = self.allocator.allocate(bytes.len())?;
        let address = self.allocator.resolve(block, bytes.len())?;
        // SAFETY: [owned] the block was just allocated and nobody else knows of it; [mapped] resolve
        // checked that it has this length.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address.as_ptr(), bytes.len()) };
        Ok(block)
    }

    /// Copies the bytes at `position` out. If others write there meanwhile, a mixture of old and new
    /// bytes results.
    ///
    /// # Errors
    /// [`AllocError`], if some of the bytes are outside the segment.
    pub fn read_bytes(&self, position: OffsetPointer, into: &mut [u8]) -> Result<(), AllocError> {
        let source = self.allocator.resolve(position, into.len())?.as_ptr();
        // By whole words where they are aligned, which a block's start is.
        let lead = source.align_offset(size_of::<u64>()).min(into.len());
        let (head, rest) = into.split_at_mut(lead);
        let (words, tail) = rest.as_chunks_mut::<8>();
        let (words_at, tail_at) = (lead, lead + words.len() * size_of::<u64>());
        let load_byte = |at: usize| {
            let byte = source.wrapping_add(at);
            // SAFETY: [mapped] `at` is below the length that resolve checked; [atomic] so that
            // another's write is no data race.
            unsafe { AtomicU8::from_ptr(byte) }.load(Ordering::Relaxed)
        };
        for (i, byte) in head.iter_mut().enumerate() {
            *byte = load_byte(i);
        }
        for (i, word) in words.iter_mut().enumerate() {
            #[expect(clippy::cast_ptr_alignment, reason = "`lead` made it a multiple of eight")]
            let from = source.wrapping_add(words_at + i * size_of::<u64>()).cast::<u64>();
            // SAFETY: [mapped] all eight bytes are below the length that resolve checked, and
            // `lead` made the address a multiple of eight; [atomic] as above.
            let value = unsafe { AtomicU64::from_ptr(from) }.load(Ordering::Relaxed);
            *word = value.to_ne_bytes();
        }
        for (i, byte) in tail.iter_mut().enumerate() {
            *byte = load_byte(tail_at + i);
        }
        Ok(())
    }

    /// The bytes at `position`, in place.
    ///
    /// # Errors
    /// [`AllocError`], if some of the bytes are outside the segment.
    ///
    /// # Safety
    /// As long as the slice is used, no thread of any process writes to these bytes, and their block
    /// is not freed.
    pub unsafe fn bytes(&self, position: OffsetPointer, len: usize) -> Result<&[u8], AllocError> {
        let address = self.allocator.resolve(position, len)?;
        // SAFETY: [mapped] resolve checked the range, and the mapping lives as long as `self`; that
        // nobody writes there is the caller's promise.
        Ok(unsafe { std::slice::from_raw_parts(address.as_ptr(), len) })
    }

    /// What to send to another process so that it finds a block: its offset, which is the same
    /// for all.
    #[must_use]
    pub fn share(&self, block: OffsetPointer) -> u64 {
        block.offset_bytes()
    }

    /// The block whose offset another process sent. An offset that cannot be a block's is refused;
    /// whether the block is still allocated, only those who use it can know.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`], if no block can begin there.
    pub fn receive(&self, offset: u64) -> Result<OffsetPointer, AllocError> {
        let block = OffsetPointer::new(offset);
        self.allocator.usable_bytes(block)?;
        Ok(block)
    }

    /// Lets go of the segment now and reports whether the daemon knows, which a drop does not. Other
    /// clones keep it attached.
    ///
    /// # Errors
    /// As for any request to the daemon; the segment is let go of in any case.
    pub fn detach(self) -> Result<(), Error> {
        let Self { allocator, attachment } = self;
        allocator.let_go();
        match Arc::try_unwrap(attachment) {
            Ok(mut attachment) => {
                let result = attachment.detach();
                attachment.pid = NOBODY;
                result
            }
            Err(_others) => Ok(()),
        }
    }
}

impl Segment<ThreadLocalAllocator> {
    /// Maps the memory of a device's own that belongs to the segment, for the device that it is of, or for another
    /// number under which this process knows that device, or whose driver lets it reach the first one's memory.
    ///
    /// # Errors
    /// [`Error::Daemon`] with [`ErrorCode::NotFound`](crate::ErrorCode::NotFound) if the segment has none;
    /// [`Error::DeviceMemory`] with the driver's reason, and [`Error::DevicePool`] if the tables are unusable; or
    /// as for any request.
    pub fn device_part(&self, device: Option<u32>) -> Result<DevicePart, Error> {
        let name = &self.attachment.descriptor.name;
        let (info, file) = self.attachment.inner.device_memory(name)?;
        DevicePart::open(&self.allocator, name, info, file, device)
    }
}

impl Attachment {
    pub(crate) fn new(inner: Arc<Inner>, descriptor: SegmentDescriptor) -> Self {
        Self { inner, descriptor, pid: process::id() }
    }

    fn detach(&self) -> Result<(), Error> {
        // A forked child's session never attached it.
        if self.pid == process::id() { self.inner.detach(&self.descriptor.name) } else { Ok(()) }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // Nobody to tell: the daemon sees by itself when this process ends.
        let _ = self.detach();
    }
}
