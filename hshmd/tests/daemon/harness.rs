//! A daemon of the test's own, which leaves nothing behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hshmd::paths::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::wire::Client;

/// How long anything may take on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(120);

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory for a daemon, and everything in `/dev/shm` that belongs to it.
#[derive(Debug)]
pub(crate) struct Site {
    dir: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("hshmd-test-").tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        // Other users may reach the socket, if its own mode lets them.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("hshmd.sock")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub(crate) fn record(&self, name: &str) -> PathBuf {
        self.state_dir().join("segments").join(format!("{name}.toml"))
    }

    pub(crate) fn namespace(&self) -> Namespace {
        Namespace::of(&self.state_dir()).unwrap()
    }

    /// The objects in `/dev/shm` that belong to this site.
    pub(crate) fn objects(&self) -> Vec<String> {
        self.namespace().objects().unwrap()
    }

    pub(crate) fn write_config(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("hshmd.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// The daemon's command line for this site.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hshmd"));
        command.arg("--socket").arg(self.socket()).arg("--state-dir").arg(self.state_dir());
        command.args(arguments).env_remove("HSHM_SOCKET").stdin(Stdio::null());
        command
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Daemon<'_> {
        self.launch(self.command(arguments), &self.socket())
    }

    /// Starts a daemon by a command that becomes one, and waits until somebody listens at `socket`.
    pub(crate) fn launch(&self, mut command: Command, socket: &Path) -> Daemon<'_> {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, into) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = into.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut daemon = Daemon { site: self, child, log };
        let deadline = Instant::now() + DEADLINE;
        while Client::dial(socket).is_err() {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!("the daemon ended at once, {status}:\n{}", daemon.log());
            }
            assert!(Instant::now() < deadline, "the daemon never listened:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// Starts a daemon that must not come up; what it says.
    pub(crate) fn start_in_vain(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "one line: {text}");
        assert!(text.starts_with("hshmd: "), "{text}");
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.namespace().purge();
    }
}

/// A daemon that runs.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    site: &'a Site,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon<'_> {
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.site.socket())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Ends it as a crash would.
    pub(crate) fn crash(mut self) {
        self.signal(Signal::SIGKILL);
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "{}", self.log());
    }

    /// Ends it as an administrator would.
    pub(crate) fn stop(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
        status
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), log.as_bytes());
        } else {
            assert!(!log.contains("panicked"), "{log}");
        }
    }
}
