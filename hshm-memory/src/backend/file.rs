//! A file, or a memory device, by its path.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod};

use super::device::{open_error, path_of, shape_of};
use super::mapping::{Shape, SharedMapping, reserve_huge};
use super::range::{outwards, validate_sizes, zero};
use super::segment_file::set_len;
use super::{Backend, BackendError, BackendKind, BackendOptions, MIN_ALIGN};

/// Any file that can be mapped: of tmpfs, of a disk's file system, or of a hugetlbfs mount; and
/// memory devices, whose length is theirs: direct-access memory (`/dev/dax0.0`), and the memory of
/// a PCI device such as ivshmem (`/sys/bus/pci/devices/…/resource2_wc`), through which virtual
/// machines, and hosts with common CXL memory, share one segment.
///
/// It outlives every process until somebody unlinks it. What is said of a file's being cut short at
/// [`PosixShmMmap`](super::PosixShmMmap) holds here as well. On a disk the file is where the kernel
/// may write the memory to, and not a store: a segment whose machine lost its power is not
/// consistent.
///
/// # Examples
/// ```
/// use std::sync::Arc;
/// use hshm_memory::{AllocatorId, Backend, BackendKind, FileMmap, InitOptions};
/// use hshm_memory::ThreadLocalAllocator;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("segment");
/// let backend = FileMmap::create(&path, 8 << 20, 64 << 20, 0o600)?;
/// let heap = ThreadLocalAllocator::shm_init(
///     AllocatorId::new(0, 0), Arc::new(backend), &InitOptions::default())?;
/// let block = heap.allocate(100)?;
///
/// // Another process:
/// let other = FileMmap::from_fd(FileMmap::open(&path)?, 64 << 20)?;
/// assert_eq!(other.capacity_bytes(), 64 << 20);
/// // Or, with the capacity that the heap knows itself:
/// let other = ThreadLocalAllocator::open_fd(BackendKind::File, FileMmap::open(&path)?)?;
/// // SAFETY: the block is allocated, and nobody uses it.
/// unsafe { other.free(block)? };
/// FileMmap::unlink(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileMmap {
    mapping: SharedMapping,
}

