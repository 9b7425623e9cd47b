//! What the daemon is told: by options, by a file, and by default, in this order of precedence.

mod declared;
mod file;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hshm_proto::Environment;
use serde::Deserialize;

pub use self::declared::DeclaredSegment;
pub use self::file::FileConfig;
use crate::error::DaemonError;

/// Everything that the daemon can be told, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub socket: PathBuf,
    /// Permission bits of the socket: who may write may connect.
    pub socket_mode: u32,
    /// The group that the socket is given, by name or number.
    pub socket_group: Option<String>,
    /// Whether the socket's directory is made if it is not there: for default sockets only.
    pub create_socket_dir: bool,
    /// Where it keeps the records of its segments.
    pub state_dir: PathBuf,
    /// Whether all segments are destroyed when the daemon stops.
    pub remove_on_shutdown: bool,
    /// How often worker slots are searched for holders that nobody watches.
    pub sweep_interval: Duration,
    /// What clients may use up.
    pub limits: Limits,
    /// Where metrics can be asked for; nowhere if none.
    pub metrics: Option<MetricsAddress>,
    /// How it logs.
    pub log: LogConfig,
    /// Who may do what beyond using the segments that they may.
    pub access: AccessConfig,
    /// Segments that are created at the start if they are not there.
    pub segments: Vec<DeclaredSegment>,
    /// What all this was read from, to be read again on SIGHUP; none if from no file.
    pub source: Option<Source>,
}

/// A configuration file, and what was said beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    file: PathBuf,
    options: Overrides,
    environment: Environment,
}

/// Groups that are more than others, by name or number. What one may do is found out when it connects.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccessConfig {
    /// Its members may do what root and the daemon's own user may.
    pub admin_group: Option<String>,
    /// Only its members, and administrators, may create segments; anybody who may connect if none.
    pub create_group: Option<String>,
}

/// Where metrics can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A Unix socket, open to the daemon's user and group.
    Path(PathBuf),
    /// A port of this machine's loopback interface, open to whoever is on this machine.
    Port(SocketAddr),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Path(text.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Port(address)),
            Ok(_) => Err(format!(
                "{text:?} can be reached from elsewhere: write a port of 127.0.0.1 or [::1], and put \
                 a proxy with access control before it"
            )),
            Err(_) => Err(format!(
                "{text:?} is no place to listen: write an absolute path, or an address such as \
                 127.0.0.1:9177"
            )),
        }
    }
}

/// What clients may use up, over all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Segments there may be at once.
    pub max_segments: u64,
    /// Size of the largest segment, in bytes; what the machine has if none.
    pub max_segment_bytes: Option<u64>,
    /// Length of all segments together, in bytes; no limit but the machine's if none. The tables of
    /// the last one created may go beyond it.
    pub max_total_bytes: Option<u64>,
    /// Connections there may be at once.
    pub max_sessions: usize,
    /// Segments that may belong to one user; no limit if none. This and the following hold for each
    /// user but root and the daemon's own.
    pub max_user_segments: Option<u64>,
    /// Length of all segments of one user together, in bytes.
    pub max_user_bytes: Option<u64>,
    /// Connections that one user may have at once; in any case no more than three quarters of
    /// `max_sessions`.
    pub max_user_sessions: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_segments: 4096,
            max_segment_bytes: None,
            max_total_bytes: None,
            max_sessions: 4096,
            max_user_segments: None,
            max_user_bytes: None,
            max_user_sessions: None,
        }
    }
}

