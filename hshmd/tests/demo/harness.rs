//! A demo with a temporary directory and files of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Generous: the machine may be slow.
const PATIENCE: Duration = Duration::from_secs(120);

/// Polls until `what` is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Where a demo runs, and what it shares.
pub(crate) struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("hshmctl-test-").tempdir().unwrap();
        for name in ["files", "tmp"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    /// The directory that is shared.
    pub(crate) fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }

    /// Where the demo makes its temporary directory.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.directory.path().join("tmp")
    }

    /// Writes a file to be shared.
    pub(crate) fn file(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) {
        let path = self.files().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    /// Enough files that a demo takes a while.
    pub(crate) fn many_files(&self, number: u32) {
        for i in 0..number {
            self.file(format!("{}/{i}", i % 17), format!("file number {i} ").repeat(200));
        }
    }

    pub(crate) fn demo(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hshmctl"));
        // A daemon that the environment names is not the demo's.
        command.env("HSHM_SOCKET", "/nowhere").env("TMPDIR", self.tmp());
        command.arg("demo").arg(self.files()).args(line.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a demo that must succeed, and returns what it says as JSON.
    pub(crate) fn verified(&self, line: &str) -> Value {
        verified(self.demo(line).arg("--json").output().unwrap())
    }

    /// Asserts that the demo whose coordinator was process `pid` left nothing.
    pub(crate) fn assert_clean(&self, pid: u32) {
        assert_eq!(fs::read_dir(self.tmp()).unwrap().count(), 0, "in the temporary directory");
        assert_eq!(objects_of(pid), [] as [String; 0]);
        assert_eq!(parts_of(pid), [] as [(u32, String); 0]);
    }

    /// The demo under `pid` is gone, now or soon.
    pub(crate) fn wait_until_clean(&self, pid: u32) {
        wait_until("nothing is left", || {
            fs::read_dir(self.tmp()).unwrap().count() == 0
                && objects_of(pid).is_empty()
                && parts_of(pid).is_empty()
        });
    }
}

pub(crate) fn verified(output: Output) -> Value {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.is_empty(), "{}: {stderr}", output.status);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["verified"], true, "{summary}");
    assert_eq!(summary["allocated_bytes"], 0, "{summary}");
    assert_eq!(summary["heap_violations"], 0, "{summary}");
    summary
}

/// The objects in `/dev/shm` of the demo whose coordinator is process `pid`.
fn objects_of(pid: u32) -> Vec<String> {
    let entries = fs::read_dir("/dev/shm").unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.ends_with(&format!(".demo-{pid}"))).collect()
}

/// The processes that this coordinator started, with the parts they play.
pub(crate) fn parts_of(pid: u32) -> Vec<(u32, String)> {
    let mut parts = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let Ok(number) = name.parse() else { continue };
        let Ok(line) = fs::read_to_string(format!("/proc/{number}/cmdline")) else { continue };
        let words: Vec<&str> = line.split('\0').collect();
        if let ["hshmctl", "demo-part", role, "--parent", parent, ..] = words.as_slice()
            && *parent == pid.to_string()
        {
            parts.push((number, (*role).to_owned()));
        }
    }
    parts
}

/// Starts a demo and waits until some process plays `role`, or all is over.
pub(crate) fn start_until(command: &mut Command, role: &str) -> Child {
    let mut child = command.spawn().unwrap();
    wait_until("it plays its part", || {
        child.try_wait().unwrap().is_some()
            || parts_of(child.id()).iter().any(|(_, found)| found == role)
    });
    child
}
