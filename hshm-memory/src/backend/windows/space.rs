//! An address range whose beginning is committed.

use std::io;
use std::ops::Range;
use std::ptr::{self, NonNull};

use windows_sys::Win32::Foundation::{
    ERROR_COMMITMENT_LIMIT, ERROR_DISK_FULL, ERROR_NO_SYSTEM_RESOURCES, ERROR_NOT_ENOUGH_MEMORY,
    ERROR_NOT_ENOUGH_QUOTA, ERROR_OUTOFMEMORY,
};
use windows_sys::Win32::System::Memory::{
    MEM_COMMIT, MEM_RESET, MEMORY_BASIC_INFORMATION, PAGE_READWRITE, VirtualAlloc, VirtualQuery,
};

use crate::backend::BackendError;
use crate::sync::{AtomicU64, Ordering};

/// The page size on every processor that Windows runs on today.
pub(super) const PAGE_BYTES: u64 = 4096;

/// `capacity` bytes of address space at `base`, which somebody else reserved, keeps, and unmaps.
#[derive(Debug)]
pub(super) struct Space {
    base: NonNull<u8>,
    capacity: u64,
    /// How many bytes from the base are committed, as far as this process has looked. Nobody can take
    /// back what is committed in a mapped section, so it only grows.
    known: AtomicU64,
}

// SAFETY: [owned] the range is kept by whoever keeps this, and nothing depends on the thread.
unsafe impl Send for Space {}
// SAFETY: [owned] all methods take `&self` and pass ranges to the system; [atomic] what they write
// themselves they write as atomics.
unsafe impl Sync for Space {}

impl Space {
    pub(super) fn new(base: NonNull<u8>, capacity: u64) -> Self {
        Self { base, capacity, known: AtomicU64::new(0) }
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity
    }

    /// How much is committed, asked of the system: another process may have committed more.
    pub(super) fn committed_bytes(&self) -> u64 {
        // ORDER: Relaxed: the value bounds accesses and orders nothing.
        let mut known = self.known.load(Ordering::Relaxed);
        // Pages in different states of use are told of separately, so several looks may be needed.
        // Each gets further.
        while known < self.capacity
            && let Some(region) = query(self.at(known))
            && region.State == MEM_COMMIT
        {
            known = known.saturating_add(region.RegionSize as u64).min(self.capacity);
        }
        self.known.fetch_max(known, Ordering::Relaxed).max(known)
    }

    /// Commits the first `bytes` bytes. Several threads and processes may do so at once, and what is
    /// committed already stays as it is.
    pub(super) fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        if bytes > self.capacity {
            return Err(BackendError::BadSize {
                size_bytes: bytes,
                capacity_bytes: self.capacity,
                why: "the capacity was fixed when the segment was created",
            });
        }
        // The system commits whole pages, and the capacity is some.
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let before = self.committed_bytes();
        let Some(more) = bytes.checked_sub(before).filter(|&more| more > 0) else {
            return Ok(());
        };
        let (address, len) = (self.at(before), to_usize(more));
        // SAFETY: [mapped] the range lies in the reservation; committing changes no byte that is
        // committed already.
        let done = unsafe { VirtualAlloc(address.cast(), len, MEM_COMMIT, PAGE_READWRITE) };
        if done.is_null() {
            return Err(refused("cannot commit memory", more));
        }
        self.known.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// What is committed has memory behind it whenever it is used; nothing else has.
    pub(super) fn populate(&self, range: &Range<u64>) -> Result<(), BackendError> {
        let is_committed = |known| range.end <= known;
        let nothing = range.end <= range.start || range.end > self.capacity;
        if nothing
            || is_committed(self.known.load(Ordering::Relaxed))
            || is_committed(self.committed_bytes())
        {
            return Ok(());
        }
        Err(BackendError::Full { bytes: range.end - range.start })
    }

