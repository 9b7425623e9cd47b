//! The files behind shared mappings: how long they are, what they are, what they begin with.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
use nix::unistd::ftruncate;

use super::BackendError;
use super::apply::PagesOf;

/// What the pages of a regular file are pages of.
pub(super) fn pages_of(file: BorrowedFd<'_>) -> Result<PagesOf, BackendError> {
    let system = fstatfs(file)
        .map_err(|errno| BackendError::system("cannot ask about a segment's file system", errno))?;
    Ok(match system.filesystem_type() {
        HUGETLBFS_MAGIC => PagesOf::Huge(u64::try_from(system.block_size()).unwrap_or(2 << 20)),
        TMPFS_MAGIC => PagesOf::Shmem,
        _ => PagesOf::File,
    })
}

/// The length of a file, as the kernel has it.
pub(crate) fn file_len(file: BorrowedFd<'_>) -> Result<u64, BackendError> {
    let stat = fstat(file).map_err(|errno| BackendError::system("cannot stat a segment", errno))?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// Makes a file at least `bytes` long. Unlike setting its length, this never cuts what somebody else
/// grew meanwhile; it takes the memory of its last page.
pub(super) fn extend(file: BorrowedFd<'_>, bytes: u64) -> Result<(), BackendError> {
    let last = i64::try_from(bytes.saturating_sub(1));
    let Ok(last) = last else { return set_len(file, bytes) };
    loop {
        match fallocate(file, FallocateFlags::empty(), last, 1) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR) => {}
            // A file system that cannot.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return set_len(file, bytes),
            Err(errno) => return Err(len_error(bytes, errno)),
        }
    }
}

/// Sets the length of a new file.
pub(super) fn set_len(file: BorrowedFd<'_>, bytes: u64) -> Result<(), BackendError> {
    let len = i64::try_from(bytes).map_err(|_| BackendError::BadSize {
        size_bytes: bytes,
        capacity_bytes: bytes,
        why: "no file can be that long",
    })?;
    ftruncate(file, len).map_err(|errno| len_error(bytes, errno))
}

fn len_error(bytes: u64, errno: Errno) -> BackendError {
    match errno as i32 {
        libc::EFBIG => BackendError::BadSize {
            size_bytes: bytes,
            capacity_bytes: bytes,
            why: "the file system allows no file that long",
        },
        libc::ENOSPC | libc::ENOMEM => BackendError::Full { bytes },
        _ => BackendError::system("cannot set a segment's length", errno),
    }
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
            // Devices that are memory are mapped and not read.
            Err(_) if filled == 0 => return read_device(file, buffer),
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(filled)
}

fn read_device(file: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let unread = io::Error::last_os_error();
    match super::device::read_mapped(file, buffer) {
        Ok(bytes) if bytes > 0 => Ok(bytes),
        Ok(_) | Err(_) => Err(unread),
    }
}
