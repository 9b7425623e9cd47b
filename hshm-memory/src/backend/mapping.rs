//! A shared file mapped over a reserved address range that is longer than the file.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

use super::fault::Watch;
use super::sizes::MAX_CAPACITY_BYTES;
use super::{BASE_ALIGN, BackendError};

/// The kernel's page size as this library counts it. Kernels with larger pages (16 or 64 KiB on
/// some Arm machines) are served too: every range rounds outwards in the kernel.
const PAGE_BYTES: u64 = 4096;

/// A file and the address range that it is mapped over.
#[derive(Debug)]
pub(super) struct SharedMapping {
    /// Before the reservation, so that it ends before the address range does.
    watch: Watch,
    /// Owns the address range. The file is mapped into it; unmapping the range unmaps the file.
    _reservation: MmapRaw,
    base: NonNull<u8>,
    capacity: u64,
    file: OwnedFd,
}

// SAFETY: [owned] the mapping belongs to this value until it is dropped, and nothing here depends
// on the thread that made it.
unsafe impl Send for SharedMapping {}
// SAFETY: [owned] all methods take `&self` and only pass ranges to the kernel.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps `file` over `capacity` bytes of address space.
    pub(super) fn new(file: OwnedFd, capacity: u64) -> Result<Self, BackendError> {
        let too_big = |_| BackendError::BadSize {
            size_bytes: 0,
            capacity_bytes: capacity,
            why: "this machine's addresses are too short for it",
        };
        let len = usize::try_from(capacity).map_err(too_big)?;
        let reserved = len.checked_add(BASE_ALIGN).filter(|_| capacity <= MAX_CAPACITY_BYTES);
        let reserved = reserved.ok_or(BackendError::BadSize {
            size_bytes: 0,
            capacity_bytes: capacity,
            why: "the capacity is beyond 64 TiB",
        })?;
        // The reservation is anonymous and never touched; the file goes on top of its aligned part.
        let reservation: MmapRaw = MmapOptions::new()
            .len(reserved)
            .no_reserve_swap()
            .map_anon()
            .map_err(|source| BackendError::System {
                what: "cannot reserve address space",
                source,
            })?
            .into();
        let start = reservation.as_mut_ptr();
        let aligned = start.wrapping_add(start.align_offset(BASE_ALIGN));
        let len = NonZeroUsize::new(len).ok_or(BackendError::BadSize {
            size_bytes: 0,
            capacity_bytes: 0,
            why: "nothing would be mapped",
        })?;
        let address = NonZeroUsize::new(aligned.addr());
        // SAFETY: [owned] [aligned, aligned + len) lies inside the reservation just made, which
        // nobody else knows of, so MAP_FIXED replaces nothing but it.
        let mapped = unsafe {
            mmap(
                address,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE,
                &file,
                0,
            )
        };
        let base = mapped.map_err(|errno| BackendError::system("cannot map the segment", errno))?;
        let watch = Watch::new(base.addr().get(), len.get());
        Ok(Self { watch, _reservation: reservation, base: base.cast(), capacity, file })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.capacity
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.watch.is_damaged()
    }

    /// The file's length, at most the capacity.
    pub(super) fn committed_bytes(&self) -> u64 {
        file_len(self.fd()).unwrap_or(0).min(self.capacity)
    }

    pub(super) fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        let start = range.start & !(PAGE_BYTES - 1);
        let end = range.end.next_multiple_of(PAGE_BYTES);
        let bytes = end.saturating_sub(start);
        if end > self.capacity || bytes == 0 {
            return Ok(());
        }
        let (Ok(offset), Ok(len)) = (usize::try_from(start), usize::try_from(bytes)) else {
            return Ok(());
        };
        loop {
            let address = self.base.as_ptr().wrapping_add(offset);
            // SAFETY: [mapped] the range lies inside this mapping; populating changes no byte.
            let done = unsafe { libc::madvise(address.cast(), len, libc::MADV_POPULATE_WRITE) };
            if done == 0 {
                return Ok(());
            }
            match Errno::last_raw() {
                // A signal, or the kernel short of something for a moment.
                libc::EINTR | libc::EAGAIN => {}
                // Kernels before 5.14 do not know this advice. Allocating in the file serves as
                // well, at the price of a fault for each page later.
                libc::EINVAL => return self.allocate(start, bytes),
                // What would have been SIGBUS, or the control group's limit.
                libc::EFAULT | libc::ENOMEM => return Err(BackendError::Full { bytes }),
                code => {
                    let errno = Errno::from_raw(code);
                    return Err(BackendError::system("cannot populate memory", errno));
                }
            }
        }
    }

    fn allocate(&self, start: u64, bytes: u64) -> Result<(), BackendError> {
        let (start, len) = (start.cast_signed(), bytes.cast_signed());
        loop {
            match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, start, len) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOSPC | Errno::ENOMEM) => return Err(BackendError::Full { bytes }),
                Err(errno) => return Err(BackendError::system("cannot allocate memory", errno)),
            }
        }
    }

    pub(super) fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let len = range.end.saturating_sub(range.start).cast_signed();
        fallocate(&self.file, flags, range.start.cast_signed(), len)
            .map_err(|errno| BackendError::system("cannot give memory back", errno))
    }

    pub(super) fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        if bytes > self.capacity {
            return Err(BackendError::BadSize {
                size_bytes: bytes,
                capacity_bytes: self.capacity,
                why: "the capacity was fixed when the segment was created",
            });
        }
        if file_len(self.fd())? >= bytes {
            return Ok(());
        }
        set_len(self.fd(), bytes)
    }
}

/// The length of a file, as the kernel has it.
pub(crate) fn file_len(file: BorrowedFd<'_>) -> Result<u64, BackendError> {
    let stat = fstat(file).map_err(|errno| BackendError::system("cannot stat a segment", errno))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Sets the length of a new file.
pub(super) fn set_len(file: BorrowedFd<'_>, bytes: u64) -> Result<(), BackendError> {
    let len = i64::try_from(bytes).map_err(|_| BackendError::BadSize {
        size_bytes: bytes,
        capacity_bytes: bytes,
        why: "no file can be that long",
    })?;
    ftruncate(file, len).map_err(|errno| match errno as i32 {
        libc::EFBIG => BackendError::BadSize {
            size_bytes: bytes,
            capacity_bytes: bytes,
            why: "the file system allows no file that long",
        },
        libc::ENOSPC | libc::ENOMEM => BackendError::Full { bytes },
        _ => BackendError::system("cannot set a segment's length", errno),
    })
}

/// Refuses a file that cannot be a segment before it is mapped.
pub(super) fn require_regular(file: BorrowedFd<'_>) -> Result<(), BackendError> {
    let stat = fstat(file).map_err(|errno| BackendError::system("cannot stat a segment", errno))?;
    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Err(BackendError::NotSharedMemory { why: "it is no regular file" });
    }
    let flags = nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_GETFL)
        .map_err(|errno| BackendError::system("cannot ask a file's mode", errno))?;
    if flags & libc::O_ACCMODE != libc::O_RDWR {
        return Err(BackendError::NotSharedMemory {
            why: "it is not open for reading and writing",
        });
    }
    Ok(())
}

/// Reads the first bytes of a file, without mapping it. Shorter if the file is.
pub(crate) fn read_start(file: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = buffer.get_mut(filled..).unwrap_or_default();
        let at = i64::try_from(filled).unwrap_or(i64::MAX);
        // SAFETY: [ffi] the pointer and length are those of one live, exclusively borrowed slice.
        let read =
            unsafe { libc::pread(file.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at) };
        match usize::try_from(read) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(filled)
}
