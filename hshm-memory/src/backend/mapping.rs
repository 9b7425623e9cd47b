//! A shared file mapped over a reserved address range that is longer than the file.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect};

use super::advice::{Mapped, Populated, kernel_page_bytes};
use super::apply::{Locks, PagesOf, apply};
use super::fault::Watch;
use super::place::Placed;
use super::range::{MAX_CAPACITY_BYTES, inside, inwards, outwards, validate_grow, zero};
use super::segment_file::{extend, file_len, pages_of};
use super::{BASE_ALIGN, BackendError, BackendOptions, HugePages};

/// What is known of a file that is to be mapped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// What its pages are.
    pub(super) pages_of: PagesOf,
    /// Its length, if that never changes and no system call gives or takes memory in it: the memory
    /// of a device.
    pub(super) fixed_bytes: Option<u64>,
}

impl Shape {
    /// That of a regular file.
    pub(super) fn regular(file: BorrowedFd<'_>) -> Result<Self, BackendError> {
        Ok(Self { pages_of: pages_of(file)?, fixed_bytes: None })
    }

    /// The boundaries at which such a file can be mapped and cut, in bytes.
    pub(super) fn grain(&self) -> u64 {
        match self.pages_of {
            PagesOf::Huge(bytes) => bytes,
            PagesOf::Nothing | PagesOf::Shmem | PagesOf::File => 1,
        }
    }
}

/// Reserves `capacity` bytes of address space, and the place where it begins at a multiple of
/// `align`. None of it can be accessed, and what lies before and after it, a page at least, stays so:
/// neither a stray access nor the kernel takes a neighbour's memory for it.
pub(super) fn reserve(capacity: u64, align: usize) -> Result<(MmapRaw, NonNull<u8>), BackendError> {
    let bad = |why| BackendError::BadSize { size_bytes: 0, capacity_bytes: capacity, why };
    if capacity == 0 {
        return Err(bad("nothing would be mapped"));
    }
    if capacity > MAX_CAPACITY_BYTES {
        return Err(bad("the capacity is beyond 64 TiB"));
    }
    let page = usize::try_from(kernel_page_bytes()).unwrap_or(1 << 16);
    let len = usize::try_from(capacity).ok().and_then(|len| len.checked_next_multiple_of(page));
    let reserved = len.and_then(|len| len.checked_add(align + 2 * page));
    let reserved = reserved.ok_or_else(|| bad("this machine's addresses are too short for it"))?;
    let reservation: MmapRaw = MmapOptions::new()
        .len(reserved)
        .no_reserve_swap()
        .map_anon()
        .map_err(|source| BackendError::System { what: "cannot reserve address space", source })?
        .into();
    let start = reservation.as_mut_ptr();
    let first = start.wrapping_add(page);
    let aligned = first.wrapping_add(first.align_offset(align));
    protect(NonNull::new(start), reserved, ProtFlags::PROT_NONE)?;
    let base = NonNull::new(aligned).ok_or_else(|| bad("nothing would be mapped"))?;
    Ok((reservation, base))
}

