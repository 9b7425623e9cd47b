//! Memory backends: contiguous memory that an allocator is laid over.
//!
//! A backend is address space for a whole *capacity*, mapped once, of which the first *committed*
//! bytes can be used. Growing a shared one extends the file behind it; nobody maps anew.
//!
//! | backend | memory | for | grows |
//! |---|---|---|---|
//! | [`PosixShmMmap`] | a named shared-memory object | processes that know its name | yes |
//! | [`MemfdMmap`] | a file without name, sealed | processes that are handed it | yes |
//! | [`FileMmap`] | any file, or a memory device | processes, virtual machines, hosts | files do |
//! | [`CudaShmMmap`], [`RocmShmMmap`] | a named shared-memory object that a driver knows | processes and devices | yes |
//! | [`PosixMmapBackend`] | the kernel's | one process | yes |
//! | [`MallocBackend`] | the process's `malloc` | one process | no |
//! | [`ArrayBackend`] | the caller's | one process | no |
//! | [`BackendSlice`] | a part of another backend | whom that one is for | no |

#[cfg(unix)]
mod advice;
#[cfg(unix)]
mod apply;
mod array;
#[cfg(unix)]
mod device;
#[cfg(unix)]
mod device_shm;
#[cfg(unix)]
mod fault;
#[cfg(unix)]
mod file;
mod init;
mod malloc;
#[cfg(unix)]
mod mapping;
#[cfg(unix)]
mod memfd;
mod name;
#[cfg(unix)]
mod obtained;
mod options;
#[cfg(unix)]
mod place;
#[cfg(unix)]
mod posix_mmap;
#[cfg(unix)]
mod posix_shm;
mod range;
#[cfg(unix)]
mod read_only;
#[cfg(unix)]
mod segment_file;
mod slice;
#[cfg(windows)]
mod windows;

use std::fmt;
use std::io;
use std::ops::Range;
#[cfg(unix)]
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::str::FromStr;
#[cfg(unix)]
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::array::ArrayBackend;
#[cfg(unix)]
pub use self::device_shm::{Cuda, CudaShmMmap, DeviceShmMmap, Rocm, RocmShmMmap, Vendor};
#[cfg(unix)]
pub use self::fault::survive_truncation;
#[cfg(unix)]
pub use self::file::FileMmap;
pub use self::malloc::MallocBackend;
#[cfg(unix)]
pub use self::memfd::MemfdMmap;
pub use self::name::{MAX_NAME_BYTES, validate_name};
pub use self::options::{BackendOptions, HugePages, NodeSet, NumaPolicy, Obtained};
#[cfg(unix)]
pub use self::posix_mmap::PosixMmapBackend;
#[cfg(unix)]
pub use self::posix_shm::PosixShmMmap;
#[cfg(unix)]
pub(crate) use self::read_only::ReadOnlyMmap;
#[cfg(unix)]
pub(crate) use self::segment_file::read_start;
pub use self::slice::BackendSlice;
#[cfg(windows)]
pub use self::windows::{MemfdMmap, PosixMmapBackend, PosixShmMmap, survive_truncation};
use crate::gpu::{DeviceMemory, GpuError, GpuVendor};
use crate::options::UnknownName;

/// The boundary, in bytes, at which a backend begins in every process if the place is ours to
/// choose, and so the largest alignment that an allocator over it can promise.
pub const BASE_ALIGN: usize = 2 << 20;

/// The least alignment, in bytes, that a backend's beginning can have: allocators lay their tables
/// out in pages of this size.
pub const MIN_ALIGN: usize = 4096;

