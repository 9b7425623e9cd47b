//! Who is at the other end of a connection, and what it may do with a segment.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hshm_memory::ProcessId;
use hshm_proto::{ErrorCode, ErrorReply};
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Gid;

use crate::config::AccessConfig;
use crate::error::DaemonError;
use crate::names::find_group;
use crate::peer_groups;
use crate::pidfd::{self, Liveness};
use crate::state::Record;

/// Which groups are more than others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    admin_gid: Option<u32>,
    /// With the name that it was given.
    create_group: Option<(u32, String)>,
}

impl Rules {
    /// Looks the groups up.
    pub(crate) fn find(config: &AccessConfig) -> Result<Self, DaemonError> {
        let find = |setting, name: &Option<String>| {
            let gid = name.as_deref().map(|name| find_group(setting, name)).transpose()?;
            Ok::<_, DaemonError>(gid.map(Gid::as_raw))
        };
        let create_gid = find("access.create_group", &config.create_group)?;
        Ok(Self {
            admin_gid: find("access.admin_group", &config.admin_group)?,
            create_group: create_gid.zip(config.create_group.clone()),
        })
    }
}

/// The process at the other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Its groups besides `gid`.
    pub(crate) groups: Vec<u32>,
    /// The process; none if it lives where this daemon cannot see it.
    pub(crate) process: Option<ProcessId>,
    /// As they were when it connected.
    pub(crate) rules: Arc<Rules>,
}

