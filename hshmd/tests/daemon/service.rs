//! The daemon as a service: what a service manager is told, and hands over from one daemon to the next.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use hshm_memory::{BackendKind, OffsetPointer, ThreadLocalAllocator};
use hshm_proto::{CreateSegment, ErrorCode, ReplyBody, RequestBody};
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};

use crate::doubles;
use crate::harness::{Site, wait_until};
use crate::manager::Manager;
use crate::wire::Client;
use crate::worker::{Role, Worker};

fn small(name: &str, backend: BackendKind) -> CreateSegment {
    CreateSegment { worker_slots: Some(8), backend, ..CreateSegment::new(name, 8 << 20) }
}

/// A block that holds `value`.
fn put(allocator: &ThreadLocalAllocator, value: u64) -> OffsetPointer {
    let block = allocator.allocate(8).unwrap();
    let address = allocator.resolve(block, 8).unwrap().cast::<u64>();
    // SAFETY: [owned] the block was just allocated, is 8 bytes long, and nobody else knows of it.
    unsafe { address.write_volatile(value) };
    block
}

fn get(allocator: &ThreadLocalAllocator, block: OffsetPointer) -> u64 {
    let address = allocator.resolve(block, 8).unwrap().cast::<u64>();
    // SAFETY: [mapped] the block is allocated, 8 bytes long, and was written before.
    unsafe { address.read_volatile() }
}

#[test]
fn segments_without_a_name_outlive_the_daemon_and_workers_never_notice() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let mut daemon = manager.start(&site, &[]);
    let mut client = daemon.client();
    let before = client.create(small("jobs", BackendKind::Memfd));
    client.create(small("named", BackendKind::PosixShm));
    wait_until("both are kept", || manager.kept() == ["jobs", "named"]);
    let mut blocks = vec![put(&client.allocator("jobs"), 0)];
    let busy = Worker::start(&site.socket(), "jobs", Role::Busy, None);
    // As by systemctl restart, as by a crash, and as by an upgrade of a daemon that crashed before.
    for (number, crash) in (1_u64..).zip([false, true, true, false]) {
        drop(client);
        if crash {
            daemon.crash();
        } else {
            daemon.stop(Signal::SIGTERM);
        }
        assert_eq!(manager.kept(), ["jobs", "named"]);
        daemon = manager.start(&site, &[]);
        client = daemon.client();
        assert_eq!(client.names(), ["jobs", "named"]);
        let list = client.list();
        let after = list.first().unwrap();
        assert_eq!((after.id, after.problem.clone()), (before.id, None), "{}", daemon.log());
        assert_eq!(after.created_unix_ms, before.created_unix_ms);
        // The worker that never connected again is known to be there.
        wait_until("the worker is watched", || {
            client.sessions().iter().any(|session| session.process.pid == busy.pid())
        });
        // And a newcomer finds by its name what was there before.
        let allocator = client.allocator("jobs");
        for (value, block) in (0..).zip(&blocks) {
            assert_eq!(get(&allocator, *block), value);
        }
        blocks.push(put(&allocator, number));
        Worker::start(&site.socket(), "jobs", Role::Connected, None).finish();
    }
    let said = busy.finish();
    assert!(said.starts_with("did ") && said != "did 0 rounds", "{said}");
    assert!(!daemon.log().contains("dropped"), "{}", daemon.log());

    // What is destroyed is kept no longer, and not there again.
    for name in ["jobs", "named"] {
        client.destroy(name, true).unwrap();
    }
    wait_until("nothing is kept", || manager.kept().is_empty());
    drop(client);
    daemon.stop(Signal::SIGTERM);
    assert_eq!(manager.start(&site, &[]).client().names(), [""; 0]);
}

#[test]
fn a_named_segment_whose_object_is_taken_away_meanwhile_goes_on_without_a_name() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let daemon = manager.start(&site, &[]);
    let mut client = daemon.client();
    for name in ["removed", "replaced"] {
        client.create(small(name, BackendKind::PosixShm));
    }
    let blocks = ["removed", "replaced"].map(|name| put(&client.allocator(name), 7));
    wait_until("both are kept", || manager.kept().len() == 2);
    drop(client);
    daemon.stop(Signal::SIGTERM);
    let object = |name: &str| Path::new("/dev/shm").join(site.namespace().object(name));
    fs::remove_file(object("removed")).unwrap();
    fs::remove_file(object("replaced")).unwrap();
    fs::write(object("replaced"), "a stranger's").unwrap();

    // Once from the record with a name, and once from that without.
    for _ in 0..2 {
        let daemon = manager.start(&site, &[]);
        let mut client = daemon.client();
        assert_eq!(client.names(), ["removed", "replaced"]);
        for (name, block) in ["removed", "replaced"].iter().zip(blocks) {
            assert_eq!(get(&client.allocator(name), block), 7);
        }
        assert!(client.list().iter().all(|segment| segment.object.is_none()));
        daemon.crash();
    }
    let daemon = manager.start(&site, &[]);
    daemon.client().destroy("replaced", true).unwrap();
    assert_eq!(fs::read_to_string(object("replaced")).unwrap(), "a stranger's");
    wait_until("one is kept", || manager.kept() == ["removed"]);
}

