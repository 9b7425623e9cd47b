//! Attaching for reading alone: the kernel, and no promise, keeps a reader from writing.

use std::fs::OpenOptions;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::path::Path;

use hshm_client::{Client, ErrorCode, ReadOnlySegment};
use hshm_memory::{BackendKind, OffsetPointer};
use hshm_proto::{CreateSegment, RequestBody};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mprotect};

use crate::harness::Site;
use crate::worker::{Role, Worker};

/// A user that exists nowhere.
const ALICE: u32 = 4_000_001;
const TEXT: &[u8] = b"read me, and leave me as I am";
const PAGE: usize = 4096;

fn client(socket: &Path) -> Client {
    Client::builder().socket(socket).connect().unwrap()
}

/// What a reader can do, in words, and what it writes with.
pub(crate) fn attempts(socket: &Path, name: &str) -> (String, Box<dyn Fn()>) {
    let client = client(socket);
    let attached = match client.attach(name) {
        Ok(_) => "attached".to_owned(),
        Err(error) => format!("{:?}", error.daemon_code()),
    };
    let segment = client.attach_read_only(name).unwrap();
    let (header, len) = segment.custom_header();
    let mut text = vec![0; len];
    segment.read_bytes(header, &mut text).unwrap();
    let read = text.starts_with(TEXT);
    assert!(segment.read_bytes(OffsetPointer::new(u64::MAX - 8), &mut text).is_err());
    assert!(segment.load(OffsetPointer::new(segment.committed_bytes())).is_err());
    assert!(segment.load(header).is_ok());
    let (heap, check) = (segment.report().unwrap(), segment.check().unwrap());
    let walked = format!("{} blocks, {}", heap.allocated_blocks, check.violations_total);
    let map = map_writable(&segment);
    let path = format!("/proc/self/fd/{}", segment.fd().unwrap().as_raw_fd());
    let reopened = OpenOptions::new().read(true).write(true).open(path);
    let reopened = reopened.map_or_else(|error| error.kind().to_string(), |_| "opened".into());
    let address = segment.resolve(header, 1).unwrap().cast_mut();
    let write = move || {
        let _held = &segment;
        // SAFETY: [mapped] it was resolved. That the kernel does not let this happen is what is tested.
        unsafe { address.write_volatile(1) };
    };
    (format!("{attached}; {read}; {walked}; {map}; {reopened}"), Box::new(write))
}

/// What comes of mapping the file for writing, and of making the mapping that there is writable.
fn map_writable(segment: &ReadOnlySegment) -> String {
    let page = NonZeroUsize::new(PAGE).unwrap();
    let writable = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let file = segment.fd().unwrap();
    // SAFETY: [owned] the kernel chooses the place; nothing is accessed through it.
    let mapped = unsafe { mmap(None, page, writable, MapFlags::MAP_SHARED, file, 0) };
    // SAFETY: [owned] as above.
    let readable = unsafe { mmap(None, page, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) };
    // SAFETY: [owned] it was just mapped here, and nobody uses it.
    let protected = unsafe { mprotect(readable.unwrap(), PAGE, writable) };
    format!("{} {}", mapped.map(drop).unwrap_err(), protected.unwrap_err())
}

fn create(socket: &Path, name: &str, backend: BackendKind, mode: u32) {
    let client = client(socket);
    let custom_header_bytes = 64;
    let options =
        CreateSegment { backend, mode, custom_header_bytes, ..CreateSegment::new(name, 16 << 20) };
    client.create(&options).unwrap();
    let segment: hshm_client::Segment = client.attach(name).unwrap();
    segment.put_bytes(TEXT).unwrap();
    let (header, len) = segment.custom_header();
    let address = segment.resolve(header, len).unwrap();
    // SAFETY: [mapped] it was resolved; nobody else has attached it yet.
    unsafe { std::ptr::copy_nonoverlapping(TEXT.as_ptr(), address.as_ptr(), TEXT.len()) };
}

#[test]
fn a_reader_of_another_user_reads_and_cannot_write_whatever_it_tries() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let site = Site::new();
    let config = site.write_config("socket_mode = 0o666\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    for (name, backend) in [("named", BackendKind::PosixShm), ("nameless", BackendKind::Memfd)] {
        create(&site.socket(), name, backend, 0o644);
        let reader = Worker::start(&site.socket(), name, Role::Read, Some(ALICE));
        let (refused, denied) = (Some(ErrorCode::Permission), Errno::EACCES);
        let expected =
            format!("{refused:?}; true; 1 blocks, 0; {denied} {denied}; permission denied");
        assert_eq!(reader.greeting, expected, "{name}");
        let mut root = daemon.client();
        let found = root.sessions().into_iter().find(|session| session.uid == Some(ALICE));
        assert_eq!(found.unwrap().segments, [name]);
        assert_eq!(client(&site.socket()).inspect(name).unwrap().segment.holders, 0, "no slots");
        let destroy = RequestBody::Destroy { name: name.into(), force: false };
        root.refused(destroy, ErrorCode::InUse);
        assert_eq!(reader.perish(), Some(nix::libc::SIGSEGV), "{name}");
    }
}

#[test]
fn who_may_not_read_may_not_attach_for_reading_either() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let site = Site::new();
    let config = site.write_config("socket_mode = 0o666\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut root = daemon.client();
    for mode in [0o600, 0o622] {
        let name = format!("mode-{mode:o}");
        root.create(CreateSegment { mode, ..CreateSegment::new(&name, 1 << 20) });
        let said = Worker::start(&site.socket(), &name, Role::AttachToRead, Some(ALICE));
        assert!(said.greeting.contains(&format!("user {ALICE} may not read")), "{}", said.greeting);
    }
}

#[test]
fn whoever_runs_the_daemon_cannot_write_through_a_readers_mapping_either() {
    let site = Site::new();
    let _daemon = site.start(&[]);
    create(&site.socket(), "own", BackendKind::Memfd, 0o600);
    let reader = Worker::start(&site.socket(), "own", Role::Read, None);
    let denied = Errno::EACCES;
    // The owner of the file can open it anew; what it was handed stays as it is.
    let expected = format!("attached; true; 1 blocks, 0; {denied} {denied}; opened");
    assert_eq!(reader.greeting, expected);
    assert_eq!(reader.perish(), Some(nix::libc::SIGSEGV));
}
