//! The daemon's log: on standard error, for people or as JSON.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::{LogConfig, LogFormat};
use crate::error::DaemonError;

/// Reads a log level or filter directives.
pub(crate) fn parse_level(level: &str) -> Result<EnvFilter, DaemonError> {
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(level)
        .map_err(|error| DaemonError::Setting {
            setting: "log level",
            why: format!("{level:?} is none ({error}): write error, warn, info, debug or trace, or directives such as info,hshmd::reaper=debug"),
        })
}

/// Directs the log to standard error from now on, in the whole process.
///
/// # Errors
/// [`DaemonError::Setting`] if the level is none.
pub fn start(config: &LogConfig) -> Result<(), DaemonError> {
    let filter = parse_level(&config.level)?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // Fails only if something else in this process has set a log up already, which then receives it.
    let _ = match config.format {
        LogFormat::Human => {
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            log.with_ansi(colour).with_target(false).try_init()
        }
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}
