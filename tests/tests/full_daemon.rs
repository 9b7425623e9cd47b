//! A full `/dev/shm` under a daemon and its clients: whoever asks for memory gets an error, and all else
//! goes on, recovery included.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use hshm_client::{AllocError, Client, CreateOptions, ErrorCode, Segment};
use hshm_memory::BackendError;
use hshm_tests::crash::process;
use hshm_tests::own_shm::with_own_shm;
use hshm_tests::process::{binary, wait_until};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const WORKER: &str = env!("CARGO_BIN_EXE_hshm-test-worker");
/// Set where `/dev/shm` is this test's own.
const INSIDE: &str = "HSHM_TEST_OWN_SHM";
const BALLAST: &str = "/dev/shm/ballast";
const SIZE: u64 = 16 << 20;
const BLOCK: usize = 50_000;

fn start(folder: &Path) -> Child {
    let mut command = Command::new(binary("hshmd", WORKER));
    command.arg("--socket").arg(folder.join("socket"));
    command.arg("--state-dir").arg(folder.join("state"));
    command.args(["--log-level", "error"]).env_remove("HSHM_SOCKET").stdin(Stdio::null());
    // Whatever ends this process, SIGBUS among others, ends it too.
    // SAFETY: [ffi] between fork and exec nothing but one system call is made.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    command.spawn().unwrap()
}

fn connect(folder: &Path) -> Client {
    let client = || Client::builder().socket(folder.join("socket")).connect();
    wait_until("the daemon listens", || client().is_ok());
    client().unwrap()
}

/// Fills the file system to the last page.
fn fill_up() {
    let mut ballast = File::create(BALLAST).unwrap();
    while ballast.write_all(&[1; 4096]).is_ok() {}
}

fn is_full(asked: &Result<hshm_client::OffsetPointer, AllocError>) -> bool {
    matches!(asked, Err(AllocError::Backend(BackendError::Full { .. })))
}

/// A process that holds a slot and some blocks, and waits.
fn holder(folder: &Path) -> Pid {
    process::spawn(|| {
        let segment = connect(folder).attach("full").unwrap();
        for bytes in [100, 5000, 70_000, BLOCK] {
            let _ = segment.allocate(bytes).unwrap();
        }
        process::stop();
    })
    .unwrap()
}

/// All that can be asked without new memory is answered.
fn serves(client: &Client, segment: &Segment) {
    assert_eq!(client.list().unwrap().len(), 2);
    assert!(client.check("full").unwrap().is_clean());
    assert_eq!(client.inspect("full").unwrap().heap.committed_bytes, segment.committed_bytes());
    for refused in [
        client.create(&CreateOptions::new("more", SIZE)).map(drop),
        client.grow("small", 8 << 20).map(drop),
    ] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.daemon_code(), Some(ErrorCode::NoMemory), "{refused}");
    }
}

fn scene() {
    let folder = tempfile::Builder::new().prefix("hshm-test-").tempdir().unwrap();
    let folder = folder.path();
    std::fs::create_dir(folder.join("state")).unwrap();
    let mut daemon = start(folder);
    let client = connect(folder);
    client.create(&CreateOptions::new("full", SIZE)).unwrap();
    let small =
        CreateOptions { capacity_bytes: Some(8 << 20), ..CreateOptions::new("small", 2 << 20) };
    client.create(&small).unwrap();
    let segment = client.attach("full").unwrap();
    let block = segment.allocate(BLOCK).unwrap();
    let holders = [holder(folder), holder(folder)];
    wait_until("both hold slots", || segment.holders().len() == 3);
    fill_up();

    // Whoever asks is told, whether it has a slot or not.
    let mut asked = segment.allocate(BLOCK);
    let mut blocks = Vec::new();
    while let Ok(another) = asked {
        blocks.push(another);
        asked = segment.allocate(BLOCK);
    }
    assert!(is_full(&asked), "{asked:?}");
    process::run(|| {
        let asked = connect(folder).attach("full").unwrap().allocate(BLOCK);
        assert!(is_full(&asked), "{asked:?}");
    })
    .unwrap();
    serves(&client, &segment);

    // The dead are recovered, by this daemon and by the next.
    let end = |pid| {
        kill(pid, Signal::SIGKILL).unwrap();
        assert_eq!(process::was_killed(process::wait(pid).unwrap()), Ok(true));
    };
    end(holders[0]);
    wait_until("the dead is recovered", || client.status().unwrap().recovered_slots == 1);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    end(holders[1]);
    let mut daemon = start(folder);
    wait_until("the daemon is there again", || client.list().is_ok());
    assert_eq!(client.status().unwrap().recovered_slots, 1);
    serves(&client, &segment);

    // What is freed serves again, and when there is room so does the rest.
    // SAFETY: the block is ours.
    unsafe { segment.free(block) }.unwrap();
    blocks.push(segment.allocate(BLOCK).unwrap());
    std::fs::remove_file(BALLAST).unwrap();
    while let Ok(another) = segment.allocate(BLOCK) {
        blocks.push(another);
    }
    assert!(blocks.len() > 200, "{} blocks", blocks.len());
    for block in blocks {
        // SAFETY: the block is ours.
        unsafe { segment.free(block) }.unwrap();
    }
    assert!(client.check("full").unwrap().is_clean());
    drop(segment);
    for name in ["full", "small"] {
        client.destroy(name, false).unwrap();
    }
    kill(Pid::from_raw(daemon.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_full_dev_shm_is_no_harm_to_a_daemon_its_clients_and_recovery() {
    if std::env::var_os(INSIDE).is_some() {
        scene();
        return;
    }
    // Built here, where there is room.
    let _ = binary("hshmd", WORKER);
    let this = std::env::current_exe().unwrap();
    let Some(mut command) = with_own_shm(24, &this.to_string_lossy()) else {
        eprintln!("skipped: this user may not mount a file system of its own");
        return;
    };
    let name = "a_full_dev_shm_is_no_harm_to_a_daemon_its_clients_and_recovery";
    let status = command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").status();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{status:?}");
}
