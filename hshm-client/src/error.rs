//! Why a request failed, in words that say what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hshm_memory::gpu::GpuError;
use hshm_memory::gpu::pool::PoolError;
use hshm_memory::{AllocError, SegmentError};
use hshm_proto::{ErrorCode, ErrorReply, VersionMismatch};

/// What can go wrong between an application and the daemon.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens on any of the sockets where a daemon could be.
    #[error("no daemon is running at {}; start hshmd, or set HSHM_SOCKET to the socket of one that runs", Paths(.sockets))]
    NoDaemon {
        /// Where it was looked for.
        sockets: Vec<PathBuf>,
    },
    /// The socket is closed to this user.
    #[error("no permission to use the daemon's socket {}; ask for access to it, or start an hshmd of your own and set HSHM_SOCKET", .socket.display())]
    SocketPermission {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be used for another reason.
    #[error("cannot use {} as the daemon's socket: {why}; set HSHM_SOCKET to the socket of an hshmd that runs", .socket.display())]
    BadSocket {
        /// The socket.
        socket: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The daemon and this library have no protocol version in common.
    #[error(
        "version mismatch with the daemon at {}: {mismatch}; upgrade {}",
        .socket.display(),
        if .mismatch.ours_is_older() { "the program that uses this library" } else { "hshmd" }
    )]
    Version {
        /// The daemon's socket.
        socket: PathBuf,
        /// What each side speaks.
        mismatch: VersionMismatch,
    },
    /// The daemon did not do what it was asked for, and says why.
    #[error(transparent)]
    Daemon(#[from] ErrorReply),
    /// No answer came in time. Whether the request was carried out is not known.
    #[error(
        "the daemon did not answer {verb} within {after:?}; see what it is doing, or allow more time"
    )]
    Timeout {
        /// The request.
        verb: &'static str,
        /// How long was waited for it.
        after: Duration,
    },
    /// The connection broke before the answer to a request that must not be sent twice.
    #[error(
        "the daemon went away before it answered {verb}, which may or may not be done; look, and try again if need be"
    )]
    Disconnected {
        /// The request.
        verb: &'static str,
    },
    /// The daemon said something that makes no sense.
    #[error(
        "unexpected answer from the daemon to {verb}: {why}; use the same hshm release on both sides"
    )]
    Protocol {
        /// The request.
        verb: &'static str,
        /// What was wrong with the answer.
        why: String,
    },
    /// The segment that the daemon handed over cannot be used.
    #[error("cannot attach segment {name:?}: {source}")]
    Segment {
        /// The segment.
        name: String,
        /// What is wrong with it.
        source: SegmentError,
    },
    /// The device's own memory that belongs to a segment cannot be mapped.
    #[error("cannot attach the device memory of segment {name:?}: {source}")]
    DeviceMemory {
        /// The segment.
        name: String,
        /// What the driver says.
        source: GpuError,
    },
    /// The tables of a segment's device memory cannot be used.
    #[error("cannot use the device memory of segment {name:?}: {source}")]
    DevicePool {
        /// The segment.
        name: String,
        /// What is wrong with them.
        source: PoolError,
    },
    /// An operation on an attached segment failed.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The kind of failure that the daemon reported, if it was the daemon that reported it.
    #[must_use]
    pub fn daemon_code(&self) -> Option<ErrorCode> {
        if let Self::Daemon(reply) = self { reply.kind() } else { None }
    }

    pub(crate) fn system(what: &'static str, errno: nix::errno::Errno) -> Self {
        Self::System { what, source: errno.into() }
    }
}

/// Some paths in one line.
struct Paths<'a>(&'a [PathBuf]);

impl fmt::Display for Paths<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, path) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { " or " }, path.display())?;
        }
        Ok(())
    }
}