/// Makes `capacity` bytes that were reserved at `base` memory of the process's own.
pub(super) fn make_private(base: NonNull<u8>, capacity: u64) -> Result<(), BackendError> {
    let len = usize::try_from(capacity).unwrap_or(usize::MAX);
    protect(Some(base), len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
}

/// Changes how a reservation that was just made, or a part of it, can be accessed.
fn protect(start: Option<NonNull<u8>>, len: usize, how: ProtFlags) -> Result<(), BackendError> {
    let Some(start) = start else { return Ok(()) };
    // SAFETY: [owned] it is anonymous memory that nobody uses yet.
    unsafe { mprotect(start.cast(), len, how) }
        .map_err(|errno| BackendError::system("cannot guard address space", errno))
}

/// What is unmapped together with the file.
#[derive(Debug)]
enum Space {
    /// The file and no more, in a place that was free.
    Placed { _file: Placed },
    /// A range that is longer. The file is mapped into it; unmapping the range unmaps the file.
    Reserved { _range: MmapRaw },
}

impl Space {
    /// Maps `capacity` bytes of `file`, of such a shape, and says where they begin.
    fn map(
        file: BorrowedFd<'_>,
        shape: Shape,
        capacity: u64,
    ) -> Result<(Self, NonNull<u8>), BackendError> {
        if let Some(placed) = place(file, shape, capacity) {
            let base = placed.base();
            return Ok((Self::Placed { _file: placed }, base));
        }
        let align = usize::try_from(shape.grain()).unwrap_or(BASE_ALIGN).max(BASE_ALIGN);
        // The reservation is anonymous and never touched; the file goes on top of its aligned part.
        let (reservation, base) = reserve(capacity, align)?;
        map_over(base, capacity, file, shape.grain() > 1)?;
        Ok((Self::Reserved { _range: reservation }, base))
    }
}

/// A file of ordinary pages that anything may be mapped behind the end of, if there is room for it.
fn place(file: BorrowedFd<'_>, shape: Shape, capacity: u64) -> Option<Placed> {
    let is_ordinary = shape.grain() == 1 && shape.fixed_bytes.is_none();
    let page = usize::try_from(kernel_page_bytes()).ok()?;
    let len = usize::try_from(capacity).ok().filter(|&len| len > 0 && is_ordinary)?;
    Placed::map(file, len.checked_next_multiple_of(page)?, page)
}

/// A file and the address range that it is mapped over.
#[derive(Debug)]
pub(super) struct SharedMapping {
    /// Before the reservation, so that it ends before the address range does.
    watch: Watch,
    /// Owns the address range that the file is mapped over.
    _space: Space,
    base: NonNull<u8>,
    capacity: u64,
    file: OwnedFd,
    shape: Shape,
    locks: Locks,
    gives_back: bool,
}

// SAFETY: [owned] the mapping belongs to this value until it is dropped, and nothing here depends
// on the thread that made it.
unsafe impl Send for SharedMapping {}
// SAFETY: [owned] all methods take `&self` and only pass ranges to the kernel.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps a regular file over `capacity` bytes of address space.
    pub(super) fn new(
        file: OwnedFd,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let shape = Shape::regular(file.as_fd())?;
        Self::of_shape(file, shape, capacity, options)
    }

    /// Maps a file of which more is known.
    pub(super) fn of_shape(
        file: OwnedFd,
        shape: Shape,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        let grain = shape.grain();
        let capacity = capacity.checked_next_multiple_of(grain).unwrap_or(capacity);
        let (space, base) = Space::map(file.as_fd(), shape, capacity)?;
        // SAFETY: [mapped] the file was just mapped there, and the reservation lives until the end.
        let mapped = unsafe { Mapped::new(base, capacity) };
        let committed = committed(file.as_fd(), shape, capacity);
        let locks = apply(mapped, committed, shape.pages_of, options)?;
        let len = usize::try_from(capacity).unwrap_or(usize::MAX);
        let watch = Watch::new(base.addr().get(), len, usize::try_from(grain).unwrap_or(1));
        let is_divisible = shape.grain() == 1 && shape.fixed_bytes.is_none();
        let mapping = Self {
            watch,
            _space: space,
            base,
            capacity,
            file,
            shape,
            locks,
            gives_back: is_divisible && may_give_back(options),
        };
        if options.populate {
            mapping.populate(0..committed)?;
        }
        Ok(mapping)
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

    fn mapped(&self) -> Mapped {
        // SAFETY: [mapped] the file is mapped there as long as the value lives.
        unsafe { Mapped::new(self.base, self.capacity) }
    }

    /// See [`super::Backend::gives_back`].
    pub(super) fn gives_back(&self) -> bool {
        self.gives_back
    }

    /// The file's length, at most the capacity.
    pub(super) fn committed_bytes(&self) -> u64 {
        committed(self.fd(), self.shape, self.capacity)
    }

    pub(super) fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.locks.follow(self.mapped(), range.end, || self.committed_bytes())?;
        match self.mapped().populate(&range)? {
            Populated::Done => Ok(()),
            // A device's memory is there.
            Populated::Unknown if self.shape.fixed_bytes.is_some() => Ok(()),
            // Allocating in the file serves as well, at the price of a fault for each page later.
            Populated::Unknown => self.allocate(&range),
        }
    }

    fn allocate(&self, range: &Range<u64>) -> Result<(), BackendError> {
        let Some((start, len)) = inside(range, self.capacity) else { return Ok(()) };
        let (start, len) = (start as u64, len as u64);
        loop {
            let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match fallocate(&self.file, keep, start.cast_signed(), len.cast_signed()) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOSPC | Errno::ENOMEM) => {
                    return Err(BackendError::Full { bytes: len });
                }
                Err(errno) => return Err(BackendError::system("cannot allocate memory", errno)),
            }
        }
    }

    pub(super) fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        // Of a huge page, a part cannot be given back.
        let whole = inwards(&range, self.shape.grain());
        let is_taken =
            whole.is_empty() || (self.shape.fixed_bytes.is_none() && self.cut(&whole)?);
        if !is_taken {
            return self.clear(range);
        }
        self.clear(range.start..whole.start.min(range.end))?;
        self.clear(whole.end.max(range.start)..range.end)
    }

    /// Takes the memory out of the file. Whether its file system can do so.
    fn cut(&self, range: &Range<u64>) -> Result<bool, BackendError> {
        let Some((start, len)) = inside(range, self.capacity) else { return Ok(true) };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            let (start, len) = ((start as u64).cast_signed(), (len as u64).cast_signed());
            match fallocate(&self.file, flags, start, len) {
                Ok(()) => return Ok(true),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(false),
                Err(errno) => return Err(BackendError::system("cannot give memory back", errno)),
            }
        }
    }

    /// Fills a range with zeros where it cannot be given back.
    fn clear(&self, range: Range<u64>) -> Result<(), BackendError> {
        let range = range.start..range.end.min(self.committed_bytes());
        if inside(&range, self.capacity).is_none() {
            return Ok(());
        }
        // Writing to what has no memory may end in SIGBUS.
        self.populate(range.clone())?;
        // SAFETY: [mapped] the range was just populated; the caller of this gives its contents up.
        unsafe { zero(self.base, range) };
        Ok(())
    }

    pub(super) fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        let bytes = outwards(&(0..bytes), self.shape.grain()).end;
        let limit = self.shape.fixed_bytes.map_or(self.capacity, |len| len.min(self.capacity));
        validate_grow(bytes, limit)?;
        let before = match self.shape.fixed_bytes {
            Some(len) => len,
            None => file_len(self.fd())?,
        };
        if before < bytes {
            if let PagesOf::Huge(_) = self.shape.pages_of {
                reserve_huge(self.fd(), before..bytes)?;
            }
            extend(self.fd(), bytes)?;
        }
        self.locks.follow(self.mapped(), bytes, || self.committed_bytes())
    }
}

