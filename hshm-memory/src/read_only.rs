//! A segment that this process can read and not write: the kernel sees to it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::allocator::{AllocatorKind, AnyAllocator, segment_capacity};
use crate::backend::{BackendError, BackendKind, ReadOnlyMmap};
use crate::error::{AllocError, SegmentError};
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::{CheckReport, HeapReport};
use crate::sync::{AtomicU64, Ordering};

const WORD: u64 = size_of::<u64>() as u64;

/// A segment mapped without permission to write. It claims no worker slot, cannot allocate, and leaves no
/// trace in the segment. Cheap to clone.
///
/// Whatever stands in the segment, all reads stay inside it. What others write meanwhile is read as it
/// is at that moment.
///
/// # Examples
/// ```
/// # use hshm_memory::{doc_heap, Backend, BackendKind, ReadOnlySegment};
/// # let heap = doc_heap();
/// let block = heap.allocate(5)?;
/// // SAFETY: the block was just allocated, with this length at least.
/// unsafe { heap.resolve(block, 5)?.cast().write(*b"hello") };
///
/// // Usually in another process, which was handed such a file:
/// # use std::os::fd::AsRawFd;
/// let file = heap.backend().fd().ok_or("no file")?.as_raw_fd();
/// let file = std::fs::File::open(format!("/proc/self/fd/{file}"))?;
/// let segment = ReadOnlySegment::open_fd(BackendKind::Memfd, file.into())?;
/// let mut read = [0; 5];
/// segment.read_bytes(block, &mut read)?;
/// assert_eq!(&read, b"hello");
/// assert_eq!(segment.id(), heap.id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReadOnlySegment {
    /// Nothing is called of it that writes.
    allocator: AnyAllocator,
}

impl ReadOnlySegment {
    /// Maps the segment behind `file`, of a backend of kind `backend`, for reading, and validates
    /// whichever allocator stands in it. The file may be open for reading alone.
    ///
    /// # Errors
    /// [`SegmentError::Backend`] if the file cannot be mapped; otherwise as
    /// [`ThreadLocalAllocator::shm_deserialize`](crate::ThreadLocalAllocator::shm_deserialize).
    pub fn open_fd(backend: BackendKind, file: OwnedFd) -> Result<Self, SegmentError> {
        let capacity = segment_capacity(&file)?;
        let backend = Arc::new(ReadOnlyMmap::new(backend, file, capacity)?);
        Ok(Self { allocator: AnyAllocator::shm_deserialize(backend)? })
    }

    /// Which allocator stands in it.
    #[must_use]
    pub fn kind(&self) -> AllocatorKind {
        self.allocator.kind()
    }

    /// The allocator's identity.
    #[must_use]
    pub fn id(&self) -> AllocatorId {
        self.allocator.id()
    }

