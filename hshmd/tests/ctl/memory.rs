//! How a segment's memory is to be had, and was.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::harness::{Daemon, assert_refused};

#[test]
fn memory_is_had_as_asked_for_and_inspect_says_so() {
    let daemon = Daemon::start();
    for backend in ["posix-shm", "memfd"] {
        let options = "--huge-pages try --numa default --populate";
        daemon.json(&format!("create {backend} --size 4M --backend {backend} {options}"));
        let memory = &daemon.json(&format!("inspect {backend}"))["memory"];
        assert!(memory["resident_bytes"].as_u64().unwrap() >= 4 << 20, "{memory}");
        assert!(memory["page_bytes"].as_u64().unwrap() >= 4096, "{memory}");
        assert_eq!(memory["numa"], "default", "{memory}");
        assert_eq!(memory["locked_bytes"].as_u64().unwrap() > 0, memory["page_bytes"] == 2 << 20);
    }
    daemon.text("create plain --size 4M --huge-pages never");
    let plain = &daemon.json("inspect plain")["memory"];
    assert_eq!(plain["huge_bytes"], 0);
    assert!(plain["resident_bytes"].as_u64().unwrap() < 4 << 20, "nothing asks for all of it");
    let text = daemon.text("inspect plain");
    assert!(text.contains("NUMA policy") && text.contains("that the daemon uses"), "{text}");
}

#[test]
fn nodes_are_those_asked_for_or_the_refusal_names_them() {
    let daemon = Daemon::start();
    let output = daemon.ctl("create bound --size 1M --numa bind:0");
    if output.status.success() {
        let memory = &daemon.json("inspect bound")["memory"];
        assert_eq!(memory["numa"]["bind"], serde_json::json!([0]));
        assert!(daemon.text("inspect bound").contains("bind:0"));
    } else {
        // Containers often forbid it.
        assert_refused(&output, &["bind:0", "not permitted"]);
        assert!(daemon.names().is_empty());
    }
}

#[test]
fn a_lock_outlives_the_daemon_that_held_it() {
    let mut daemon = Daemon::start();
    let output =
        daemon.ctl("create fast --size 1M --capacity 4M --worker-slots 8 --lock --populate");
    if !output.status.success() {
        // The machine's limit is lower than a small segment.
        return assert_refused(&output, &["ulimit -l", "LimitMEMLOCK="]);
    }
    let locked = || -> u64 {
        let memory = &daemon.json("inspect fast")["memory"];
        memory["locked_bytes"].as_u64().unwrap()
    };
    let before = locked();
    assert!(before >= 1 << 20, "{before}");
    daemon.text("grow fast --size 3M");
    assert!(locked() >= 3 << 20);
    daemon.kill();
    daemon.restart();
    let after = &daemon.json("inspect fast")["memory"]["locked_bytes"];
    assert!(after.as_u64().unwrap() >= 3 << 20, "{after}");
}

#[test]
fn a_user_who_may_not_manage_the_daemon_may_not_have_memory_locked() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let daemon = Daemon::start();
    fs::set_permissions(daemon.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(daemon.socket(), Permissions::from_mode(0o666)).unwrap();
    // Copied by another process: were the file open for writing here, a child that another test
    // starts meanwhile would inherit that, and until its exec the copy could not be run.
    let copy = daemon.path().join("hshmctl");
    let original = env!("CARGO_BIN_EXE_hshmctl");
    assert!(Command::new("cp").arg(original).arg(&copy).status().unwrap().success());
    let as_other = |line: &str| {
        let mut command = Command::new(&copy);
        command.uid(65_534).gid(65_534).stdin(Stdio::null()).arg("--socket").arg(daemon.socket());
        command.args(line.split(' ')).output().unwrap()
    };
    assert_refused(&as_other("create mine --size 1M --lock"), &["locked", "without the lock"]);
    assert!(daemon.names().is_empty());
    assert!(as_other("create mine --size 1M --populate").status.success());
}
