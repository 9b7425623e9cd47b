//! Why the daemon did not do what a client asked for.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{MAX_TEXT_BYTES, truncated};

/// The kinds of failure that a program may want to tell apart.
///
/// The integers are pinned: they mean the same in every version, and none is ever used again for
/// something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The message could not be understood. The connection is closed after it.
    Malformed = 1,
    /// The other side's protocol versions and ours do not meet.
    Version = 2,
    /// There is no segment of that name.
    NotFound = 3,
    /// There is a segment of that name already.
    Exists = 4,
    /// The caller's user may not do this.
    Permission = 5,
    /// The name cannot be one.
    BadName = 6,
    /// A size, option or mode is out of its range.
    BadArgument = 7,
    /// A limit that the daemon's administrator set would be exceeded.
    Quota = 8,
    /// The machine has not enough memory for it.
    NoMemory = 9,
    /// Living processes use the segment.
    InUse = 10,
    /// The segment is there, but what it holds cannot be used.
    Unusable = 11,
    /// The segment is written in another layout than the client reads.
    Layout = 12,
    /// Too many sessions, or a client that does not read its replies.
    Busy = 13,
    /// The daemon is shutting down.
    ShuttingDown = 14,
    /// Something failed in the daemon or the kernel; the daemon's log says more.
    Internal = 15,
    /// The request belongs to a version of the protocol that the daemon does not know.
    Unsupported = 16,
}

impl ErrorCode {
    /// The integer that stands for it in messages.
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        self as u32
    }
}

impl TryFrom<u32> for ErrorCode {
    type Error = u32;

    /// # Errors
    /// The integer itself, if a later version made it.
    fn try_from(code: u32) -> Result<Self, u32> {
        Ok(match code {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::NotFound,
            4 => Self::Exists,
            5 => Self::Permission,
            6 => Self::BadName,
            7 => Self::BadArgument,
            8 => Self::Quota,
            9 => Self::NoMemory,
            10 => Self::InUse,
            11 => Self::Unusable,
            12 => Self::Layout,
            13 => Self::Busy,
            14 => Self::ShuttingDown,
            15 => Self::Internal,
            16 => Self::Unsupported,
            other => return Err(other),
        })
    }
}

/// A failure as it is told to a client: for programs a code, for people what failed and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// An [`ErrorCode`], or one that a later version made.
    pub code: u32,
    /// What failed, on what, and why: one line, at most [`MAX_TEXT_BYTES`].
    pub message: String,
    /// What to do about it: one line, at most [`MAX_TEXT_BYTES`], empty if there is nothing to say
    /// that the message does not.
    pub advice: String,
}

impl ErrorReply {
    /// A failure of kind `code`. Texts that are too long are cut, and line ends become blanks.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl fmt::Display, advice: impl fmt::Display) -> Self {
        let line = |text: String| {
            let text = text.replace(['\n', '\r'], " ");
            truncated(text.trim(), MAX_TEXT_BYTES)
        };
        Self {
            code: code.to_u32(),
            message: line(message.to_string()),
            advice: line(advice.to_string()),
        }
    }

    /// The kind of failure, if this version knows it.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorCode> {
        ErrorCode::try_from(self.code).ok()
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorReply {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_found_again_by_its_integer() {
        let known: Vec<u32> = (0..1000).filter(|n| ErrorCode::try_from(*n).is_ok()).collect();
        assert_eq!(known, (1..=16).collect::<Vec<_>>());
        for n in known {
            assert_eq!(ErrorCode::try_from(n).unwrap().to_u32(), n);
        }
    }

    #[test]
    fn an_error_is_one_bounded_line_and_may_have_an_unknown_code() {
        let long = format!("first\nsecond {}", "ä".repeat(MAX_TEXT_BYTES));
        let error = ErrorReply::new(ErrorCode::NotFound, &long, "do\r\nthis");
        assert!(error.message.len() <= MAX_TEXT_BYTES && !error.message.contains('\n'));
        assert_eq!(error.advice, "do  this");
        assert_eq!(error.kind(), Some(ErrorCode::NotFound));
        assert_eq!(ErrorReply { code: 4711, ..error }.kind(), None);
    }
}