    /// The most that the segment can grow to, in bytes.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.allocator.capacity_bytes()
    }

    /// How far it reaches now, in bytes.
    #[must_use]
    pub fn committed_bytes(&self) -> u64 {
        self.allocator.committed_bytes()
    }

    /// Where the application's own header stands, and its length in bytes.
    #[must_use]
    pub fn custom_header(&self) -> (OffsetPointer, usize) {
        self.allocator.custom_header()
    }

    /// The file behind it.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.allocator.backend().fd()
    }

    /// The address of `len` bytes at `position`, to be read while `self` or a clone of it lives. Others may
    /// write there meanwhile, so they are to be read as atomics, unless it is known that nobody does.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] if some of the bytes are outside the segment.
    pub fn resolve(&self, position: OffsetPointer, len: usize) -> Result<*const u8, AllocError> {
        Ok(self.allocator.resolve(position, len)?.as_ptr())
    }

    /// The eight bytes at `position`, which is a multiple of eight, as one integer, whole.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] if some of the bytes are outside the segment, or `position` is no
    /// multiple of eight.
    pub fn load(&self, position: OffsetPointer) -> Result<u64, AllocError> {
        let offset = position.offset_bytes();
        if !offset.is_multiple_of(WORD) {
            return Err(AllocError::NotAllocated { offset, why: "it is no multiple of eight" });
        }
        self.resolve(position, size_of::<u64>())?;
        Ok(self.word(offset))
    }

    /// The word at `offset`, a multiple of eight, some byte of which was resolved.
    fn word(&self, offset: u64) -> u64 {
        let at = usize::try_from(offset / WORD).unwrap_or(usize::MAX);
        let address = self.allocator.backend().base().cast::<u64>().as_ptr().wrapping_add(at);
        // SAFETY: [mapped] a byte of it lies below the segment's length, which is a multiple of eight, as
        // is the offset; so all of it does; [atomic] another's write is no data race, and this is only read.
        let word = unsafe { AtomicU64::from_ptr(address) };
        // ORDER: Acquire: what its writer released with it is seen, too.
        word.load(Ordering::Acquire)
    }

    /// Copies the bytes at `position` out. If others write there meanwhile, a mixture of old and new
    /// bytes results.
    ///
    /// # Errors
    /// [`AllocError::NotAllocated`] if some of the bytes are outside the segment.
    pub fn read_bytes(&self, position: OffsetPointer, into: &mut [u8]) -> Result<(), AllocError> {
        self.resolve(position, into.len())?;
        let mut offset = position.offset_bytes();
        let mut rest = into;
        while !rest.is_empty() {
            let skipped = offset % WORD;
            let word = self.word(offset - skipped).to_ne_bytes();
            let found = word.get(usize::try_from(skipped).unwrap_or(0)..).unwrap_or_default();
            let len = found.len().min(rest.len());
            let (part, more) = rest.split_at_mut(len);
            part.copy_from_slice(found.get(..len).unwrap_or_default());
            rest = more;
            offset += len as u64;
        }
        Ok(())
    }

    /// Counts what is allocated and free.
    ///
    /// # Errors
    /// [`AllocError::Backend`] for a scalable-page allocator: its table can be read only by who holds its
    /// lock, which is in the segment.
    pub fn report(&self) -> Result<HeapReport, AllocError> {
        self.require_walkable()?;
        Ok(self.allocator.report())
    }

    /// Walks the whole heap and asserts its invariants. While others allocate, what they do meanwhile may
    /// show as violations.
    ///
    /// # Errors
    /// As [`ReadOnlySegment::report`].
    pub fn check(&self) -> Result<CheckReport, AllocError> {
        self.require_walkable()?;
        Ok(self.allocator.check())
    }

    fn require_walkable(&self) -> Result<(), AllocError> {
        match self.kind() {
            AllocatorKind::ThreadLocal | AllocatorKind::Stack => Ok(()),
            AllocatorKind::ScalablePage | AllocatorKind::Malloc => {
                Err(AllocError::Backend(BackendError::NotSharedMemory {
                    why: "its lock cannot be taken, since it is mapped for reading alone; ask the daemon",
                }))
            }
        }
    }
}

#[cfg(all(test, not(hshm_loom)))]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::backend::scratch;
    use crate::context::MemContext;
    use crate::options::InitOptions;

    #[test]
    fn every_kind_is_read_at_any_place_and_never_outside() {
        for kind in [AllocatorKind::ThreadLocal, AllocatorKind::ScalablePage, AllocatorKind::Stack]
        {
            let backend = Arc::new(scratch("read", 1 << 20, 4 << 20).unwrap());
            let options = InitOptions { custom_header_bytes: 100, ..InitOptions::default() };
            let id = AllocatorId::new(1, 2);
            let heap = AnyAllocator::shm_init(kind, id, backend, &options).unwrap();
            let block = heap.allocate_offset(MemContext::DEFAULT, 64).unwrap();
            let address = heap.resolve(block, 64).unwrap();
            for n in 0..64 {
                // SAFETY: [mapped] it was resolved with that length; [owned] nobody else knows of it.
                unsafe { address.as_ptr().wrapping_add(n.into()).write(n) };
            }
            let file = heap.backend().fd().unwrap().as_raw_fd();
            let file = File::open(format!("/proc/self/fd/{file}")).unwrap();
            let segment = ReadOnlySegment::open_fd(BackendKind::Memfd, file.into()).unwrap();
            assert_eq!((segment.kind(), segment.id()), (kind, id));
            assert_eq!(segment.custom_header(), heap.custom_header());
            let start = block.offset_bytes();
            for from in 0..20_u8 {
                for len in 0..20 {
                    let mut read = vec![0; len];
                    let position = OffsetPointer::new(start + u64::from(from));
                    segment.read_bytes(position, &mut read).unwrap();
                    assert!(read.iter().copied().eq((from..).take(len)), "{kind} {from} {len}");
                }
            }
            assert_eq!(segment.load(block).unwrap(), u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
            assert!(segment.load(OffsetPointer::new(start + 4)).is_err());
            let end = segment.committed_bytes();
            for (at, len) in [(end, 1), (end - 8, 9), (0, 1), (u64::MAX, 1), (u64::MAX - 7, 8)] {
                let mut read = vec![0; len];
                assert!(segment.read_bytes(OffsetPointer::new(at), &mut read).is_err(), "{at}");
            }
            // What grows is seen.
            let grown = heap.grow(end + (64 << 10)).unwrap();
            segment.read_bytes(OffsetPointer::new(grown - 8), &mut [0; 8]).unwrap();
            let walkable = kind != AllocatorKind::ScalablePage;
            assert_eq!(segment.report().is_ok(), walkable);
            assert_eq!(segment.check().is_ok_and(|check| check.violations_total == 0), walkable);
        }
    }
}
