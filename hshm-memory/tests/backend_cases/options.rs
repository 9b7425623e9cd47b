use hshm_memory::backend::{HugePages, NodeSet, NumaPolicy};
use hshm_memory::{
    Backend, BackendError, BackendOptions, FileMmap, MemfdMmap, PosixMmapBackend, PosixShmMmap,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

const SIZE: u64 = 8 << 20;
const HUGE: u64 = 2 << 20;

fn huge(huge_pages: HugePages) -> BackendOptions {
    BackendOptions { huge_pages, ..BackendOptions::default() }
}

type Attempt = Result<Box<dyn Backend>, BackendError>;

/// Makes one backend of each kind that has options.
fn each(options: &BackendOptions) -> Vec<(&'static str, Attempt)> {
    fn boxed<B: Backend + 'static>(made: Result<B, BackendError>) -> Attempt {
        made.map(|backend| Box::new(backend) as Box<dyn Backend>)
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let name = format!("hshm-cases.{}.{:?}", std::process::id(), std::thread::current().id());
    let name = name.replace(['(', ')'], "");
    let shm = PosixShmMmap::create_with(&name, SIZE, SIZE, 0o600, options);
    if shm.is_ok() {
        PosixShmMmap::unlink(&name).unwrap();
    }
    assert!(PosixShmMmap::open(&name).is_err(), "a failed attempt leaves nothing");
    let file = FileMmap::create_with(&path, SIZE, SIZE, 0o600, options);
    assert_eq!(file.is_ok(), path.exists(), "a failed attempt leaves nothing");
    vec![
        ("posix-shm", boxed(shm)),
        ("memfd", boxed(MemfdMmap::create_with("cases", SIZE, SIZE, options))),
        ("file", boxed(file)),
        ("posix-mmap", boxed(PosixMmapBackend::create_with(SIZE, SIZE, options))),
    ]
}

#[test]
fn huge_pages_that_are_only_tried_never_fail() {
    for page_bytes in [None, Some(HUGE), Some(1 << 30), Some(12_345)] {
        let options =
            BackendOptions { huge_page_bytes: page_bytes, populate: true, ..huge(HugePages::Try) };
        for (kind, made) in each(&options) {
            let backend = made.unwrap_or_else(|error| panic!("{kind}: {error}"));
            let obtained = backend.obtained().unwrap();
            assert!(obtained.resident_bytes >= SIZE, "{kind}: {obtained:?}");
            assert!(obtained.huge_bytes <= obtained.resident_bytes, "{kind}: {obtained:?}");
        }
    }
}

#[test]
fn huge_pages_that_are_required_are_had_or_refused() {
    for (kind, made) in each(&huge(HugePages::Require)) {
        match made {
            Ok(backend) => {
                backend.populate(0..SIZE).unwrap();
                let obtained = backend.obtained().unwrap();
                println!("{kind}: {obtained:?}");
                assert!(obtained.huge_bytes >= HUGE, "{kind}: {obtained:?}");
            }
            Err(error) => {
                assert!(matches!(error, BackendError::HugePages { .. }), "{kind}: {error}");
                let message = error.to_string();
                println!("{kind}: {message}");
                assert!(message.contains("huge pages ("), "{kind}: {message}");
            }
        }
    }
    // No machine has pages of these sizes.
    for bytes in [12_345, 1 << 14] {
        let options = BackendOptions { huge_page_bytes: Some(bytes), ..huge(HugePages::Require) };
        for (kind, made) in each(&options) {
            let error = made.map(drop).unwrap_err();
            assert!(matches!(error, BackendError::HugePages { .. }), "{kind}: {error}");
        }
    }
    // Nor so many.
    let error = MemfdMmap::create_with("cases", 1 << 45, 1 << 45, &huge(HugePages::Require));
    let error = error.map(drop).unwrap_err();
    assert!(error.to_string().contains("vm.nr_hugepages"), "{error}");
    // And what is shorter than a page of them has none.
    let error = PosixMmapBackend::create_with(4096, SIZE, &huge(HugePages::Require));
    assert!(matches!(error, Err(BackendError::HugePages { .. })));
}

#[test]
fn memory_without_huge_pages_has_none() {
    let options = BackendOptions { populate: true, ..huge(HugePages::Never) };
    for (kind, made) in each(&options) {
        let obtained = made.unwrap().obtained().unwrap();
        assert_eq!(obtained.huge_bytes, 0, "{kind}: {obtained:?}");
        assert!(obtained.page_bytes < HUGE, "{kind}: {obtained:?}");
    }
}

#[test]
fn nodes_that_are_not_there_are_refused_by_name() {
    let numa = NumaPolicy::Interleave(NodeSet::new([1000, 1001]).unwrap());
    for (kind, made) in each(&BackendOptions { numa: numa.clone(), ..BackendOptions::default() }) {
        let error = made.map(drop).unwrap_err();
        assert!(matches!(error, BackendError::Numa { .. }), "{kind}: {error}");
        assert!(error.to_string().contains("interleave:1000-1001"), "{kind}: {error}");
    }
}

#[test]
fn the_policy_of_a_shared_file_holds_for_all_who_map_it() {
    let numa = NumaPolicy::Bind(NodeSet::new([0]).unwrap());
    let options = BackendOptions { numa: numa.clone(), ..BackendOptions::default() };
    let backend = match MemfdMmap::create_with("cases", 1 << 20, 2 << 20, &options) {
        Ok(backend) => backend,
        // Containers often forbid it.
        Err(BackendError::Numa { source, .. }) => {
            return assert_eq!(source.raw_os_error(), Some(libc::EPERM));
        }
        Err(error) => panic!("{error}"),
    };
    let file = backend.fd().unwrap().try_clone_to_owned().unwrap();
    let other = MemfdMmap::from_fd(file, 2 << 20).unwrap();
    assert_eq!(other.obtained().unwrap().numa, numa);
    // The lock is each process's own, and the mapping's.
    let locked = BackendOptions { lock: true, ..BackendOptions::default() };
    let file = backend.fd().unwrap().try_clone_to_owned().unwrap();
    let third = match MemfdMmap::from_fd_with(file, 2 << 20, &locked) {
        Ok(third) => third,
        // Older machines let a process lock 64 KiB.
        Err(BackendError::Lock { limit_bytes: 0..0x20_0000, .. }) => return,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(third.obtained().unwrap().locked_bytes, 1 << 20);
    assert_eq!(other.obtained().unwrap().locked_bytes, 0);
    // It follows what others grow.
    other.grow(2 << 20).unwrap();
    third.populate(1 << 20..(1 << 20) + 4096).unwrap();
    assert_eq!(third.obtained().unwrap().locked_bytes, 2 << 20);
}

#[test]
fn a_lock_beyond_the_limit_is_refused_with_advice() {
    let locked = BackendOptions { lock: true, ..BackendOptions::default() };
    // SAFETY: [ffi] the child only calls this library and glibc's malloc, which survives a fork in
    // a process with threads.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
        ForkResult::Child => {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            // SAFETY: [ffi] the limit is live; no other thread is there.
            let limited = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
            // The superuser has no limit.
            // SAFETY: [ffi] no pointer is passed.
            let _ = unsafe { libc::setresuid(65534, 65534, 65534) };
            let refused = PosixMmapBackend::create_with(SIZE, SIZE, &locked).map(drop);
            let is_told =
                matches!(refused, Err(BackendError::Lock { bytes: SIZE, limit_bytes: 0x10_0000 }))
                    && refused.unwrap_err().to_string().contains("ulimit -l");
            // As much as is allowed can be had, and no more when it grows.
            let small = PosixMmapBackend::create_with(1 << 19, SIZE, &locked);
            let grown = small.map(|backend| backend.grow(SIZE));
            let is_kept = matches!(grown, Ok(Err(BackendError::Lock { .. })));
            let code =
                i32::from(limited != 0) | i32::from(!is_told) << 1 | i32::from(!is_kept) << 2;
            // SAFETY: [ffi] ends the process without running what belongs to the parent.
            unsafe { libc::_exit(code) }
        }
    }
}
