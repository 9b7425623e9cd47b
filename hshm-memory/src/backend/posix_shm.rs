//! Named shared memory: `shm_open`, a file in `/dev/shm`.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::mman::{shm_open, shm_unlink};
use nix::sys::stat::{Mode, fchmod};

use super::mapping::SharedMapping;
use super::range::validate_sizes;
use super::segment_file::{file_len, require_regular, set_len};
use super::{Backend, BackendError, BackendKind, BackendOptions, validate_name};
use crate::allocator::segment_capacity;
use crate::manager::{InitBackend, roomy};

/// A named POSIX shared-memory object.
///
/// It outlives every process until somebody unlinks it. Whoever may open it may also truncate it,
/// which no seal can forbid here: share it among processes that trust one another, and use
/// [`MemfdMmap`](super::MemfdMmap) otherwise.
///
/// # Examples
/// ```
/// use hshm_memory::backend::HugePages;
/// use hshm_memory::{Backend, BackendOptions, PosixShmMmap};
///
/// let name = format!("hshm-example.{}", std::process::id());
/// let options = BackendOptions { huge_pages: HugePages::Try, ..BackendOptions::default() };
/// let backend = PosixShmMmap::create_with(&name, 1 << 20, 64 << 20, 0o600, &options)?;
/// assert!(PosixShmMmap::create(&name, 1 << 20, 64 << 20, 0o600).is_err(), "it is there already");
///
/// // Another process, which was told the name and the capacity:
/// let other = PosixShmMmap::from_fd(PosixShmMmap::open(&name)?, 64 << 20)?;
/// other.grow(2 << 20)?;
/// assert_eq!(backend.committed_bytes(), 2 << 20);
/// let populated = BackendOptions { populate: true, ..options };
/// let third = PosixShmMmap::from_fd_with(PosixShmMmap::open(&name)?, 64 << 20, &populated)?;
/// assert_eq!(third.obtained()?.resident_bytes, 2 << 20);
///
/// PosixShmMmap::unlink(&name)?;
/// assert!(PosixShmMmap::open(&name).is_err());
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Debug)]
pub struct PosixShmMmap {
    mapping: SharedMapping,
}

impl PosixShmMmap {
    /// Creates the object `name` with the permission bits `mode`, `size` bytes long, and maps
    /// `capacity` bytes of address space for it. All bytes are zero.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::BadSize`], [`BackendError::Exists`], or what the
    /// kernel refuses. Nothing is left behind then.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Backend, PosixShmMmap};
    ///
    /// let name = format!("create-backend-example.{}", std::process::id());
    /// let memory = PosixShmMmap::create(&name, 1 << 20, 64 << 20, 0o600)?;
    /// assert!(PosixShmMmap::create(&name, 1 << 20, 64 << 20, 0o600).is_err());
    /// PosixShmMmap::unlink(&name)?;
    /// assert_eq!(memory.committed_bytes(), 1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(name: &str, size: u64, capacity: u64, mode: u32) -> Result<Self, BackendError> {
        Self::create_with(name, size, capacity, mode, &BackendOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`PosixShmMmap::create`]; [`BackendError::HugePages`], [`BackendError::Numa`],
    /// [`BackendError::Lock`] and [`BackendError::Full`] if an option cannot be had.
    pub fn create_with(
        name: &str,
        size: u64,
        capacity: u64,
        mode: u32,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        validate_name(name)?;
        validate_sizes(size, capacity)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(mode);
        let file = shm_open(name, flags, mode).map_err(|errno| open_error(name, errno))?;
        let created = (|| {
            // The umask took bits from the mode that was asked for.
            fchmod(&file, mode)
                .map_err(|e| BackendError::system("cannot set a segment's mode", e))?;
            set_len(file.as_fd(), size)?;
            SharedMapping::new(file, capacity, options)
        })();
        match created {
            Ok(mapping) => Ok(Self { mapping }),
            Err(error) => {
                // The error at hand says more than one from cleaning up would.
                let _ = Self::unlink(name);
                Err(error)
            }
        }
    }

    /// Opens the object `name`, for [`PosixShmMmap::from_fd`].
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::NotFound`], [`BackendError::Permission`], or what
    /// else the kernel refuses.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::PosixShmMmap;
    ///
    /// let name = format!("open-example.{}", std::process::id());
    /// assert!(PosixShmMmap::open(&name).is_err());
    /// let memory = PosixShmMmap::create(&name, 1 << 20, 64 << 20, 0o600)?;
    /// let again = PosixShmMmap::from_fd(PosixShmMmap::open(&name)?, 64 << 20)?;
    /// PosixShmMmap::unlink(&name)?;
    /// # drop((memory, again));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open(name: &str) -> Result<OwnedFd, BackendError> {
        validate_name(name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        shm_open(name, flags, Mode::empty()).map_err(|errno| open_error(name, errno))
    }

    /// Maps an object that is open already, over `capacity` bytes of address space.
    ///
    /// # Errors
    /// [`BackendError::NotSharedMemory`] if it is no regular file open for reading and writing, or
    /// what the kernel refuses.
    pub fn from_fd(file: OwnedFd, capacity: u64) -> Result<Self, BackendError> {
        Self::from_fd_with(file, capacity, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`PosixShmMmap::from_fd`], and as [`PosixShmMmap::create_with`] if an option cannot be
    /// had.
    pub fn from_fd_with(
        file: OwnedFd,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        require_regular(file.as_fd())?;
        Ok(Self { mapping: SharedMapping::new(file, capacity, options)? })
    }

    /// Takes the name away. Processes that have the object mapped keep its memory until they let
    /// go of it.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::NotFound`], [`BackendError::Permission`], or what
    /// else the kernel refuses.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::PosixShmMmap;
    ///
    /// let name = format!("unlink-example.{}", std::process::id());
    /// PosixShmMmap::create(&name, 1 << 20, 1 << 20, 0o600)?;
    /// PosixShmMmap::unlink(&name)?;
    /// assert!(PosixShmMmap::unlink(&name).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn unlink(name: &str) -> Result<(), BackendError> {
        validate_name(name)?;
        shm_unlink(name).map_err(|errno| open_error(name, errno))
    }
}

// SAFETY: [mapped] SharedMapping aligns, maps and keeps the range; the file's length is asked of the
// kernel, and only this library's own processes ever shorten one, which they do not.
unsafe impl Backend for PosixShmMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::PosixShm
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

impl InitBackend for PosixShmMmap {
    fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError> {
        Self::create(name, size_bytes, roomy(size_bytes), 0o600)
    }

    fn shm_attach(name: &str) -> Result<Self, BackendError> {
        let file = Self::open(name)?;
        let capacity = match segment_capacity(&file) {
            Ok(capacity) => capacity,
            Err(_) => roomy(file_len(file.as_fd())?),
        };
        Self::from_fd(file, capacity)
    }

    fn shm_destroy(name: &str) -> Result<(), BackendError> {
        Self::unlink(name)
    }
}

fn open_error(name: &str, errno: Errno) -> BackendError {
    let name = name.to_owned();
    match errno as i32 {
        libc::EEXIST => BackendError::Exists { name },
        libc::ENOENT => BackendError::NotFound { name },
        libc::EACCES | libc::EPERM => BackendError::Permission { name },
        _ => BackendError::system("cannot open shared memory", errno),
    }
}
