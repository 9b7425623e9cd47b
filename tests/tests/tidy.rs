//! The repository keeps its rules.

use std::process::Command;

use hshm_tests::tidy::{self, ATOMICS_EXCEPT, Breach, MayDependOn, TextFile};

/// Which crate knows of which. hshm-memory stands alone; hshm-client is in hshmd for hshmctl.
const DIRECTION: &[MayDependOn] = &[
    MayDependOn { name: "hshm-memory", ours: &[], tokio: false },
    MayDependOn { name: "hshm-proto", ours: &["hshm-memory"], tokio: false },
    MayDependOn { name: "hshm-client", ours: &["hshm-memory", "hshm-proto"], tokio: false },
    MayDependOn { name: "hshmd", ours: &["hshm-memory", "hshm-proto", "hshm-client"], tokio: true },
    MayDependOn {
        name: "hshm-tests",
        ours: &["hshm-memory", "hshm-proto", "hshm-client", "hshmd"],
        tokio: false,
    },
    MayDependOn { name: "hshm-argobots-double", ours: &[], tokio: false },
    MayDependOn { name: "hshm-bench", ours: &["hshm-memory", "hshm-client"], tokio: false },
];

fn assert_kept(breaches: &[Breach]) {
    let list: Vec<_> = breaches.iter().map(ToString::to_string).collect();
    assert!(list.is_empty(), "{} breaches:\n{}", list.len(), list.join("\n"));
}

/// The Rust files in a folder.
fn sources(folder: &str) -> Vec<TextFile> {
    let is_there = |file: &TextFile| file.path.starts_with(folder) && file.path.ends_with(".rs");
    let found: Vec<_> = tidy::files().into_iter().filter(is_there).collect();
    assert!(!found.is_empty(), "no source in {folder}");
    found
}

fn each(files: &[TextFile], rule: impl Fn(&TextFile) -> Vec<Breach>) {
    assert_kept(&files.iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn crates_depend_in_one_direction() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(tidy::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata = serde_json::from_slice(&output.stdout).unwrap();
    assert_kept(&tidy::dependencies(&metadata, DIRECTION));
}

#[test]
fn no_source_is_too_long() {
    each(&sources(""), tidy::length);
}

#[test]
fn no_work_is_left_unfinished() {
    let files = tidy::files();
    let files: Vec<_> = files.into_iter().filter(|file| !file.path.ends_with(".lock")).collect();
    each(&files, tidy::marks_of_unfinished_work);
}

#[test]
fn ignored_tests_say_why() {
    each(&sources(""), tidy::ignored_tests_have_a_reason);
}

#[test]
fn the_memory_library_has_no_runtime_sockets_or_output() {
    each(&sources("hshm-memory/src/"), tidy::library_is_quiet);
}

#[test]
fn atomics_come_by_one_door() {
    let files = sources("hshm-memory/src/");
    each(&files, tidy::atomics_by_one_door);
    for (path, why) in ATOMICS_EXCEPT {
        assert!(files.iter().any(|file| file.path == *path), "{path} is gone ({why})");
    }
}

#[test]
fn the_protocol_has_no_unsafe_code() {
    each(&sources("hshm-proto/src/lib.rs"), tidy::forbids_unsafe);
    each(&sources("hshmd/src/bin/hshmd.rs"), tidy::forbids_unsafe);
}

#[test]
fn the_daemon_stays_off_the_data_path() {
    let layout = &sources("hshm-memory/src/allocator/thread_local/layout.rs")[0];
    let layout = tidy::structs(&tidy::code_only(&layout.text));
    assert!(layout.contains(&"Header".to_owned()), "{layout:?}");
    let files = sources("hshmd/src/");
    let daemon: Vec<_> =
        files.into_iter().filter(|file| !file.path.contains("/bin/hshmctl/")).collect();
    assert!(daemon.iter().any(|file| file.path == "hshmd/src/daemon.rs"));
    each(&daemon, |file| tidy::daemon_stays_off_the_data_path(file, &layout));
}
