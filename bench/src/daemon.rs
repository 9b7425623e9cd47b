//! A daemon of the benchmark's own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hshm_client::{Client, CreateOptions, Error, Segment};

/// How long it may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that listens in a folder of its own, and a segment of it. Both end with this.
pub(crate) struct Daemon {
    child: Child,
    folder: PathBuf,
    client: Client,
    segment: String,
}

impl Daemon {
    /// Starts it, with a segment of `bytes` bytes.
    pub(crate) fn start(segment: &str, bytes: usize) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let program = program.with_file_name("hshmd");
        if !program.exists() {
            return Err("hshmd is not built: cargo build --release -p hshmd".to_owned());
        }
        let folder = folder(segment);
        std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
        let child = Command::new(&program)
            .arg("--socket")
            .arg(socket(&folder))
            .arg("--state-dir")
            .arg(&folder)
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let mut child =
            child.map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let made = connect_patiently(segment).and_then(|client| {
            client.create(&CreateOptions::new(segment, bytes as u64)).map_err(text)?;
            Ok(client)
        });
        match made {
            Ok(client) => Ok(Self { child, folder, client, segment: segment.to_owned() }),
            Err(why) => {
                end(&mut child, &folder);
                Err(why)
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.client.destroy(&self.segment, true);
        end(&mut self.child, &self.folder);
    }
}

fn end(child: &mut Child, folder: &Path) {
    let _ = child.kill();
    let _ = child.wait();
    let _ = std::fs::remove_dir_all(folder);
}

fn folder(segment: &str) -> PathBuf {
    std::env::temp_dir().join(segment)
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

/// Connects to the daemon that has `segment`.
pub(crate) fn connect(segment: &str) -> Result<Client, Error> {
    Client::builder().socket(socket(&folder(segment))).connect()
}

/// Connects to the daemon that has `segment`, and attaches it.
pub(crate) fn attach(segment: &str) -> Result<(Client, Segment), Error> {
    Client::builder().socket(socket(&folder(segment))).attach(segment)
}

fn connect_patiently(segment: &str) -> Result<Client, String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match connect(segment) {
            Err(Error::NoDaemon { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.map_err(text),
        }
    }
}

/// What an error says.
pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
