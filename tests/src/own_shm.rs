//! A `/dev/shm` of its own for a test, small enough to be filled.

use std::process::{Command, Stdio};

/// How this user can have a file system of its own: as root, or as root of a user namespace.
fn own_mounts() -> Option<&'static str> {
    ["-m", "-rm"].into_iter().find(|flags| {
        Command::new("unshare")
            .args([flags, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /dev/shm"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    })
}

/// A command that runs `program`, to which arguments are to be added, where `/dev/shm` has room for so
/// many MiB; it fails if something is left there in the end. `None` if this user may not mount one.
#[must_use]
pub fn with_own_shm(mib: u32, program: &str) -> Option<Command> {
    let mut command = Command::new("unshare");
    let script = format!(
        "mount -t tmpfs -o size={mib}m,mode=1777 tmpfs /dev/shm && \"$0\" \"$@\" && \
         test -z \"$(ls -A /dev/shm)\""
    );
    command.args([own_mounts()?, "sh", "-c", &script, program]);
    Some(command)
}
