//! Requests about segments, and what wrong ones are told.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use hshm_memory::{BackendKind, OnExit, ThreadLocalAllocator};
use hshm_proto::limits::{MAX_SEGMENT_NAME_BYTES, SEGMENTS_PER_PAGE};
use hshm_proto::{CreateSegment, ErrorCode, ReplyBody, RequestBody};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::harness::Site;
use crate::wire::Client;

const MIB: u64 = 1 << 20;
/// Of a segment on which nothing depends.
const SIZE: u64 = 2 * MIB;

fn small(name: &str) -> CreateSegment {
    CreateSegment { worker_slots: Some(8), ..CreateSegment::new(name, SIZE) }
}

fn name(text: &str) -> String {
    text.to_owned()
}

#[test]
fn a_created_segment_is_attached_by_descriptor_and_works() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    for backend in [BackendKind::PosixShm, BackendKind::Memfd] {
        let request = CreateSegment {
            backend,
            capacity_bytes: Some(64 * MIB),
            custom_header_bytes: 100,
            on_exit: OnExit::Reclaim,
            ..small(&format!("on-{backend}"))
        };
        let info = client.create(request.clone());
        assert_eq!((info.backend, info.on_exit), (backend, OnExit::Reclaim));
        assert_eq!(info.problem, None);
        assert_eq!(info.capacity_bytes, 64 * MIB);
        // The room that was asked for, and the segment's own tables.
        assert!((SIZE + 1..SIZE + MIB).contains(&info.committed_bytes), "{info:?}");

        let (descriptor, file) = client.attach(&request.name).unwrap();
        let flags = FdFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        assert_eq!(descriptor.name, request.name);
        assert_eq!(descriptor.id, info.id);
        assert_eq!(descriptor.identity.pid, std::process::id());
        assert_eq!(descriptor.capacity_bytes, 64 * MIB);
        assert_eq!(Some(descriptor.identity), client.welcome.as_ref().map(|w| w.identity));

        let allocator = ThreadLocalAllocator::open_fd(backend, file.into()).unwrap();
        allocator.set_identity(descriptor.identity);
        assert_eq!(allocator.id(), info.id);
        assert_eq!(allocator.custom_header().1, 100);
        assert_eq!(allocator.report().layout_version, hshm_proto::LAYOUT_VERSION);
        let block = allocator.allocate(1000).unwrap();
        let inspect = RequestBody::Inspect { name: request.name.clone(), after_slot: 0 };
        let Ok(ReplyBody::Inspected(page)) = client.ask(inspect) else { panic!("inspected") };
        assert!(page.heap.allocated_bytes >= 1000 && !page.more_workers);
        let [worker] = page.workers.as_slice() else { panic!("one worker: {:?}", page.workers) };
        assert_eq!(worker.process.pid, std::process::id());
        assert_eq!((page.segment.holders, page.segment.sessions), (1, 1));
        // SAFETY: [owned] nobody else knows of the block.
        unsafe { allocator.free(block) }.unwrap();

        let Ok(ReplyBody::Checked(report)) =
            client.ask(RequestBody::Check { name: request.name.clone() })
        else {
            panic!("checked")
        };
        assert!(report.is_clean(), "{report:?}");
        client.ask(RequestBody::Detach { name: request.name.clone() }).unwrap();
        client.refused(RequestBody::Detach { name: request.name }, ErrorCode::NotFound);
    }
    let status = client.status();
    assert_eq!(status.segments, 2);
    assert!((2 * SIZE..3 * SIZE).contains(&status.committed_bytes), "{status:?}");
    assert_eq!((status.connections, status.pid), (1, daemon.pid()));
}

#[test]
fn descriptors_in_the_daemon_are_not_inherited() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(small("a"));
    client.create(CreateSegment { backend: BackendKind::Memfd, ..small("b") });
    let _attached = client.attach("a").unwrap();
    for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap() {
        let number = entry.unwrap().file_name().into_string().unwrap();
        let own = |number: &str| fs::read_link(format!("/proc/self/fd/{number}")).ok();
        let target = fs::read_link(format!("/proc/{}/fd/{number}", daemon.pid())).ok();
        // What it got from whoever started it is not its own.
        if matches!(number.as_str(), "0" | "1" | "2") || target == own(&number) {
            continue;
        }
        let info = format!("/proc/{}/fdinfo/{number}", daemon.pid());
        // A descriptor may have been closed meanwhile.
        let Ok(info) = fs::read_to_string(info) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = u32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & 0o2_000_000, 0, "{number} {target:?} is not close-on-exec");
    }
}

