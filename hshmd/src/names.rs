//! Users and groups, by name or number.

use nix::unistd::{Gid, Group, Uid, User};

use crate::error::DaemonError;

pub(crate) fn find_group(setting: &'static str, group: &str) -> Result<Gid, DaemonError> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        _ => Err(DaemonError::Setting {
            setting,
            why: format!("there is no group {group:?}; create it, or leave the setting out"),
        }),
    }
}

/// A user, and the group that is its own if it has one.
pub(crate) fn find_user(
    setting: &'static str,
    user: &str,
) -> Result<(Uid, Option<Gid>), DaemonError> {
    if let Ok(number) = user.parse() {
        let uid = Uid::from_raw(number);
        let found = User::from_uid(uid).ok().flatten();
        return Ok((uid, found.map(|found| found.gid)));
    }
    match User::from_name(user) {
        Ok(Some(found)) => Ok((found.uid, Some(found.gid))),
        _ => Err(DaemonError::Setting {
            setting,
            why: format!("there is no user {user:?}; create it, or leave the setting out"),
        }),
    }
}