/// Contiguous memory, mapped into this process for as long as the value lives.
///
/// # Examples
/// What every backend does:
/// ```
/// use hshm_memory::backend::{Backend, BASE_ALIGN};
/// use hshm_memory::{BackendError, BackendKind, PosixMmapBackend};
///
/// let backend = PosixMmapBackend::create(1 << 20, 4 << 20)?;
/// assert_eq!(backend.kind(), BackendKind::PosixMmap);
/// assert_eq!((backend.committed_bytes(), backend.capacity_bytes()), (1 << 20, 4 << 20));
/// assert_eq!(backend.alignment(), BASE_ALIGN);
/// assert!(backend.base().addr().get().is_multiple_of(BASE_ALIGN));
///
/// backend.grow(2 << 20)?;
/// let refused = backend.grow(5 << 20);
/// assert!(matches!(refused, Err(BackendError::BadSize { .. })));
/// backend.populate(0..2 << 20)?;
/// // SAFETY: the byte is committed, and nobody else uses it.
/// unsafe { backend.base().write(7) };
/// backend.punch(0..4096)?;
/// // SAFETY: as above.
/// assert_eq!(unsafe { backend.base().read() }, 0);
/// assert!(!backend.is_damaged());
/// # Ok::<(), BackendError>(())
/// ```
///
/// # Safety
/// An implementation promises that `base` is a multiple of `alignment`, that `[base, base +
/// capacity_bytes)` is mapped in this process alone for this backend until the value is dropped,
/// and that the first `committed_bytes` of it can be read and written without a signal once
/// [`Backend::populate`] has succeeded for them. `committed_bytes` never shrinks.
pub unsafe trait Backend: Send + Sync + fmt::Debug {
    /// Which implementation this is.
    fn kind(&self) -> BackendKind;

    /// Where the memory begins in this process.
    fn base(&self) -> NonNull<u8>;

    /// The largest alignment, in bytes, that `base` has in every process: a power of two, at least
    /// [`MIN_ALIGN`]. It never changes.
    fn alignment(&self) -> usize {
        BASE_ALIGN
    }

    /// Length of the address range, in bytes.
    fn capacity_bytes(&self) -> u64;

    /// How much of it can be used now, in bytes, asked of the kernel rather than of anything that
    /// other processes can write.
    fn committed_bytes(&self) -> u64;

    /// The file behind it, for handing to other processes; `None` for memory of one process, and
    /// for a part.
    #[cfg(unix)]
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Makes `range` usable without a signal: every byte of it has memory behind it afterwards.
    ///
    /// # Errors
    /// [`BackendError::Full`] if the memory cannot be had: the file system or the control group is
    /// full.
    fn populate(&self, range: Range<u64>) -> Result<(), BackendError>;

    /// Gives the memory behind `range` back to the kernel; it reads as zeros afterwards, and must
    /// be populated anew before it is used. Both ends are multiples of 4096.
    ///
    /// # Errors
    /// [`BackendError::System`] if the kernel refuses.
    fn punch(&self, range: Range<u64>) -> Result<(), BackendError>;

    /// Whether [`Backend::punch`] makes memory available to others, in stretches of 4096 bytes, and
    /// nobody asked for the memory to be kept at hand: then allocators give back what they do not
    /// need. Not for memory that comes in larger pages, is locked or was populated in advance.
    fn gives_back(&self) -> bool {
        false
    }

    /// Whether memory behind it was found missing. Only noticed after [`survive_truncation`].
    fn is_damaged(&self) -> bool {
        false
    }

    /// How the memory was had, as the kernel reports it now: in which pages, locked or not, from
    /// which nodes. It may take a walk over all that is in use.
    ///
    /// # Errors
    /// [`BackendError::System`] if the kernel does not say.
    #[cfg(unix)]
    fn obtained(&self) -> Result<Obtained, BackendError> {
        obtained::look_up(self.base(), self.capacity_bytes())
    }

    /// Makes `committed_bytes` at least `bytes`, which is at most `capacity_bytes`.
    ///
    /// # Errors
    /// [`BackendError::BadSize`] beyond the capacity; [`BackendError::System`] if the kernel
    /// refuses.
    fn grow(&self, bytes: u64) -> Result<(), BackendError>;

    /// The same memory as what devices can be given access to; `None` for a kind that is not for that.
    fn device(&self) -> Option<&dyn DeviceMemory> {
        None
    }
}

/// Memory without a name, for examples and for this crate's own tests.
pub(crate) fn scratch(label: &str, size: u64, capacity: u64) -> Result<MemfdMmap, BackendError> {
    MemfdMmap::create(label, size, capacity)
}

