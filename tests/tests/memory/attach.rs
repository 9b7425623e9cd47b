//! Segments that are not what they should be: each is refused with an error that says what was found.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use hshm_memory::{
    BackendError, BackendKind, InitOptions, MemfdMmap, SegmentError, ThreadLocalAllocator,
};
use hshm_tests::process::Worker;
use hshm_tests::random::Random;
use hshm_tests::segment::{Kind, TempName, TestSegment};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Where the layout's version stands, in bytes from the segment's start. That, the magic before it and
/// the capacity's place hold for every version to come: they are read before the version is known.
const VERSION_AT: u64 = 8;
/// The fields up to here were written once and never change, but for the committed length.
const FIXED_BYTES: u64 = 128;
const COMMITTED: std::ops::Range<u64> = 32..40;

fn small(kind: Kind) -> TestSegment {
    TestSegment::new(kind, 4 << 20, InitOptions { worker_slots: 4, ..Default::default() })
}

fn open(kind: Kind, file: OwnedFd) -> Result<ThreadLocalAllocator, SegmentError> {
    let kind = match kind {
        Kind::PosixShm => BackendKind::PosixShm,
        Kind::Memfd => BackendKind::Memfd,
    };
    ThreadLocalAllocator::open_fd(kind, file)
}

fn not_shared_memory(result: &Result<ThreadLocalAllocator, SegmentError>) -> bool {
    matches!(result, Err(SegmentError::Backend(BackendError::NotSharedMemory { .. })))
}

#[test]
fn every_flipped_byte_of_the_header_is_refused_or_harmless() {
    for kind in [Kind::PosixShm, Kind::Memfd] {
        let segment = small(kind);
        let file = File::from(segment.fd());
        let mut refused = 0;
        for at in 0..4096 {
            for flip in [0x01, 0x80, 0xff] {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ flip], at).unwrap();
                let opened = open(kind, segment.fd());
                let what = format!("byte {at} flipped by {flip:#x}: {opened:?}");
                match &opened {
                    Err(SegmentError::Foreign { .. }) => assert!(at < 8, "{what}"),
                    Err(SegmentError::LayoutVersion { .. }) => {
                        assert!((VERSION_AT..VERSION_AT + 4).contains(&at), "{what}");
                    }
                    Err(
                        SegmentError::Corrupt { .. }
                        | SegmentError::Truncated { .. }
                        | SegmentError::Backend(BackendError::BadSize { .. }),
                    ) => assert!((VERSION_AT + 4..FIXED_BYTES).contains(&at), "{what}"),
                    Err(_) => panic!("{what}"),
                    Ok(heap) => {
                        assert!(at >= FIXED_BYTES || COMMITTED.contains(&at), "{what}");
                        let block = heap.allocate(100).unwrap();
                        // SAFETY: the block is ours.
                        unsafe { heap.free(block) }.unwrap();
                        assert!(heap.check().is_clean(), "{what}");
                    }
                }
                refused += u64::from(opened.is_err());
                drop(opened);
                file.write_all_at(&byte, at).unwrap();
            }
        }
        assert_eq!(refused, (FIXED_BYTES - 8) * 3);
        assert!(open(kind, segment.fd()).is_ok(), "put right again, it is attached");
        segment.assert_empty();
    }
}

#[test]
fn a_header_of_random_bytes_is_refused() {
    let segment = small(Kind::PosixShm);
    let file = File::from(segment.fd());
    let mut good = [0; 4096];
    file.read_exact_at(&mut good, 0).unwrap();
    let mut random = Random::new(31);
    for _ in 0..2000 {
        // From some byte on everything is wrong; the rest could be right.
        let mut header = good;
        let from = random.index(120);
        header[from..].fill_with(|| random.next().to_le_bytes()[0]);
        file.write_all_at(&header, 0).unwrap();
        let opened = open(Kind::PosixShm, segment.fd());
        assert!(opened.is_err(), "{opened:?}");
        assert_eq!(opened.unwrap_err().to_string().lines().count(), 1);
    }
    file.write_all_at(&good, 0).unwrap();
}

