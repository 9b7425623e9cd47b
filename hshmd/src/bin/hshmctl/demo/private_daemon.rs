//! A daemon for the demo alone, in a temporary directory.
//!
//! The daemon process makes the directory and removes it, and holds one end of a pipe whose other
//! end the coordinator holds: when the coordinator ends, even by SIGKILL, the pipe does too, and the
//! daemon destroys its segments, removes its directory and ends. Should the daemon itself be killed,
//! the coordinator removes what it left.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hshm_client::{Client, Error};
use hshmd::config::Config;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::family::{Role, command};
use super::patience::Patience;
use super::signals::Signals;

/// How long the daemon may take to start, and to end.
const DAEMON_TIME: Duration = Duration::from_secs(60);
/// The longest path that a socket can have, without its final zero byte.
const MAX_SOCKET_PATH_BYTES: usize = 107;
const SOCKET: &str = "hshmd.sock";

/// The daemon, as the coordinator has it.
#[derive(Debug)]
pub(super) struct PrivateDaemon {
    directory: PathBuf,
    child: Child,
    /// Closed to end the daemon.
    lifeline: Option<ChildStdin>,
    /// What its segments are called in `/dev/shm`.
    objects: Vec<String>,
}

impl PrivateDaemon {
    /// Starts the daemon and connects to it.
    pub(super) fn start(signals: &Signals) -> Result<(Self, Client)> {
        let mut child = command(Role::Daemon)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a daemon")?;
        let lifeline = child.stdin.take();
        let mut directory = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_until(0, &mut directory)?;
        }
        directory.pop();
        let directory = PathBuf::from(std::ffi::OsString::from_vec(directory));
        let mut daemon = Self { directory, child, lifeline, objects: Vec::new() };
        let client = daemon.connect(signals)?;
        Ok((daemon, client))
    }

    fn connect(&mut self, signals: &Signals) -> Result<Client> {
        let deadline = Instant::now() + DAEMON_TIME;
        let mut patience = Patience::new();
        loop {
            signals.check()?;
            self.require_alive()?;
            match Client::builder().socket(self.socket()).name("demo-coordinator").connect() {
                Err(Error::NoDaemon { .. }) if Instant::now() < deadline => patience.pause(),
                result => return Ok(result?),
            }
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// Notes that this object in `/dev/shm` is the daemon's.
    pub(super) fn owns(&mut self, object: Option<String>) {
        self.objects.extend(object);
    }

    /// Fails if the daemon has ended.
    pub(super) fn require_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("cannot wait for the daemon")? {
            bail!("the demo's daemon ended unexpectedly: {status}");
        }
        Ok(())
    }

    /// Ends the daemon and makes sure that it left nothing.
    pub(super) fn stop(mut self) -> Result<()> {
        self.lifeline = None;
        ensure!(self.wait(), "the demo's daemon does not end");
        let status = self.child.wait()?;
        ensure!(status.success(), "the demo's daemon failed as it ended: {status}");
        for path in self.traces() {
            ensure!(!path.exists(), "the demo's daemon left {} behind", path.display());
        }
        Ok(())
    }

    fn wait(&mut self) -> bool {
        let deadline = Instant::now() + DAEMON_TIME;
        let mut patience = Patience::new();
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(_)) => return true,
                Ok(None) => patience.pause(),
                Err(_) => return false,
            }
        }
        false
    }

    /// What is not to be left behind.
    fn traces(&self) -> Vec<PathBuf> {
        let objects = self.objects.iter().map(|object| Path::new("/dev/shm").join(object));
        let directory = Some(self.directory.clone()).filter(|path| path.is_absolute());
        objects.chain(directory).collect()
    }
}

impl Drop for PrivateDaemon {
    fn drop(&mut self) {
        self.lifeline = None;
        if !self.wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // Nothing is left unless the daemon was killed.
        for path in self.traces() {
            let is_directory = path.is_dir();
            let _ = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            if path.exists() {
                let path = path.display();
                let _ = writeln!(io::stderr().lock(), "hshmctl: warning: {path} is left behind");
            }
        }
    }
}

/// The daemon's own side: makes a directory, says where, and serves until the coordinator ends.
pub(super) fn run() -> Result<()> {
    let directory = directory()?;
    let path = directory.path();
    let socket = path.join(SOCKET);
    let mut stdout = io::stdout().lock();
    stdout.write_all(path.as_os_str().as_bytes())?;
    stdout.write_all(&[0])?;
    stdout.flush()?;
    let mut config = Config::new(socket, path.join("state"));
    config.remove_on_shutdown = true;
    config.log.level = "error".into();
    hshmd::logging::start(&config.log)?;
    // Not earlier: until then SIGTERM would kill it, and the directory would stay.
    hshmd::daemon::run(config, |_| watch_lifeline())?;
    directory.close().context("cannot remove the demo's directory")
}

/// A directory for this user alone, where temporary files belong, if a socket's path can be that
/// long.
fn directory() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("hshm-demo-");
    let usual = std::env::temp_dir();
    let room = MAX_SOCKET_PATH_BYTES - "/hshm-demo-123456/".len() - SOCKET.len();
    let place = if usual.as_os_str().len() <= room { &usual } else { Path::new("/tmp") };
    builder.tempdir_in(place).with_context(|| {
        format!(
            "cannot make a directory in {}; set TMPDIR to one that can be written",
            place.display()
        )
    })
}

/// Ends the daemon, in the way that any daemon is ended, when the coordinator has.
fn watch_lifeline() {
    thread::spawn(|| {
        // Nothing is ever written; what counts is the end.
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        let _ = kill(Pid::this(), Signal::SIGTERM);
    });
}
