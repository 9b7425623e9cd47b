//! What people get wrong: each is one line that says what to do, exit code 1, and changes nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::harness::{Daemon, assert_refused, hshmctl};

#[test]
fn a_request_that_cannot_be_met_is_one_line_and_creates_nothing() {
    let daemon = Daemon::start();
    daemon.text("create there --size 1M --capacity 8M");
    let long = "n".repeat(300);
    let cases: &[(String, &[&str])] = &[
        ("inspect nobody".into(), &["\"nobody\"", "hshmctl list"]),
        ("check nobody".into(), &["\"nobody\""]),
        ("grow nobody --size 1M".into(), &["\"nobody\""]),
        ("destroy nobody".into(), &["\"nobody\""]),
        ("create new --size 0".into(), &["size is zero", "1 MiB"]),
        ("create new --size 15T".into(), &["\"new\"", "ask for less"]),
        ("create new --size 1M --capacity 1K".into(), &["capacity"]),
        ("create a/b --size 1M".into(), &["slash", "a-z"]),
        (format!("create {long} --size 1M"), &["too long", "96"]),
        ("create .hidden --size 1M".into(), &["dot"]),
        ("create there --size 1M".into(), &["exists already"]),
        ("create new --size 1M --worker-slots 0".into(), &["worker slots"]),
        ("create new --size 1M --custom-header 1G".into(), &["custom header"]),
        ("create new --size 1M --mode 7777".into(), &["mode"]),
        ("create new --size 1M --numa bind:1000".into(), &["bind:1000", "nodes"]),
        ("create new --size 1M --huge-pages try --huge-page-size 3M".into(), &["/sys/kernel/mm"]),
        (
            "create new --size 1M --backend memfd --huge-pages require --huge-page-size 64".into(),
            &["huge pages (64 bytes)"],
        ),
        ("grow there --size 15T".into(), &["capacity"]),
        ("grow there --size 0".into(), &["zero"]),
    ];
    for (line, says) in cases {
        assert_refused(&daemon.ctl(line), says);
        // Programs get the same: nothing on standard output that could be taken for a result.
        assert_refused(&daemon.ctl(&format!("{line} --json")), says);
        assert_eq!(daemon.names(), ["there"], "after {line}");
    }
    assert_eq!(daemon.objects("there").len(), 1);
    assert_eq!(daemon.json("inspect there")["segment"]["capacity_bytes"], 8 << 20);
}

#[test]
fn without_a_daemon_it_says_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nobody-here");
    for line in ["status", "list", "create x --size 1M", "destroy x"] {
        let mut command = hshmctl();
        let output = command.arg("--socket").arg(&socket).args(line.split(' ')).output().unwrap();
        assert_refused(&output, &["nobody-here", "start hshmd", "HSHM_SOCKET"]);
        let output = hshmctl().env("HSHM_SOCKET", &socket).args(line.split(' ')).output().unwrap();
        assert_refused(&output, &["nobody-here", "start hshmd"]);
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_socket_without_permission_is_not_taken_for_no_daemon() {
    let daemon = Daemon::start();
    let program = if nix::unistd::geteuid().is_root() {
        // Root may use any socket, so it is another user who tries, with a copy that he can reach.
        // Copied by another process: were the file open for writing here, a child that another test
        // starts meanwhile would inherit that, and until its exec the copy could not be run.
        fs::set_permissions(daemon.path(), Permissions::from_mode(0o755)).unwrap();
        let copy = daemon.path().join("hshmctl");
        let original = env!("CARGO_BIN_EXE_hshmctl");
        assert!(Command::new("cp").arg(original).arg(&copy).status().unwrap().success());
        Some(copy)
    } else {
        None
    };
    let run = |line: &str, mode| {
        fs::set_permissions(daemon.socket(), Permissions::from_mode(mode)).unwrap();
        let mut command = program.as_ref().map_or_else(hshmctl, |copy| {
            let mut command = Command::new(copy);
            command.uid(65_534).gid(65_534).stdin(Stdio::null());
            command
        });
        command.arg("--socket").arg(daemon.socket()).arg(line).output().unwrap()
    };
    let output = run("list", 0o000);
    assert_refused(&output, &["no permission", "ask for access"]);
    // The doctor says who may.
    for (mode, says) in [(0o000, "root alone may use it"), (0o060, "usermod -aG")] {
        // A user's own socket may be open to the group and not to its owner.
        let output = run("doctor", mode);
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(says), "{said}");
    }
}

#[test]
fn what_listens_there_may_be_another_program() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("other");
    let _other = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let output = hshmctl().arg("--socket").arg(&socket).arg("list").output().unwrap();
    assert_refused(&output, &["no hshmd"]);
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let output = hshmctl().arg("--socket").arg(&file).arg("list").output().unwrap();
    assert_refused(&output, &["no socket"]);
}