#[test]
fn older_and_newer_layouts_are_named() {
    for kind in [Kind::PosixShm, Kind::Memfd] {
        let segment = small(kind);
        let ours = segment.heap.report().layout_version;
        let file = File::from(segment.fd());
        for version in [0, ours - 1, ours + 1, u32::MAX] {
            file.write_all_at(&version.to_le_bytes(), VERSION_AT).unwrap();
            match open(kind, segment.fd()) {
                Err(error @ SegmentError::LayoutVersion { found, supported }) => {
                    assert_eq!((found, supported), (version, ours));
                    assert!(error.to_string().contains(&format!("layout version {version}")));
                }
                other => panic!("version {version}: {other:?}"),
            }
        }
        file.write_all_at(&ours.to_le_bytes(), VERSION_AT).unwrap();
        assert!(open(kind, segment.fd()).is_ok());
    }
}

#[test]
fn a_foreign_object_is_refused() {
    let name = TempName::new();
    let path = format!("/dev/shm/{}", name.as_str());
    std::fs::write(&path, b"Somebody else's shared memory.".repeat(1000)).unwrap();
    let error = ThreadLocalAllocator::attach(name.as_str()).unwrap_err();
    let found = u64::from_le_bytes(*b"Somebody");
    assert!(matches!(error, SegmentError::Foreign { found: f } if f == found), "{error:?}");

    // What a creator leaves that died before it was done: zeros.
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let error = ThreadLocalAllocator::attach(name.as_str()).unwrap_err();
    assert!(matches!(error, SegmentError::Foreign { found: 0 }), "{error:?}");

    File::create(&path).unwrap();
    let error = ThreadLocalAllocator::attach(name.as_str()).unwrap_err();
    assert!(matches!(error, SegmentError::Truncated { found_bytes: 0, .. }), "{error:?}");
}

#[test]
fn a_truncated_segment_is_refused_at_every_length() {
    let segment = small(Kind::PosixShm);
    let mut bytes = vec![0; usize::try_from(segment.heap.committed_bytes()).unwrap()];
    File::from(segment.fd()).read_exact_at(&mut bytes, 0).unwrap();
    let least = {
        // The tables and one unit; what is cut off behind that is room, not content.
        let report = segment.heap.report();
        let tables = report.committed_bytes - report.units_total * report.unit_bytes;
        tables + report.unit_bytes
    };
    let name = TempName::new();
    let path = format!("/dev/shm/{}", name.as_str());
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    assert!(ThreadLocalAllocator::attach(name.as_str()).is_ok(), "a copy is as good");
    let steps =
        [least - 1, least - 4096, least / 2, 65_536, 4097, 4096, 4095, 168, 32, 31, 8, 1, 0];
    for len in steps {
        file.set_len(len).unwrap();
        match ThreadLocalAllocator::attach(name.as_str()) {
            Err(SegmentError::Truncated { found_bytes, needed_bytes }) => {
                assert!(found_bytes <= len && found_bytes < needed_bytes, "{len}");
            }
            other => panic!("{len} bytes: {other:?}"),
        }
    }
}

#[test]
fn what_is_no_writable_shared_memory_is_refused() {
    let (reader, _writer) = nix::unistd::pipe().unwrap();
    let directory = OwnedFd::from(File::open("/dev/shm").unwrap());
    for kind in [Kind::PosixShm, Kind::Memfd] {
        for file in [&reader, &directory] {
            let opened = open(kind, file.try_clone().unwrap());
            assert!(matches!(opened, Err(SegmentError::Backend(_))), "{opened:?}");
        }
        let zeros =
            OwnedFd::from(File::options().read(true).write(true).open("/dev/zero").unwrap());
        let opened = open(kind, zeros);
        assert!(matches!(opened, Err(SegmentError::Foreign { found: 0 })), "{opened:?}");
    }
    // A device, a pipe or a folder is no backend either if nobody looks at its bytes first.
    for kind in [BackendKind::PosixShm, BackendKind::Memfd] {
        let zeros =
            OwnedFd::from(File::options().read(true).write(true).open("/dev/zero").unwrap());
        for file in [&zeros, &reader, &directory] {
            let opened = kind.open_fd(file.try_clone().unwrap(), 1 << 20);
            let is_refused = matches!(opened, Err(BackendError::NotSharedMemory { .. }));
            assert!(is_refused, "{opened:?}");
        }
    }
}