/// A kind of backend, by the name that users write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendKind {
    /// A named POSIX shared-memory object, which stands in `/dev/shm`.
    #[default]
    PosixShm,
    /// A shared file without name, sealed against shrinking, that lives as long as somebody has it
    /// open.
    Memfd,
    /// A file or memory device that has a path.
    File,
    /// Memory of one process, straight from the kernel.
    PosixMmap,
    /// Memory of one process, from its `malloc`.
    Malloc,
    /// Memory of one process that the caller had already.
    Array,
    /// A part of another backend.
    Slice,
    /// POSIX shared memory that processes register with NVIDIA's driver.
    CudaShm,
    /// POSIX shared memory that processes register with AMD's driver.
    RocmShm,
}

impl BackendKind {
    /// The shared memory for a vendor's devices.
    #[must_use]
    pub const fn of_vendor(vendor: GpuVendor) -> Self {
        match vendor {
            GpuVendor::Cuda => Self::CudaShm,
            GpuVendor::Rocm => Self::RocmShm,
        }
    }

    /// Whose devices it is for, if it is for devices.
    #[must_use]
    pub const fn vendor(self) -> Option<GpuVendor> {
        match self {
            Self::CudaShm => Some(GpuVendor::Cuda),
            Self::RocmShm => Some(GpuVendor::Rocm),
            Self::PosixShm
            | Self::Memfd
            | Self::File
            | Self::PosixMmap
            | Self::Malloc
            | Self::Array
            | Self::Slice => None,
        }
    }

    /// Whether it stands in `/dev/shm` under a name.
    #[must_use]
    pub const fn is_named(self) -> bool {
        matches!(self, Self::PosixShm | Self::CudaShm | Self::RocmShm)
    }
}

#[cfg(unix)]
impl BackendKind {
    /// Opens the file that another process handed over as a backend of this kind.
    ///
    /// # Errors
    /// See [`PosixShmMmap::from_fd`], [`MemfdMmap::from_fd`] and [`FileMmap::from_fd`];
    /// [`BackendError::NotShared`] for the kinds that belong to one process, or to another backend.
    /// Nothing is registered with a device's driver yet: that is [`DeviceMemory::register`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Backend, BackendError, BackendKind, BackendOptions, MemfdMmap};
    ///
    /// let backend = MemfdMmap::create("example", 1 << 20, 4 << 20)?;
    /// let file = || backend.fd().expect("a memory file has one").try_clone_to_owned();
    /// let kind: BackendKind = backend.kind().to_string().parse()?;
    /// let other = kind.open_fd(file()?, 4 << 20)?;
    /// assert_eq!(other.capacity_bytes(), backend.capacity_bytes());
    /// let options = BackendOptions { populate: true, ..BackendOptions::default() };
    /// let populated = kind.open_fd_with(file()?, 4 << 20, &options)?;
    /// assert_eq!(populated.obtained()?.resident_bytes, 1 << 20);
    /// let refused = BackendKind::Malloc.open_fd(file()?, 4 << 20);
    /// assert!(matches!(refused, Err(BackendError::NotShared { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_fd(self, fd: OwnedFd, capacity: u64) -> Result<Arc<dyn Backend>, BackendError> {
        self.open_fd_with(fd, capacity, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`BackendKind::open_fd`]; [`BackendError::HugePages`], [`BackendError::Numa`],
    /// [`BackendError::Lock`] and [`BackendError::Full`] if an option cannot be had.
    pub fn open_fd_with(
        self,
        fd: OwnedFd,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Arc<dyn Backend>, BackendError> {
        Ok(match self {
            Self::PosixShm => Arc::new(PosixShmMmap::from_fd_with(fd, capacity, options)?),
            Self::Memfd => Arc::new(MemfdMmap::from_fd_with(fd, capacity, options)?),
            Self::File => Arc::new(FileMmap::from_fd_with(fd, capacity, options)?),
            Self::PosixMmap | Self::Malloc | Self::Array | Self::Slice => {
                return Err(BackendError::NotShared { kind: self });
            }
            Self::CudaShm => Arc::new(CudaShmMmap::from_fd_with(fd, capacity, options)?),
            Self::RocmShm => Arc::new(RocmShmMmap::from_fd_with(fd, capacity, options)?),
        })
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PosixShm => "posix-shm",
            Self::Memfd => "memfd",
            Self::File => "file",
            Self::PosixMmap => "posix-mmap",
            Self::Malloc => "malloc",
            Self::Array => "array",
            Self::Slice => "slice",
            Self::CudaShm => "cuda-shm",
            Self::RocmShm => "rocm-shm",
        })
    }
}

