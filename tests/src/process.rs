//! Processes that a test starts, waits for and kills.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(300);

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within five minutes.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A binary of the package hshmd. It is built beside this package's binaries, of which `beside` is one,
/// when the whole workspace is tested, and otherwise now.
///
/// # Panics
/// If it cannot be built.
#[must_use]
pub fn binary(name: &str, beside: &str) -> PathBuf {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let folder = Path::new(beside).parent().expect("a folder");
    let binary = folder.join(name);
    if !binary.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "hshmd", "--bin", name]);
        build.arg("--target-dir").arg(folder.parent().expect("a folder"));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().is_ok_and(|status| status.success()), "{name} cannot be built");
    }
    binary
}

/// A process that says what it has done, line by line, on standard output. It is killed if the test
/// ends before it.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("a worker process");
        let said = BufReader::new(child.stdout.take().expect("its output"));
        Self { child, said }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it says; empty if it says no more.
    ///
    /// # Panics
    /// If its output cannot be read.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("its output");
        line.trim_end().to_owned()
    }

    /// Waits until it says `expected`.
    ///
    /// # Panics
    /// If it says something else, or ends.
    pub fn expect(&mut self, expected: &str) {
        let line = self.line();
        if line != expected {
            let status = self.child.wait().expect("its end");
            panic!("a worker said {line:?} rather than {expected:?}, and ended: {status}");
        }
    }

    /// Kills it with SIGKILL, and asserts that it died of that.
    ///
    /// # Panics
    /// If it ended otherwise.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
        let status = self.child.wait().expect("its end");
        assert_eq!(status.signal(), Some(9), "a worker ended before it was killed: {status}");
    }

    /// Waits until it ends, and asserts that it found nothing wrong.
    ///
    /// # Panics
    /// If it did.
    pub fn finish(mut self) {
        let status = self.child.wait().expect("its end");
        assert!(status.success(), "a worker failed: {status}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
