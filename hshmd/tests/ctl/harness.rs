//! A daemon of the test's own, and `hshmctl` talking to it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hshm_client::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Generous: the machine may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Polls until `what` is so.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) struct Daemon {
    directory: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// One that has these variables in its environment.
    pub(crate) fn start_with(settings: &[(&str, &Path)]) -> Self {
        let directory = tempfile::Builder::new().prefix("hshmctl-test-").tempdir().unwrap();
        let child = spawn(directory.path(), settings);
        Self { directory, child }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("s")
    }

    /// Ends the daemon with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }

    /// Starts it anew on the same state.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.path(), &[]);
    }

    pub(crate) fn client(&self) -> Client {
        Client::builder().socket(self.socket()).name("test").connect().unwrap()
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = hshmctl();
        command.arg("--socket").arg(self.socket());
        command
    }

    /// Runs `hshmctl` with these arguments, separated by blanks.
    pub(crate) fn ctl(&self, line: &str) -> Output {
        self.command().args(line.split(' ')).output().unwrap()
    }

    /// What it prints, which must be a success.
    pub(crate) fn text(&self, line: &str) -> String {
        let output = self.ctl(line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && stderr.is_empty(), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it prints with `--json`.
    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.text(&format!("{line} --json"))).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let list = self.json("list");
        let name = |segment: &Value| segment["name"].as_str().unwrap().to_owned();
        list.as_array().unwrap().iter().map(name).collect()
    }

    /// The objects that this daemon has in `/dev/shm`. It must have a segment there, named `known`.
    pub(crate) fn objects(&self, known: &str) -> Vec<String> {
        let object = self.json(&format!("inspect {known}"))["segment"]["object"].clone();
        let prefix = object.as_str().unwrap().strip_suffix(known).unwrap().to_owned();
        let entries = fs::read_dir("/dev/shm").unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(&prefix)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path, settings: &[(&str, &Path)]) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hshmd"))
        .arg("--socket")
        .arg(directory.join("s"))
        .arg("--state-dir")
        .arg(directory.join("state"))
        .args(["--ephemeral", "--log-level", "error"])
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the daemon listens", || {
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended");
        Client::builder().socket(directory.join("s")).connect().is_ok()
    });
    child
}

/// `hshmctl`, without what the environment of the tests may say.
pub(crate) fn hshmctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hshmctl"));
    command.env_remove("HSHM_SOCKET").stdin(Stdio::null());
    command
}

/// Asserts that a request failed as it should: exit code 1, nothing on standard output, and one line
/// that says all of `says`.
pub(crate) fn assert_refused(output: &Output, says: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{stderr}");
    assert!(stderr.starts_with("hshmctl: error: "), "{stderr}");
    assert!(stderr.ends_with('\n') && stderr.trim_end().lines().count() == 1, "{stderr}");
    for word in says {
        assert!(stderr.contains(word), "does not say {word:?}: {stderr}");
    }
}
