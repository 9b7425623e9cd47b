//! A daemon of its own to be abused, and what is measured of it.

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hshm_client::Client;
use hshm_tests::process::binary;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

use crate::honest;
use crate::hostile::Kind;

/// A user that exists nowhere.
const HOSTILE: u32 = 4_000_001;

/// By how much the daemon's own memory may be larger after an abuse than before, in KiB. It keeps a
/// buffer for each session, and what its allocator does not give back.
const MAX_GROWTH_KIB: u64 = 64 << 10;

const SETTINGS: &str = "\
socket_mode = 0o666
sweep_interval_ms = 100
[limits]
max_user_sessions = 256
max_user_segments = 8
max_user_bytes = \"256M\"
[log]
level = \"error\"
";

pub(crate) struct Site {
    folder: TempDir,
    child: Child,
}

/// A row of the table, and what is wrong if anything.
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) failure: Option<String>,
}

impl Site {
    pub(crate) fn start(kind: Kind, daemon: Option<&Path>) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("cannot start a daemon: {error}");
        let folder = tempfile::Builder::new().prefix("hshm-abuse-").tempdir().map_err(failed)?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).map_err(failed)?;
        fs::write(folder.path().join("config"), SETTINGS).map_err(failed)?;
        let program: PathBuf = match daemon {
            Some(program) => program.to_path_buf(),
            None => {
                let own = std::env::current_exe().map_err(failed)?;
                binary("hshmd", own.to_str().ok_or("this program's path is no text")?)
            }
        };
        let limit = if kind == Kind::FewDescriptors { "ulimit -n 100; " } else { "" };
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(format!("{limit}exec \"$0\" \"$@\"")).arg(program);
        command.arg("--ephemeral").arg("--socket").arg(folder.path().join("socket"));
        command.arg("--state-dir").arg(folder.path().join("state"));
        command.arg("--config").arg(folder.path().join("config"));
        command.stdin(Stdio::null()).env_remove("HSHM_SOCKET");
        let child = command.spawn().map_err(failed)?;
        Ok(Self { folder, child })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn connect(&mut self) -> Result<Client, String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match honest::connect(&self.socket()) {
                Ok(client) => return Ok(client),
                Err(why) if Instant::now() > deadline || self.has_ended() => return Err(why),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Memory that is the daemon's alone, in KiB: what segments have is not.
    fn own_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }

    /// Has the daemon abused.
    pub(crate) fn abuse(&mut self, kind: Kind, duration: Duration) -> Result<Row, String> {
        let client = self.connect()?;
        let socket = self.socket();
        let (kib_before, open_before) = (self.own_kib(), self.descriptors());
        let stop = AtomicBool::new(false);
        let (seen, came) = thread::scope(|scope| {
            let asking = scope.spawn(|| honest::ask(&client, &socket, &stop));
            let came = hostile(kind, &socket, duration);
            // ORDER: Relaxed: nothing else is read after it.
            stop.store(true, Ordering::Relaxed);
            (asking.join(), came)
        });
        let seen = seen.map_err(|_| "the honest client panicked".to_owned())?;
        let kib_after = self.own_kib();
        // The honest one's segment takes a few.
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.descriptors() > open_before + 8 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let open_after = self.descriptors();
        let came = came?;
        let mut failure = None;
        if self.has_ended() {
            failure = Some("the daemon ended".to_owned());
        } else if kib_after > kib_before + MAX_GROWTH_KIB {
            failure =
                Some(format!("the daemon's memory grew from {kib_before} to {kib_after} KiB"));
        } else if open_after > open_before + 8 {
            failure =
                Some(format!("the daemon keeps {open_after} files open, {open_before} before"));
        }
        let mut seen = seen?;
        if seen.requests.is_empty() {
            failure = Some("the honest client was never answered".to_owned());
        }
        let text = format!(
            "| {} | {came} | {} answered: {}, {} | {}, {}, {} | {:.1} → {:.1} MiB | {open_before} → {open_after} |",
            kind.what(),
            seen.requests.len(),
            honest::percentile(&mut seen.requests, 50),
            honest::percentile(&mut seen.requests, 99),
            honest::percentile(&mut seen.newcomers, 50),
            honest::percentile(&mut seen.newcomers, 99),
            seen.failed,
            mib(kib_before),
            mib(kib_after),
        );
        Ok(Row { text, failure })
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Starts the hostile client, and waits for what it says.
fn hostile(kind: Kind, socket: &Path, duration: Duration) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot start the hostile client: {error}");
    let name = clap::ValueEnum::to_possible_value(&kind).map(|value| value.get_name().to_owned());
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.arg("hostile").arg("--kind").arg(name.unwrap_or_default());
    command.arg("--socket").arg(socket).arg("--seconds").arg(duration.as_secs_f64().to_string());
    if geteuid().is_root() {
        command.arg("--uid").arg(HOSTILE.to_string());
    }
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(failed)?;
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut said).map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        Ok(said.trim().to_owned())
    } else {
        Err(format!("the hostile client: {status}"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // It takes its segments with it.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let _ = self.child.wait();
    }
}