#[test]
fn a_request_that_cannot_be_met_is_told_why_and_creates_nothing() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    let long = "n".repeat(300);
    let almost = "n".repeat(MAX_SEGMENT_NAME_BYTES + 1);
    for bad in ["", "a/b", "../x", ".hidden", "a b", "ä", "a\nb", &almost, &long] {
        let error = client.refused(RequestBody::Create(small(bad)), ErrorCode::BadName);
        assert!(error.to_string().len() < 300, "{error}");
        client.refused(RequestBody::Attach { name: name(bad) }, ErrorCode::BadName);
        client.refused(RequestBody::Destroy { name: name(bad), force: true }, ErrorCode::BadName);
    }
    let sized = |size_bytes| RequestBody::Create(CreateSegment { size_bytes, ..small("s") });
    client.refused(sized(0), ErrorCode::BadArgument);
    let error = client.refused(sized(1 << 60), ErrorCode::NoMemory);
    assert!(error.message.contains("memory") || error.message.contains("/dev/shm"), "{error}");
    client.refused(sized(u64::MAX), ErrorCode::NoMemory);
    let capable = |size_bytes, capacity| {
        let capacity_bytes = Some(capacity);
        RequestBody::Create(CreateSegment { size_bytes, capacity_bytes, ..small("s") })
    };
    // One that does not hold the segment's own tables, and one that no address space has.
    let error = client.refused(capable(4096, 65536), ErrorCode::BadArgument);
    assert!(error.message.contains("65536"), "{error}");
    client.refused(capable(MIB, 1 << 60), ErrorCode::BadArgument);
    client.refused(capable(MIB, MIB - 1), ErrorCode::BadArgument);
    let slots = RequestBody::Create(CreateSegment { worker_slots: Some(1 << 20), ..small("s") });
    client.refused(slots, ErrorCode::BadArgument);

    for request in [
        RequestBody::Attach { name: name("nobody") },
        RequestBody::Detach { name: name("nobody") },
        RequestBody::Destroy { name: name("nobody"), force: false },
        RequestBody::Grow { name: name("nobody"), size_bytes: MIB },
        RequestBody::Inspect { name: name("nobody"), after_slot: 0 },
        RequestBody::Check { name: name("nobody") },
    ] {
        let error = client.refused(request, ErrorCode::NotFound);
        assert!(error.message.contains("\"nobody\""), "{error}");
    }

    client.create(small("taken"));
    client.refused(RequestBody::Create(small("taken")), ErrorCode::Exists);
    assert_eq!(client.names(), ["taken"]);
    assert_eq!(site.objects().len(), 1);
    assert_eq!(fs::read_dir(site.state_dir().join("segments")).unwrap().count(), 1);
}

#[test]
fn limits_of_the_configuration_hold() {
    let site = Site::new();
    let config = site.write_config(
        "[limits]\nmax_segments = 2\nmax_segment_bytes = \"8M\"\nmax_total_bytes = \"12M\"\n",
    );
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    let sized = |name: &str, mib: u64| CreateSegment { size_bytes: mib * MIB, ..small(name) };
    let error = client.refused(RequestBody::Create(sized("a", 9)), ErrorCode::Quota);
    assert!(error.advice.contains("max_segment_bytes"), "{error}");
    client.create(sized("a", 7));
    let error = client.refused(RequestBody::Create(sized("b", 6)), ErrorCode::Quota);
    assert!(error.advice.contains("max_total_bytes"), "{error}");
    client.create(sized("b", 2));
    let error = client.refused(RequestBody::Create(sized("c", 2)), ErrorCode::Quota);
    assert!(error.advice.contains("max_segments"), "{error}");
    let grow = |mib: u64| RequestBody::Grow { name: name("b"), size_bytes: mib * MIB };
    client.refused(grow(6), ErrorCode::Quota);
    assert_eq!(client.ask(grow(3)), Ok(ReplyBody::Grown { committed_bytes: 3 * MIB }));
    client.destroy("a", false).unwrap();
    assert_eq!(client.ask(grow(8)), Ok(ReplyBody::Grown { committed_bytes: 8 * MIB }));
}

