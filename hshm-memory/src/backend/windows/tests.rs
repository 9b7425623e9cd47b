//! Private and shared memory alone.

use std::os::windows::io::AsHandle;

use super::*;
use crate::backend::{BASE_ALIGN, Backend, BackendKind, BackendOptions, HugePages, NumaPolicy};

const MIB: u64 = 1 << 20;

/// A name that is this test's alone.
fn name(test: &str) -> String {
    format!("hshm-windows-test.{test}.{}", std::process::id())
}

fn shared(test: &str, size: u64, capacity: u64) -> PosixShmMmap {
    PosixShmMmap::create(&name(test), size, capacity, 0o600).unwrap()
}

fn byte(backend: &dyn Backend, offset: u64) -> *mut u8 {
    assert!(offset < backend.committed_bytes());
    backend.base().as_ptr().wrapping_add(usize::try_from(offset).unwrap())
}

fn read(backend: &dyn Backend, offset: u64) -> u8 {
    // SAFETY: [mapped] `byte` found it committed; [owned] the memory is the test's.
    unsafe { byte(backend, offset).read() }
}

fn write(backend: &dyn Backend, offset: u64, value: u8) {
    // SAFETY: [mapped] [owned] as in `read`.
    unsafe { byte(backend, offset).write(value) };
}

fn uses_grows_and_punches(backend: &dyn Backend) {
    assert_eq!(backend.base().as_ptr().align_offset(backend.alignment()), 0);
    assert_eq!((backend.committed_bytes(), backend.capacity_bytes()), (MIB, 8 * MIB));
    for offset in (0..MIB).step_by(4096) {
        assert_eq!(read(backend, offset), 0);
        write(backend, offset + 4095, 7);
    }
    backend.populate(0..MIB).unwrap();
    let beyond = backend.populate(MIB - 1..MIB + 1);
    assert!(matches!(beyond, Err(BackendError::Full { bytes: 2 })), "{beyond:?}");
    // Not a multiple of anything, again and again.
    for wanted in [MIB + 1, MIB + 5000, 2 * MIB, 3 * MIB - 17, MIB] {
        backend.grow(wanted).unwrap();
        let committed = backend.committed_bytes();
        assert!(committed >= wanted && committed.is_multiple_of(4096), "{committed}");
        write(backend, committed - 1, 1);
        assert_eq!(backend.committed_bytes(), committed);
    }
    assert_eq!(backend.committed_bytes(), 3 * MIB);
    backend.grow(8 * MIB).unwrap();
    assert_eq!(backend.committed_bytes(), 8 * MIB);
    assert!(matches!(backend.grow(8 * MIB + 1), Err(BackendError::BadSize { .. })));
    write(backend, 8 * MIB - 1, 3);

    backend.punch(4096..8192).unwrap();
    let read = |offset| read(backend, offset);
    assert_eq!([4095, 4096 + 4095, 8192 + 4095].map(read), [7, 0, 7]);
    // What is not committed has nothing to give back.
    backend.punch(8 * MIB..16 * MIB).unwrap();
    assert!(!backend.is_damaged());
}

#[test]
fn private_memory_is_used_grown_and_punched() {
    let backend = PosixMmapBackend::create(MIB, 8 * MIB).unwrap();
    assert_eq!((backend.kind(), backend.alignment()), (BackendKind::PosixMmap, BASE_ALIGN));
    uses_grows_and_punches(&backend);
}

#[test]
fn shared_memory_is_used_grown_and_punched() {
    let backend = shared("use", MIB, 8 * MIB);
    assert_eq!(backend.kind(), BackendKind::PosixShm);
    uses_grows_and_punches(&backend);
}

#[test]
fn memory_without_a_name_is_used_grown_and_punched_and_handed_over() {
    let backend = MemfdMmap::create("use", MIB, 8 * MIB).unwrap();
    assert_eq!(backend.kind(), BackendKind::Memfd);
    uses_grows_and_punches(&backend);
    let handle = backend.as_handle().try_clone_to_owned().unwrap();
    let other = MemfdMmap::from_handle(handle).unwrap();
    drop(backend);
    assert_eq!((other.committed_bytes(), other.capacity_bytes()), (8 * MIB, 8 * MIB));
    assert_eq!(read(&other, 8 * MIB - 1), 3);
}

