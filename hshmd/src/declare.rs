//! Segments that the configuration declares are created if they are not there.

use std::sync::Arc;

use hshm_proto::ErrorCode;
use nix::unistd::{Gid, getegid, geteuid};
use tracing::{error, info, warn};

use crate::access::Peer;
use crate::config::DeclaredSegment;
use crate::error::DaemonError;
use crate::names::{find_group, find_user};
use crate::registry::Registry;
use crate::segment::Segment;

impl Registry {
    /// Creates those of `declared` that are not there. What cannot be created is logged: the others are
    /// served all the same.
    pub(crate) fn create_declared(&self, declared: &[DeclaredSegment]) {
        for wanted in declared {
            let name = &wanted.segment.name;
            let (uid, gid) = match owner(wanted) {
                Ok(owner) => owner,
                Err(error) => {
                    error!(segment = name, %error, "cannot create a declared segment");
                    continue;
                }
            };
            if let Ok(there) = self.get(name) {
                warn_of_differences(wanted, (uid, gid), &there);
                continue;
            }
            let owner = Peer { uid, gid, groups: Vec::new(), process: None, rules: Arc::default() };
            match self.create(&wanted.segment, &wanted.memory, &owner) {
                Ok(segment) => {
                    let bytes = segment.committed_bytes();
                    info!(segment = name, bytes, uid, "created as declared");
                }
                // By a client, a moment ago.
                Err(error) if error.kind() == Some(ErrorCode::Exists) => {}
                Err(error) => error!(segment = name, %error, "cannot create a declared segment"),
            }
        }
    }
}

/// Whose it is to be, by number.
pub(crate) fn owner(wanted: &DeclaredSegment) -> Result<(u32, u32), DaemonError> {
    let (uid, own_group) = match &wanted.owner {
        Some(user) => find_user("owner", user)?,
        None => (geteuid(), Some(getegid())),
    };
    let gid = match &wanted.group {
        Some(group) => find_group("group", group)?,
        None => own_group.unwrap_or(Gid::from_raw(uid.as_raw())),
    };
    Ok((uid.as_raw(), gid.as_raw()))
}

/// A segment that is there stays as it is: programs may rely on it.
fn warn_of_differences(wanted: &DeclaredSegment, (uid, gid): (u32, u32), there: &Segment) {
    let (asked, record) = (&wanted.segment, &there.record);
    let found = there.info(0, Vec::new());
    let differs = [
        ("size", found.committed_bytes < asked.size_bytes),
        ("capacity", asked.capacity_bytes.is_some_and(|bytes| found.capacity_bytes < bytes)),
        ("backend", record.backend != asked.backend),
        ("allocator", record.allocator != asked.allocator),
        ("on_exit", found.problem.is_none() && found.on_exit != asked.on_exit),
        ("mode", record.mode != asked.mode),
        ("owner", record.uid != uid),
        ("group", record.gid != gid),
        ("memory", record.memory != wanted.memory),
    ];
    for (property, _) in differs.iter().filter(|(_, differs)| *differs) {
        warn!(
            segment = asked.name,
            property,
            "a declared segment is there already and differs; destroy it to have it made anew"
        );
    }
}
