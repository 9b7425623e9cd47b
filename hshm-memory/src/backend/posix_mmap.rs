//! Private memory from `mmap`.

use std::ops::Range;
use std::ptr::NonNull;

use memmap2::MmapRaw;

use super::advice::Mapped;
use super::apply::{Locks, PagesOf, apply};
use super::mapping::{make_private, may_give_back, reserve};
use super::range::{validate_grow, validate_sizes};
use super::{BASE_ALIGN, Backend, BackendError, BackendKind, BackendOptions};
use crate::sync::{AtomicU64, Ordering};

/// Memory of one process, straight from the kernel.
///
/// A child that is forked has a copy of it, which goes its own way.
///
/// # Examples
/// ```
/// use hshm_memory::{Backend, PosixMmapBackend};
///
/// let backend = PosixMmapBackend::create(1 << 20, 1 << 30)?;
/// backend.grow(2 << 20)?;
/// backend.populate(0..2 << 20)?;
/// // SAFETY: the byte is mapped, and nobody else knows of it.
/// unsafe { backend.base().write(1) };
/// backend.punch(0..4096)?;
/// // SAFETY: as above.
/// assert_eq!(unsafe { backend.base().read() }, 0);
/// assert!(backend.grow(2 << 30).is_err());
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Debug)]
pub struct PosixMmapBackend {
    /// Owns the address range.
    _reservation: MmapRaw,
    base: NonNull<u8>,
    capacity: u64,
    committed: AtomicU64,
    locks: Locks,
    gives_back: bool,
}

// SAFETY: [owned] the mapping belongs to this value until it is dropped, and nothing here depends
// on the thread that made it.
unsafe impl Send for PosixMmapBackend {}
// SAFETY: [owned] all methods take `&self` and only pass ranges to the kernel, or write zeros
// atomically.
unsafe impl Sync for PosixMmapBackend {}

impl PosixMmapBackend {
    /// Maps `capacity` bytes of address space, of which `size` bytes can be used at first. All
    /// bytes are zero. Memory is taken as it is used.
    ///
    /// # Errors
    /// [`BackendError::BadSize`], or what the kernel refuses.
    pub fn create(size: u64, capacity: u64) -> Result<Self, BackendError> {
        Self::create_with(size, capacity, &BackendOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`PosixMmapBackend::create`]; [`BackendError::HugePages`], [`BackendError::Numa`],
    /// [`BackendError::Lock`] and [`BackendError::Full`] if an option cannot be had.
    pub fn create_with(
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        validate_sizes(size, capacity)?;
        let (reservation, base) = reserve(capacity, BASE_ALIGN)?;
        make_private(base, capacity)?;
        // SAFETY: [mapped] the reservation is at least so long, and lives until the end of this.
        let mapped = unsafe { Mapped::new(base, capacity) };
        let locks = apply(mapped, size, PagesOf::Nothing, options)?;
        if options.populate {
            mapped.populate(&(0..size))?;
        }
        let committed = AtomicU64::new(size);
        let gives_back = may_give_back(options);
        Ok(Self { _reservation: reservation, base, capacity, committed, locks, gives_back })
    }

    fn mapped(&self) -> Mapped {
        // SAFETY: [mapped] the reservation is at least so long, and lives as long as the value.
        unsafe { Mapped::new(self.base, self.capacity) }
    }
}

// SAFETY: [mapped] it was made readable and writable, is aligned, and kept until the
// value is dropped; what is committed only grows.
unsafe impl Backend for PosixMmapBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::PosixMmap
    }

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn capacity_bytes(&self) -> u64 {
        self.capacity
    }

    fn committed_bytes(&self) -> u64 {
        // ORDER: Relaxed: the value bounds accesses and orders nothing.
        self.committed.load(Ordering::Relaxed)
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.locks.follow(self.mapped(), range.end, || self.committed_bytes())?;
        self.mapped().populate(&range).map(drop)
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        // SAFETY: [owned] the memory is private and anonymous; the caller gives its contents up.
        unsafe { self.mapped().punch_private(&range) };
        Ok(())
    }

    fn gives_back(&self) -> bool {
        self.gives_back
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        validate_grow(bytes, self.capacity)?;
        self.locks.follow(self.mapped(), bytes, || bytes)?;
        // ORDER: Relaxed: the value bounds accesses and orders nothing.
        self.committed.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }
}