#[test]
fn options_that_cannot_be_had_are_refused() {
    let create = |options: BackendOptions| {
        let shared = MemfdMmap::create_with("options", MIB, MIB, &options).map(drop);
        let private = PosixMmapBackend::create_with(MIB, MIB, &options).map(drop);
        assert_eq!(shared.is_ok(), private.is_ok());
        shared
    };
    let default = BackendOptions::default;
    create(BackendOptions { populate: true, huge_pages: HugePages::Try, ..default() }).unwrap();
    let huge = create(BackendOptions { huge_pages: HugePages::Require, ..default() });
    assert!(matches!(huge, Err(BackendError::HugePages { .. })), "{huge:?}");
    let numa = NumaPolicy::Bind("0".parse().unwrap());
    let numa = create(BackendOptions { numa, ..default() });
    assert!(matches!(numa, Err(BackendError::Numa { .. })), "{numa:?}");
    let lock = create(BackendOptions { lock: true, ..default() });
    assert!(matches!(lock, Err(BackendError::System { .. })), "{lock:?}");
}

#[test]
fn each_mapping_of_a_section_sees_the_same() {
    let first = shared("same", 5000, 8 * MIB);
    let second = PosixShmMmap::open(&name("same")).unwrap();
    let third = first.as_handle().try_clone_to_owned().unwrap();
    let third = PosixShmMmap::from_handle(third).unwrap();
    let all = [&first, &second, &third];
    assert_ne!(first.base(), second.base());
    for (backend, committed) in all.into_iter().zip([3 * MIB, 3 * MIB + 4096, 6 * MIB]) {
        backend.grow(committed - 1).unwrap();
        write(backend, committed - 1, 5);
        for other in all {
            assert_eq!((other.committed_bytes(), other.capacity_bytes()), (committed, 8 * MIB));
            assert_eq!(read(other, committed - 1), 5);
        }
    }
    // Who grows what others grew already changes nothing.
    third.grow(MIB).unwrap();
    assert_eq!(first.committed_bytes(), 6 * MIB);
    drop((first, third));
    assert_eq!(read(&second, 3 * MIB - 1), 5);
}

#[test]
fn who_grow_at_once_commit_the_most_that_one_asked_for() {
    let backend = shared("at-once", 4096, 64 * MIB);
    let other = PosixShmMmap::open(&name("at-once")).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let backend = if thread % 2 == 0 { &backend } else { &other };
            scope.spawn(move || {
                for step in 1..=64 {
                    let wanted = step * MIB - thread * 100_000;
                    backend.grow(wanted).unwrap();
                    write(backend, wanted - 1, 1);
                }
            });
        }
    });
    assert_eq!([backend.committed_bytes(), other.committed_bytes()], [64 * MIB; 2]);
    let late = PosixShmMmap::open(&name("at-once")).unwrap();
    assert_eq!(late.committed_bytes(), 64 * MIB);
}

#[test]
fn what_cannot_be_is_refused() {
    let again = shared("refused", MIB, MIB);
    let taken = PosixShmMmap::create(&name("refused"), MIB, MIB, 0o600);
    assert!(matches!(taken, Err(BackendError::Exists { .. })), "{taken:?}");
    drop(again);
    let gone = PosixShmMmap::open(&name("refused"));
    assert!(matches!(gone, Err(BackendError::NotFound { .. })), "{gone:?}");
    for bad in ["", "a\\b", "a/b"] {
        assert!(matches!(PosixShmMmap::open(bad), Err(BackendError::BadName { .. })));
        let made = PosixShmMmap::create(bad, MIB, MIB, 0o600);
        assert!(matches!(made, Err(BackendError::BadName { .. })));
    }
    for (size, capacity) in [(0, MIB), (2 * MIB, MIB), (MIB, 1 << 47)] {
        let made = PosixMmapBackend::create(size, capacity);
        assert!(matches!(made, Err(BackendError::BadSize { .. })), "{made:?}");
    }
}

#[test]
fn a_large_capacity_costs_address_space_alone() {
    for backend in [
        &shared("large", MIB, 64 << 30) as &dyn Backend,
        &PosixMmapBackend::create(MIB, 64 << 30).unwrap(),
        &MemfdMmap::create("large", MIB, 64 << 30).unwrap(),
    ] {
        assert_eq!((backend.committed_bytes(), backend.capacity_bytes()), (MIB, 64 << 30));
        write(backend, MIB - 1, 1);
    }
}
