//! Where the daemon listens and keeps its records, and how its objects in `/dev/shm` are called.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use hshm_proto::Environment;

use crate::error::DaemonError;

/// Where the kernel shows POSIX shared-memory objects.
pub(crate) const SHM_DIR: &str = "/dev/shm";

/// The environment of this process, as far as default paths depend on it.
#[must_use]
pub fn environment() -> Environment {
    Environment::read(nix::unistd::geteuid().as_raw(), std::env::var_os)
}

/// Makes the directory of a default socket, and refuses one that others could meddle with.
pub(crate) fn prepare_socket_dir(socket: &Path, env: &Environment) -> Result<(), DaemonError> {
    let Some(dir) = socket.parent() else { return Ok(()) };
    let mode = if env.uid == 0 { 0o755 } else { 0o700 };
    match DirBuilder::new().mode(mode).recursive(!env.is_tmp_socket(socket)).create(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(DaemonError::file("cannot create directory", dir, error)),
    }
    if env.is_tmp_socket(socket) { require_private_dir(dir, env.uid) } else { Ok(()) }
}

/// A directory under `/tmp` may have been put there by anybody.
fn require_private_dir(dir: &Path, uid: u32) -> Result<(), DaemonError> {
    let bad = |why: String| Err(DaemonError::BadSocket { path: dir.to_path_buf(), why });
    let found = fs::symlink_metadata(dir)
        .map_err(|error| DaemonError::file("cannot look at directory", dir, error))?;
    if !found.is_dir() {
        return bad("it is no directory; remove it, or set XDG_RUNTIME_DIR or --socket".into());
    }
    if found.uid() != uid {
        return bad(format!(
            "the directory belongs to user {}, not to you; set XDG_RUNTIME_DIR or --socket",
            found.uid()
        ));
    }
    if found.permissions().mode() & 0o077 != 0 {
        return bad("others may enter the directory; run chmod 700 on it".into());
    }
    Ok(())
}

/// The prefix that tells the shared-memory objects of one state directory from those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    prefix: String,
}

impl Namespace {
    /// The namespace of the daemon that user `uid` runs on the directory `state_dir`.
    ///
    /// # Errors
    /// If the directory cannot be found.
    pub fn of(state_dir: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(state_dir)?;
        let uid = nix::unistd::geteuid().as_raw();
        let tag = fnv1a(path.as_os_str().as_encoded_bytes());
        // 5 + at most 10 + 1 + 8 + 1 bytes, which hshm_proto's limit on names allows for.
        Ok(Self { prefix: format!("hshm.{uid}-{tag:08x}.") })
    }

    /// What the object of segment `name` is called.
    #[must_use]
    pub fn object(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The segment whose object is called `object`, if it is one of this namespace.
    #[must_use]
    pub fn segment<'a>(&self, object: &'a str) -> Option<&'a str> {
        object.strip_prefix(&self.prefix)
    }

    /// The objects of this namespace that stand in `/dev/shm` now.
    ///
    /// # Errors
    /// If `/dev/shm` cannot be read.
    pub fn objects(&self) -> io::Result<Vec<String>> {
        let mut objects = Vec::new();
        for entry in fs::read_dir(SHM_DIR)? {
            if let Ok(name) = entry?.file_name().into_string()
                && self.segment(&name).is_some()
            {
                objects.push(name);
            }
        }
        objects.sort();
        Ok(objects)
    }

    /// Takes away all objects of this namespace, for a state directory that is thrown away after
    /// its daemon was killed. Returns how many there were.
    ///
    /// # Errors
    /// If `/dev/shm` cannot be read. Objects that cannot be removed are skipped.
    pub fn purge(&self) -> io::Result<usize> {
        let objects = self.objects()?;
        Ok(objects.iter().filter(|name| hshm_memory::PosixShmMmap::unlink(name).is_ok()).count())
    }
}

/// The Fowler-Noll-Vo hash, variant 1a, 32 bits: the same in every release, unlike the standard
/// library's.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// An absolute form of a path that the user gave, for messages and the status reply.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0x811c_9dc5);
        assert_eq!(fnv1a(b"a"), 0xe40c_292c);
        assert_eq!(fnv1a(b"foobar"), 0xbf9c_f968);
    }

    #[test]
    fn two_state_directories_never_share_objects() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (Namespace::of(a.path()).unwrap(), Namespace::of(b.path()).unwrap());
        let object = a.object("x");
        assert_eq!(a.segment(&object), Some("x"));
        assert_eq!(b.segment(&object), None);
        let longest = "n".repeat(hshm_proto::limits::MAX_SEGMENT_NAME_BYTES);
        hshm_memory::backend::validate_name(&a.object(&longest)).unwrap();
        let prefix = Namespace { prefix: format!("hshm.{}-{:08x}.", u32::MAX, u32::MAX) };
        hshm_memory::backend::validate_name(&prefix.object(&longest)).unwrap();
    }

    #[test]
    fn a_directory_under_tmp_that_others_may_enter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let me = nix::unistd::geteuid().as_raw();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        require_private_dir(dir.path(), me).unwrap();
        assert!(require_private_dir(dir.path(), me + 1).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(require_private_dir(dir.path(), me).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(require_private_dir(&link, me).is_err());
    }
}