#[test]
fn a_file_open_for_reading_only_is_refused() {
    for kind in [Kind::PosixShm, Kind::Memfd] {
        let segment = small(kind);
        let fd = segment.fd();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let read_only = OwnedFd::from(File::open(&path).unwrap());
        let opened = open(kind, read_only);
        assert!(not_shared_memory(&opened), "{opened:?}");
        let write_only = OwnedFd::from(File::options().write(true).open(&path).unwrap());
        let opened = open(kind, write_only);
        assert!(matches!(opened, Err(SegmentError::Backend(_))), "{opened:?}");
    }
}

#[test]
fn a_memory_file_that_could_be_shortened_is_refused() {
    let segment = small(Kind::Memfd);
    let mut bytes = vec![0; usize::try_from(segment.heap.committed_bytes()).unwrap()];
    File::from(segment.fd()).read_exact_at(&mut bytes, 0).unwrap();
    let unsealed = memfd_create("unsealed", MFdFlags::MFD_CLOEXEC).unwrap();
    File::from(unsealed.try_clone().unwrap()).write_all(&bytes).unwrap();
    let opened = open(Kind::Memfd, unsealed.as_fd().try_clone_to_owned().unwrap());
    assert!(not_shared_memory(&opened), "{opened:?}");
    // Nor does one of the other kind pass for a memory file.
    let opened = open(Kind::Memfd, small(Kind::PosixShm).fd());
    assert!(not_shared_memory(&opened), "{opened:?}");
    // A sealed one refuses to be cut.
    let sealed = File::from(segment.fd());
    assert!(sealed.set_len(4096).is_err());
    drop(MemfdMmap::from_fd(segment.fd(), 4 << 20).unwrap());
}

#[test]
fn what_is_not_there_or_has_no_name_is_said() {
    let name = TempName::new();
    let error = ThreadLocalAllocator::attach(name.as_str()).unwrap_err();
    assert!(matches!(error, SegmentError::Backend(BackendError::NotFound { .. })), "{error:?}");
    for name in ["", "a/b", "..", &"n".repeat(300)] {
        let error = ThreadLocalAllocator::attach(name).unwrap_err();
        assert!(matches!(error, SegmentError::Backend(BackendError::BadName { .. })), "{error:?}");
    }
}

#[test]
fn tables_full_of_nonsense_end_no_process() {
    for seed in 0..60 {
        let options = InitOptions { worker_slots: 4, ..Default::default() };
        let segment = TestSegment::new(Kind::PosixShm, 64 << 20, options);
        let mut random = Random::new(seed);
        let mut blocks: Vec<_> =
            (0..500).map(|_| segment.heap.allocate(random.size(1, 20_000)).unwrap()).collect();
        for _ in 0..200 {
            let block = blocks.swap_remove(random.index(blocks.len()));
            // SAFETY: the block is ours.
            unsafe { segment.heap.free(block) }.unwrap();
        }
        let report = segment.heap.report();
        let tables = report.committed_bytes - report.units_total * report.unit_bytes;
        // Words of the tables, or of free blocks too.
        let end = if seed % 2 == 0 { tables } else { report.committed_bytes };
        let file = File::from(segment.fd());
        for _ in 0..1 << (seed % 12) {
            let at = 4096 + random.below((end - 4096) / 8) * 8;
            let mut word = [0; 8];
            file.read_exact_at(&mut word, at).unwrap();
            let old = u64::from_le_bytes(word);
            let new = match random.below(4) {
                0 => random.next(),
                1 => old ^ (1 << random.below(64)),
                2 => old.wrapping_add(16),
                _ => u64::MAX,
            };
            file.write_all_at(&new.to_le_bytes(), at).unwrap();
        }
        let mut command = segment.command(crate::WORKER, "scribbled");
        Worker::start(command.arg(seed.to_string())).finish();
    }
}