impl FileMmap {
    /// Creates the file `path` with the permission bits `mode`, `size` bytes long, and maps
    /// `capacity` bytes of address space for it. All bytes are zero. On a hugetlbfs mount both are
    /// rounded up to its pages, which are set aside for `size` at once.
    ///
    /// A memory device is there already: it is used if its first 4 KiB are zero, as
    /// [`FileMmap::unlink`] leaves them, and filled with zeros; its length is its capacity, and
    /// `size`, `capacity` and `mode` only must not exceed it.
    ///
    /// # Errors
    /// [`BackendError::BadSize`], [`BackendError::Exists`], [`BackendError::NotFound`] if the folder
    /// is not there, [`BackendError::Permission`], [`BackendError::NotMappable`] with the reason,
    /// [`BackendError::HugePages`] if a hugetlbfs mount has too few; or what else the kernel refuses.
    /// No file is left behind then.
    pub fn create(path: &Path, size: u64, capacity: u64, mode: u32) -> Result<Self, BackendError> {
        Self::create_with(path, size, capacity, mode, &BackendOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`FileMmap::create`]; [`BackendError::HugePages`], [`BackendError::Numa`],
    /// [`BackendError::Lock`] and [`BackendError::Full`] if an option cannot be had.
    pub fn create_with(
        path: &Path,
        size: u64,
        capacity: u64,
        mode: u32,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        validate_sizes(size, capacity)?;
        let mode = Mode::from_bits_truncate(mode);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = match open(path, flags, mode) {
            Ok(file) => file,
            Err(Errno::EEXIST) => return Self::take_device(path, size, capacity, options),
            Err(errno) => return Err(open_error(path, errno)),
        };
        let created = (|| {
            // The umask took bits from the mode that was asked for.
            fchmod(&file, mode)
                .map_err(|errno| BackendError::system("cannot set a segment's mode", errno))?;
            let shape = Shape::regular(file.as_fd())?;
            let size = outwards(&(0..size), shape.grain()).end;
            if shape.grain() > 1 {
                reserve_huge(file.as_fd(), 0..size)?;
            }
            set_len(file.as_fd(), size)?;
            SharedMapping::of_shape(file, shape, capacity, options)
        })();
        match created {
            Ok(mapping) => Ok(Self { mapping }),
            Err(error) => {
                // The error at hand says more than one from cleaning up would.
                let _ = nix::unistd::unlink(path);
                Err(error)
            }
        }
    }

    /// Makes a segment of a device whose memory holds none.
    fn take_device(
        path: &Path,
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let exists = || BackendError::Exists { name: path.display().to_string() };
        let file = Self::open(path)?;
        let Some(len) = shape_of(file.as_fd(), path)?.fixed_bytes else { return Err(exists()) };
        if size > len {
            let why = "the device has less memory";
            return Err(BackendError::BadSize { size_bytes: size, capacity_bytes: len, why });
        }
        let backend = Self::from_fd_with(file, capacity.min(len), options)?;
        if !backend.is_blank() {
            return Err(exists());
        }
        backend.clear(backend.committed_bytes())?;
        Ok(backend)
    }

    /// Opens the file `path`, for [`FileMmap::from_fd`].
    ///
    /// # Errors
    /// [`BackendError::NotFound`], [`BackendError::Permission`], [`BackendError::NotMappable`] with
    /// the reason, or what else the kernel refuses.
    pub fn open(path: &Path) -> Result<OwnedFd, BackendError> {
        // Whatever stands there, opening it must not wait for anybody.
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = open(path, flags, Mode::empty()).map_err(|errno| open_error(path, errno))?;
        shape_of(file.as_fd(), &path_of(file.as_fd()))?;
        Ok(file)
    }

    /// Maps a file that is open already, over `capacity` bytes of address space: no more than a
    /// device has.
    ///
    /// # Errors
    /// [`BackendError::NotMappable`] with the reason, or what the kernel refuses.
    pub fn from_fd(file: OwnedFd, capacity: u64) -> Result<Self, BackendError> {
        Self::from_fd_with(file, capacity, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`FileMmap::from_fd`], and as [`FileMmap::create_with`] if an option cannot be had.
    pub fn from_fd_with(
        file: OwnedFd,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let shape = shape_of(file.as_fd(), &path_of(file.as_fd()))?;
        if let Some(len) = shape.fixed_bytes.filter(|&len| capacity > len) {
            let why = "the device has less memory";
            return Err(BackendError::BadSize { size_bytes: len, capacity_bytes: capacity, why });
        }
        Ok(Self { mapping: SharedMapping::of_shape(file, shape, capacity, options)? })
    }

    /// Takes the file's name away: processes that have it mapped keep its memory until they let go
    /// of it. Of a device, the first 4 KiB are filled with zeros, so that what stands there is no
    /// segment any more.
    ///
    /// # Errors
    /// As [`FileMmap::open`], or what else the kernel refuses.
    pub fn unlink(path: &Path) -> Result<(), BackendError> {
        let file = Self::open(path)?;
        let shape = shape_of(file.as_fd(), path)?;
        match shape.fixed_bytes {
            Some(len) => {
                let least = shape.grain().max(MIN_ALIGN as u64).min(len);
                Self::from_fd(file, least)?.clear(MIN_ALIGN as u64)
            }
            None => nix::unistd::unlink(path).map_err(|errno| open_error(path, errno)),
        }
    }

    /// How much memory the device has that `file` is, if it is one.
    pub(super) fn device_bytes(file: &OwnedFd) -> Result<Option<u64>, BackendError> {
        Ok(shape_of(file.as_fd(), &path_of(file.as_fd()))?.fixed_bytes)
    }

    /// Whether the first 4 KiB are zero.
    fn is_blank(&self) -> bool {
        (0..MIN_ALIGN).step_by(8).all(|offset| {
            let word = self.base().as_ptr().wrapping_add(offset);
            // SAFETY: [mapped] the first page is mapped, and aligned; [atomic] others that have it
            // mapped use it so as well.
            let word = unsafe { crate::sync::AtomicU64::from_ptr(word.cast()) };
            word.load(crate::sync::Ordering::Relaxed) == 0
        })
    }

    /// Fills the first bytes with zeros.
    fn clear(&self, bytes: u64) -> Result<(), BackendError> {
        let bytes = bytes.min(self.committed_bytes());
        self.populate(0..bytes)?;
        // SAFETY: [mapped] the range lies inside and has memory; no reference to it was made yet.
        unsafe { zero(self.base(), 0..bytes) };
        Ok(())
    }
}

// SAFETY: [mapped] SharedMapping aligns, maps and keeps the range; the file's length is asked of the
// kernel, and only this library's own processes ever shorten one, which they do not.
unsafe impl Backend for FileMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::File
    }

    fn base(&self) -> NonNull<u8> {
        self.mapping.base()
    }

    fn capacity_bytes(&self) -> u64 {
        self.mapping.capacity_bytes()
    }

    fn committed_bytes(&self) -> u64 {
        self.mapping.committed_bytes()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.mapping.fd())
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.mapping.populate(range)
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.mapping.punch(range)
    }

    fn gives_back(&self) -> bool {
        self.mapping.gives_back()
    }

    fn is_damaged(&self) -> bool {
        self.mapping.is_damaged()
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        self.mapping.grow(bytes)
    }
}