impl Peer {
    /// Asks the kernel who connected. The second value tells of the process's death.
    ///
    /// The user and groups were fixed when it connected and may be trusted. The process id alone may
    /// not: it could be another's by now. A pidfd that still shows life after a moment proves that the
    /// process had its number at that moment.
    pub(crate) fn of(socket: &impl AsFd, rules: Arc<Rules>) -> io::Result<(Self, Option<OwnedFd>)> {
        let credentials = getsockopt(socket, sockopt::PeerCredentials)?;
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let mut peer = Self { uid, gid, groups: Vec::new(), process: None, rules };
        let pid = u32::try_from(credentials.pid()).unwrap_or(0);
        if pid == 0 {
            // A process in a pid namespace that is not below ours.
            return Ok((peer, None));
        }
        // Kernels before 6.5 cannot give the peer's pidfd; the number must serve. Whoever holds the
        // connection lives, so only a process that passed its socket on and died could be mistaken.
        let pidfd = match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(pidfd) => pidfd,
            Err(Errno::ENOPROTOOPT) => pidfd::open(pid)?,
            Err(errno) => return Err(errno.into()),
        };
        let process = ProcessId::of_living(pid);
        let groups = peer_groups::of(socket)?;
        if pidfd::liveness(&pidfd)? == Liveness::Dead {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the peer died"));
        }
        peer.groups = groups;
        peer.process = process.ok();
        let pidfd = peer.process.is_some().then_some(pidfd);
        Ok((peer, pidfd))
    }

    /// Whether it may do anything: root, the daemon's own user, and the members of the group for that.
    pub(crate) fn is_admin(&self) -> bool {
        self.uid == 0
            || self.uid == nix::unistd::geteuid().as_raw()
            || self.rules.admin_gid.is_some_and(|gid| self.in_group(gid))
    }

    /// Refuses one that may not create segments.
    pub(crate) fn require_create(&self, name: &str) -> Result<(), ErrorReply> {
        match &self.rules.create_group {
            Some((gid, group)) if !self.in_group(*gid) && !self.is_admin() => Err(ErrorReply::new(
                ErrorCode::Permission,
                format_args!(
                    "user {} may not create segment {name:?}: only members of group {group:?} may",
                    self.uid
                ),
                "join the group and connect anew, or have an administrator create the segment",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses one that may not have memory locked for it.
    pub(crate) fn require_lock(&self, name: &str) -> Result<(), ErrorReply> {
        if self.is_admin() {
            return Ok(());
        }
        Err(ErrorReply::new(
            ErrorCode::Permission,
            format_args!(
                "cannot create segment {name:?}: only the daemon's user and root may have memory locked, since it counts as the daemon's"
            ),
            "create it without the lock",
        ))
    }

    fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }

    /// Whether it may read and write the segment: as with a file, the first of user, group and
    /// others that applies decides.
    pub(crate) fn may_attach(&self, record: &Record) -> bool {
        self.has(0o6, record)
    }

    /// Whether it may read the segment.
    pub(crate) fn may_read(&self, record: &Record) -> bool {
        self.has(0o4, record)
    }

    /// Whether the bits of `mode` that are for it have all of `bits`.
    fn has(&self, bits: u32, record: &Record) -> bool {
        let shift = if self.is_admin() {
            return true;
        } else if self.uid == record.uid {
            6
        } else if self.in_group(record.gid) {
            3
        } else {
            0
        };
        (record.mode >> shift) & bits == bits
    }

    /// Whether it may destroy or grow the segment.
    pub(crate) fn may_manage(&self, record: &Record) -> bool {
        self.is_admin() || self.uid == record.uid
    }

    /// Whether it may know of the segment.
    pub(crate) fn may_see(&self, record: &Record) -> bool {
        self.may_manage(record) || self.may_read(record)
    }

    /// The reply to one that may not do `verb`.
    pub(crate) fn refusal(&self, verb: &str, record: &Record) -> ErrorReply {
        ErrorReply::new(
            ErrorCode::Permission,
            format_args!(
                "user {} may not {verb} segment {:?}: it belongs to user {} and has mode {:03o}",
                self.uid, record.name, record.uid, record.mode
            ),
            "ask its owner, or create it with a wider --mode",
        )
    }
}

#[cfg(test)]
mod tests {
    use hshm_memory::{AllocatorId, AllocatorKind, BackendKind};

    use super::*;

    /// Users that are neither root nor whoever runs this test.
    const OWNER: u32 = 4_000_001;
    const OTHER: u32 = 4_000_002;
    const GROUP: u32 = 4_000_003;

    fn peer(uid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid: 4_000_009, groups: groups.to_vec(), process: None, rules: Arc::default() }
    }

    fn record(mode: u32) -> Record {
        let record = Record::creating(
            "s",
            BackendKind::Memfd,
            AllocatorKind::ThreadLocal,
            None,
            AllocatorId::new(1, 1),
        );
        Record { uid: OWNER, gid: GROUP, mode, ..record }
    }

    #[test]
    fn the_first_class_that_applies_decides_as_with_files() {
        let cases = [
            (0o600, [true, false, false]),
            (0o660, [true, true, false]),
            (0o666, [true, true, true]),
            (0o606, [true, false, true]),
            (0o066, [false, true, true]),
            (0o644, [true, false, false]),
        ];
        for (mode, [owner, group, other]) in cases {
            let record = record(mode);
            assert_eq!(peer(OWNER, &[GROUP]).may_attach(&record), owner, "owner, {mode:o}");
            assert_eq!(peer(OTHER, &[GROUP]).may_attach(&record), group, "group, {mode:o}");
            assert_eq!(peer(OTHER, &[]).may_attach(&record), other, "others, {mode:o}");
            assert!(peer(0, &[]).may_attach(&record));
        }
    }

    #[test]
    fn only_the_owner_and_administrators_manage_a_segment() {
        let record = record(0o666);
        assert!(peer(OWNER, &[]).may_manage(&record));
        assert!(peer(0, &[]).may_manage(&record));
        assert!(!peer(OTHER, &[GROUP]).may_manage(&record));
        assert!(peer(OTHER, &[]).may_see(&record));
        assert!(!peer(OTHER, &[]).may_see(&self::record(0o600)));
        let refusal = peer(OTHER, &[]).refusal("destroy", &record);
        assert_eq!(refusal.kind(), Some(ErrorCode::Permission));
    }
}
