//! What the kernel is told about a range of mapped memory: to populate it, to have it back, to use
//! huge pages, which nodes to take it from, and to keep it from being swapped out.

use std::ops::Range;
use std::ptr::NonNull;

use nix::errno::Errno;

use super::range::{PAGE_BYTES, inside, inwards, outwards, zero};
use super::{BackendError, NumaPolicy};

/// `MADV_DONTNEED_LOCKED` of Linux 5.18, which libc has for some targets only.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// A mapped range of this process's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapped {
    base: NonNull<u8>,
    len: u64,
}

/// What became of a request to populate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Populated {
    /// All of the range has memory.
    Done,
    /// This memory, or this kernel (before 5.14), knows no such request.
    Unknown,
}

impl Mapped {
    /// # Safety
    /// `[base, base + len)` is mapped, and stays so as long as the value is used.
    pub(super) unsafe fn new(base: NonNull<u8>, len: u64) -> Self {
        Self { base, len }
    }

    pub(super) fn base(self) -> NonNull<u8> {
        self.base
    }

    fn advise(self, range: &Range<u64>, advice: i32) -> Result<(), Errno> {
        let Some((offset, len)) = inside(range, self.len) else { return Ok(()) };
        let address = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: [mapped] the range lies inside the mapping; none of the advice given here changes
        // a byte that is in use.
        let done = unsafe { libc::madvise(address.cast(), len, advice) };
        if done == 0 { Ok(()) } else { Err(Errno::last()) }
    }

    /// Puts memory behind `range`, extended to whole pages.
    pub(super) fn populate(self, range: &Range<u64>) -> Result<Populated, BackendError> {
        let range = outwards(range, PAGE_BYTES);
        loop {
            let Err(errno) = self.advise(&range, libc::MADV_POPULATE_WRITE) else {
                return Ok(Populated::Done);
            };
            match errno as i32 {
                // A signal, or the kernel short of something for a moment.
                libc::EINTR | libc::EAGAIN => {}
                libc::EINVAL => return Ok(Populated::Unknown),
                // What would have been SIGBUS, or the control group's limit.
                libc::EFAULT | libc::ENOMEM => {
                    let bytes = range.end - range.start;
                    return Err(BackendError::Full { bytes });
                }
                _ => return Err(BackendError::system("cannot populate memory", errno)),
            }
        }
    }

    /// Gives private anonymous memory back. Whether the kernel took it.
    fn discard(self, range: &Range<u64>) -> bool {
        // Locked memory is only taken by the newer request.
        self.advise(range, libc::MADV_DONTNEED).is_ok()
            || self.advise(range, MADV_DONTNEED_LOCKED).is_ok()
    }

    /// Gives private anonymous memory back, or fills it with zeros where the kernel won't take it.
    ///
    /// # Safety
    /// The range is private anonymous memory, whose contents nobody needs.
    pub(super) unsafe fn punch_private(self, range: &Range<u64>) {
        if inside(range, self.len).is_none() {
            return;
        }
        // The kernel rounds the end of what it takes up.
        let whole_pages = inwards(range, kernel_page_bytes());
        let taken = !whole_pages.is_empty() && self.discard(&whole_pages);
        let kept = if taken {
            [range.start..whole_pages.start, whole_pages.end..range.end]
        } else {
            [range.clone(), 0..0]
        };
        for rest in kept {
            // SAFETY: [mapped] it lies in the range, whose contents the caller gives up.
            unsafe { zero(self.base, rest) };
        }
    }

    /// Asks for huge pages, or for none, behind all of it.
    pub(super) fn advise_huge(self, wanted: bool) -> Result<(), Errno> {
        let advice = if wanted { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        self.advise(&(0..self.len), advice)
    }

    /// Says which nodes memory for all of it comes from, where none was taken yet.
    pub(super) fn bind(self, policy: &NumaPolicy) -> Result<(), BackendError> {
        let mode = match policy {
            NumaPolicy::Default => return Ok(()),
            NumaPolicy::Bind(_) => libc::MPOL_BIND,
            NumaPolicy::Interleave(_) => libc::MPOL_INTERLEAVE,
            NumaPolicy::Preferred(nodes) if nodes.as_slice().len() == 1 => libc::MPOL_PREFERRED,
            NumaPolicy::Preferred(_) => super::obtained::MPOL_PREFERRED_MANY,
        };
        let mut mask = [0_u64; super::obtained::MASK_WORDS];
        for &node in policy.nodes() {
            if let Some(word) = mask.get_mut(usize::from(node / 64)) {
                *word |= 1 << (node % 64);
            }
        }
        // The kernel takes the count of bits for one more than it is.
        let bits = mask.len() * 64 + 1;
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        // SAFETY: [ffi] the range is mapped, which the policy does not change; the mask has as many
        // bits as are announced, but for the last, which the kernel ignores.
        let result = unsafe {
            libc::syscall(libc::SYS_mbind, self.base.as_ptr(), len, mode, mask.as_ptr(), bits, 0)
        };
        if result == 0 {
            return Ok(());
        }
        let errno = Errno::last();
        Err(BackendError::Numa {
            policy: policy.to_string(),
            online: super::obtained::online_nodes(),
            source: errno.into(),
        })
    }

    /// Keeps what is used of `range`, now and later, from being swapped out.
    pub(super) fn lock(self, range: &Range<u64>) -> Result<(), BackendError> {
        let range = outwards(range, PAGE_BYTES);
        let Some((offset, len)) = inside(&range, self.len) else { return Ok(()) };
        let address = self.base.as_ptr().wrapping_add(offset);
        loop {
            // SAFETY: [mapped] the range lies inside the mapping; locking changes no byte.
            let result =
                unsafe { libc::syscall(libc::SYS_mlock2, address, len, libc::MLOCK_ONFAULT) };
            if result == 0 {
                return Ok(());
            }
            let errno = Errno::last();
            match errno as i32 {
                libc::EINTR => {}
                libc::ENOMEM | libc::EPERM | libc::EAGAIN => {
                    return Err(BackendError::Lock {
                        bytes: len as u64,
                        limit_bytes: memlock_limit(),
                    });
                }
                _ => return Err(BackendError::system("cannot lock memory", errno)),
            }
        }
    }
}

/// How much memory this process may lock, in bytes.
fn memlock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: [ffi] the pointer is to a live value of the type that is filled in.
    let asked = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    if asked == 0 { limit.rlim_cur } else { 0 }
}

/// The size of this kernel's ordinary pages, in bytes.
pub(super) fn kernel_page_bytes() -> u64 {
    // SAFETY: [ffi] no pointer is passed.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(PAGE_BYTES).max(PAGE_BYTES)
}
