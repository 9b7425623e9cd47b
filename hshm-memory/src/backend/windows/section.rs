//! A section that the paging file backs, mapped whole.

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, BorrowedHandle, FromRawHandle, OwnedHandle};
use std::ptr::{self, NonNull};

use windows_sys::Win32::Foundation::{
    ERROR_ALREADY_EXISTS, GetLastError, INVALID_HANDLE_VALUE, SetLastError,
};
use windows_sys::Win32::System::Memory::{
    CreateFileMappingW, FILE_MAP_READ, FILE_MAP_WRITE, MEMORY_MAPPED_VIEW_ADDRESS, MapViewOfFile,
    OpenFileMappingW, PAGE_READWRITE, SEC_RESERVE, UnmapViewOfFile,
};

use super::options;
use super::space::{self, Space};
use crate::backend::{BackendError, BackendOptions};

/// The boundary at which views begin, in bytes: the allocation granularity of every Windows there is.
pub(super) const VIEW_ALIGN: usize = 64 << 10;

/// What a section has beyond its capacity, in bytes, and is never committed: who runs past the end is
/// stopped, and wine (8.0) does not tell other processes of a commitment that reaches a section's end.
const GUARD_BYTES: u64 = space::PAGE_BYTES;

/// A section and its mapping.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) space: Space,
    /// Before the handle, so that it ends before.
    _view: View,
    handle: OwnedHandle,
}

/// Why there is no section.
pub(super) enum Failure {
    /// The system's code for what is wrong with its name.
    Open(u32),
    Other(BackendError),
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        Self::Other(error)
    }
}

impl Section {
    /// Creates a section of `capacity` bytes, under `path` if it has one, which ends with a zero, and
    /// commits the first `size`.
    pub(super) fn create(
        path: Option<&[u16]>,
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, Failure> {
        let capacity = space::whole_pages(size, capacity)?;
        options::require_possible(options)?;
        let len = capacity + GUARD_BYTES;
        let [low, high] =
            [len & 0xffff_ffff, len >> 32].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        // SAFETY: [ffi] no argument. Not every success clears what is asked for below.
        unsafe { SetLastError(0) };
        // SAFETY: [ffi] the path, if any, ends with a zero and lives during the call; there are no
        // security attributes; the result is checked.
        let handle = unsafe {
            CreateFileMappingW(
                INVALID_HANDLE_VALUE,
                ptr::null(),
                PAGE_READWRITE | SEC_RESERVE,
                high,
                low,
                path.map_or(ptr::null(), <[u16]>::as_ptr),
            )
        };
        // SAFETY: [ffi] no argument.
        let code = unsafe { GetLastError() };
        if handle.is_null() {
            return Err(Failure::Open(code));
        }
        // SAFETY: [owned] the handle was just opened, and nobody else has it.
        let handle = unsafe { OwnedHandle::from_raw_handle(handle) };
        if code == ERROR_ALREADY_EXISTS {
            return Err(Failure::Open(code));
        }
        let this = Self::from_handle(handle)?;
        this.space.grow(size)?;
        if options.populate {
            this.space.touch(size);
        }
        Ok(this)
    }

    /// Opens the section that stands under `path`.
    pub(super) fn open(path: &[u16]) -> Result<Self, Failure> {
        // SAFETY: [ffi] the path ends with a zero and lives during the call; the result is checked.
        let handle = unsafe { OpenFileMappingW(FILE_MAP_READ | FILE_MAP_WRITE, 0, path.as_ptr()) };
        if handle.is_null() {
            // SAFETY: [ffi] no argument.
            return Err(Failure::Open(unsafe { GetLastError() }));
        }
        // SAFETY: [owned] the handle was just opened, and nobody else has it.
        Ok(Self::from_handle(unsafe { OwnedHandle::from_raw_handle(handle) })?)
    }

    /// Maps a section over its whole length.
    pub(super) fn from_handle(handle: OwnedHandle) -> Result<Self, BackendError> {
        let view = View::new(&handle)?;
        // How long the section is, only its mapping tells.
        let capacity = space::extent(view.0).saturating_sub(GUARD_BYTES);
        let space = Space::new(view.0, capacity);
        Ok(Self { space, _view: view, handle })
    }

    pub(super) fn handle(&self) -> BorrowedHandle<'_> {
        self.handle.as_handle()
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