#[test]
fn what_a_killed_daemon_left_half_made_is_kept_no_longer() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let daemon = manager.start(&site, &[]);
    let mut client = daemon.client();
    for name in ["half-made", "half-gone", "lost", "whole"] {
        client.create(small(name, BackendKind::Memfd));
    }
    let block = put(&client.allocator("lost"), 7);
    wait_until("all are kept", || manager.kept().len() == 4);
    // A predecessor of the same name, of which the manager does not know that it is gone.
    let (old_name, old_file) = manager.kept_as("whole");
    put(&client.allocator("whole"), 1);
    client.destroy("whole", true).unwrap();
    client.create(small("whole", BackendKind::Memfd));
    let new = put(&client.allocator("whole"), 2);
    wait_until("another is kept", || {
        manager.kept().len() == 4 && manager.kept_as("whole").0 != old_name
    });
    manager.keep(&old_name, old_file);
    drop(client);
    daemon.crash();
    for (name, phase) in [("half-made", "\"creating\""), ("half-gone", "\"destroying\"")] {
        let text = fs::read_to_string(site.record(name)).unwrap();
        fs::write(site.record(name), text.replace("\"ready\"", phase)).unwrap();
    }
    fs::remove_file(site.record("lost")).unwrap();
    manager.keep("segment.rubbish@17", File::open("/dev/null").unwrap());

    let daemon = manager.start(&site, &[]);
    let mut client = daemon.client();
    // Without a record, it belongs to the daemon's user.
    assert_eq!(client.names(), ["lost", "whole"], "{}", daemon.log());
    assert_eq!(get(&client.allocator("lost"), block), 7);
    assert_eq!(get(&client.allocator("whole"), new), 2);
    wait_until("the others are let go of", || manager.kept() == ["lost", "rubbish", "whole"]);
    wait_until("the rubbish is in the log", || daemon.log().contains("segment.rubbish@17"));
}

#[test]
fn a_broken_segment_without_a_name_can_be_repaired() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let daemon = manager.start(&site, &[]);
    let mut client = daemon.client();
    client.create(small("jobs", BackendKind::Memfd));
    wait_until("it is kept", || manager.kept() == ["jobs"]);
    let (descriptor, file) = client.attach("jobs").unwrap();
    let copy = file.try_clone().unwrap();
    let allocator = ThreadLocalAllocator::open_fd(descriptor.backend, copy.into()).unwrap();
    allocator.set_identity(descriptor.identity);
    let blocks: Vec<_> = (0..3).map(|value| put(&allocator, value)).collect();
    // Freed, and then written to all the same.
    for block in blocks.iter().take(2) {
        // SAFETY: [owned] nobody else knows of the block.
        unsafe { allocator.free(*block) }.unwrap();
    }
    allocator.detach_thread();
    drop(allocator);
    for block in blocks.iter().take(2) {
        file.write_all_at(&[0x5a; 8], block.offset_bytes()).unwrap();
    }
    drop(client);
    daemon.crash();

    let daemon = manager.start(&site, &[]);
    let mut client = daemon.client();
    let inspect = RequestBody::Inspect { name: "jobs".into(), after_slot: 0 };
    client.refused(inspect, ErrorCode::Unusable);
    match client.ask(RequestBody::Repair { name: "jobs".into() }).unwrap() {
        ReplyBody::Repaired(report) => assert!(report.remaining.is_clean(), "{report:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(get(&client.allocator("jobs"), *blocks.last().unwrap()), 2);
}

#[test]
fn a_socket_that_was_handed_over_answers_also_while_no_daemon_runs() {
    let site = Site::new();
    let mut manager = Manager::new(&site);
    let flags = SockFlag::SOCK_CLOEXEC;
    let listening = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    // Not where the daemon's own settings would have it.
    let path = site.socket().with_file_name("activated");
    bind(listening.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    listen(&listening, Backlog::new(16).unwrap()).unwrap();
    let stream = std::os::unix::net::UnixListener::bind(path.with_file_name("stream")).unwrap();
    manager.sockets =
        vec![("connection".into(), stream.into()), ("hshmd.socket".into(), listening)];
    fs::remove_file(path.with_file_name("stream")).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    for crash in [true, false, false] {
        // Connected before there is a daemon, and greeted by it.
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || Client::connect(&path).status()
        });
        let daemon = site.launch(manager.command(&site, &[]), &path);
        let status = waiting.join().unwrap();
        assert_eq!((status.pid, status.socket), (daemon.pid(), path.clone()));
        assert!(!site.socket().exists(), "it listens in one place");
        wait_until("the other is in the log", || daemon.log().contains("is of no use here"));
        if crash {
            daemon.crash();
        } else {
            daemon.stop(Signal::SIGTERM);
        }
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode, "the socket is not the daemon's");
    }
}

