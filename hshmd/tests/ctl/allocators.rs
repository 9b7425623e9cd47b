//! Segments whose allocator is not the thread-local one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use hshm_client::{
    Allocator, AllocatorKind, Client, CreateOptions, Error, ErrorCode, MemContext, OnExit,
    ScalablePageAllocator, SegmentAllocator, SegmentError, StackAllocator,
};

use crate::harness::{Daemon, assert_refused, wait_until};

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

/// The memory behind a segment, and what its allocator counts as allocated.
fn memory(daemon: &Daemon, name: &str) -> (File, u64) {
    let inspected = daemon.json(&format!("inspect {name}"));
    let object = inspected["segment"]["object"].as_str().unwrap().to_owned();
    let file = OpenOptions::new().read(true).write(true).open(format!("/dev/shm/{object}"));
    (file.unwrap(), inspected["heap"]["allocated_bytes"].as_u64().unwrap())
}

/// Adds to each word of the allocator's own header that holds `value`.
fn raise(file: &File, value: u64) {
    let mut header = [0; 4096];
    file.read_exact_at(&mut header, 0).unwrap();
    let places: Vec<_> =
        header.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let places: Vec<_> = (0..).zip(places).filter(|(_, word)| *word == value).collect();
    assert!(!places.is_empty(), "no word of the header is {value}");
    for (index, word) in places {
        file.write_all_at(&(word + (1 << 40)).to_le_bytes(), index * 8).unwrap();
    }
}

fn stdout(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}{:?}", output.stderr);
    text
}

#[test]
fn a_page_table_is_repaired_but_for_the_headers_of_its_pages() {
    let mut daemon = Daemon::start();
    daemon.text("create pages --size 2M --allocator scalable-page");
    let user = daemon.client().attach_as::<ScalablePageAllocator>("pages").unwrap();
    let blocks = [9000, 77, 5000].map(|bytes| user.put_bytes(&vec![7; bytes]).unwrap());
    assert_refused(&daemon.ctl("check pages --repair"), &["\"pages\"", "in use"]);
    user.detach().unwrap();
    let sound = daemon.json("check pages --repair");
    assert_eq!((&sound["changed"], &sound["clean"]), (&false.into(), &true.into()), "{sound}");

    // A sum: found, and made anew, by this daemon and by the next, which takes it out of use first.
    for is_next in [false, true] {
        let (file, allocated) = memory(&daemon, "pages");
        raise(&file, allocated);
        if is_next {
            daemon.kill();
            daemon.restart();
            assert_refused(&daemon.ctl("check pages"), &["corrupt", "check --repair"]);
        } else {
            assert!(stdout(&daemon.ctl("check pages"), 3).contains("P5"));
        }
        let repaired = daemon.text("check pages --repair");
        assert!(repaired.contains("counts and links corrected: 1"), "{repaired}");
        assert!(repaired.contains("segment pages is sound"), "{repaired}");
        assert_eq!(memory(&daemon, "pages").1, allocated);
    }

    // The header of a page, of which nothing tells.
    let (file, _) = memory(&daemon, "pages");
    file.write_all_at(&[0x5a; 16], blocks[1].offset_bytes() - 16).unwrap();
    let repaired = stdout(&daemon.ctl("check pages --repair"), 3);
    assert!(
        repaired.contains("nothing could be repaired") && repaired.contains("P1"),
        "{repaired}"
    );
    // What can be read still is.
    let user = daemon.client().attach_as::<ScalablePageAllocator>("pages").unwrap();
    let mut bytes = [0; 9000];
    user.read_bytes(blocks[0], &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 7));
    user.detach().unwrap();
    daemon.text("destroy pages");
}

#[test]
fn an_arena_is_checked_and_has_nothing_to_be_repaired() {
    let mut daemon = Daemon::start();
    daemon.text("create arena --size 2M --allocator stack");
    let user = daemon.client().attach_as::<StackAllocator>("arena").unwrap();
    let blocks = [9000, 77, 5000].map(|bytes| user.put_bytes(&vec![7; bytes]).unwrap());
    let all = memory(&daemon, "arena").1;
    // SAFETY: [owned] nobody else knows of it.
    unsafe { user.free_offset_no_null_check(MemContext::DEFAULT, blocks[0]) }.unwrap();
    user.detach().unwrap();
    let sound = daemon.json("check arena --repair");
    assert_eq!((&sound["changed"], &sound["clean"]), (&false.into(), &true.into()), "{sound}");
    // More is free than was ever allocated: nothing tells how much it was.
    let (file, left) = memory(&daemon, "arena");
    raise(&file, all - left);
    for line in ["check arena", "check arena --repair"] {
        assert!(stdout(&daemon.ctl(line), 3).contains("S2"), "{line}");
    }
    daemon.kill();
    daemon.restart();
    assert_refused(&daemon.ctl("check arena"), &["corrupt"]);
    let repaired = stdout(&daemon.ctl("check arena --repair"), 3);
    assert!(
        repaired.contains("nothing could be repaired") && repaired.contains("S2"),
        "{repaired}"
    );
    daemon.text("destroy arena");
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
