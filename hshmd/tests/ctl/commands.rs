use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use crate::harness::{Daemon, hshmctl};

#[test]
fn a_segment_is_created_shown_grown_checked_and_destroyed() {
    let daemon = Daemon::start();
    assert!(daemon.text("list").contains("no segments"));
    let created = daemon.text("create jobs --size 4M --capacity 64M --mode 640");
    assert!(created.starts_with("created segment jobs: "), "{created}");

    let list = daemon.text("list");
    let row: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[3], row[4]), ("jobs", "64", "MiB"), "{list}");
    assert!(list.contains("rw-r-----"), "{list}");

    let inspect = daemon.text("inspect jobs");
    for word in ["capacity", "64 MiB", "posix-shm", "fragmentation", "size classes", "workers"] {
        assert!(inspect.contains(word), "{inspect}");
    }
    assert!(daemon.text("grow jobs --size 16M").contains("16 MiB"));
    assert!(daemon.text("check jobs").contains("is sound"));
    assert!(daemon.text("status").contains("1 segment,"));
    assert!(daemon.text("sessions").contains("hshmctl"));
    assert_eq!(daemon.text("destroy jobs"), "destroyed segment jobs\n");
    assert!(daemon.names().is_empty());
}

#[test]
fn programs_get_json_from_every_command() {
    let daemon = Daemon::start();
    let created = daemon.json(
        "create jobs --size 2M --capacity 32M --backend memfd --on-exit reclaim \
         --custom-header 4K --worker-slots 7 --allocator thread-local",
    );
    assert_eq!(created["name"], "jobs");
    assert_eq!(created["capacity_bytes"], 32 << 20);
    assert_eq!((&created["backend"], &created["on_exit"]), (&"memfd".into(), &"reclaim".into()));
    assert_eq!(daemon.json("list")[0], created);

    let inspected = daemon.json("inspect jobs");
    assert_eq!(inspected["segment"], created);
    assert_eq!(inspected["heap"]["worker_slots"], 7);
    assert_eq!(inspected["heap"]["custom_header_bytes"], 4096);
    assert!(inspected["external_fragmentation"].is_f64());

    let grown = daemon.json("grow jobs --size 8M");
    assert_eq!(grown["committed_bytes"], 8 << 20);
    assert_eq!(daemon.json("check jobs")["clean"], true);
    assert_eq!(daemon.json("status")["segments"], 1);
    assert_eq!(daemon.json("sessions")[0]["client_name"], "hshmctl");
    assert_eq!(daemon.json("destroy jobs")["destroyed"], true);
    assert_eq!(daemon.json("list"), serde_json::json!([]));
}

#[test]
fn occupancy_and_workers_are_those_of_the_processes_at_work() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 8M");
    let segment = daemon.client().attach("jobs").unwrap();
    let blocks: Vec<_> = (0..100).map(|_| segment.allocate(1000).unwrap()).collect();
    let large = segment.allocate(3 << 20).unwrap();

    let inspected = daemon.json("inspect jobs");
    let heap = &inspected["heap"];
    assert_eq!(heap["allocated_blocks"], 101);
    assert_eq!(heap["large_blocks"], 1);
    assert_eq!(heap["classes"][0]["block_bytes"], 1024);
    assert_eq!(heap["classes"][0]["allocated_blocks"], 100);
    assert_eq!(heap["workers"][0]["process"]["pid"], std::process::id());
    assert_eq!(inspected["segment"]["holders"], 1);
    let text = daemon.text("inspect jobs");
    assert!(text.contains("1 KiB") && text.contains("larger") && text.contains("live"), "{text}");

    for block in blocks.into_iter().chain([large]) {
        // SAFETY: [owned] nobody else knows of the block.
        unsafe { segment.free(block) }.unwrap();
    }
    assert_eq!(daemon.json("inspect jobs")["heap"]["allocated_bytes"], 0);
}

#[test]
fn a_broken_heap_is_exit_code_3() {
    let daemon = Daemon::start();
    damaged(&daemon);
    let output = daemon.ctl("check jobs");
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{stdout}");
    assert!(stdout.contains("violation") && stdout.contains("I3"), "{stdout}");
    let output = daemon.ctl("check jobs --json");
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["clean"], false);
}