impl FromStr for BackendKind {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "posix-shm" => Ok(Self::PosixShm),
            "memfd" => Ok(Self::Memfd),
            "file" => Ok(Self::File),
            "posix-mmap" => Ok(Self::PosixMmap),
            "malloc" => Ok(Self::Malloc),
            "array" => Ok(Self::Array),
            "slice" => Ok(Self::Slice),
            "cuda-shm" => Ok(Self::CudaShm),
            "rocm-shm" => Ok(Self::RocmShm),
            other => Err(UnknownName {
                what: "backend",
                found: other.to_owned(),
                expected: "posix-shm, memfd, file, posix-mmap, malloc, array, slice, cuda-shm or rocm-shm",
            }),
        }
    }
}

/// Why a backend could not be made, opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The name cannot be one.
    #[error(
        "segment name {name:?} {why}; use 1 to {MAX_NAME_BYTES} of the characters a-z A-Z 0-9 . _ -, not beginning with a dot"
    )]
    BadName {
        /// The name, shortened if it is long.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something of that name stands there already.
    #[error(
        "a shared-memory object named {name:?} exists already; choose another name, or destroy it first"
    )]
    Exists {
        /// The name.
        name: String,
    },
    /// Nothing of that name is there.
    #[error("there is no shared-memory object named {name:?}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// The caller may not open it.
    #[error("no permission to open the shared-memory object {name:?}: it belongs to another user")]
    Permission {
        /// The name.
        name: String,
    },
    /// The size or capacity asked for makes no sense.
    #[error("a size of {size_bytes} bytes in a capacity of {capacity_bytes} cannot be: {why}")]
    BadSize {
        /// The size, in bytes.
        size_bytes: u64,
        /// The capacity, in bytes.
        capacity_bytes: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// The file handed over is not of the kind that was announced.
    #[error("the file handed over is not usable shared memory: {why}")]
    NotSharedMemory {
        /// What is wrong.
        why: &'static str,
    },
    /// The memory is one process's own.
    #[error(
        "{kind} memory belongs to the process that made it: nobody can attach to it; share a posix-shm, memfd or file backend instead"
    )]
    NotShared {
        /// The kind of the backend.
        kind: BackendKind,
    },
    /// What the path names cannot be a segment.
    #[error("{path:?} cannot be used as shared memory: {why}")]
    NotMappable {
        /// Its path, as far as it is known.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A part of a backend was asked for that it does not have.
    #[error("the part from {start} to {end} of {committed_bytes} bytes cannot be used: {why}")]
    BadPart {
        /// Where it begins, in bytes.
        start: u64,
        /// Where it ends.
        end: u64,
        /// How much the backend has committed.
        committed_bytes: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// Huge pages were required, and cannot be had; or refused where there is nothing else.
    #[error("huge pages ({bytes} bytes) {why}")]
    HugePages {
        /// How large they should be, or how much should come in them, in bytes.
        bytes: u64,
        /// What is said of them.
        why: String,
    },
    /// The kernel does not take memory from the nodes that were named.
    #[error(
        "memory cannot be had by the policy {policy}: {source}; this machine has the nodes {online}, of which the process may be allowed some"
    )]
    Numa {
        /// What was asked for.
        policy: String,
        /// The nodes that are there.
        online: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process may not keep so much from being swapped out.
    #[error(
        "cannot lock {bytes} more bytes in memory: the process may lock {limit_bytes} in all; raise the limit (ulimit -l, or LimitMEMLOCK= of its unit), or do without the lock"
    )]
    Lock {
        /// How much was to be locked, in bytes.
        bytes: u64,
        /// RLIMIT_MEMLOCK, in bytes.
        limit_bytes: u64,
    },
    /// No memory is left where this backend takes it from.
    #[error(
        "no memory left for {bytes} more bytes: the shared-memory file system (/dev/shm) or the control group is full; free some, or enlarge it"
    )]
    Full {
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// A device, its driver or a registration was not to be had.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The kernel said no for another reason.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl BackendError {
    pub(crate) fn system(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { what, source: source.into() }
    }
}
