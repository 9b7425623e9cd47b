//! The configuration file and what is dropped in beside it.

use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hshm_memory::{AllocatorKind, BackendKind, BackendOptions, OnExit};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};

use super::{LogFormat, MetricsAddress};
use crate::error::DaemonError;
use crate::size::parse_size;

/// What the configuration file says; every key may be left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    pub(super) socket: Option<PathBuf>,
    pub(super) socket_mode: Option<OctalMode>,
    pub(super) socket_group: Option<String>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) remove_on_shutdown: Option<bool>,
    pub(super) sweep_interval_ms: Option<Interval>,
    #[serde(default)]
    pub(super) limits: FileLimits,
    #[serde(default)]
    pub(super) access: FileAccess,
    #[serde(default)]
    pub(super) metrics: FileMetrics,
    #[serde(default)]
    pub(super) log: FileLog,
    #[serde(default, rename = "segment")]
    pub(super) segments: Vec<FileSegment>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileAccess {
    pub(super) admin_group: Option<String>,
    pub(super) create_group: Option<String>,
}

/// One `[[segment]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileSegment {
    pub(super) name: String,
    pub(super) size: Size,
    pub(super) capacity: Option<Size>,
    pub(super) backend: Option<BackendKind>,
    pub(super) allocator: Option<AllocatorKind>,
    pub(super) custom_header: Option<Size>,
    pub(super) on_exit: Option<OnExit>,
    pub(super) worker_slots: Option<u32>,
    pub(super) mode: Option<OctalMode>,
    pub(super) owner: Option<String>,
    pub(super) group: Option<String>,
    #[serde(default)]
    pub(super) memory: BackendOptions,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileMetrics {
    pub(super) listen: Option<Listen>,
}

/// A [`MetricsAddress`], as text.
#[derive(Clone, Debug)]
pub(super) struct Listen(pub(super) MetricsAddress);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLimits {
    pub(super) max_segments: Option<u64>,
    pub(super) max_segment_bytes: Option<Size>,
    pub(super) max_total_bytes: Option<Size>,
    /// Not 0: nobody could connect, not even who would raise it.
    pub(super) max_sessions: Option<NonZeroUsize>,
    pub(super) max_user_segments: Option<u64>,
    pub(super) max_user_bytes: Option<Size>,
    pub(super) max_user_sessions: Option<usize>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileLog {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<Level>,
}

/// A log level or filter directives, as text that was understood.
#[derive(Clone, Debug)]
pub(super) struct Level(pub(super) String);

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let level = String::deserialize(deserializer)?;
        crate::logging::parse_level(&level).map_err(D::Error::custom)?;
        Ok(Self(level))
    }
}

impl FileConfig {
    /// Reads a configuration file, and after it, in the order of their names, the files `*.toml` in
    /// the directory of the same name with `.d` at its end, if there is one: what a later file says
    /// replaces what an earlier one said.
    ///
    /// # Errors
    /// [`DaemonError::Config`] if one cannot be read, or says something that is not understood.
    pub fn read(path: &Path) -> Result<Self, DaemonError> {
        let mut config = Self::read_one(path)?;
        for path in dropped_in(path)? {
            config = Self::read_one(&path)?.over(config);
        }
        Ok(config)
    }

    /// The files that [`FileConfig::read`] reads, in their order.
    ///
    /// # Errors
    /// [`DaemonError::Config`] if the directory beside the file cannot be read.
    pub fn files(path: &Path) -> Result<Vec<PathBuf>, DaemonError> {
        let mut files = vec![path.to_path_buf()];
        files.extend(dropped_in(path)?);
        Ok(files)
    }

