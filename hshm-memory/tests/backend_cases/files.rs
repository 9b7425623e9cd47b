use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use hshm_memory::backend::{HugePages, survive_truncation};
use hshm_memory::{
    AllocatorId, Backend, BackendError, BackendKind, BackendOptions, FileMmap, InitOptions,
    MemfdMmap, ThreadLocalAllocator,
};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::{read, word};

const SIZE: u64 = 4 << 20;

fn create(path: &Path) -> Result<FileMmap, BackendError> {
    FileMmap::create(path, SIZE, 4 * SIZE, 0o640)
}

/// Both ways to come by a backend are refused, for this reason.
fn refused(path: &Path, why: &str) {
    for error in [FileMmap::open(path).map(drop).unwrap_err(), create(path).map(drop).unwrap_err()]
    {
        let message = error.to_string();
        assert!(message.contains(why), "{message}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), "it is a directory");
    refused(Path::new("/dev/zero"), "does not say how much memory it has");
    let pipe = folder.path().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    refused(&pipe, "neither a file nor a memory device");
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    refused(&socket, "neither a file nor a memory device");
    let error = FileMmap::open(&folder.path().join("nothing")).map(drop).unwrap_err();
    assert!(matches!(error, BackendError::NotFound { .. }), "{error}");
    let error = create(&folder.path().join("no/folder")).map(drop).unwrap_err();
    assert!(matches!(error, BackendError::NotFound { .. }), "{error}");
    // Handed over, and open for reading alone.
    let path = folder.path().join("file");
    fs::write(&path, [0; 4096]).unwrap();
    let file: OwnedFd = File::open(&path).unwrap().into();
    let error = FileMmap::from_fd(file, SIZE).map(drop).unwrap_err();
    assert!(error.to_string().contains("not open for reading and writing"), "{error}");
    // A file of the system's own, if the caller may write it at all.
    let knob = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    match FileMmap::open(knob) {
        Err(BackendError::NotMappable { why, .. }) => assert!(why.contains("PCI"), "{why}"),
        Err(BackendError::Permission { .. } | BackendError::NotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_created_once_and_with_its_mode() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let backend = create(&path).unwrap();
    let stat = fs::metadata(&path).unwrap();
    assert_eq!((stat.len(), stat.permissions().mode() & 0o777), (SIZE, 0o640));
    let error = create(&path).map(drop).unwrap_err();
    assert!(matches!(error, BackendError::Exists { .. }), "{error}");
    backend.grow(2 * SIZE).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * SIZE);
    FileMmap::unlink(&path).unwrap();
    assert!(!path.exists());
    let error = FileMmap::unlink(&path).unwrap_err();
    assert!(matches!(error, BackendError::NotFound { .. }), "{error}");
}

#[test]
fn a_heap_in_a_file_outlives_who_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let id = AllocatorId::new(1, 2);
    let heap = ThreadLocalAllocator::shm_init(
        id,
        Arc::new(create(&path).unwrap()),
        &InitOptions::default(),
    )
    .unwrap();
    let block = heap.allocate(1000).unwrap();
    drop(heap);
    let file = FileMmap::open(&path).unwrap();
    let heap = ThreadLocalAllocator::open_fd(BackendKind::File, file).unwrap();
    assert_eq!((heap.id(), heap.report().allocated_blocks), (id, 1));
    // SAFETY: [owned] the block is allocated, and nobody else knows of it.
    unsafe { heap.free(block) }.unwrap();
    assert!(heap.check().violations.is_empty());
}

#[test]
fn a_file_that_is_cut_short_ends_nobody() {
    survive_truncation().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let backend = create(&path).unwrap();
    word(&backend, SIZE - 8).store(1, Ordering::Release);
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(backend.committed_bytes(), 4096);
    let last = backend.base().as_ptr().wrapping_add(usize::try_from(SIZE).unwrap() - 1);
    // SAFETY: [mapped] the handler puts a page there.
    let value = unsafe { last.read_volatile() };
    assert_eq!(value, 0);
    assert!(backend.is_damaged());
    // Asked for in advance, it is an error value.
    let error = backend.populate(8192..16_384).unwrap_err();
    assert!(matches!(error, BackendError::Full { .. }), "{error}");
}

/// Needs `sysctl vm.nr_hugepages=8` at least; elsewhere it only says so.
#[test]
fn a_file_of_huge_pages_that_is_cut_short_ends_nobody() {
    survive_truncation().unwrap();
    let options = BackendOptions { huge_pages: HugePages::Try, ..BackendOptions::default() };
    let backend = MemfdMmap::create_with("cases", SIZE, 4 * SIZE, &options).unwrap();
    if backend.obtained().unwrap().page_bytes < 2 << 20 {
        println!("not applicable: no huge pages are free");
        return;
    }
    assert_eq!(backend.committed_bytes(), SIZE);
    // Beyond the end of the file is no memory, whoever looks; a seal keeps the rest.
    let beyond = backend.base().as_ptr().wrapping_add(usize::try_from(SIZE).unwrap() + 4096);
    // SAFETY: [mapped] the handler puts a page there.
    let value = unsafe { beyond.read_volatile() };
    assert_eq!(value, 0);
    assert!(backend.is_damaged());
    let error = nix::unistd::ftruncate(backend.fd().unwrap().as_fd(), 0).unwrap_err();
    assert_eq!(error, nix::errno::Errno::EPERM);
    word(&backend, SIZE - 8).store(1, Ordering::Release);
    assert_eq!(read(&backend, SIZE - 8), 1);
}
