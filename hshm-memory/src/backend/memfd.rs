//! Shared memory without a name: `memfd_create`, sealed against shrinking.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::mapping::{self, SharedMapping};
use super::{Backend, BackendError, BackendKind, sizes, validate_name};

/// An anonymous shared file. It lives as long as some process has it open or mapped, and nobody
/// can shorten it under the others' feet.
#[derive(Debug)]
pub struct MemfdMmap {
    mapping: SharedMapping,
}

impl MemfdMmap {
    /// Creates a file `size` bytes long and maps `capacity` bytes of address space for it. `label`
    /// shows in `/proc/PID/maps` and need not be unique. All bytes are zero.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::BadSize`], or what the kernel refuses.
    pub fn create(label: &str, size: u64, capacity: u64) -> Result<Self, BackendError> {
        validate_name(label)?;
        sizes::validate(size, capacity)?;
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(label, flags)
            .map_err(|errno| BackendError::system("cannot create a memory file", errno))?;
        mapping::set_len(file.as_fd(), size)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| BackendError::system("cannot seal a memory file", errno))?;
        Ok(Self { mapping: SharedMapping::new(file, capacity)? })
    }

    /// Maps a file that another process created, over `capacity` bytes of address space.
    ///
    /// # Errors
    /// [`BackendError::NotSharedMemory`] if it is not sealed against shrinking, or what the kernel
    /// refuses.
    pub fn from_fd(file: OwnedFd, capacity: u64) -> Result<Self, BackendError> {
        mapping::require_regular(file.as_fd())?;
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS)
            .map_err(|_| BackendError::NotSharedMemory { why: "it is no memory file" })?;
        if seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(BackendError::NotSharedMemory {
                why: "it is not sealed against shrinking",
            });
        }
        Ok(Self { mapping: SharedMapping::new(file, capacity)? })
    }
}

// SAFETY: [mapped] SharedMapping aligns, maps and keeps the range, and the seal keeps the file from
// becoming shorter.
unsafe impl Backend for MemfdMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::Memfd
    }

    fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    fn capacity_bytes(&self) -> u64 {
        self.mapping.capacity_bytes()
    }

    fn committed_bytes(&self) -> u64 {
        self.mapping.committed_bytes()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mapping.fd())
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.mapping.populate(range)
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.mapping.punch(range)
    }

    fn is_damaged(&self) -> bool {
        self.mapping.is_damaged()
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        self.mapping.grow(bytes)
    }
}
