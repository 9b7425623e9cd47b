//! A place in the address space for a file of ordinary pages, found without a reservation.
//!
//! The kernel begins mappings at multiples of a page, and a segment begins at a larger one. Reserving more
//! than is needed, and mapping the file over a part of that, takes three times as long as mapping it, since
//! the reservation is cut up. So a place is proposed first, where a process rarely has anything.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::BASE_ALIGN;

/// What is left between the libraries, below which the kernel puts what a process maps, and the first
/// place: 64 GiB.
const ROOM_BYTES: usize = 64 << 30;

/// Where the mapping begins that was placed last; 0 for none. A hint.
static LATEST: AtomicUsize = AtomicUsize::new(0);

/// A file in its place, until this is dropped.
///
/// What lies before and after, a page each, is this value's too: neither a stray access nor the kernel takes
/// a neighbour's memory for it. Before the file nothing can be accessed, after it no more than the file
/// has there.
#[derive(Debug)]
pub(super) struct Placed {
    file: Owned,
    _guard: Owned,
}

impl Placed {
    /// Maps the first `len` bytes of `file`, a multiple of `page`, which is the kernel's, at a multiple of
    /// [`BASE_ALIGN`]. None if there is no room where it is looked for.
    pub(super) fn map(file: BorrowedFd<'_>, len: usize, page: usize) -> Option<Self> {
        // ORDER: Relaxed, here and below: whether a place is free says the kernel.
        let latest = LATEST.swap(0, Ordering::Relaxed);
        let placed = Self::map_below(latest, file, len, page)?;
        LATEST.store(placed._guard.start.addr().get(), Ordering::Relaxed);
        Some(placed)
    }

    fn map_below(latest: usize, file: BorrowedFd<'_>, len: usize, page: usize) -> Option<Self> {
        let libraries = (libc::munmap as *const ()).addr();
        let end = if latest == 0 { libraries.checked_sub(ROOM_BYTES)? } else { latest };
        let len = len.checked_add(page)?;
        let start = end.checked_sub(len)? / BASE_ALIGN * BASE_ALIGN;
        let file = Owned::map(start, len, Some(file))?;
        Some(Self { file, _guard: Owned::map(start.checked_sub(page)?, page, None)? })
    }

    /// Where the file begins.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.file.start.cast()
    }
}

/// A mapping that is undone when this is dropped.
#[derive(Debug)]
struct Owned {
    start: NonNull<c_void>,
    len: usize,
}

impl Owned {
    /// Maps `file`, or what nobody can access, at `start`. None if something is there.
    fn map(start: usize, len: usize, file: Option<BorrowedFd<'_>>) -> Option<Self> {
        let address = NonZeroUsize::new(start)?;
        let whole = NonZeroUsize::new(len)?;
        let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mapped = match file {
            Some(file) => {
                let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
                // SAFETY: [owned] without MAP_FIXED nothing is replaced.
                unsafe { mmap(Some(address), whole, writable, flags, file, 0) }
            }
            None => {
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
                // SAFETY: [owned] as above.
                unsafe { mmap_anonymous(Some(address), whole, ProtFlags::PROT_NONE, flags) }
            }
        };
        // Where something is there, the kernel chose another place.
        let found = Self { start: mapped.ok()?, len };
        (found.start.addr() == address).then_some(found)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: [owned] it was mapped by this value, and nobody uses it any more.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::backend::{Backend, MemfdMmap};

    const LEN: usize = 1 << 20;

    #[test]
    fn what_is_placed_replaces_nothing_and_goes() {
        let backend = MemfdMmap::create("place", LEN as u64, LEN as u64).unwrap();
        let file = backend.fd().unwrap();
        let page = 4096;
        let map = || Placed::map(file, LEN, page);
        // Other tests of this program map meanwhile, so that some places are taken.
        let placed: Vec<_> = (0..20).filter_map(|_| map()).collect();
        assert!(placed.len() > 1);
        let mut ranges: Vec<_> = placed
            .iter()
            .map(|placed| {
                let start = placed.base().addr().get();
                assert!(start.is_multiple_of(BASE_ALIGN));
                // SAFETY: [mapped] it was just mapped, for reading too.
                unsafe { placed.base().read_volatile() };
                start - page..start + LEN + page
            })
            .collect();
        ranges.sort_unstable_by_key(|range| range.start);
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
        let (start, wanted) = (ranges[0].start, ranges[0].len());
        assert!(Owned::map(start, wanted, None).is_none(), "something is there");
        drop(placed);
        assert!(Owned::map(start + page, LEN, Some(file.as_fd())).is_some());
    }
}
