//! The client library against a real daemon.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use hshm_client::{CreateOptions, Error, ErrorCode, OffsetPointer};
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use crate::harness::{Daemon, wait_until};

#[test]
fn a_segment_is_attached_as_long_as_a_clone_of_it_is_there() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.create(&CreateOptions::new("jobs", 4 << 20)).unwrap();
    let sessions = || daemon.json("list")[0]["sessions"].as_u64().unwrap();

    let first = client.attach("jobs").unwrap();
    let second = client.attach("jobs").unwrap();
    let clone = first.clone();
    assert_eq!(sessions(), 1);
    drop(first);
    second.detach().unwrap();
    assert_eq!(sessions(), 1);
    clone.detach().unwrap();
    assert_eq!(sessions(), 0);
    assert_eq!(client.attach("nobody").unwrap_err().daemon_code(), Some(ErrorCode::NotFound));
}

#[test]
fn what_one_attachment_writes_another_reads_at_the_same_offset() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.create(&CreateOptions::new("jobs", 4 << 20)).unwrap();
    let (here, there) = (client.attach("jobs").unwrap(), daemon.client().attach("jobs").unwrap());
    for len in [0, 1, 7, 8, 9, 1000, 100_000] {
        let bytes: Vec<u8> = (0..len).map(|i: u32| i.to_le_bytes()[0]).collect();
        let block = here.put_bytes(&bytes).unwrap();
        let found = there.receive(here.share(block)).unwrap();
        let mut read = vec![0; bytes.len()];
        there.read_bytes(found, &mut read).unwrap();
        assert_eq!(read, bytes);
        // From an odd place, so that the words in the middle are not aligned with the slice.
        if let Some(tail) = bytes.get(1..) {
            let odd = OffsetPointer::new(found.offset_bytes() + 1);
            let mut read = vec![0; tail.len()];
            there.read_bytes(odd, &mut read).unwrap();
            assert_eq!(read, tail);
        }
        // SAFETY: [owned] nobody writes to the block.
        assert_eq!(unsafe { there.bytes(found, bytes.len()) }.unwrap(), bytes);
        // SAFETY: [owned] nobody uses it any more.
        unsafe { there.free(found) }.unwrap();
    }
    for nonsense in [0, 1, 4096, 3 << 20, u64::MAX] {
        assert!(here.receive(nonsense).is_err(), "{nonsense}");
    }
    assert!(here.read_bytes(OffsetPointer::new(u64::MAX - 3), &mut [0; 8]).is_err());
}

#[test]
fn work_goes_on_while_the_daemon_is_dead_and_requests_after_its_restart() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.create(&CreateOptions::new("jobs", 4 << 20)).unwrap();
    let segment = client.attach("jobs").unwrap();
    let before = segment.put_bytes(b"before").unwrap();

    daemon.kill();
    let meanwhile = segment.put_bytes(b"meanwhile").unwrap();
    // SAFETY: [owned] nobody else knows of the block.
    unsafe { segment.free(before) }.unwrap();
    assert!(matches!(client.status(), Err(Error::NoDaemon { .. })));

    daemon.restart();
    assert_eq!(client.list().unwrap().len(), 1);
    assert_eq!(daemon.json("list")[0]["sessions"], 1, "the session is taken back");
    let other = daemon.client().attach("jobs").unwrap();
    let mut bytes = [0; 9];
    other.read_bytes(other.receive(segment.share(meanwhile)).unwrap(), &mut bytes).unwrap();
    assert_eq!(&bytes, b"meanwhile");
    assert!(client.check("jobs").unwrap().is_clean());
}

#[test]
fn a_segment_can_be_let_go_of_while_the_daemon_is_dead_and_after_its_restart() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    client.create(&CreateOptions::new("jobs", 4 << 20)).unwrap();
    let [meanwhile, afterwards] = [daemon.client(), daemon.client()].map(|client| {
        let segment = client.attach("jobs").unwrap();
        segment.put_bytes(b"jobs").unwrap();
        (client, segment)
    });
    daemon.kill();
    meanwhile.1.detach().unwrap();
    daemon.restart();
    afterwards.1.detach().unwrap();
    for client in [meanwhile.0, afterwards.0] {
        client.attach("jobs").unwrap().detach().unwrap();
    }
    assert_eq!(client.list().unwrap()[0].sessions, 0);
}

#[test]
fn a_forked_child_works_with_what_it_inherited() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.create(&CreateOptions::new("jobs", 4 << 20)).unwrap();
    let segment = client.attach("jobs").unwrap();
    let cell = segment.put_bytes(&[0; 8]).unwrap();
    let parents = segment.allocate(64).unwrap();
    // SAFETY: [ffi] the child uses the library and then _exit; other tests' threads may hold locks
    // of the standard library's output, which it does not touch.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let child = || -> Result<(), Error> {
                client.ping()?;
                segment.allocate_into(cell, 64)?;
                // SAFETY: [owned] the parent waits for us before it uses the block.
                unsafe { segment.free(parents) }?;
                drop(segment);
                Ok(())
            };
            let code = i32::from(child().is_err());
            // SAFETY: [ffi] ends the child without running the parent's test harness in it.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    let mut offset = [0; 8];
    segment.read_bytes(cell, &mut offset).unwrap();
    let childs = segment.receive(u64::from_ne_bytes(offset)).unwrap();
    assert_ne!(childs, parents);
    // SAFETY: [owned] the child is dead.
    unsafe { segment.free(childs) }.unwrap();
    client.ping().unwrap();
    wait_until("the child's slot is recovered", || {
        client.inspect("jobs").unwrap().heap.workers.len() == 1
    });
    assert!(client.check("jobs").unwrap().is_clean());
}

#[test]
fn descriptors_do_not_pass_to_other_programs() {
    let daemon = Daemon::start();
    let client = daemon.client();
    client.create(&CreateOptions::new("jobs", 4 << 20)).unwrap();
    let _segment = client.attach("jobs").unwrap();
    let status = std::process::Command::new("sh")
        .args(["-c", "ls -l /proc/$$/fd | grep -q jobs && exit 7; exit 0"])
        .status()
        .unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    let ours = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    assert!(ours.into_iter().any(|path| path.to_string_lossy().contains("jobs")));
}
