//! The thread model of user-level threads, and heaps under it.
//!
//! Each scenario runs in a process of its own, since a process has one library and initialises it
//! once: on a double of Argobots that is built here, as a library that checks its arguments and as
//! one that does not; or, if `HSHM_ARGOBOTS_LIB` names it, on Argobots itself:
//!
//! ```sh
//! HSHM_ARGOBOTS_LIB=/usr/lib/libabt.so.1 cargo test -p hshm-memory --features argobots --test argobots
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod abt;
mod scenarios;

use std::env;
use std::ffi::{CString, OsStr, OsString, c_char};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use libloading::os::unix::Library;

/// Which scenario a process is to run.
const SCENARIO: &str = "HSHM_TEST_SCENARIO";
/// The shared library that it is in, if it is to run there.
const PLUGIN: &str = "HSHM_TEST_PLUGIN";
/// How long one may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// A shared library that cargo builds, of a package and with options, whose name has `part` in it.
fn built(part: &str, options: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--message-format=json"]).args(options);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let said = String::from_utf8(built.stdout).unwrap();
    let names = said.split('"').filter(|word| word.contains(part)).map(Path::new);
    let mut files = names.filter(|path| path.is_absolute() && path.is_file());
    let file = files.find(|path| path.extension().is_some_and(|end| end == "so" || end == "dylib"));
    file.unwrap_or_else(|| panic!("no library in {said}")).to_owned()
}

/// The double.
fn double() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("hshm_argobots_double", &["-p", "hshm-argobots-double"]))
}

/// The scenarios as a shared library.
fn plugin() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let options = &["-p", "hshm-memory", "--features", "argobots", "--example", "argobots_plugin"];
    BUILT.get_or_init(|| built("argobots_plugin", options))
}

/// The libraries to try, each with what is to be set for it.
fn libraries() -> Vec<Vec<(&'static str, OsString)>> {
    let library = |path: OsString| ("HSHM_ARGOBOTS_LIB", path);
    if let Some(real) = env::var_os("HSHM_ARGOBOTS_LIB") {
        return vec![vec![library(real)]];
    }
    let checks = |value: &str| ("HSHM_ARGOBOTS_DOUBLE_CHECKS", OsString::from(value));
    ["1", "0"].map(|value| vec![library(double().into()), checks(value)]).into()
}

/// Runs a scenario in a process of its own.
fn run(scenario: &str, settings: &[(&str, OsString)]) -> Output {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["scenario", "--exact", "--ignored", "--nocapture"]);
    process.env_remove("HSHM_ARGOBOTS_LIB").env(SCENARIO, scenario);
    process.envs(settings.iter().map(|(name, value)| (name, value))).output().unwrap()
}

fn assert_done(scenario: &str, settings: &[(&str, OsString)]) {
    let output = run(scenario, settings);
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let done = said.contains(&format!("scenario {scenario}: done"));
    assert!(output.status.success() && done, "{settings:?}: {}\n{said}{errors}", output.status);
}

fn on_each_library(scenario: &str) {
    for mut settings in libraries() {
        assert_done(scenario, &settings);
        settings.push((PLUGIN, plugin().into()));
        assert_done(scenario, &settings);
    }
}

#[test]
#[ignore = "one of the others runs it, in a process of its own"]
#[allow(clippy::print_stdout, reason = "the process that runs this one reads it")]
fn scenario() {
    let Ok(name) = env::var(SCENARIO) else { return };
    std::thread::spawn(|| {
        std::thread::sleep(PATIENCE);
        // Past the harness, which would wait for the thread that is stuck.
        std::process::abort();
    });
    match env::var_os(PLUGIN) {
        Some(plugin) => run_in(&plugin, &name),
        None => scenarios::run(&name),
    }
    println!("scenario {name}: done");
}

fn run_in(plugin: &OsStr, scenario: &str) {
    type Run = unsafe extern "C" fn(*const c_char);
    // SAFETY: [ffi] Rust's libraries have no initialisers that do harm.
    let plugin = unsafe { Library::new(plugin) }.unwrap();
    // Threads may still be on their way out of it.
    let plugin = ManuallyDrop::new(plugin);
    // SAFETY: [ffi] the type is that of the function there.
    let run = unsafe { plugin.get::<Run>(b"hshm_test_scenario\0") }.unwrap();
    let scenario = CString::new(scenario).unwrap();
    // SAFETY: [ffi] it is a C string.
    unsafe { run(scenario.as_ptr()) };
}

#[test]
fn storage_and_numbers_are_a_user_level_threads_own() {
    on_each_library("storage");
}

#[test]
fn destructors_run_when_a_user_level_thread_is_freed() {
    on_each_library("destructors");
}

#[test]
fn others_run_while_a_user_level_thread_sleeps() {
    on_each_library("sleep");
}

#[test]
fn those_who_wait_for_one_of_their_own_stream_let_it_run() {
    on_each_library("turns");
}

#[test]
fn a_named_heap_is_used_by_one_after_the_other() {
    on_each_library("named");
}

#[test]
fn locks_between_processes_serve_user_level_threads() {
    on_each_library("locks");
}

#[test]
fn those_who_send_and_those_who_wait_for_messages_share_a_stream() {
    on_each_library("queue");
}

#[test]
fn thousands_allocate_and_free_while_they_move_between_streams() {
    on_each_library("heaps");
}

#[test]
fn tasklets_allocate_and_have_storage() {
    on_each_library("tasklets");
}

#[test]
fn before_and_after_the_librarys_time_threads_are_the_operating_systems() {
    on_each_library("outside");
}

#[test]
fn without_the_library_threads_are_the_operating_systems() {
    assert_done("missing", &[("HSHM_ARGOBOTS_LIB", "/nowhere/libabt.so".into())]);
}

#[test]
fn another_library_is_no_argobots() {
    // One that every program here has.
    let name = if cfg!(target_os = "macos") { "libSystem.dylib" } else { "libc.so.6" };
    assert_done("missing", &[("HSHM_ARGOBOTS_LIB", name.into())]);
}
