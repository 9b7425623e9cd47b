//! The socket that the daemon listens on, and its file.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket,
};
use nix::unistd::chown;
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use crate::awaited;
use crate::config::Config;
use crate::error::DaemonError;
use crate::names::find_group;
use crate::paths::{environment, prepare_socket_dir};

/// A socket that accepts connections. If its file was made here, it is removed with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: AsyncFd<OwnedFd>,
    path: PathBuf,
    /// Device and inode of the file, so that another daemon's is not removed in its place. None if
    /// the service manager made it.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens where `config` says, with the permissions that it says.
    pub(crate) fn bind(config: &Config) -> Result<Self, DaemonError> {
        let path = &config.socket;
        let env = environment();
        if config.create_socket_dir {
            prepare_socket_dir(path, &env)?;
        }
        let dir = path.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let _turn = take_turn(dir)?;
        refuse_living(path)?;

        let failed = |errno: Errno| DaemonError::system("cannot make a socket", errno);
        let fd = seqpacket_socket(SockFlag::SOCK_NONBLOCK).map_err(failed)?;
        // Bound beside its place, given its permissions, and only then moved there: nobody can
        // connect before it is protected, and nobody finds the place empty.
        let mut name = OsString::from(".");
        name.push(std::process::id().to_string());
        let temporary = dir.join(name);
        let too_long = |why| bad_socket(path, why);
        address(path).map_err(too_long)?;
        let temporary_address = address(&temporary).map_err(too_long)?;
        remove_if_there(&temporary)?;
        bind(fd.as_raw_fd(), &temporary_address).map_err(|errno| {
            DaemonError::file("cannot make a socket beside", path, errno.into())
        })?;
        let placed = place(config, &fd, &temporary);
        if placed.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        let file = placed?;
        let socket = awaited::register(fd, Interest::READABLE)
            .map_err(|error| DaemonError::system("cannot wait for connections", error))?;
        Ok(Self { socket, path: path.clone(), file: Some(file) })
    }

    /// Takes over a socket that listens already. Where, and who may connect, was decided by whoever
    /// made it.
    pub(crate) fn inherit(fd: OwnedFd) -> Result<Self, DaemonError> {
        let failed =
            |error| DaemonError::system("cannot use the socket that was handed over", error);
        let socket = std::os::unix::net::UnixListener::from(fd);
        socket.set_nonblocking(true).map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        let path = address.as_pathname().map(Path::to_path_buf).unwrap_or_default();
        let socket = awaited::register(socket.into(), Interest::READABLE).map_err(failed)?;
        Ok(Self { socket, path, file: None })
    }

    /// Where it listens, unless that has no path.
    pub(crate) fn path(&self) -> Option<&Path> {
        Some(&*self.path).filter(|path| *path != Path::new(""))
    }

    /// Waits for a connection. The socket it returns does not block.
    pub(crate) async fn accept(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |socket: &OwnedFd| Ok(accept_with(socket, flags)?);
        self.socket.async_io(Interest::READABLE, accept).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some(file) = self.file else { return };
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn seqpacket_socket(flags: SockFlag) -> nix::Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC | flags, None)
}

fn bad_socket(path: &Path, why: impl Into<String>) -> DaemonError {
    DaemonError::BadSocket { path: path.to_path_buf(), why: why.into() }
}

fn address(path: &Path) -> Result<UnixAddr, String> {
    UnixAddr::new(path).map_err(|_| {
        "the path is longer than a socket's may be, about 100 bytes; choose a shorter one"
            .to_owned()
    })
}

/// Gives the bound socket its permissions, starts listening, and moves its file into place.
fn place(config: &Config, fd: &OwnedFd, temporary: &Path) -> Result<(u64, u64), DaemonError> {
    let path = &config.socket;
    let file = |what, error| DaemonError::file(what, path, error);
    if let Some(group) = &config.socket_group {
        let gid = find_group("socket_group", group)?;
        chown(temporary, None, Some(gid))
            .map_err(|errno| file("cannot set the group of", errno.into()))?;
    }
    fs::set_permissions(temporary, Permissions::from_mode(config.socket_mode))
        .map_err(|error| file("cannot set the permissions of", error))?;
    let backlog = Backlog::new(128).map_err(|errno| DaemonError::system("backlog", errno))?;
    listen(fd, backlog).map_err(|errno| file("cannot listen on", errno.into()))?;
    fs::rename(temporary, path).map_err(|error| file("cannot place the socket at", error))?;
    let found = fs::symlink_metadata(path).map_err(|error| file("cannot find", error))?;
    Ok((found.dev(), found.ino()))
}

/// Lets only one daemon at a time look whether the place is free and take it. Another user may keep
/// the directory locked for ever, so that waiting has an end; two daemons with the same socket are
/// then merely not told of each other.
fn take_turn(dir: &Path) -> Result<Option<Flock<File>>, DaemonError> {
    let mut file = match File::open(dir) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        Err(error) => {
            return Err(DaemonError::file("cannot open the socket's directory", dir, error));
        }
    };
    for _ in 0..20 {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((back, _)) => file = back,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(None)
}

/// Refuses a place where somebody listens, or where something else than a socket stands.
fn refuse_living(path: &Path) -> Result<(), DaemonError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(DaemonError::file("cannot look at", path, error)),
    };
    if !found.file_type().is_socket() {
        return Err(bad_socket(
            path,
            "it is there, and no socket; remove it, or choose another --socket",
        ));
    }
    let probe = seqpacket_socket(SockFlag::SOCK_NONBLOCK)
        .map_err(|errno| DaemonError::system("cannot make a socket", errno))?;
    let address = address(path).map_err(|why| bad_socket(path, why))?;
    match connect(probe.as_raw_fd(), &address) {
        // Its file was left by a daemon that was killed.
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // EAGAIN: its queue is full. EPROTOTYPE: a server, but not of ours.
        _ => Err(DaemonError::SocketInUse { path: path.to_path_buf() }),
    }
}

fn remove_if_there(path: &Path) -> Result<(), DaemonError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DaemonError::file("cannot remove", path, error))
        }
        _ => Ok(()),
    }
}