#[test]
fn a_segment_grows_under_those_who_use_it_up_to_its_capacity() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(CreateSegment { capacity_bytes: Some(16 * MIB), ..small("s") });
    let allocator = client.allocator("s");
    let large = 3 << 20;
    assert!(allocator.allocate(large).is_err(), "it is too small yet");
    let grow = |size_bytes| RequestBody::Grow { name: name("s"), size_bytes };
    client.refused(grow(0), ErrorCode::BadArgument);
    let error = client.refused(grow(17 * MIB), ErrorCode::BadArgument);
    assert!(error.message.contains("capacity"), "{error}");
    assert_eq!(client.ask(grow(8 * MIB)), Ok(ReplyBody::Grown { committed_bytes: 8 * MIB }));
    // One that is shorter than it is already changes nothing.
    assert_eq!(client.ask(grow(MIB)), Ok(ReplyBody::Grown { committed_bytes: 8 * MIB }));
    allocator.allocate(large).unwrap();
}

#[test]
fn a_list_of_many_segments_comes_in_pages_each_name_once_and_in_order() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    let count = SEGMENTS_PER_PAGE * 2 + 3;
    let mut expected = Vec::new();
    for n in 0..count {
        let name = format!("segment-{n}");
        let request =
            CreateSegment { backend: BackendKind::Memfd, worker_slots: Some(1), ..small(&name) };
        client.create(CreateSegment { capacity_bytes: Some(2 * MIB), ..request });
        expected.push(name);
    }
    expected.sort();
    assert_eq!(client.names(), expected);
    let Ok(ReplyBody::Segments { segments, more }) =
        client.ask(RequestBody::List { after: Some(name("segment-9999")) })
    else {
        panic!("a page")
    };
    assert!(segments.is_empty() && !more);
    let identities: std::collections::HashSet<_> =
        client.list().iter().map(|segment| segment.id).collect();
    assert_eq!(identities.len(), count, "each has an identity of its own");
}

#[test]
fn a_destroyed_segment_is_gone_but_for_those_who_have_it_mapped() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    let info = client.create(small("s"));
    let object = Path::new("/dev/shm").join(info.object.unwrap());
    assert!(object.exists() && site.record("s").exists());
    let allocator = client.allocator("s");
    allocator.allocate(100).unwrap();
    // Only the caller itself uses it, and it knows what it does.
    client.destroy("s", false).unwrap();
    assert!(!object.exists() && !site.record("s").exists());
    client.refused(RequestBody::Attach { name: name("s") }, ErrorCode::NotFound);
    allocator.allocate(100).unwrap();
    client.create(small("s"));
}

#[test]
fn a_name_that_a_stranger_took_in_dev_shm_is_refused_and_left_alone() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    let file = Path::new("/dev/shm").join(site.namespace().object("theirs"));
    fs::write(&file, "precious").unwrap();
    let error = client.refused(RequestBody::Create(small("theirs")), ErrorCode::Exists);
    assert!(error.message.contains(file.to_str().unwrap()), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(!site.record("theirs").exists());
    drop(client);
    // Nor does a restart touch it.
    daemon.crash();
    let daemon = site.start(&[]);
    assert!(daemon.client().names().is_empty());
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn two_clients_create_different_segments_at_once() {
    let site = Site::new();
    let daemon = site.start(&[]);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let mut client = daemon.client();
            scope.spawn(move || {
                for round in 0..10 {
                    let name = format!("s{n}-{round}");
                    client.create(small(&name));
                    let (_, file) = client.attach(&name).unwrap();
                    assert!(file.as_raw_fd() > 2);
                    client.destroy(&name, false).unwrap();
                }
            });
        }
    });
    assert!(Client::connect(&site.socket()).names().is_empty());
    assert!(site.objects().is_empty());
}
