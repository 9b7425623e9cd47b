//! What the exit code says.

use std::process::ExitCode;

/// How a command ended. Wrong usage (code 2) is found by clap before there is a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It did what was asked for.
    Success,
    /// It did not.
    Failed,
    /// `check` or `doctor` did its work, and found something broken.
    Violations,
    /// A signal, of this number, ended it early.
    Interrupted(u8),
}

/// Shown at the end of `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    success
  1    the request failed; one line on standard error says why and what to do
  2    wrong usage
  3    check found violations, or doctor a problem
  130  interrupted (by SIGINT; 128 + the signal's number in general)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Success => Self::from(0),
            Exit::Failed => Self::from(1),
            Exit::Violations => Self::from(3),
            Exit::Interrupted(signal) => Self::from(128_u8.saturating_add(signal)),
        }
    }
}
