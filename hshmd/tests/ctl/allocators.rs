//! Segments whose allocator is not the thread-local one.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use hshm_client::{
    Allocator, AllocatorKind, Client, CreateOptions, Error, ErrorCode, MemContext, OnExit,
    ScalablePageAllocator, SegmentAllocator, SegmentError, StackAllocator,
};

use crate::harness::{Daemon, wait_until};

/// Says to a process of these tests that it is to allocate and free until it is killed.
const SOCKET: &str = "HSHM_TEST_SCALABLE_SOCKET";

fn exchange<A: SegmentAllocator>(daemon: &Daemon, name: &str, kind: AllocatorKind) {
    let client = daemon.client();
    let here = client.attach_as::<A>(name).unwrap();
    let there = daemon.client().attach_as::<A>(name).unwrap();
    assert_eq!(here.kind(), kind);
    let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let block = here.put_bytes(&bytes).unwrap();
    let found = there.receive(here.share(block)).unwrap();
    assert!(there.usable_bytes(found).unwrap() >= 3000);
    let mut read = vec![0; 3000];
    there.read_bytes(found, &mut read).unwrap();
    assert_eq!(read, bytes);
    assert!(
        daemon.json(&format!("inspect {name}"))["heap"]["allocated_bytes"].as_u64() >= Some(3000)
    );
    // SAFETY: [owned] nobody uses it any more.
    unsafe { there.free_offset_no_null_check(MemContext::DEFAULT, found) }.unwrap();
    assert_eq!(here.allocated_bytes(), 0);
    assert!(here.receive(4096).is_err());
    there.detach().unwrap();
}

#[test]
fn a_page_table_and_an_arena_are_served_from_creation_to_destruction() {
    let mut daemon = Daemon::start();
    let kinds = [AllocatorKind::ScalablePage, AllocatorKind::Stack];
    for kind in kinds {
        let created = daemon.json(&format!(
            "create {kind} --size 2M --capacity 16M --custom-header 1K --allocator {kind}"
        ));
        assert_eq!(created["allocator"], kind.to_string());
        assert_eq!(created["capacity_bytes"], 16 << 20);
    }
    for round in 0..2 {
        exchange::<ScalablePageAllocator>(&daemon, "scalable-page", kinds[0]);
        exchange::<StackAllocator>(&daemon, "stack", kinds[1]);
        for kind in kinds {
            let name = kind.to_string();
            assert_eq!(daemon.json(&format!("check {name}"))["clean"], true);
            let grown = daemon.json(&format!("grow {name} --size {}M", 4 + round));
            assert_eq!(grown["committed_bytes"], (4 + round) << 20);
            assert!(daemon.text(&format!("inspect {name}")).contains(&name));
        }
        // The next daemon finds them as they are.
        daemon.kill();
        daemon.restart();
        for (index, row) in daemon.json("list").as_array().unwrap().iter().enumerate() {
            assert_eq!(row["allocator"], kinds[index].to_string());
            assert!(row["problem"].is_null(), "{row}");
        }
    }
    for kind in kinds {
        assert_eq!(daemon.json(&format!("destroy {kind}"))["destroyed"], true);
    }
}

#[test]
fn a_segment_is_attached_as_what_it_is() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let scalable = CreateOptions {
        allocator: AllocatorKind::ScalablePage,
        ..CreateOptions::new("pages", 2 << 20)
    };
    client.create(&scalable).unwrap();
    client.create(&CreateOptions::new("threads", 2 << 20)).unwrap();
    let is_other = |error: Error| {
        let Error::Segment { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(source, SegmentError::OtherAllocator { .. }), "{error}");
    };
    is_other(client.attach("pages").unwrap_err());
    is_other(client.attach_as::<StackAllocator>("pages").unwrap_err());
    is_other(client.attach_as::<ScalablePageAllocator>("threads").unwrap_err());
    assert_eq!(daemon.json("list")[0]["sessions"], 0, "a failed attachment is undone");
    for bad in [
        CreateOptions { allocator: AllocatorKind::Malloc, ..CreateOptions::new("m", 2 << 20) },
        CreateOptions { on_exit: OnExit::Reclaim, ..scalable.clone() },
        CreateOptions { worker_slots: Some(9), ..scalable },
    ] {
        let error = client.create(&bad).unwrap_err();
        assert_eq!(error.daemon_code(), Some(ErrorCode::BadArgument), "{error}");
    }
}

#[test]
fn a_client_killed_at_work_stops_nobody() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let options = CreateOptions {
        allocator: AllocatorKind::ScalablePage,
        ..CreateOptions::new("pages", 16 << 20)
    };
    client.create(&options).unwrap();
    let pages = client.attach_as::<ScalablePageAllocator>("pages").unwrap();
    for _ in 0..10 {
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "allocators::churn", "--nocapture"])
            .env(SOCKET, daemon.socket())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("it is at work", || daemon.json("list")[0]["sessions"] == 2);
        let block = pages.put_bytes(b"beside it").unwrap();
        worker.kill().unwrap();
        assert_eq!(worker.wait().unwrap().signal(), Some(9));
        assert_eq!(daemon.json("check pages")["clean"], true);
        // SAFETY: [owned] nobody else knows of it.
        unsafe { pages.free_offset_no_null_check(MemContext::DEFAULT, block) }.unwrap();
        wait_until("the daemon has seen it die", || daemon.json("list")[0]["sessions"] == 1);
    }
}

/// Not a test by itself: what the process does that is killed.
#[test]
fn churn() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let client = Client::builder().socket(socket).connect().unwrap();
    let pages = client.attach_as::<ScalablePageAllocator>("pages").unwrap();
    loop {
        let blocks = [100, 5000, 40].map(|bytes| pages.put_bytes(&vec![1; bytes]).unwrap());
        for block in blocks {
            // SAFETY: [owned] nobody else knows of it.
            unsafe { pages.free_offset_no_null_check(MemContext::DEFAULT, block) }.unwrap();
        }
    }
}
