//! The service manager that started the daemon, if one did: systemd, or another that speaks as it does.
//!
//! It is told how the daemon does (`sd_notify(3)`). It may listen in the daemon's place before the
//! daemon is there (socket activation). And it keeps the files of segments (its file descriptor store),
//! each under a name that tells whose it is: no restart, upgrade or crash of the daemon takes away what
//! it keeps.

use std::collections::BTreeMap;
use std::env;
use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockType, sendmsg, sockopt};
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockname, getsockopt};
use sd_notify::NotifyState;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::daemon::Shared;
use crate::error::DaemonError;
use crate::size::format_size;
use crate::state::Record;

/// How long a service manager may leave a message unread that is more than news.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often the line about the daemon's state is made anew.
const NEWS: Duration = Duration::from_secs(5);

/// What the names of kept files begin with.
const KEPT: &str = "segment.";

/// Where the service manager reads what it is told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manager {
    address: Option<SocketAddr>,
}

/// What the service manager handed to this process when it started it.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    /// A socket that listens where the daemon is to listen.
    pub(crate) listening: Option<OwnedFd>,
    /// Files that a daemon before this one had it keep.
    pub(crate) kept: KeptFiles,
    /// Descriptors of devices' memory, by the names under which they were kept.
    pub(crate) kept_memory: Vec<(String, OwnedFd)>,
}

/// Files of segments by the names under which they are kept.
pub(crate) type KeptFiles = BTreeMap<KeptName, OwnedFd>;

/// The name under which the file of a segment is kept: not only which segment it is, but also when that
/// was created, so that the file of one that is gone is never taken for that of its successor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KeptName {
    pub(crate) segment: String,
    pub(crate) created_unix_ms: u64,
}

impl From<&Record> for KeptName {
    fn from(record: &Record) -> Self {
        Self { segment: record.name.clone(), created_unix_ms: record.created_unix_ms }
    }
}

impl fmt::Display for KeptName {
    /// At most 255 ASCII characters without a colon, as `sd_pid_notify_with_fds(3)` asks for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{KEPT}{}@{}", self.segment, self.created_unix_ms)
    }
}

impl KeptName {
    fn parse(name: &str) -> Option<Self> {
        let (segment, created) = name.strip_prefix(KEPT)?.rsplit_once('@')?;
        hshm_proto::validate_segment_name(segment).ok()?;
        Some(Self { segment: segment.to_owned(), created_unix_ms: created.parse().ok()? })
    }
}