#[test]
fn the_manager_is_told_how_the_daemon_does() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let daemon = manager.start(&site, &["--ephemeral"]);
    manager.wait_for("READY=1");
    manager.wait_for("STATUS=0 segments of 0 B in all, 0 processes");
    let mut client = daemon.client();
    client.create(small("jobs", BackendKind::Memfd));
    manager.wait_for("STATUS=1 segment of 8");
    let status = |line: &String| line.starts_with("STATUS=1") && line.ends_with(" 1 process");
    assert!(manager.states().iter().any(status), "{:?}", manager.states());
    client.refused(RequestBody::Create(small("jobs", BackendKind::Memfd)), ErrorCode::Exists);
    manager.clear();
    manager.wait_for("WATCHDOG=1");
    assert_eq!(manager.kept(), ["jobs"]);
    drop(client);
    daemon.stop(Signal::SIGTERM);
    manager.wait_for("STOPPING=1");
    wait_until("an ephemeral segment is not kept", || manager.kept().is_empty());
}

#[test]
fn a_store_with_less_room_than_there_may_be_segments_is_warned_of() {
    let site = Site::new();
    let manager = Manager::new(&site);
    for (room, is_said) in [("4095", true), ("4096", false)] {
        let mut command = manager.command(&site, &[]);
        command.env("FDSTORE", room);
        let daemon = site.launch(command, &site.socket());
        wait_until("it is ready", || daemon.log().contains("ready"));
        assert_eq!(daemon.log().contains("FileDescriptorStoreMax="), is_said, "{}", daemon.log());
        daemon.stop(Signal::SIGTERM);
    }
}

#[test]
fn a_contradiction_in_what_is_handed_over_is_one_line() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let mut command = manager.command(&site, &[]);
    let output = command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "a").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("hshmd: ") && said.lines().count() == 1, "{said}");
    assert!(said.contains("service manager"), "{said}");
}

#[test]
fn device_memory_outlives_the_daemon_where_it_is_kept() {
    let site = Site::new();
    let manager = Manager::new(&site);
    let library = doubles::library(doubles::GpuVendor::Cuda, doubles::Double::Whole);
    let start = || {
        let config = site.write_config("[limits]\nmax_segment_bytes = \"64M\"\n");
        let mut command = manager.command(&site, &["--config", config.to_str().unwrap()]);
        command.env("HSHM_LIBCUDA", &library);
        site.launch(command, &site.socket())
    };
    let mut daemon = start();
    let mut client = daemon.client();
    client.create(small("g", BackendKind::CudaShm));
    let more = RequestBody::AddDeviceMemory { name: "g".into(), device: 1, bytes: 65 << 20 };
    let refused = client.refused(more, ErrorCode::Quota);
    assert!(refused.message.contains("65 MiB") && refused.message.contains("64 MiB"), "{refused}");
    let add = RequestBody::AddDeviceMemory { name: "g".into(), device: 1, bytes: 2 << 20 };
    let (reply, files) = client.try_ask(add).unwrap();
    let Ok(ReplyBody::DeviceMemory(info)) = reply else { panic!("{reply:?}") };
    assert_eq!((info.device, info.bytes, files.len()), (1, 2 << 20, 1));
    let memory = File::from(files.into_iter().next().unwrap());
    // On the double it is memory of the host's.
    memory.write_at(b"kept", 4096).unwrap();
    wait_until("it is kept", || manager.kept_memory().len() == 1);
    // Whatever an earlier daemon had kept, of a segment that is gone, is let go of.
    manager.keep("device.gone@1@cuda.0.4096.65536", &memory);
    for crash in [true, false] {
        drop(client);
        if crash {
            daemon.crash();
        } else {
            daemon.stop(Signal::SIGTERM);
        }
        daemon = start();
        client = daemon.client();
        let found = client.try_ask(RequestBody::DeviceMemory { name: "g".into() }).unwrap();
        let (Ok(ReplyBody::DeviceMemory(after)), files) = found else { panic!("{found:?}") };
        assert_eq!(after, info, "{}", daemon.log());
        let again = File::from(files.into_iter().next().unwrap());
        let mut text = [0; 4];
        again.read_at(&mut text, 4096).unwrap();
        assert_eq!(&text, b"kept");
        let pool = client.try_ask(RequestBody::DevicePool { name: "g".into() }).unwrap().0;
        assert!(matches!(pool, Ok(ReplyBody::DevicePool(Some(_)))), "{pool:?}");
        wait_until("what is nobody's is let go of", || manager.kept_memory().len() == 1);
    }
    client.destroy("g", true).unwrap();
    wait_until("nothing is kept", || manager.kept_memory().is_empty());
    let gone = client.try_ask(RequestBody::DeviceMemory { name: "g".into() }).unwrap().0;
    assert_eq!(gone.unwrap_err().kind(), Some(ErrorCode::NotFound));
}