    fn read_one(path: &Path) -> Result<Self, DaemonError> {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map(|span| {
                let before = text.get(..span.start).unwrap_or_default();
                format!("line {}: ", before.matches('\n').count() + 1)
            });
            let message = &printable(error.message());
            let hint = suggestion(message).unwrap_or_default();
            DaemonError::Config {
                path: path.to_path_buf(),
                why: format!("{}{message}{hint}", line.unwrap_or_default()),
            }
        })
    }

    /// What this file says, and where it says nothing, what `earlier` did.
    fn over(self, earlier: Self) -> Self {
        let (limits, log) = (earlier.limits, earlier.log);
        Self {
            socket: self.socket.or(earlier.socket),
            socket_mode: self.socket_mode.or(earlier.socket_mode),
            socket_group: self.socket_group.or(earlier.socket_group),
            state_dir: self.state_dir.or(earlier.state_dir),
            remove_on_shutdown: self.remove_on_shutdown.or(earlier.remove_on_shutdown),
            sweep_interval_ms: self.sweep_interval_ms.or(earlier.sweep_interval_ms),
            limits: FileLimits {
                max_segments: self.limits.max_segments.or(limits.max_segments),
                max_segment_bytes: self.limits.max_segment_bytes.or(limits.max_segment_bytes),
                max_total_bytes: self.limits.max_total_bytes.or(limits.max_total_bytes),
                max_sessions: self.limits.max_sessions.or(limits.max_sessions),
                max_user_segments: self.limits.max_user_segments.or(limits.max_user_segments),
                max_user_bytes: self.limits.max_user_bytes.or(limits.max_user_bytes),
                max_user_sessions: self.limits.max_user_sessions.or(limits.max_user_sessions),
            },
            access: FileAccess {
                admin_group: self.access.admin_group.or(earlier.access.admin_group),
                create_group: self.access.create_group.or(earlier.access.create_group),
            },
            segments: {
                let again = |name: &str| self.segments.iter().any(|segment| segment.name == name);
                let mut kept = earlier.segments;
                kept.retain(|segment| !again(&segment.name));
                kept.extend(self.segments);
                kept
            },
            metrics: FileMetrics { listen: self.metrics.listen.or(earlier.metrics.listen) },
            log: FileLog {
                format: self.log.format.or(log.format),
                level: self.log.level.or(log.level),
            },
        }
    }
}

/// The files beside `path` that add to it.
fn dropped_in(path: &Path) -> Result<Vec<PathBuf>, DaemonError> {
    let mut directory = path.as_os_str().to_owned();
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(&directory, &error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Result<Vec<_>, _> = paths.collect();
    let mut paths = paths.map_err(|error| unreadable(&directory, &error))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort_unstable();
    Ok(paths)
}

fn unreadable(path: &Path, error: &io::Error) -> DaemonError {
    DaemonError::Config { path: path.to_path_buf(), why: error.to_string() }
}

/// A message that may quote what stands in the file, with line ends and what else a terminal would act upon
/// as escapes.
fn printable(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for c in message.chars() {
        if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
    }
    text
}

/// Which of the names that a message lists is most like the one it complains of: what was probably
/// meant.
fn suggestion(message: &str) -> Option<String> {
    let mut quoted = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    let likeness = |name: &&str| strsim::jaro_winkler(wrong, name);
    let nearest = quoted.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&nearest) > 0.8).then(|| format!("; did you mean `{nearest}`?"))
}

/// Permission bits, as the TOML integer `0o660` or the text `"0660"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct OctalMode(pub(super) u32);

impl FromStr for OctalMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0o").unwrap_or(text);
        u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777).map(Self).ok_or_else(
            || format!("{text:?} is no mode: write three octal digits, such as \"0660\""),
        )
    }
}

/// A length in bytes, as an integer or a text such as `"16G"`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size(pub(super) u64);

/// Milliseconds, from 10 to an hour.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interval(pub(super) u64);

/// Reads a value that may be an integer or a text.
struct NumberOrText<T> {
    expecting: &'static str,
    number: fn(u64) -> Result<T, String>,
    text: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for NumberOrText<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expecting)
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<T, E> {
        let value = u64::try_from(value).map_err(|_| E::custom("a negative number"))?;
        (self.number)(value).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<T, E> {
        (self.number)(value).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<T, E> {
        (self.text)(value).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for OctalMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText {
            expecting: "permission bits, such as 0o660",
            number: |n| format!("{n:o}").parse(),
            text: str::parse,
        })
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NumberOrText {
            expecting: "a size, such as \"16G\"",
            number: |n| Ok(Self(n)),
            text: |text| parse_size(text).map(Self),
        })
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ms = u64::deserialize(deserializer)?;
        if (10..=3_600_000).contains(&ms) {
            return Ok(Self(ms));
        }
        Err(D::Error::custom(format!("{ms} ms is out of range: write 10 to 3600000")))
    }
}