/// How the daemon logs, on standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// In what form.
    pub format: LogFormat,
    /// How much: a level, or filter directives such as `info,hshmd::reaper=debug`.
    pub level: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: "info".into() }
    }
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Lines for people, in colour on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// The defaults for a daemon of the calling user that listens on `socket` and keeps its records
    /// in `state_dir`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        let root = nix::unistd::geteuid().is_root();
        Self {
            socket: socket.into(),
            socket_mode: if root { 0o660 } else { 0o600 },
            socket_group: None,
            create_socket_dir: false,
            state_dir: state_dir.into(),
            remove_on_shutdown: false,
            sweep_interval: Duration::from_secs(1),
            limits: Limits::default(),
            metrics: None,
            log: LogConfig::default(),
            access: AccessConfig::default(),
            segments: Vec::new(),
            source: None,
        }
    }

    /// Reads the file, if there is one, and puts it together with what options and environment say.
    ///
    /// # Errors
    /// As [`FileConfig::read`] and [`Config::resolve`].
    pub fn load(
        options: Overrides,
        file: Option<&Path>,
        environment: Environment,
    ) -> Result<Self, DaemonError> {
        let read = file.map(FileConfig::read).transpose()?.unwrap_or_default();
        let mut config = Self::resolve(options.clone(), read, &environment)?;
        config.source = file.map(|file| Source { file: file.to_owned(), options, environment });
        Ok(config)
    }

    /// Reads again what [`Config::load`] read; none if that was no file.
    ///
    /// # Errors
    /// As there.
    pub fn load_again(&self) -> Option<Result<Self, DaemonError>> {
        let Source { file, options, environment } = self.source.clone()?;
        Some(Self::load(options, Some(&file), environment))
    }

    /// The settings that differ from `other`'s and take effect at a start only.
    pub(crate) fn fixed_changes(&self, other: &Self) -> Vec<&'static str> {
        [
            ("socket", self.socket != other.socket),
            ("socket_mode", self.socket_mode != other.socket_mode),
            ("socket_group", self.socket_group != other.socket_group),
            ("state_dir", self.state_dir != other.state_dir),
            ("remove_on_shutdown", self.remove_on_shutdown != other.remove_on_shutdown),
            ("sweep_interval_ms", self.sweep_interval != other.sweep_interval),
            ("metrics.listen", self.metrics != other.metrics),
            ("log.format", self.log.format != other.log.format),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }

    /// Puts together what options, file and environment say.
    ///
    /// # Errors
    /// [`DaemonError::Setting`] if there is no place for the state directory.
    pub fn resolve(
        options: Overrides,
        file: FileConfig,
        env: &Environment,
    ) -> Result<Self, DaemonError> {
        let explicit = options.socket.or(file.socket);
        let create_socket_dir = explicit.is_none() && env.hshm_socket.is_none();
        let socket = explicit.unwrap_or_else(|| env.daemon_socket());
        let state_dir = options.state_dir.or(file.state_dir).or_else(|| env.state_dir());
        let state_dir = state_dir.ok_or_else(|| DaemonError::Setting {
            setting: "state_dir",
            why: "neither XDG_STATE_HOME nor HOME is set: give --state-dir".into(),
        })?;
        let mut config =
            Self::new(crate::paths::absolute(&socket), crate::paths::absolute(&state_dir));
        config.create_socket_dir = create_socket_dir;
        config.socket_mode = file.socket_mode.map_or(config.socket_mode, |mode| mode.0);
        config.socket_group = file.socket_group;
        config.remove_on_shutdown = options.ephemeral || file.remove_on_shutdown.unwrap_or(false);
        if let Some(ms) = file.sweep_interval_ms {
            config.sweep_interval = Duration::from_millis(ms.0);
        }
        let (limits, defaults) = (file.limits, Limits::default());
        config.limits = Limits {
            max_segments: limits.max_segments.unwrap_or(defaults.max_segments),
            max_segment_bytes: limits.max_segment_bytes.map(|size| size.0),
            max_total_bytes: limits.max_total_bytes.map(|size| size.0),
            max_sessions: limits.max_sessions.map_or(defaults.max_sessions, NonZeroUsize::get),
            max_user_segments: limits.max_user_segments,
            max_user_bytes: limits.max_user_bytes.map(|size| size.0),
            max_user_sessions: limits.max_user_sessions,
        };
        config.access = AccessConfig {
            admin_group: file.access.admin_group,
            create_group: file.access.create_group,
        };
        config.segments = declared::all(file.segments)?;
        config.metrics = file.metrics.listen.map(|address| address.0);
        config.log = LogConfig {
            format: options.log_format.or(file.log.format).unwrap_or_default(),
            level: options
                .log_level
                .or(file.log.level.map(|level| level.0))
                .unwrap_or(config.log.level),
        };
        Ok(config)
    }
}

/// What the command line says.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Overrides {
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--ephemeral`.
    pub ephemeral: bool,
    /// `--log-format`.
    pub log_format: Option<LogFormat>,
    /// `--log-level`.
    pub log_level: Option<String>,
}

#[cfg(test)]
mod tests;
