//! Private memory: reserved and committed with `VirtualAlloc`.

use std::ops::Range;
use std::ptr::{self, NonNull};

use windows_sys::Win32::System::Memory::{
    MEM_RELEASE, MEM_RESERVE, PAGE_READWRITE, VirtualAlloc, VirtualFree,
};

use super::options;
use super::space::{self, Space};
use crate::backend::{BASE_ALIGN, Backend, BackendError, BackendKind, BackendOptions};

/// Private memory, for this process alone: on Windows the equivalent of an anonymous `mmap`.
#[derive(Debug)]
pub struct PosixMmapBackend {
    space: Space,
    /// Owns the address range, of which `space` is the aligned part.
    _reservation: Reservation,
}

impl PosixMmapBackend {
    /// Commits `size` bytes of a reservation of `capacity` bytes. All bytes are zero.
    ///
    /// # Errors
    /// [`BackendError::BadSize`], [`BackendError::Full`], or what else the system refuses.
    pub fn create(size: u64, capacity: u64) -> Result<Self, BackendError> {
        Self::create_with(size, capacity, &BackendOptions::default())
    }

    /// The same, with options. Of these, Windows has population alone.
    ///
    /// # Errors
    /// As [`PosixMmapBackend::create`]; [`BackendError::HugePages`], [`BackendError::Numa`] and
    /// [`BackendError::System`] if an option is required that cannot be had.
    pub fn create_with(
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let capacity = space::whole_pages(size, capacity)?;
        options::require_possible(options)?;
        let reserved = space::to_usize(capacity).saturating_add(BASE_ALIGN);
        let reservation = Reservation::new(reserved)?;
        let start = reservation.0.as_ptr();
        let aligned = start.wrapping_add(start.align_offset(BASE_ALIGN));
        let base = NonNull::new(aligned).unwrap_or(reservation.0);
        let space = Space::new(base, capacity);
        space.grow(size)?;
        if options.populate {
            space.touch(size);
        }
        Ok(Self { space, _reservation: reservation })
    }
}

/// Address space.
#[derive(Debug)]
struct Reservation(NonNull<u8>);

// SAFETY: [owned] only dropping uses the address, and any thread may release it.
unsafe impl Send for Reservation {}
// SAFETY: [owned] nothing can be done with a reference to it.
unsafe impl Sync for Reservation {}

impl Reservation {
    fn new(len: usize) -> Result<Self, BackendError> {
        // SAFETY: [ffi] no address is asked for, so nothing that exists is touched.
        let start = unsafe { VirtualAlloc(ptr::null(), len, MEM_RESERVE, PAGE_READWRITE) };
        NonNull::new(start.cast())
            .map(Self)
            .ok_or_else(|| space::refused("cannot reserve address space", len as u64))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: [owned] it was reserved by `new`, and whoever had it is about to be gone.
        unsafe { VirtualFree(self.0.as_ptr().cast(), 0, MEM_RELEASE) };
    }
}

// SAFETY: [mapped] the reservation holds an aligned range of the capacity, and is kept; what is
// committed can be read and written, and nobody decommits it.
unsafe impl Backend for PosixMmapBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::PosixMmap
    }

    fn base(&self) -> NonNull<u8> {
        self.space.base()
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

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        self.space.grow(bytes)
    }
}
