//! Memory devices that are mapped like files: direct-access memory (devdax) and PCI memory (the
//! resource files of ivshmem and the like).

use std::fs;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{FileStat, fstat, major, minor};
use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};

use super::BackendError;
use super::apply::PagesOf;
use super::mapping::Shape;

/// Finds out whether `file` can be a backend, and which. `path` is what it is called in errors.
pub(super) fn shape_of(file: BorrowedFd<'_>, path: &Path) -> Result<Shape, BackendError> {
    shape_in(Path::new("/sys"), file, path)
}

fn shape_in(sys: &Path, file: BorrowedFd<'_>, path: &Path) -> Result<Shape, BackendError> {
    let refused = |why| Err(BackendError::NotMappable { path: path.to_owned(), why });
    let flags = fcntl(file, FcntlArg::F_GETFL)
        .map_err(|errno| BackendError::system("cannot ask a file's mode", errno))?;
    if flags & libc::O_ACCMODE != libc::O_RDWR {
        return refused("it is not open for reading and writing");
    }
    let stat = fstat(file).map_err(|errno| BackendError::system("cannot stat a segment", errno))?;
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG if is_in_sysfs(file) => match u64::try_from(stat.st_size) {
            Ok(bytes) if bytes > 0 && is_resource(path) => {
                Ok(Shape { pages_of: PagesOf::File, fixed_bytes: Some(bytes) })
            }
            _ => refused(
                "of sysfs, only the memory of a PCI device can be used: its files resource0 to resource5, and those with _wc",
            ),
        },
        libc::S_IFREG => Shape::regular(file),
        libc::S_IFCHR => device(sys, &stat).map_or_else(
            || refused("it is a device that does not say how much memory it has, as devdax does"),
            Ok,
        ),
        libc::S_IFBLK => refused("it is a block device: use a file of a file system on it"),
        libc::S_IFDIR => refused("it is a directory: name a file in it"),
        _ => refused("it is neither a file nor a memory device"),
    }
}

fn is_in_sysfs(file: BorrowedFd<'_>) -> bool {
    fstatfs(file).is_ok_and(|system| system.filesystem_type() == SYSFS_MAGIC)
}

/// Whether a file of sysfs is that of a PCI device's memory.
fn is_resource(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("resource").unwrap_or_default();
    let number = number.strip_suffix("_wc").unwrap_or(number);
    matches!(number, "0" | "1" | "2" | "3" | "4" | "5")
}

/// What a character device says about its memory.
fn device(sys: &Path, stat: &FileStat) -> Option<Shape> {
    let folder = sys.join(format!("dev/char/{}:{}", major(stat.st_rdev), minor(stat.st_rdev)));
    let number = |name: &str| {
        let text = fs::read_to_string(folder.join(name)).ok()?;
        let text = text.trim();
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse::<u64>().ok(),
        }
    };
    let bytes = number("size").filter(|&bytes| bytes > 0)?;
    // It is mapped at multiples of this only.
    let align = number("align").filter(|align| align.is_power_of_two()).unwrap_or(2 << 20);
    Some(Shape { pages_of: PagesOf::Huge(align), fixed_bytes: Some(bytes) })
}

/// Reads the first bytes of memory that can be mapped, but not read.
pub(super) fn read_mapped(file: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, BackendError> {
    let shape = shape_of(file, &path_of(file))?;
    let Some(bytes) = shape.fixed_bytes else { return Ok(0) };
    let grain = shape.grain().max(super::advice::kernel_page_bytes());
    let len = usize::try_from(grain.min(bytes)).unwrap_or(0).min(buffer.len());
    let mapped_len = usize::try_from(grain).ok().and_then(NonZeroUsize::new);
    let Some(mapped_len) = mapped_len else { return Ok(0) };
    // SAFETY: [owned] the kernel chooses the place, and nobody else knows of it.
    let mapped =
        unsafe { mmap(None, mapped_len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) };
    let mapped = mapped.map_err(|errno| BackendError::system("cannot map a device", errno))?;
    let target = NonNull::from(&mut *buffer).cast::<u8>();
    // SAFETY: [mapped] at least `len` bytes were just mapped, and the buffer is as long.
    unsafe { mapped.cast::<u8>().copy_to_nonoverlapping(target, len) };
    // SAFETY: [owned] it was mapped above.
    let _ = unsafe { munmap(mapped, mapped_len.get()) };
    Ok(len)
}

/// What the kernel calls an open file.
pub(super) fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::read_link(&link).unwrap_or_else(|_| PathBuf::from(link))
}

/// What a file cannot be opened for.
pub(super) fn open_error(path: &Path, errno: Errno) -> BackendError {
    let name = path.display().to_string();
    match errno as i32 {
        libc::EEXIST => BackendError::Exists { name },
        libc::ENOENT => BackendError::NotFound { name },
        libc::EACCES | libc::EPERM | libc::EROFS => BackendError::Permission { name },
        libc::EISDIR => {
            let why = "it is a directory: name a file in it";
            BackendError::NotMappable { path: path.to_owned(), why }
        }
        libc::ELOOP => {
            let why = "it is a symbolic link: name the file itself";
            BackendError::NotMappable { path: path.to_owned(), why }
        }
        libc::ENXIO => {
            let why = "it is neither a file nor a memory device";
            BackendError::NotMappable { path: path.to_owned(), why }
        }
        _ => BackendError::system("cannot open a segment's file", errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    fn open(path: &str) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_memory_device_is_as_long_as_the_system_says() {
        let sys = tempfile::tempdir().unwrap();
        let zero = open("/dev/zero");
        let path = Path::new("/dev/zero");
        let refused = shape_in(sys.path(), zero.as_fd(), path).unwrap_err();
        assert!(matches!(refused, BackendError::NotMappable { .. }), "{refused}");
        assert!(refused.to_string().contains("/dev/zero"), "{refused}");
        // As devdax has it, whose numbers are decimal, and one whose alignment is hexadecimal.
        let folder = sys.path().join("dev/char/1:5");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("size"), "1073741824\n").unwrap();
        let shape = shape_in(sys.path(), zero.as_fd(), path).unwrap();
        assert_eq!((shape.fixed_bytes, shape.grain()), (Some(1 << 30), 2 << 20));
        fs::write(folder.join("align"), "0x40000000\n").unwrap();
        let shape = shape_in(sys.path(), zero.as_fd(), path).unwrap();
        assert_eq!((shape.fixed_bytes, shape.grain()), (Some(1 << 30), 1 << 30));
        for nonsense in ["", "0\n", "-1\n", "much\n"] {
            fs::write(folder.join("size"), nonsense).unwrap();
            assert!(shape_in(sys.path(), zero.as_fd(), path).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn resource_files_are_known_by_their_names() {
        for good in ["resource0", "resource2", "resource2_wc"] {
            assert!(is_resource(&Path::new("/sys/bus/pci/devices/0000:00:04.0").join(good)));
        }
        for bad in ["resource", "resource6", "resource_wc", "resource22", "rom", "config"] {
            assert!(!is_resource(Path::new(bad)), "{bad}");
        }
    }
}
