//! The daemon's death, and what becomes of those who work.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use hshm_client::{Client, CreateOptions, Error, Segment};
use hshm_memory::{OffsetPointer, ProcessId};
use hshm_tests::process::{Worker, binary, wait_until};
use hshm_tests::ring::{RING_BYTES, shared_word};
use hshmd::paths::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const WORKER: &str = env!("CARGO_BIN_EXE_hshm-test-worker");

/// A daemon with a directory of its own, which leaves nothing behind.
struct Daemon {
    folder: TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("hshm-test-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        let child = Self::spawn(folder.path());
        let daemon = Self { folder, child };
        daemon.wait_until_ready();
        daemon
    }

    fn spawn(folder: &Path) -> Child {
        let mut command = Command::new(binary("hshmd", WORKER));
        command.arg("--socket").arg(folder.join("socket"));
        command.arg("--state-dir").arg(folder.join("state"));
        command.args(["--log-level", "warn"]).env_remove("HSHM_SOCKET");
        command.stdin(Stdio::null()).spawn().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn connect(&self) -> Result<Client, Error> {
        Client::builder().socket(self.socket()).connect()
    }

    fn wait_until_ready(&self) {
        wait_until("the daemon listens", || self.connect().is_ok());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.folder.path());
        self.wait_until_ready();
    }

    fn stop(&mut self) {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
    }

    fn namespace(&self) -> Namespace {
        Namespace::of(&self.folder.path().join("state")).unwrap()
    }

    fn worker(&self, role: &str, segment: &str, arguments: &[&str]) -> Worker {
        let mut command = Command::new(WORKER);
        command.args([role, segment]).arg(self.socket()).args(arguments).stdin(Stdio::null());
        Worker::start(&mut command)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.namespace().purge();
    }
}

/// How many blocks each of the two has received.
fn received(segment: &Segment) -> [u64; 2] {
    [0, 1].map(|side| {
        let place = segment.custom_header().0.offset_bytes() + 2 * RING_BYTES + side * 8;
        shared_word(segment, OffsetPointer::new(place)).load(Ordering::Relaxed)
    })
}

fn wait_for_progress(segment: &Segment, what: &str) {
    let before = received(segment);
    wait_until(what, || {
        let now = received(segment);
        (0..2).all(|side| now[side] > before[side] + 20_000)
    });
}

#[test]
fn workers_go_on_while_the_daemon_is_dead_and_after_its_restart() {
    let mut daemon = Daemon::start();
    let client = daemon.connect().unwrap();
    let options = CreateOptions {
        custom_header_bytes: 2 * RING_BYTES + 16,
        ..CreateOptions::new("exchange", 64 << 20)
    };
    client.create(&options).unwrap();
    let mut workers =
        ["0", "1"].map(|side| daemon.worker("exchange-as-client", "exchange", &[side]));
    workers.iter_mut().for_each(|worker| worker.expect("at work"));
    let segment = client.attach("exchange").unwrap();
    wait_for_progress(&segment, "both exchange blocks");

    daemon.kill();
    assert!(matches!(daemon.connect(), Err(Error::NoDaemon { .. })));
    wait_for_progress(&segment, "they go on without a daemon");

    daemon.restart();
    let client = daemon.connect().unwrap();
    let listed = client.list().unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].name.as_str(), listed[0].holders), ("exchange", 2));
    wait_for_progress(&segment, "they go on under the new daemon");
    daemon.worker("call-as-client", "exchange", &[]).finish();

    // The daemon that never spoke with them sees them die.
    let mut recovered = client.status().unwrap().recovered_slots;
    for worker in &mut workers {
        worker.kill();
        wait_until("the dead worker's slot is recovered", || {
            let now = client.status().unwrap().recovered_slots;
            let more = now > recovered;
            recovered = now;
            more
        });
    }
    drop(segment);
    let check = client.check("exchange").unwrap();
    assert!(check.is_clean(), "{check:?}");
    assert_eq!(client.list().unwrap()[0].holders, 0);
    client.destroy("exchange", false).unwrap();
    assert!(daemon.namespace().objects().unwrap().is_empty());
    daemon.stop();
}