/// Whether memory of ordinary pages that was had so may be given back in parts of 4 KiB.
pub(super) fn may_give_back(options: &BackendOptions) -> bool {
    let keeps = options.lock || options.populate;
    let is_huge = matches!(options.huge_pages, HugePages::Try | HugePages::Require);
    !keeps && !is_huge && kernel_page_bytes() <= 4096
}

/// How much of a mapping has a file behind it.
fn committed(file: BorrowedFd<'_>, shape: Shape, capacity: u64) -> u64 {
    let len = shape.fixed_bytes.map_or_else(|| file_len(file), Ok);
    len.unwrap_or(0).min(capacity)
}

/// Maps `file`, of huge pages or not, over what is reserved at `base`.
fn map_over(
    base: NonNull<u8>,
    capacity: u64,
    file: BorrowedFd<'_>,
    is_huge: bool,
) -> Result<(), BackendError> {
    let refused = |errno| BackendError::system("cannot map the segment", errno);
    let len = usize::try_from(capacity).ok().and_then(NonZeroUsize::new);
    let len = len.ok_or_else(|| refused(Errno::EINVAL))?;
    let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // Mapping a file of huge pages for writing would make it as long as the mapping; so it is
    // mapped for reading first.
    let first = if is_huge { ProtFlags::PROT_READ } else { writable };
    // SAFETY: [owned] the range lies inside a reservation that nobody else knows of, so MAP_FIXED
    // replaces nothing but it.
    let mapped = unsafe { mmap(Some(base.addr()), len, first, flags, file, 0) };
    let mapped = mapped.map_err(refused)?;
    if is_huge {
        // SAFETY: [owned] the range was just mapped, and nobody uses it yet.
        unsafe { mprotect(mapped, len.get(), writable) }.map_err(refused)?;
    }
    Ok(())
}

/// Sets huge pages aside for `range` of a file, so that using them cannot fail later.
pub(super) fn reserve_huge(file: BorrowedFd<'_>, range: Range<u64>) -> Result<(), BackendError> {
    let bytes = range.end - range.start;
    let Some(len) = usize::try_from(bytes).ok().and_then(NonZeroUsize::new) else { return Ok(()) };
    let start = range.start.cast_signed();
    // What a shared mapping reserves stays reserved for the file when it is gone.
    // SAFETY: [owned] the kernel chooses the place; nothing is accessed through it.
    let mapped =
        unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, start) };
    match mapped {
        Ok(mapped) => {
            // SAFETY: [owned] it was just mapped here, and is nobody else's.
            let _ = unsafe { nix::sys::mman::munmap(mapped, len.get()) };
            Ok(())
        }
        Err(Errno::ENOMEM) => Err(BackendError::HugePages {
            bytes,
            why: "are not free: reserve more with sysctl vm.nr_hugepages, or only try to have them"
                .to_owned(),
        }),
        Err(errno) => Err(BackendError::system("cannot reserve huge pages", errno)),
    }
}
