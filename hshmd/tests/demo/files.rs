//! Whatever stands under the path.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::stat::Mode;
use nix::unistd::{geteuid, mkfifo};

use crate::harness::Scene;

#[test]
fn names_links_pipes_and_empty_files_are_no_obstacle() {
    let scene = Scene::new();
    scene.file(OsStr::from_bytes(b"not utf-8 \xff\xfe"), "one two");
    scene.file("a name\nof two lines \x1b[31m", "three");
    scene.file("n".repeat(255), "four");
    scene.file("empty", "");
    scene.file("zeros", vec![0; 100_000]);
    scene.file("sparse", "");
    OpenOptions::new()
        .write(true)
        .open(scene.files().join("sparse"))
        .unwrap()
        .set_len(5 << 20)
        .unwrap();
    scene.file("too-large", "");
    OpenOptions::new()
        .write(true)
        .open(scene.files().join("too-large"))
        .unwrap()
        .set_len(5 << 30)
        .unwrap();
    mkfifo(&scene.files().join("pipe"), Mode::S_IRWXU).unwrap();
    symlink(".", scene.files().join("loop")).unwrap();
    symlink("/nowhere", scene.files().join("dangling")).unwrap();
    let summary = scene.verified("");
    assert_eq!(summary["comparison"]["equal"], 6, "{summary}");
    // The zeros are one word, as they are for wc in the C locale.
    assert_eq!(summary["words"], 4 + 2);
    let skipped = &summary["skipped"];
    assert_eq!((&skipped["links"], &skipped["special"]), (&2.into(), &1.into()));
    assert_eq!(skipped["too_large"], 1);
}

#[test]
fn what_may_not_be_read_is_passed_over() {
    let scene = Scene::new();
    scene.file("open", "word");
    // The last of all, so that no worker is in the middle of anything when one is to be killed.
    scene.file("zzz-closed", "word");
    scene.file("shut/inside", "word");
    let close = |name, mode| {
        fs::set_permissions(scene.files().join(name), Permissions::from_mode(mode)).unwrap();
    };
    close("zzz-closed", 0o000);
    close("shut", 0o000);
    let mut command = scene.demo("--json");
    if geteuid().is_root() {
        // Root may read everything, so another user runs a copy that he can reach. It is made by
        // another process: were the file open for writing here, a child that another test starts
        // meanwhile would inherit that, and until its exec the copy could not be run.
        let copy = scene.tmp().with_file_name("hshmctl");
        let original = env!("CARGO_BIN_EXE_hshmctl");
        assert!(Command::new("cp").arg(original).arg(&copy).status().unwrap().success());
        fs::set_permissions(copy.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(scene.tmp(), Permissions::from_mode(0o777)).unwrap();
        let mut other = Command::new(copy);
        other.args(command.get_args()).env("TMPDIR", scene.tmp()).uid(65_534).gid(65_534);
        command = other;
    }
    let summary = crate::harness::verified(command.output().unwrap());
    close("shut", 0o700);
    assert_eq!(summary["comparison"]["unreadable"], 1, "{summary}");
    assert_eq!(summary["skipped"]["unreadable"], 1, "{summary}");
    assert_eq!(summary["comparison"]["equal"], 1, "{summary}");
}

#[test]
fn files_that_others_change_meanwhile_are_told_apart_from_errors() {
    let scene = Scene::new();
    scene.many_files(500);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let path = scene.files().join("busy");
            while !stop.load(Ordering::Relaxed) {
                // Grows, shrinks, and is another file from time to time.
                for round in 0..50 {
                    let mut file =
                        OpenOptions::new().create(true).append(true).open(&path).unwrap();
                    writeln!(file, "round {round}").unwrap();
                }
                fs::remove_file(&path).unwrap();
            }
        });
        for _ in 0..5 {
            let summary = scene.verified("");
            let comparison = &summary["comparison"];
            assert_eq!(comparison["different"], 0);
            assert!(comparison["equal"].as_u64().unwrap() >= 500, "{summary}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn one_file_and_an_empty_directory_are_paths_too() {
    let scene = Scene::new();
    let summary = scene.verified("");
    assert_eq!((&summary["files"], &summary["items"]), (&0.into(), &0.into()));
    assert_eq!(summary["recoveries"], serde_json::json!([]));

    scene.file("only", "a b c");
    let mut command = scene.demo("");
    command.current_dir(scene.files()).args(["--json"]);
    assert_eq!(crate::harness::verified(command.output().unwrap())["words"], 3);
}

fn assert_refused(output: &Output, says: &str) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.starts_with("hshmctl: error: ") && stderr.contains(says), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[test]
fn what_cannot_be_done_is_one_line() {
    let scene = Scene::new();
    fs::remove_dir(scene.files()).unwrap();
    assert_refused(&scene.demo("").output().unwrap(), "No such file");
    fs::create_dir(scene.files()).unwrap();
    assert_refused(&scene.demo("--size 1M").output().unwrap(), "too small");
    assert_refused(&scene.demo("--size 900T").output().unwrap(), "demo-");
    let nowhere = scene.demo("").env("TMPDIR", "/nowhere").output().unwrap();
    let stderr = String::from_utf8(nowhere.stderr).unwrap();
    assert_eq!(nowhere.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("TMPDIR"), "{stderr}");
    assert_eq!(fs::read_dir(scene.tmp()).unwrap().count(), 0);
}
