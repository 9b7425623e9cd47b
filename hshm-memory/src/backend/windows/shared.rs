//! Named shared memory: a section that the paging file backs.

use std::io;
use std::ops::Range;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr::{self, NonNull};

use windows_sys::Win32::Foundation::{
    ERROR_ACCESS_DENIED, ERROR_ALREADY_EXISTS, ERROR_FILE_NOT_FOUND, ERROR_INVALID_HANDLE,
    GetLastError, INVALID_HANDLE_VALUE, SetLastError,
};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile,
    OpenFileMappingW, PAGE_READWRITE, SEC_RESERVE, UnmapViewOfFile,
};

use super::space::{self, Space};
use crate::backend::{Backend, BackendError, BackendKind, validate_name};
use crate::manager::{InitBackend, roomy};

/// The boundary at which views begin, in bytes: the allocation granularity of every Windows there is.
const VIEW_ALIGN: usize = 64 << 10;

/// A named section: on Windows the equivalent of a POSIX shared-memory object.
///
/// Its name, in the caller's session (`Local\`), is gone when the last process lets go of it. Only
/// the user who created it can open it, and administrators. The kernel keeps eight bytes for each
/// page of the capacity.
#[derive(Debug)]
pub struct PosixShmMmap {
    space: Space,
    /// Before the section, so that it ends before.
    _view: View,
    section: OwnedHandle,
}

impl PosixShmMmap {
    /// Creates the section `name` of `capacity` bytes and commits the first `size`. All bytes are
    /// zero. Windows has no permission bits: whatever `mode` says, the section is the user's own.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::BadSize`], [`BackendError::Exists`],
    /// [`BackendError::Full`], or what else the system refuses. Nothing is left behind then.
    pub fn create(name: &str, size: u64, capacity: u64, _mode: u32) -> Result<Self, BackendError> {
        let path = object_path(name)?;
        let capacity = space::whole_pages(size, capacity)?;
        let [low, high] = [capacity & 0xffff_ffff, capacity >> 32]
            .map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        // SAFETY: [ffi] no argument. Not every success clears what is asked for below.
        unsafe { SetLastError(0) };
        // SAFETY: [ffi] the path ends with a zero and lives during the call; there are no security
        // attributes; the result is checked.
        let handle = unsafe {
            CreateFileMappingW(
                INVALID_HANDLE_VALUE,
                ptr::null(),
                PAGE_READWRITE | SEC_RESERVE,
                high,
                low,
                path.as_ptr(),
            )
        };
        // SAFETY: [ffi] no argument.
        let code = unsafe { GetLastError() };
        if handle.is_null() {
            return Err(open_error(name, code));
        }
        // SAFETY: [owned] the handle was just opened, and nobody else has it.
        let section = unsafe { OwnedHandle::from_raw_handle(handle) };
        if code == ERROR_ALREADY_EXISTS {
            return Err(BackendError::Exists { name: name.to_owned() });
        }
        let this = Self::from_handle(section)?;
        this.space.grow(size)?;
        Ok(this)
    }

    /// Opens the section `name` and maps all of it.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::NotFound`], [`BackendError::Permission`], or what
    /// else the system refuses.
    pub fn open(name: &str) -> Result<Self, BackendError> {
        let path = object_path(name)?;
        // SAFETY: [ffi] the path ends with a zero and lives during the call; the result is checked.
        let handle = unsafe { OpenFileMappingW(FILE_MAP_READ | FILE_MAP_WRITE, 0, path.as_ptr()) };
        if handle.is_null() {
            // SAFETY: [ffi] no argument.
            return Err(open_error(name, unsafe { GetLastError() }));
        }
        // SAFETY: [owned] the handle was just opened, and nobody else has it.
        Self::from_handle(unsafe { OwnedHandle::from_raw_handle(handle) })
    }

    /// Maps a section that is open already, for reading and writing, over its whole length.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn from_handle(section: OwnedHandle) -> Result<Self, BackendError> {
        let view = View::new(&section)?;
        // How long the section is, only its mapping tells.
        let space = Space::new(view.0, space::extent(view.0));
        Ok(Self { space, _view: view, section })
    }
}

impl AsHandle for PosixShmMmap {
    /// The section, for handing to a process that cannot open it by its name.
    fn as_handle(&self) -> BorrowedHandle<'_> {
        self.section.as_handle()
    }
}

/// A mapping of a whole section.
#[derive(Debug)]
struct View(NonNull<u8>);

// SAFETY: [owned] only dropping uses the address, and any thread may unmap it.
unsafe impl Send for View {}
// SAFETY: [owned] nothing can be done with a reference to it.
unsafe impl Sync for View {}

impl View {
    fn new(section: &OwnedHandle) -> Result<Self, BackendError> {
        let rights = FILE_MAP_READ | FILE_MAP_WRITE;
        // SAFETY: [ffi] the handle is open; the system chooses where nothing is mapped.
        let view = unsafe { MapViewOfFile(section.as_raw_handle(), rights, 0, 0, 0) };
        NonNull::new(view.Value.cast())
            .map(Self)
            .ok_or_else(|| BackendError::system("cannot map a section", io::Error::last_os_error()))
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let view = MEMORY_MAPPED_VIEW_ADDRESS { Value: self.0.as_ptr().cast() };
        // SAFETY: [owned] it was mapped by `new`, and whoever had it is about to be gone.
        unsafe { UnmapViewOfFile(view) };
    }
}

// SAFETY: [mapped] the view maps the whole section and is kept; its length is asked of the system,
// and so is how much is committed, which nobody can take back.
unsafe impl Backend for PosixShmMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::PosixShm
    }

    fn base(&self) -> NonNull<u8> {
        self.space.base()
    }

    /// 64 KiB: the system chooses where a section is mapped, in each process anew.
    fn alignment(&self) -> usize {
        VIEW_ALIGN
    }

    fn capacity_bytes(&self) -> u64 {
        self.space.capacity_bytes()
    }

    fn committed_bytes(&self) -> u64 {
        self.space.committed_bytes()
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.space.populate(&range)
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.space.punch(&range)
    }

    fn is_damaged(&self) -> bool {
        false
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        self.space.grow(bytes)
    }
}

impl InitBackend for PosixShmMmap {
    fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError> {
        Self::create(name, size_bytes, roomy(size_bytes), 0o600)
    }

    fn shm_attach(name: &str) -> Result<Self, BackendError> {
        Self::open(name)
    }

    /// Does nothing: the name goes with the last process that has the section.
    fn shm_destroy(name: &str) -> Result<(), BackendError> {
        validate_name(name)
    }
}

/// The name as the system has it. Sections, events, mutexes and others have their names in common, so
/// this library's begin alike.
fn object_path(name: &str) -> Result<Vec<u16>, BackendError> {
    validate_name(name)?;
    Ok(format!("Local\\hshm.{name}").encode_utf16().chain([0]).collect())
}

fn open_error(name: &str, code: u32) -> BackendError {
    let name = name.to_owned();
    match code {
        ERROR_FILE_NOT_FOUND => BackendError::NotFound { name },
        ERROR_ACCESS_DENIED => BackendError::Permission { name },
        // It names something, but no section.
        ERROR_INVALID_HANDLE => BackendError::Exists { name },
        code => {
            let source = io::Error::from_raw_os_error(code.cast_signed());
            BackendError::system("cannot open shared memory", source)
        }
    }
}
