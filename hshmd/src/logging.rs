//! The daemon's log: on standard error, for people or as JSON, or to the journal.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};
use crate::error::DaemonError;
use crate::journal::LogJournal;
use crate::stderr::LogStderr;

/// Reads a log level or filter directives.
pub(crate) fn parse_level(level: &str) -> Result<EnvFilter, DaemonError> {
    let wrong = |what: String| DaemonError::Setting {
        setting: "log level",
        why: format!(
            "{what}: write error, warn, info, debug or trace, or directives such as info,hshmd::reaper=debug"
        ),
    };
    // Taken for a part of the program otherwise, which there is not, so that nothing would be logged.
    let is_level = |word: &str| word.contains('=') || word.parse::<LevelFilter>().is_ok();
    if let Some(word) = level.split(',').map(str::trim).find(|word| !is_level(word)) {
        return Err(wrong(format!("{word:?} is no level")));
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(level)
        .map_err(|error| wrong(format!("{level:?} is none ({error})")))
}

/// Changes the filter of the log, if [`start`] made one.
static FILTER: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

/// Logs as much as `level` says from now on.
pub(crate) fn set_level(level: &str) -> Result<(), DaemonError> {
    let filter = parse_level(level)?;
    if let Some(set) = FILTER.get() {
        set(filter);
    }
    Ok(())
}

/// Directs the log to standard error from now on, in the whole process; or to the journal, with its fields, if
/// that is where standard error goes and no other form is asked for.
///
/// # Errors
/// [`DaemonError::Setting`] if the level is none.
pub fn start(config: &LogConfig) -> Result<(), DaemonError> {
    let filter = parse_level(&config.level)?;
    if config.format == LogFormat::Human
        && let Some(journal) = LogJournal::of_stderr()
    {
        let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
        let log = tracing_subscriber::registry().with(journal.with_filter(filter));
        if log.try_init().is_ok() {
            let _ = FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
        }
        return Ok(());
    }
    let stderr = LogStderr::new(config.format);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || stderr);
    // It would be said on standard error that a line cannot be made, which panics if that cannot be said.
    let log = log.log_internal_errors(false);
    // Either fails only if something else in this process has set a log up already, which then receives
    // it.
    match config.format {
        LogFormat::Human => {
            // https://no-color.org: present and not empty.
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colour = io::stderr().is_terminal() && !plain;
            let log = log.with_ansi(colour).with_target(false).with_filter_reloading();
            let handle = log.reload_handle();
            if log.try_init().is_ok() {
                let _ = FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
            }
        }
        LogFormat::Json => {
            let log = log.json().flatten_event(true).with_filter_reloading();
            let handle = log.reload_handle();
            if log.try_init().is_ok() {
                let _ = FILTER.set(Box::new(move |filter| drop(handle.reload(filter))));
            }
        }
    }
    Ok(())
}
