//! Why the daemon could not start or go on, and how failures of the memory library are told to
//! clients.

use std::io;
use std::path::PathBuf;

use hshm_memory::{AllocError, BackendError, SegmentError};
use hshm_proto::{ErrorCode, ErrorReply};

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// The configuration file cannot be used.
    #[error("cannot use configuration file {}: {why}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        why: String,
    },
    /// A setting has a value that it cannot have.
    #[error("{setting}: {why}")]
    Setting {
        /// The setting or option.
        setting: &'static str,
        /// What is wrong, and what could stand there.
        why: String,
    },
    /// Another daemon has the state directory.
    #[error("another hshmd{} uses state directory {}; stop it, or choose another --state-dir and --socket", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    StateDirInUse {
        /// The directory.
        path: PathBuf,
        /// The other daemon, if it could be told.
        pid: Option<u32>,
    },
    /// Another daemon listens on the socket.
    #[error("another daemon listens on {}; stop it, or choose another --socket and --state-dir", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// What stands where the socket is to be is something else.
    #[error("cannot listen on {}: {why}", path.display())]
    BadSocket {
        /// The socket.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A file or directory could not be read, written or made.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What was tried, up to the path.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused something else.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl DaemonError {
    pub(crate) fn file(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { what, path: path.into(), source }
    }

    pub(crate) fn system(what: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { what, source: source.into() }
    }
}

fn backend_code(error: &BackendError) -> ErrorCode {
    match error {
        BackendError::BadName { .. } => ErrorCode::BadName,
        BackendError::Exists { .. } => ErrorCode::Exists,
        BackendError::BadSize { .. } | BackendError::Numa { .. } => ErrorCode::BadArgument,
        BackendError::Full { .. } | BackendError::HugePages { .. } | BackendError::Lock { .. } => {
            ErrorCode::NoMemory
        }
        BackendError::NotFound { .. } | BackendError::NotSharedMemory { .. } => ErrorCode::Unusable,
        BackendError::System { source, .. } if source.kind() == io::ErrorKind::OutOfMemory => {
            ErrorCode::NoMemory
        }
        BackendError::Permission { .. } | BackendError::System { .. } | _ => ErrorCode::Internal,
    }
}

/// The reply for a segment that could not be created.
pub(crate) fn creation_reply(name: &str, error: &SegmentError) -> ErrorReply {
    let failed = |code, why: &dyn std::fmt::Display, advice: &str| {
        ErrorReply::new(code, format_args!("cannot create segment {name:?}: {why}"), advice)
    };
    match error {
        SegmentError::Backend(error) => failed(backend_code(error), error, ""),
        SegmentError::BadOption { .. } => failed(ErrorCode::BadArgument, error, ""),
        // Found while a new segment is laid out, it means that there is no room for its tables.
        SegmentError::Truncated { found_bytes, needed_bytes } => failed(
            ErrorCode::BadArgument,
            &format_args!(
                "its capacity of {found_bytes} bytes is too small: its own tables and the least room for blocks take {needed_bytes}"
            ),
            "give a larger size or capacity, or fewer worker slots",
        ),
        SegmentError::Foreign { .. }
        | SegmentError::LayoutVersion { .. }
        | SegmentError::Corrupt { .. }
        | _ => failed(ErrorCode::Internal, error, "see the daemon's log"),
    }
}

/// The reply for an operation `verb` on segment `name` that its allocator refused.
pub(crate) fn allocator_reply(verb: &str, name: &str, error: &AllocError) -> ErrorReply {
    let code = match error {
        AllocError::OutOfMemory { .. } => ErrorCode::NoMemory,
        AllocError::TooLarge { .. } => ErrorCode::BadArgument,
        AllocError::Backend(error) => backend_code(error),
        AllocError::Corrupt { .. } => ErrorCode::Unusable,
        AllocError::InUse { .. } => ErrorCode::InUse,
        // None of the others can come from what the daemon does.
        AllocError::BadAlignment { .. }
        | AllocError::NoWorkerSlot { .. }
        | AllocError::NotAllocated { .. }
        | AllocError::BadCell { .. }
        | AllocError::BadContext { .. }
        | AllocError::Identity(_)
        | _ => ErrorCode::Internal,
    };
    ErrorReply::new(code, format_args!("cannot {verb} segment {name:?}: {error}"), "")
}

/// The reply for something that failed in the daemon itself.
pub(crate) fn internal_reply(what: impl std::fmt::Display) -> ErrorReply {
    ErrorReply::new(ErrorCode::Internal, what, "see the daemon's log")
}

/// The reply to what comes too late.
pub(crate) fn shutting_down() -> ErrorReply {
    ErrorReply::new(ErrorCode::ShuttingDown, "hshmd is shutting down", "try again later")
}
