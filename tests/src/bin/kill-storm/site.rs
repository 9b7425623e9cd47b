//! A daemon in a directory of its own.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hshm_client::{Client, CreateOptions, Error, Segment};
use hshm_memory::{OnExit, PosixShmMmap};
use hshm_tests::process::binary;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::args::StormArgs;
use crate::table::TABLE_BYTES;
use crate::{Failure, interrupt};

/// How long anything may take on a machine that is busy.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// The segment's name.
pub(crate) const SEGMENT: &str = "storm";
const SEGMENT_BYTES: u64 = 192 << 20;

/// The daemon, its directory, and its segment's object; all of them gone with the value.
pub(crate) struct Site {
    folder: TempDir,
    program: PathBuf,
    child: Option<Child>,
    object: Option<String>,
}

impl Site {
    /// Starts a daemon and has it make the segment.
    pub(crate) fn start(arguments: &StormArgs) -> Result<(Self, Segment), Failure> {
        let program = match &arguments.daemon {
            Some(program) => program.clone(),
            None => beside()?,
        };
        let folder = tempfile::Builder::new().prefix("hshm-storm-").tempdir();
        let folder = folder.map_err(|error| format!("cannot make a directory: {error}"))?;
        let settings = "sweep_interval_ms = 100\n[log]\nlevel = \"error\"\n";
        std::fs::write(folder.path().join("config"), settings)
            .and_then(|()| std::fs::create_dir(folder.path().join("state")))
            .map_err(|error| format!("cannot write to {}: {error}", folder.path().display()))?;
        let mut site = Self { folder, program, child: None, object: None };
        site.launch()?;
        let client = site.connect()?;
        let options = CreateOptions {
            custom_header_bytes: TABLE_BYTES,
            on_exit: arguments.on_exit,
            worker_slots: Some(1024),
            ..CreateOptions::new(SEGMENT, SEGMENT_BYTES)
        };
        let made = client.create(&options).map_err(|error| error.to_string())?;
        site.object = made.object;
        let segment = client.attach(SEGMENT).map_err(|error| error.to_string())?;
        Ok((site, segment))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Starts the daemon.
    pub(crate) fn launch(&mut self) -> Result<(), Failure> {
        let mut command = Command::new(&self.program);
        command.arg("--ephemeral").arg("--socket").arg(self.socket());
        command.arg("--state-dir").arg(self.folder.path().join("state"));
        command.arg("--config").arg(self.folder.path().join("config"));
        command.stdin(Stdio::null()).env_remove("HSHM_SOCKET").process_group(0);
        // If this process is killed, the daemon ends and takes its segment with it.
        // SAFETY: [ffi] between fork and exec nothing but one system call is made.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGTERM)?)) };
        let child = command.spawn();
        let program = self.program.display();
        self.child = Some(child.map_err(|error| format!("cannot start {program}: {error}"))?);
        Ok(())
    }

    fn connect(&mut self) -> Result<Client, Failure> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            interrupt::check()?;
            self.require_alive()?;
            match Client::builder().socket(self.socket()).connect() {
                Ok(client) => return Ok(client),
                Err(Error::NoDaemon { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(Failure::Failed(error.to_string())),
            }
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Fails if the daemon has ended by itself.
    pub(crate) fn require_alive(&mut self) -> Result<(), Failure> {
        let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
        match ended {
            Some(status) => Err(Failure::Failed(format!("the daemon ended by itself: {status}"))),
            None => Ok(()),
        }
    }

    /// Kills the daemon with SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        self.require_alive()?;
        if let Some(mut child) = self.child.take() {
            let dead = child.kill().and_then(|()| child.wait());
            dead.map_err(|error| format!("cannot kill the daemon: {error}"))?;
        }
        Ok(())
    }

    /// Asks the daemon to end, which destroys the segment.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => {
                    return Err(Failure::Failed(format!("the daemon failed at its end: {status}")));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(2)),
                Err(error) => return Err(Failure::Failed(error.to_string())),
            }
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(Failure::Failed("the daemon does not end".to_owned()))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.stop();
        if let Some(object) = &self.object {
            // The daemon did that, unless it was dead just now.
            let _ = PosixShmMmap::unlink(object);
        }
    }
}

/// The daemon beside this program, as it is now if cargo can say so.
fn beside() -> Result<PathBuf, Failure> {
    let this = std::env::current_exe().map_err(|error| format!("cannot find hshmd: {error}"))?;
    let folder = this.parent().unwrap_or(Path::new("."));
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "hshmd", "--bin", "hshmd"]);
        build.arg("--manifest-path").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
        build.arg("--target-dir").arg(folder.parent().unwrap_or(folder));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        if !build.status().is_ok_and(|status| status.success()) {
            return Err(Failure::Failed("cannot build hshmd: give --daemon PATH".to_owned()));
        }
    }
    let program = folder.join("hshmd");
    if program.exists() {
        return Ok(program);
    }
    Ok(binary("hshmd", &this.to_string_lossy()))
}

/// What a policy is called.
pub(crate) fn policy(on_exit: OnExit) -> &'static str {
    match on_exit {
        OnExit::Keep => "keep",
        OnExit::Reclaim => "reclaim",
    }
}
