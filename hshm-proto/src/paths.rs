//! Where a daemon listens and keeps its records, if nobody says otherwise. One rule for both sides.

use std::path::{Path, PathBuf};

/// Where the system's daemon, which runs as root or as its own user, listens.
pub const SYSTEM_SOCKET: &str = "/run/hshm/hshmd.sock";

/// Where the system's daemon keeps its records.
pub const SYSTEM_STATE_DIR: &str = "/var/lib/hshm";

const SOCKET_FILE: &str = "hshmd.sock";

/// What the default paths depend on. The caller reads it from its process.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Environment {
    /// The effective user.
    pub uid: u32,
    /// `HSHM_SOCKET`, if set: it overrides every default socket.
    pub hshm_socket: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`, if set.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `XDG_STATE_HOME`, if set.
    pub xdg_state_home: Option<PathBuf>,
    /// `HOME`, if set.
    pub home: Option<PathBuf>,
}

/// The XDG rules: a variable that is empty or not absolute counts as unset.
fn usable(path: Option<&PathBuf>) -> Option<&Path> {
    path.map(PathBuf::as_path).filter(|path| path.is_absolute())
}

impl Environment {
    /// Reads the variables with `variable` (such as [`std::env::var_os`]) for the user `uid`.
    #[must_use]
    pub fn read<V: Into<PathBuf>>(uid: u32, variable: impl Fn(&'static str) -> Option<V>) -> Self {
        let path = |name| variable(name).map(Into::into).filter(|p: &PathBuf| *p != Path::new(""));
        Self {
            uid,
            hshm_socket: path("HSHM_SOCKET"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_state_home: path("XDG_STATE_HOME"),
            home: path("HOME"),
        }
    }

    /// Where a daemon of this user listens: `HSHM_SOCKET` if set; [`SYSTEM_SOCKET`] for root;
    /// otherwise `hshm/hshmd.sock` under `XDG_RUNTIME_DIR`, or `/tmp/hshm-UID/hshmd.sock` where
    /// there is none. That last directory must belong to the user and be closed to others, which
    /// both sides check ([`Environment::is_tmp_socket`]).
    #[must_use]
    pub fn daemon_socket(&self) -> PathBuf {
        match (&self.hshm_socket, usable(self.xdg_runtime_dir.as_ref())) {
            (Some(socket), _) => socket.clone(),
            (None, _) if self.uid == 0 => SYSTEM_SOCKET.into(),
            (None, Some(runtime)) => runtime.join("hshm").join(SOCKET_FILE),
            (None, None) => self.tmp_dir().join(SOCKET_FILE),
        }
    }

    /// Where a client of this user looks for a daemon, in this order: `HSHM_SOCKET` alone if set;
    /// otherwise the user's own daemon, then the system's.
    #[must_use]
    pub fn client_sockets(&self) -> Vec<PathBuf> {
        let own = self.daemon_socket();
        let system = PathBuf::from(SYSTEM_SOCKET);
        if self.hshm_socket.is_some() || own == system { vec![own] } else { vec![own, system] }
    }

    /// Where a daemon of this user keeps its records: [`SYSTEM_STATE_DIR`] for root, otherwise `hshm`
    /// under `XDG_STATE_HOME` or `~/.local/state`. None if there is no home directory either.
    #[must_use]
    pub fn state_dir(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(SYSTEM_STATE_DIR.into());
        }
        let under_home = || usable(self.home.as_ref()).map(|home| home.join(".local/state"));
        let base = usable(self.xdg_state_home.as_ref()).map(Path::to_path_buf);
        base.or_else(under_home).map(|base| base.join("hshm"))
    }

    /// Whether `socket` stands in the directory of last resort, which anybody could have made
    /// before the user did.
    #[must_use]
    pub fn is_tmp_socket(&self, socket: &Path) -> bool {
        socket.parent() == Some(&self.tmp_dir())
    }

    fn tmp_dir(&self) -> PathBuf {
        format!("/tmp/hshm-{}", self.uid).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(uid: u32, variables: &[(&str, &str)]) -> Environment {
        Environment::read(uid, |name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
        })
    }

    #[test]
    fn root_uses_the_system_paths_whatever_its_environment() {
        let env = with(0, &[("XDG_RUNTIME_DIR", "/run/user/0"), ("HOME", "/root")]);
        assert_eq!(env.daemon_socket(), Path::new(SYSTEM_SOCKET));
        assert_eq!(env.client_sockets(), [Path::new(SYSTEM_SOCKET)]);
        assert_eq!(env.state_dir().unwrap(), Path::new(SYSTEM_STATE_DIR));
    }

    #[test]
    fn a_user_has_a_daemon_of_its_own_and_clients_fall_back_to_the_systems() {
        let env = with(7, &[("XDG_RUNTIME_DIR", "/run/user/7"), ("HOME", "/home/u")]);
        assert_eq!(env.daemon_socket(), Path::new("/run/user/7/hshm/hshmd.sock"));
        assert_eq!(
            env.client_sockets(),
            [Path::new("/run/user/7/hshm/hshmd.sock"), Path::new(SYSTEM_SOCKET)]
        );
        assert_eq!(env.state_dir().unwrap(), Path::new("/home/u/.local/state/hshm"));
        assert!(!env.is_tmp_socket(&env.daemon_socket()));
    }

    #[test]
    fn the_variable_overrides_and_an_empty_or_relative_one_counts_as_unset() {
        let env = with(0, &[("HSHM_SOCKET", "/x/y.sock")]);
        assert_eq!(env.client_sockets(), [Path::new("/x/y.sock")]);
        let env =
            with(9, &[("HSHM_SOCKET", ""), ("XDG_RUNTIME_DIR", "run"), ("XDG_STATE_HOME", "")]);
        assert_eq!(env.daemon_socket(), Path::new("/tmp/hshm-9/hshmd.sock"));
        assert!(env.is_tmp_socket(&env.daemon_socket()));
        assert_eq!(env.state_dir(), None);
        let env = with(9, &[("XDG_STATE_HOME", "/s")]);
        assert_eq!(env.state_dir().unwrap(), Path::new("/s/hshm"));
    }
}
