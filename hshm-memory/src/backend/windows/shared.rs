//! Named shared memory: a section with a name.

use std::io;
use std::ops::Range;
use std::os::windows::io::{AsHandle, BorrowedHandle, OwnedHandle};
use std::ptr::NonNull;

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_FILE_NOT_FOUND, ERROR_INVALID_HANDLE,
};

use super::section::{Failure, Section, VIEW_ALIGN};
use crate::backend::{Backend, BackendError, BackendKind, BackendOptions, validate_name};
use crate::manager::{InitBackend, roomy};

/// A named section: on Windows the equivalent of a POSIX shared-memory object.
///
/// Its name, in the caller's session (`Local\`), is gone when the last process lets go of it. Only
/// the user who created it can open it, and administrators. The kernel keeps eight bytes for each
/// page of the capacity.
#[derive(Debug)]
pub struct PosixShmMmap {
    section: Section,
}

impl PosixShmMmap {
    /// Creates the section `name` of `capacity` bytes and commits the first `size`. All bytes are
    /// zero. Windows has no permission bits: whatever `mode` says, the section is the user's own.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::BadSize`], [`BackendError::Exists`],
    /// [`BackendError::Full`], or what else the system refuses. Nothing is left behind then.
    pub fn create(name: &str, size: u64, capacity: u64, mode: u32) -> Result<Self, BackendError> {
        Self::create_with(name, size, capacity, mode, &BackendOptions::default())
    }

    /// The same, with options. Of these, Windows has population alone.
    ///
    /// # Errors
    /// As [`PosixShmMmap::create`]; [`BackendError::HugePages`], [`BackendError::Numa`] and
    /// [`BackendError::System`] if an option is required that cannot be had.
    pub fn create_with(
        name: &str,
        size: u64,
        capacity: u64,
        _mode: u32,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let path = object_path(name)?;
        let section = Section::create(Some(&path), size, capacity, options);
        Ok(Self { section: section.map_err(|failure| explain(name, failure))? })
    }

    /// Opens the section `name` and maps all of it.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::NotFound`], [`BackendError::Permission`], or what
    /// else the system refuses.
    pub fn open(name: &str) -> Result<Self, BackendError> {
        let section = Section::open(&object_path(name)?);
        Ok(Self { section: section.map_err(|failure| explain(name, failure))? })
    }

    /// Maps a section that this library made, and that is open for reading and writing.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn from_handle(section: OwnedHandle) -> Result<Self, BackendError> {
        Ok(Self { section: Section::from_handle(section)? })
    }

    /// Does nothing but look at the name: on Windows it goes with the last process that has the
    /// section.
    ///
    /// # Errors
    /// [`BackendError::BadName`].
    pub fn unlink(name: &str) -> Result<(), BackendError> {
        validate_name(name)
    }
}

impl AsHandle for PosixShmMmap {
    /// The section, for handing to a process that cannot open it by its name.
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.section.handle()
    }
}

// SAFETY: [mapped] the section is mapped whole, and stays so; its length is asked of the system, and so
// is how much is committed, which nobody can take back.
unsafe impl Backend for PosixShmMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::PosixShm
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

impl InitBackend for PosixShmMmap {
    fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError> {
        Self::create(name, size_bytes, roomy(size_bytes), 0o600)
    }

    fn shm_attach(name: &str) -> Result<Self, BackendError> {
        Self::open(name)
    }

    fn shm_destroy(name: &str) -> Result<(), BackendError> {
        Self::unlink(name)
    }
}

/// The name as the system has it. Sections, events, mutexes and others have their names in common, so
/// this library's begin alike.
fn object_path(name: &str) -> Result<Vec<u16>, BackendError> {
    validate_name(name)?;
    Ok(format!("Local\\hshm.{name}").encode_utf16().chain([0]).collect())
}

fn explain(name: &str, failure: Failure) -> BackendError {
    let name = name.to_owned();
    match failure {
        Failure::Other(error) => error,
        // The latter where it names something, but no section.
        Failure::Open(ERROR_ALREADY_EXISTS | ERROR_INVALID_HANDLE) => BackendError::Exists { name },
        Failure::Open(ERROR_FILE_NOT_FOUND) => BackendError::NotFound { name },
        Failure::Open(ERROR_ACCESS_DENIED) => BackendError::Permission { name },
        Failure::Open(code) => {
            let source = io::Error::from_raw_os_error(code.cast_signed());
            BackendError::system("cannot open shared memory", source)
        }
    }
}