/// Allocates three blocks, and has a process write to the first two after it freed them.
fn damaged(daemon: &Daemon) -> Vec<hshm_client::OffsetPointer> {
    daemon.text("create jobs --size 4M");
    let segment = daemon.client().attach("jobs").unwrap();
    let blocks: Vec<_> = (0..3).map(|_| segment.allocate(64).unwrap()).collect();
    for block in &blocks[..2] {
        // SAFETY: [owned] nobody else knows of the block.
        unsafe { segment.free(*block) }.unwrap();
    }
    segment.detach().unwrap();
    let object = daemon.json("inspect jobs")["segment"]["object"].clone();
    let path = format!("/dev/shm/{}", object.as_str().unwrap());
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for block in &blocks[..2] {
        file.write_all_at(&[0x5a; 64], block.offset_bytes()).unwrap();
    }
    blocks
}

#[test]
fn a_broken_heap_is_repaired_when_nobody_uses_it() {
    let mut daemon = Daemon::start();
    let blocks = damaged(&daemon);
    let user = daemon.client().attach("jobs").unwrap();
    crate::harness::assert_refused(&daemon.ctl("check jobs --repair"), &["\"jobs\"", "in use"]);
    user.detach().unwrap();

    // The next daemon finds it broken, and takes it out of use.
    daemon.kill();
    daemon.restart();
    crate::harness::assert_refused(&daemon.ctl("check jobs"), &["corrupt", "check --repair"]);
    let output = daemon.text("check jobs --repair");
    assert!(output.contains("free lists dropped") && output.contains("is sound"), "{output}");
    let again = daemon.json("check jobs --repair");
    assert_eq!((&again["changed"], &again["clean"]), (&false.into(), &true.into()), "{again}");

    // It is in use again, and the block that was allocated is.
    let segment = daemon.client().attach("jobs").unwrap();
    // SAFETY: [owned] nobody else knows of the block.
    unsafe { segment.free(blocks[2]) }.unwrap();
    assert!(daemon.text("check jobs").contains("is sound"));
}

#[test]
fn a_segment_in_use_is_not_destroyed_without_force() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    let segment = daemon.client().attach("jobs").unwrap();
    let block = segment.put_bytes(b"still here").unwrap();
    crate::harness::assert_refused(&daemon.ctl("destroy jobs"), &["\"jobs\"", "--force"]);
    assert_eq!(daemon.names(), ["jobs"]);

    assert_eq!(daemon.text("destroy jobs --force"), "destroyed segment jobs\n");
    assert!(daemon.names().is_empty());
    // Who has it attached keeps its memory.
    let mut bytes = [0; 10];
    segment.read_bytes(block, &mut bytes).unwrap();
    assert_eq!(&bytes, b"still here");
}

#[test]
fn lists_of_several_pages_come_whole_and_in_order() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let names: Vec<String> = (0..300).map(|i| format!("segment-{i:03}")).collect();
    for name in &names {
        let options = hshm_client::CreateOptions {
            capacity_bytes: Some(1 << 20),
            worker_slots: Some(1),
            ..hshm_client::CreateOptions::new(name, 1 << 20)
        };
        client.create(&options).unwrap();
    }
    assert_eq!(daemon.names(), names);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    for line in ["list", "list --json", "inspect jobs", "--help"] {
        let mut child = daemon
            .command()
            .args(line.split(' '))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && stderr.is_empty(), "{line}: {stderr}");
    }
}

#[test]
fn help_says_what_the_exit_codes_mean_and_wrong_usage_is_2() {
    let help = hshmctl().arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for word in ["Exit codes", "wrong usage", "violations", "130", "HSHM_SOCKET", "demo"] {
        assert!(text.contains(word), "{text}");
    }
    assert!(!text.contains("demo-part"), "{text}");
    for line in ["", "frobnicate", "create x", "create x --size much", "grow x", "list extra"] {
        let output = hshmctl().args(line.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
    }
    // What there is not is told with what there is.
    for (option, wrong, right) in [
        ("--backend", "malloc", "memfd"),
        ("--allocator", "malloc", "scalable-page"),
        ("--on-exit", "kep", "reclaim"),
        ("--huge-pages", "always", "require"),
    ] {
        let line = ["create", "x", "--size", "1M", option, wrong];
        let output = hshmctl().args(line).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(wrong) && said.contains(right), "{said}");
    }
    let sizes = hshmctl().args(["create", "--help"]).output().unwrap();
    assert!(String::from_utf8(sizes.stdout).unwrap().contains("powers of 1024"));
}
