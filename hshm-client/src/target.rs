//! Where the daemon is looked for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hshm_proto::Environment;
use nix::unistd::geteuid;

use crate::error::Error;

/// The sockets to try, in order.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    sockets: Vec<PathBuf>,
    /// The user's directory under `/tmp`, which anybody could have made first.
    guarded: Option<PathBuf>,
}

impl Target {
    /// One socket that the caller chose.
    pub(crate) fn at(socket: PathBuf) -> Self {
        Self { sockets: vec![socket], guarded: None }
    }

    /// `HSHM_SOCKET` if set, otherwise the user's own daemon and then the system's.
    pub(crate) fn from_environment() -> Self {
        let environment = Environment::read(geteuid().as_raw(), std::env::var_os);
        let sockets = environment.client_sockets();
        let is_guarded = environment.hshm_socket.is_none();
        let guarded = sockets.iter().find(|s| is_guarded && environment.is_tmp_socket(s)).cloned();
        Self { sockets, guarded }
    }

    pub(crate) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Refuses a socket in a directory that another user could have put there.
    pub(crate) fn require_trusted(&self, socket: &Path) -> Result<(), Error> {
        if self.guarded.as_deref() != Some(socket) {
            return Ok(());
        }
        let Some(directory) = socket.parent() else { return Ok(()) };
        // Not there: connecting will say so.
        let Ok(found) = directory.symlink_metadata() else { return Ok(()) };
        let own = geteuid().as_raw();
        let why = if !found.is_dir() {
            "its directory is none"
        } else if found.uid() != own {
            "its directory belongs to another user"
        } else if found.mode() & 0o077 != 0 {
            "its directory is open to other users"
        } else {
            return Ok(());
        };
        Err(Error::BadSocket { socket: socket.to_path_buf(), why: why.into() })
    }
}
