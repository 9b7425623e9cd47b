//! Shared memory without a name: a section that others get a handle of.

use std::io;
use std::ops::Range;
use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};
use std::ptr::NonNull;

use super::section::{Failure, Section, VIEW_ALIGN};
use crate::backend::{Backend, BackendError, BackendKind, BackendOptions, validate_name};

/// A section without a name: on Windows the equivalent of an anonymous file that is sealed. It lives
/// as long as some process has a handle of it or has it mapped, and nobody can shorten it.
#[derive(Debug)]
pub struct MemfdMmap {
    section: Section,
}

impl MemfdMmap {
    /// Creates a section of `capacity` bytes and commits the first `size`. All bytes are zero. The
    /// label shows nowhere on Windows.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::BadSize`], [`BackendError::Full`], or what else the
    /// system refuses.
    pub fn create(label: &str, size: u64, capacity: u64) -> Result<Self, BackendError> {
        Self::create_with(label, size, capacity, &BackendOptions::default())
    }

    /// The same, with options. Of these, Windows has population alone.
    ///
    /// # Errors
    /// As [`MemfdMmap::create`]; [`BackendError::HugePages`], [`BackendError::Numa`] and
    /// [`BackendError::System`] if an option is required that cannot be had.
    pub fn create_with(
        label: &str,
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        validate_name(label)?;
        match Section::create(None, size, capacity, options) {
            Ok(section) => Ok(Self { section }),
            Err(Failure::Other(error)) => Err(error),
            Err(Failure::Open(code)) => {
                let source = io::Error::from_raw_os_error(code.cast_signed());
                Err(BackendError::system("cannot create a section", source))
            }
        }
    }

    /// Maps a section that a process of this library handed over, for reading and writing.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn from_handle(section: OwnedHandle) -> Result<Self, BackendError> {
        Ok(Self { section: Section::from_handle(section)? })
    }
}

impl AsHandle for MemfdMmap {
    /// The section, for handing to other processes.
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.section.handle()
    }
}

// SAFETY: [mapped] the section is mapped whole, and stays so; its length is asked of the system, and so
// is how much is committed, which nobody can take back.
unsafe impl Backend for MemfdMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::Memfd
    }

    fn base(&self) -> NonNull<u8> {
        self.section.space.base()
    }

    /// 64 KiB: the system chooses where a section is mapped, in each process anew.
    fn alignment(&self) -> usize {
        VIEW_ALIGN
    }

    fn capacity_bytes(&self) -> u64 {
        self.section.space.capacity_bytes()
    }

    fn committed_bytes(&self) -> u64 {
        self.section.space.committed_bytes()
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.section.space.populate(&range)
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.section.space.punch(&range)
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        self.section.space.grow(bytes)
    }
}