    /// Has the first `bytes` bytes, which are committed, in memory now.
    pub(super) fn touch(&self, bytes: u64) {
        let words = self.base.cast::<AtomicU64>();
        let words_per_page = to_usize(PAGE_BYTES / 8);
        for index in (0..to_usize(bytes / 8)).step_by(words_per_page) {
            let word = words.as_ptr().wrapping_add(index);
            // SAFETY: [mapped] the word is committed, and aligned as the base is; [atomic] others may
            // write it.
            std::hint::black_box(unsafe { &*word }.load(Ordering::Relaxed));
        }
    }

    /// Fills the range with zeros and lets the system forget its pages. They stay committed.
    pub(super) fn punch(&self, range: &Range<u64>) -> Result<(), BackendError> {
        let end = range.end.min(self.committed_bytes()) & !(PAGE_BYTES - 1);
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let Some(len) = end.checked_sub(start).filter(|&len| len > 0) else { return Ok(()) };
        let words = self.base.cast::<AtomicU64>();
        for index in to_usize(start / 8)..to_usize(end / 8) {
            let word = words.as_ptr().wrapping_add(index);
            // SAFETY: [mapped] the word is committed, and aligned as the base is; [atomic] whoever looks
            // at memory that is nobody's does so through atomics.
            unsafe { &*word }.store(0, Ordering::Relaxed);
        }
        let address = self.at(start).cast();
        // The pages need not be kept, and read as zeros whether they are or not.
        // SAFETY: [mapped] the range is committed, and its contents are of no interest any more.
        let done = unsafe { VirtualAlloc(address, to_usize(len), MEM_RESET, PAGE_READWRITE) };
        if done.is_null() { Err(refused("cannot give memory back", len)) } else { Ok(()) }
    }

    /// The address of a byte of the range.
    fn at(&self, offset: u64) -> *mut u8 {
        self.base.as_ptr().wrapping_add(to_usize(offset))
    }
}

/// How many bytes from `base` belong to the same reservation or view.
pub(super) fn extent(base: NonNull<u8>) -> u64 {
    let mut bytes = 0_u64;
    // Each look gets further, and the address space ends.
    while let Some(region) = query(base.as_ptr().wrapping_add(to_usize(bytes)))
        && ptr::addr_eq(region.AllocationBase, base.as_ptr())
        && region.RegionSize > 0
    {
        bytes = bytes.saturating_add(region.RegionSize as u64);
    }
    bytes
}

/// The pages from `address` on that are all in one state.
fn query(address: *const u8) -> Option<MEMORY_BASIC_INFORMATION> {
    let mut region = MEMORY_BASIC_INFORMATION::default();
    let len = size_of::<MEMORY_BASIC_INFORMATION>();
    // SAFETY: [ffi] the result is stored in a local of the length given; any address may be asked for.
    let filled = unsafe { VirtualQuery(address.cast(), &raw mut region, len) };
    (filled == len).then_some(region)
}

/// Checks that a size and a capacity go together, and rounds the capacity up to pages.
pub(super) fn whole_pages(size_bytes: u64, capacity_bytes: u64) -> Result<u64, BackendError> {
    crate::backend::range::validate_sizes(size_bytes, capacity_bytes)?;
    Ok(capacity_bytes.next_multiple_of(PAGE_BYTES))
}

/// What the system said when memory was asked for.
pub(super) fn refused(what: &'static str, bytes: u64) -> BackendError {
    let source = io::Error::last_os_error();
    let full = [
        ERROR_COMMITMENT_LIMIT,
        ERROR_DISK_FULL,
        ERROR_NO_SYSTEM_RESOURCES,
        ERROR_NOT_ENOUGH_MEMORY,
        ERROR_NOT_ENOUGH_QUOTA,
        ERROR_OUTOFMEMORY,
    ];
    let code = source.raw_os_error().map(i32::cast_unsigned);
    if code.is_some_and(|code| full.contains(&code)) {
        BackendError::Full { bytes }
    } else {
        BackendError::System { what, source }
    }
}

/// Offsets and lengths are below the capacity, which was reserved.
pub(super) fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