/// Runs a program where it does not see its own pid as the daemon does.
fn apart() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command
}

/// The same, but that the pid is the same number, unless another process begins meanwhile.
fn apart_by_the_same_number() -> Command {
    // The first to read is the shell, which /proc tells of by its number outside. It runs two programs.
    let script = "read own rest </proc/self/stat; mount -t proc proc /proc; \
        echo $((own + 1)) >/proc/sys/kernel/ns_last_pid; \"$0\" \"$@\"; exit $?";
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount", "sh", "-c", script]);
    command
}

/// The numbers of a process, as it is seen here and where it runs.
fn numbers(pid: u32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

#[test]
fn a_client_in_another_pid_namespace_is_recovered_when_it_dies() {
    if !apart().arg("true").stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this user may not make a pid namespace");
        return;
    }
    let mut daemon = Daemon::start();
    let client = daemon.connect().unwrap();
    let options = CreateOptions {
        custom_header_bytes: 2 * RING_BYTES + 16,
        ..CreateOptions::new("apart", 16 << 20)
    };
    client.create(&options).unwrap();
    let segment = client.attach("apart").unwrap();
    let this = ProcessId::current().unwrap();
    let block = segment.put_bytes(b"to be").unwrap();
    assert_eq!(segment.holders(), [this]);
    let mut recovered = 0;
    let mut live_and_die = |mut command: Command| {
        command.args([WORKER, "exchange-apart", "apart"]).arg(daemon.socket()).arg("0");
        let mut worker = Worker::start(command.stdin(Stdio::null()));
        worker.expect("at work");
        // It has looked for the dead before, and does not see this process: who holds its slot still.
        let others = || {
            let mut holders = segment.holders();
            assert!(holders.contains(&this), "this process's slot was taken: {holders:?}");
            holders.retain(|holder| *holder != this);
            holders
        };
        wait_until("it holds a slot", || !others().is_empty());
        // It is held by the name that this namespace knows the process by, which lives.
        let holder = others()[0];
        assert!(holder.pid > 1 && holder.is_alive(), "{holder:?}");
        let numbers = numbers(holder.pid);
        // Nobody takes it for dead meanwhile.
        assert_eq!(segment.recover_dead().slots, 0);
        worker.kill();
        recovered += 1;
        wait_until("its slot is recovered", || {
            client.status().unwrap().recovered_slots == recovered
        });
        assert!(others().is_empty());
        assert!(client.check("apart").unwrap().is_clean());
        numbers
    };
    for _ in 0..3 {
        live_and_die(apart());
    }
    if File::options().write(true).open("/proc/sys/kernel/ns_last_pid").is_ok() {
        let met = (0..100).any(|_| {
            let numbers = live_and_die(apart_by_the_same_number());
            numbers.len() == 2 && numbers[0] == numbers[1]
        });
        assert!(met, "other processes began each time");
    } else {
        eprintln!("skipped: this user may not choose the number of a process");
    }
    // SAFETY: the block is ours.
    unsafe { segment.free(block) }.unwrap();
    drop(segment);
    client.destroy("apart", false).unwrap();
    daemon.stop();
}

#[test]
fn a_daemon_killed_again_and_again_loses_no_segment() {
    let mut daemon = Daemon::start();
    let cell = {
        let client = daemon.connect().unwrap();
        let options =
            CreateOptions { custom_header_bytes: 64, ..CreateOptions::new("kept", 4 << 20) };
        client.create(&options).unwrap();
        let segment = client.attach("kept").unwrap();
        let cell = segment.custom_header().0;
        let block = segment.allocate_into(cell, 5).unwrap();
        assert_eq!(segment.usable_bytes(block).unwrap(), 16);
        cell
    };
    for round in 0..10 {
        daemon.kill();
        daemon.restart();
        let client = daemon.connect().unwrap();
        let segment = client.attach("kept").unwrap();
        assert!(!segment.read_cell(cell).unwrap().is_null(), "lost in round {round}");
        assert_eq!(segment.report().allocated_blocks, 1);
    }
    let client = daemon.connect().unwrap();
    client.destroy("kept", false).unwrap();
    daemon.stop();
}
