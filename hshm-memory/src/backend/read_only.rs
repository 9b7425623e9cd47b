//! A shared file mapped for reading alone.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::MmapRaw;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

use super::fault::Watch;
use super::mapping::{Shape, reserve};
use super::segment_file::file_len;
use super::{BASE_ALIGN, Backend, BackendError, BackendKind};

/// A file that is open for reading alone, and so mapped. Whoever writes to it faults, and the kernel lets
/// nobody make the mapping writable.
#[derive(Debug)]
pub(crate) struct ReadOnlyMmap {
    /// Before the reservation, so that it ends before the address range does.
    watch: Watch,
    /// Owns the address range, into which the file is mapped.
    _reservation: MmapRaw,
    kind: BackendKind,
    base: NonNull<u8>,
    capacity: u64,
    file: OwnedFd,
}

// SAFETY: [owned] the mapping belongs to this value until it is dropped, and nothing here depends
// on the thread that made it.
unsafe impl Send for ReadOnlyMmap {}
// SAFETY: [owned] all methods take `&self` and change nothing.
unsafe impl Sync for ReadOnlyMmap {}

impl ReadOnlyMmap {
    /// Maps `file` over `capacity` bytes of address space.
    pub(crate) fn new(
        kind: BackendKind,
        file: OwnedFd,
        capacity: u64,
    ) -> Result<Self, BackendError> {
        let grain = Shape::regular(file.as_fd())?.grain();
        let capacity = capacity.checked_next_multiple_of(grain).unwrap_or(capacity);
        let grain = usize::try_from(grain).unwrap_or(1);
        let (reservation, base) = reserve(capacity, grain.max(BASE_ALIGN))?;
        let len = usize::try_from(capacity).unwrap_or(usize::MAX);
        let bad = BackendError::BadSize {
            size_bytes: 0,
            capacity_bytes: capacity,
            why: "nothing would be mapped",
        };
        let whole = NonZeroUsize::new(len).ok_or(bad)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        // SAFETY: [owned] the range lies inside a reservation that nobody else knows of, so MAP_FIXED
        // replaces nothing but it.
        unsafe { mmap(Some(base.addr()), whole, ProtFlags::PROT_READ, flags, &file, 0) }
            .map_err(|errno| BackendError::system("cannot map the segment", errno))?;
        let watch = Watch::new(base.addr().get(), len, grain);
        Ok(Self { watch, _reservation: reservation, kind, base, capacity, file })
    }

    fn refused<T>() -> Result<T, BackendError> {
        Err(BackendError::NotSharedMemory { why: "it is mapped for reading alone" })
    }
}

// SAFETY: [mapped] `reserve` aligned the range, which is mapped until the value is dropped; populating
// fails, so that nothing is promised of writing.
unsafe impl Backend for ReadOnlyMmap {
    fn kind(&self) -> BackendKind {
        self.kind
    }

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity
    }

    fn committed_bytes(&self) -> u64 {
        file_len(self.file.as_fd()).unwrap_or(0).min(self.capacity)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn populate(&self, _range: Range<u64>) -> Result<(), BackendError> {
        Self::refused()
    }

    fn punch(&self, _range: Range<u64>) -> Result<(), BackendError> {
        Self::refused()
    }

    fn is_damaged(&self) -> bool {
        self.watch.is_damaged()
    }

    fn grow(&self, _bytes: u64) -> Result<(), BackendError> {
        Self::refused()
    }
}