impl Manager {
    /// The one that the environment names, if there is one.
    pub(crate) fn of_environment() -> Self {
        let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Self::default() };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&path),
        };
        if let Err(error) = &address {
            warn!(?path, %error, "cannot tell the service manager anything");
        }
        Self { address: address.ok() }
    }

    /// Warns if it keeps fewer files than there may be segments, as far as it says (systemd does from
    /// version 254 on). It drops those beyond in silence.
    pub(crate) fn check_room(&self, max_segments: u64) {
        let room = env::var("FDSTORE").ok().and_then(|room| room.parse::<u64>().ok());
        if let Some(room) = room.filter(|room| self.address.is_some() && *room < max_segments) {
            warn!(
                room,
                max_segments,
                "the service manager does not keep the files of all segments that there may be; raise FileDescriptorStoreMax=, or lower max_segments"
            );
        }
    }

    /// Tells it something that it is to know. Failing is no reason to stop: whoever looks after
    /// services finds it in the log.
    pub(crate) fn notify(&self, states: &[NotifyState<'_>]) {
        if let Err(error) = self.send(states, None, MsgFlags::empty()) {
            warn!(%error, "cannot notify the service manager");
        }
    }

    /// Has it keep a segment's file. To keep one that it has already is the same as once.
    pub(crate) fn keep(&self, record: &Record, file: BorrowedFd<'_>) {
        self.keep_named(&KeptName::from(record).to_string(), file);
    }

    /// Has it keep a descriptor under a name.
    pub(crate) fn keep_named(&self, name: &str, file: BorrowedFd<'_>) {
        let named = format!("FDNAME={name}");
        // Not to be polled: a file never hangs up.
        let states = ["FDSTORE=1", "FDPOLL=0", &named].map(NotifyState::Custom);
        if let Err(error) = self.send(&states, Some(file), MsgFlags::empty()) {
            warn!(name, %error, "cannot have the service manager keep a segment");
        }
    }

    /// Has it let go of a file.
    pub(crate) fn forget(&self, name: &KeptName) {
        self.forget_named(&name.to_string());
    }

    /// Has it let go of what it keeps under a name.
    pub(crate) fn forget_named(&self, name: &str) {
        let named = format!("FDNAME={name}");
        let states = ["FDSTOREREMOVE=1", &named].map(NotifyState::Custom);
        if let Err(error) = self.send(&states, None, MsgFlags::empty()) {
            warn!(name, %error, "cannot have the service manager let go of a segment");
        }
    }

    /// Tells it again and again that the daemon's main thread goes on, if it watches that, and what
    /// the daemon does. Ends with the daemon.
    pub(crate) async fn report(self, shared: Arc<Shared>, mut stopping: watch::Receiver<bool>) {
        if self.address.is_none() {
            return;
        }
        // Half of the time, so that one delay is forgiven.
        let watched = sd_notify::watchdog_enabled().map(|limit| limit / 2);
        let period = watched.unwrap_or(NEWS).min(NEWS);
        let mut said = String::new();
        while !*stopping.borrow() {
            let status = status(&shared);
            let alive = watched.map(|_| NotifyState::Watchdog);
            let news = (status != said).then_some(NotifyState::Status(&status));
            let states: Vec<_> = alive.into_iter().chain(news).collect();
            // News that finds no room waits for the next time, rather than the main thread for room.
            let sent = if states.is_empty() {
                Ok(())
            } else {
                self.send(&states, None, MsgFlags::MSG_DONTWAIT)
            };
            match sent {
                Ok(()) => said = status,
                Err(error) => debug!(%error, "cannot notify the service manager"),
            }
            tokio::select! {
                () = tokio::time::sleep(period) => {}
                _ = stopping.changed() => {}
            }
        }
    }

    fn send(
        &self,
        states: &[NotifyState<'_>],
        file: Option<BorrowedFd<'_>>,
        flags: MsgFlags,
    ) -> io::Result<()> {
        let Some(address) = &self.address else { return Ok(()) };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(address)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let text: String = states.iter().map(|state| format!("{state}\n")).collect();
        let descriptor = file.map(|file| [file.as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> =
            descriptor.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let parts = [IoSlice::new(text.as_bytes())];
        let flags = flags | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(socket.as_raw_fd(), &parts, &control, flags, None)?;
        Ok(())
    }
}

/// One line for `systemctl status`.
fn status(shared: &Shared) -> String {
    let (usage, counts) = (shared.registry.usage(), shared.processes.counts());
    let segments = if usage.segments == 1 { "segment" } else { "segments" };
    let processes = if counts.watched == 1 { "process" } else { "processes" };
    format!(
        "{} {segments} of {} in all, {} {processes}",
        usage.segments,
        format_size(usage.bytes),
        counts.watched
    )
}

impl Inherited {
    /// Takes what the service manager left open for this process. Only the first call finds anything.
    ///
    /// # Errors
    /// If the environment and the descriptors contradict each other.
    pub(crate) fn take() -> Result<Self, DaemonError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let mut inherited = Self::default();
        // ORDER: Relaxed: only one caller sees it false, and nothing else depends on it.
        if TAKEN.swap(true, Ordering::Relaxed) {
            return Ok(inherited);
        }
        let handed = sd_notify::listen_fds_with_names().map_err(|error| {
            DaemonError::system("cannot take what the service manager handed over", error)
        })?;
        for (fd, name) in handed {
            // SAFETY: [owned] LISTEN_PID says that the descriptor was left open for this process, it
            // is open, and nothing else here knows of it; nor is it taken twice.
            #[allow(unsafe_code, reason = "a number is all that says which descriptors these are")]
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            inherited.sort(fd, &name);
        }
        Ok(inherited)
    }

    fn sort(&mut self, fd: OwnedFd, name: &str) {
        if let Some(name) = KeptName::parse(name) {
            self.kept.insert(name, fd);
        } else if name.starts_with(crate::device_memory::KEPT) {
            self.kept_memory.push((name.to_owned(), fd));
        } else if self.listening.is_none() && listens_for_us(fd.as_fd()) {
            self.listening = Some(fd);
        } else {
            warn!(name, "what the service manager handed over is of no use here, and is closed");
        }
    }
}

/// Whether it is a socket of the kind that the daemon listens with.
fn listens_for_us(fd: BorrowedFd<'_>) -> bool {
    let family = || getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?.family();
    getsockopt(&fd, sockopt::SockType) == Ok(SockType::SeqPacket)
        && getsockopt(&fd, sockopt::AcceptConn) == Ok(true)
        && family() == Some(AddressFamily::Unix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kept_file_tells_which_segment_of_that_name_it_is() {
        let longest = "n".repeat(hshm_proto::limits::MAX_SEGMENT_NAME_BYTES);
        for (segment, created_unix_ms) in [("jobs", 0), ("a.b_c-d", 17), (&*longest, u64::MAX)] {
            let name = KeptName { segment: segment.to_owned(), created_unix_ms };
            let text = name.to_string();
            assert!(text.len() <= 255 && !text.contains(':'), "{text}");
            assert_eq!(KeptName::parse(&text), Some(name));
        }
        for other in
            ["", "segment.", "segment.jobs", "segment.jobs@x", "segment.a/b@1", "hshmd.socket"]
        {
            assert_eq!(KeptName::parse(other), None, "{other}");
        }
    }
}
