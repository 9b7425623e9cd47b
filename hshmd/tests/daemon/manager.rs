//! A service manager of the test's own: it reads what daemons tell it, keeps the files that they send,
//! and hands them, and sockets, to the next.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::harness::{Daemon, Site, wait_until};

/// The first descriptor that is handed over.
const FIRST: RawFd = 3;

/// The environment of a started service that is watched.
const WATCHDOG: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Manager {
    address: PathBuf,
    heard: Arc<Mutex<Heard>>,
    /// Handed over besides what is kept.
    pub(crate) sockets: Vec<(String, OwnedFd)>,
}

/// What daemons said so far.
#[derive(Debug, Default)]
struct Heard {
    states: Vec<String>,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    pub(crate) fn new(site: &Site) -> Self {
        let address = site.socket().with_file_name("notify");
        let socket = UnixDatagram::bind(&address).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let into = Arc::clone(&heard);
        std::thread::spawn(move || while into.lock().is_ok() && hear(&socket, &into) {});
        Self { address, heard, sockets: Vec::new() }
    }

    /// Starts a daemon as a service, with what is kept.
    pub(crate) fn start<'s>(&self, site: &'s Site, arguments: &[&str]) -> Daemon<'s> {
        site.launch(self.command(site, arguments), &site.socket())
    }

    pub(crate) fn command(&self, site: &Site, arguments: &[&str]) -> Command {
        let plain = site.command(arguments);
        // Only the process itself knows its number before it becomes the daemon.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
        command.arg(plain.get_program()).args(plain.get_args());
        command.env_remove("HSHM_SOCKET").stdin(std::process::Stdio::null());
        command.env("NOTIFY_SOCKET", &self.address);
        command.env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());

        let heard = self.heard.lock().unwrap();
        let handed = || self.sockets.iter().chain(&heard.kept);
        let names: Vec<&str> = handed().map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
        }
        // Beyond all of the places that they are to go to.
        let beyond = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(500)).unwrap();
        // SAFETY: [owned] the kernel has just made these descriptors for this process.
        let copies = handed().map(|(_, fd)| unsafe { OwnedFd::from_raw_fd(beyond(fd)) });
        let copies: Vec<OwnedFd> = copies.collect();
        let place = move || {
            for (copy, at) in copies.iter().zip(FIRST..) {
                // SAFETY: [ffi] no pointer is passed; what `at` was in the child, nobody uses there.
                if unsafe { nix::libc::dup2(copy.as_raw_fd(), at) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: [ffi] it does nothing but dup2, which is safe between fork and exec.
        unsafe { command.pre_exec(place) };
        command
    }

    /// What daemons have said so far.
    pub(crate) fn states(&self) -> Vec<String> {
        self.heard.lock().unwrap().states.clone()
    }

    /// Waits until a daemon says a line that begins like this.
    pub(crate) fn wait_for(&self, beginning: &str) {
        wait_until(beginning, || self.states().iter().any(|line| line.starts_with(beginning)));
    }

    /// Forgets what was said, but not what is kept.
    pub(crate) fn clear(&self) {
        self.heard.lock().unwrap().states.clear();
    }

    /// The segments whose files are kept.
    pub(crate) fn kept(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let segment = |name: &str| {
            let (segment, created) = name.strip_prefix("segment.")?.split_once('@').unwrap();
            assert!(created.parse::<u64>().is_ok(), "{name}");
            Some(segment.to_owned())
        };
        let mut kept: Vec<_> = heard.kept.iter().filter_map(|(name, _)| segment(name)).collect();
        kept.sort();
        kept
    }

    /// The names under which devices' memory is kept.
    pub(crate) fn kept_memory(&self) -> Vec<String> {
        let heard = self.heard.lock().unwrap();
        let names = heard.kept.iter().map(|(name, _)| name.clone());
        names.filter(|name| name.starts_with("device.")).collect()
    }

    /// The name under which the only file of a segment is kept, and that file.
    pub(crate) fn kept_as(&self, segment: &str) -> (String, OwnedFd) {
        let heard = self.heard.lock().unwrap();
        let beginning = format!("segment.{segment}@");
        let found = heard.kept.iter().find(|(name, _)| name.starts_with(&beginning)).unwrap();
        (found.0.clone(), found.1.try_clone().unwrap())
    }

    /// Keeps something under a name, as if an earlier daemon had sent it.
    pub(crate) fn keep(&self, name: &str, file: impl AsFd) {
        let file = file.as_fd().try_clone_to_owned().unwrap();
        self.heard.lock().unwrap().kept.push((name.to_owned(), file));
    }
}

/// Reads one message; false when there can be no more.
fn hear(socket: &UnixDatagram, into: &Mutex<Heard>) -> bool {
    let mut buffer = [0; 4096];
    let mut control = nix::cmsg_space!([RawFd; 8]);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let fd = socket.as_raw_fd();
    let Ok(message) = recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) else {
        return false;
    };
    let mut files = Vec::new();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: [owned] the kernel has just made these descriptors for this process.
            files.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let len = message.bytes;
    let text = String::from_utf8(buffer.iter().copied().take(len).collect()).unwrap();
    let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
    let mut heard = into.lock().unwrap();
    if text.lines().any(|line| line == "FDSTORE=1") {
        assert_eq!(files.len(), 1, "{text}");
        for file in files {
            // The same file is kept once.
            if !heard.kept.iter().any(|(_, kept)| is_same(kept.as_fd(), file.as_fd())) {
                heard.kept.push((name.unwrap().to_owned(), file));
            }
        }
    } else if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
        let name = name.unwrap();
        heard.kept.retain(|(kept, _)| kept != name);
    }
    heard.states.extend(text.lines().map(str::to_owned));
    true
}

fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let identity = |fd: BorrowedFd<'_>| {
        let metadata = std::fs::File::from(fd.try_clone_to_owned().unwrap()).metadata().unwrap();
        (metadata.dev(), metadata.ino())
    };
    identity(one) == identity(other)
}
