//! Shared memory without a name: `memfd_create`, sealed against shrinking.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::mapping::{Shape, SharedMapping, reserve_huge};
use super::range::{outwards, validate_sizes};
use super::segment_file::{require_regular, set_len};
use super::{Backend, BackendError, BackendKind, BackendOptions, HugePages, validate_name};

/// An anonymous shared file. It lives as long as some process has it open or mapped, and nobody
/// can shorten it under the others' feet.
///
/// # Examples
/// ```
/// use hshm_memory::backend::HugePages;
/// use hshm_memory::{Backend, BackendOptions, MemfdMmap};
///
/// let backend = MemfdMmap::create("example", 1 << 20, 64 << 20)?;
/// // The descriptor goes to other processes over a socket, or is inherited.
/// let descriptor = backend.fd().expect("a memory file has one").try_clone_to_owned()?;
/// let other = MemfdMmap::from_fd(descriptor.try_clone()?, 64 << 20)?;
/// other.grow(2 << 20)?;
/// assert_eq!(backend.committed_bytes(), 2 << 20);
/// let populated = BackendOptions { populate: true, ..BackendOptions::default() };
/// let third = MemfdMmap::from_fd_with(descriptor, 64 << 20, &populated)?;
/// assert_eq!(third.obtained()?.resident_bytes, 2 << 20);
///
/// let options = BackendOptions { huge_pages: HugePages::Try, ..BackendOptions::default() };
/// let huge = MemfdMmap::create_with("example", 4 << 20, 64 << 20, &options)?;
/// println!("pages of {} bytes", huge.obtained()?.page_bytes);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct MemfdMmap {
    mapping: SharedMapping,
}

impl MemfdMmap {
    /// Creates a file `size` bytes long and maps `capacity` bytes of address space for it. `label`
    /// shows in `/proc/PID/maps` and need not be unique. All bytes are zero.
    ///
    /// # Errors
    /// [`BackendError::BadName`], [`BackendError::BadSize`], or what the kernel refuses.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Backend, MemfdMmap};
    ///
    /// let memory = MemfdMmap::create("example", 1 << 20, 64 << 20)?;
    /// assert_eq!((memory.committed_bytes(), memory.capacity_bytes()), (1 << 20, 64 << 20));
    /// memory.grow(2 << 20)?;
    /// assert_eq!(memory.committed_bytes(), 2 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(label: &str, size: u64, capacity: u64) -> Result<Self, BackendError> {
        Self::create_with(label, size, capacity, &BackendOptions::default())
    }

    /// The same, with options. If huge pages are asked for, they come from those that the system
    /// keeps for this purpose (hugetlb) and are set aside for `size` at once; the size and the
    /// capacity are rounded up to them. If they are only to be tried and there are not enough, the
    /// file has ordinary pages, for which the kernel is asked to use transparent huge pages.
    ///
    /// # Errors
    /// As [`MemfdMmap::create`]; [`BackendError::HugePages`], [`BackendError::Numa`],
    /// [`BackendError::Lock`] and [`BackendError::Full`] if an option cannot be had.
    pub fn create_with(
        label: &str,
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        validate_name(label)?;
        validate_sizes(size, capacity)?;
        let file = match options.huge_pages {
            HugePages::System | HugePages::Never => ordinary_file(label, size)?,
            HugePages::Require => huge_file(label, size, options.huge_page_bytes)?,
            HugePages::Try => match huge_file(label, size, options.huge_page_bytes) {
                Ok(file) => file,
                Err(_) => ordinary_file(label, size)?,
            },
        };
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| BackendError::system("cannot seal a memory file", errno))?;
        Ok(Self { mapping: SharedMapping::new(file, capacity, options)? })
    }

    /// Maps a file that another process created, over `capacity` bytes of address space.
    ///
    /// # Errors
    /// [`BackendError::NotSharedMemory`] if it is not sealed against shrinking, or what the kernel
    /// refuses.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Backend, MemfdMmap};
    ///
    /// let memory = MemfdMmap::create("example", 1 << 20, 64 << 20)?;
    /// let file = memory.fd().ok_or("no file")?.try_clone_to_owned()?;
    /// // Usually in another process, which was handed the file:
    /// let again = MemfdMmap::from_fd(file, 64 << 20)?;
    /// assert_ne!(again.base(), memory.base());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_fd(file: OwnedFd, capacity: u64) -> Result<Self, BackendError> {
        Self::from_fd_with(file, capacity, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`MemfdMmap::from_fd`], and as [`MemfdMmap::create_with`] if an option cannot be had.
    pub fn from_fd_with(
        file: OwnedFd,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        require_regular(file.as_fd())?;
        let seals = fcntl(&file, FcntlArg::F_GET_SEALS)
            .map_err(|_| BackendError::NotSharedMemory { why: "it is no memory file" })?;
        if seals & SealFlag::F_SEAL_SHRINK.bits() == 0 {
            return Err(BackendError::NotSharedMemory {
                why: "it is not sealed against shrinking",
            });
        }
        Ok(Self { mapping: SharedMapping::new(file, capacity, options)? })
    }
}

fn ordinary_file(label: &str, size: u64) -> Result<OwnedFd, BackendError> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = memfd_create(label, flags)
        .map_err(|errno| BackendError::system("cannot create a memory file", errno))?;
    set_len(file.as_fd(), size)?;
    Ok(file)
}

/// A file of huge pages of `page_bytes`, or of the system's usual size.
fn huge_file(label: &str, size: u64, page_bytes: Option<u64>) -> Result<OwnedFd, BackendError> {
    let refused = |why: &str| BackendError::HugePages {
        bytes: page_bytes.unwrap_or(2 << 20),
        why: why.to_owned(),
    };
    // The kernel takes the logarithm of the size where the flags end.
    let size_flags = match page_bytes {
        None => 0,
        Some(bytes) if bytes.is_power_of_two() => bytes.trailing_zeros() << libc::MFD_HUGE_SHIFT,
        Some(_) => return Err(refused("cannot be had: their size is no power of two")),
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB;
    let flags = MFdFlags::from_bits_retain(flags.bits() | size_flags);
    let file = memfd_create(label, flags).map_err(|errno| match errno as i32 {
        libc::EINVAL | libc::ENODEV | libc::ENOENT => {
            refused("cannot be had: the kernel has none of this size; see /sys/kernel/mm/hugepages")
        }
        libc::ENOSYS | libc::EOPNOTSUPP => {
            refused("cannot be had: the kernel was built without them")
        }
        libc::EPERM => {
            refused("cannot be had: the process may not use them; see vm.hugetlb_shm_group")
        }
        _ => BackendError::system("cannot create a memory file of huge pages", errno),
    })?;
    let shape = Shape::regular(file.as_fd())?;
    let size = outwards(&(0..size), shape.grain()).end;
    reserve_huge(file.as_fd(), 0..size)?;
    set_len(file.as_fd(), size)?;
    Ok(file)
}

// SAFETY: [mapped] SharedMapping aligns, maps and keeps the range, and the seal keeps the file from
// becoming shorter.
unsafe impl Backend for MemfdMmap {
    fn kind(&self) -> BackendKind {
        BackendKind::Memfd
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
