//! The log of a daemon whose standard error is the journal's, with a socket in the journal's place. Only root
//! can put one there, for the daemon alone.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use hshm_proto::CreateSegment;

use crate::harness::Site;

/// Puts the directory `$0` where the journal has its socket, says that standard error is the journal's, and
/// becomes the rest.
const SCRIPT: &str = r#"
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal &&
mount --bind "$0" /run/systemd/journal &&
JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$@"
"#;

fn can_mount() -> bool {
    let trial = ["--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"];
    let done = Command::new("unshare").args(trial).stderr(Stdio::null()).status();
    done.is_ok_and(|status| status.success())
}

#[test]
fn the_journal_gets_the_log_with_its_fields() {
    if !can_mount() {
        return;
    }
    let (site, dir) = (Site::new(), tempfile::tempdir().unwrap());
    let journal = UnixDatagram::bind(dir.path().join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let hshmd = site.command(&[]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(dir.path());
    command.arg(hshmd.get_program()).args(hshmd.get_args()).env_remove("HSHM_SOCKET");
    let daemon = site.launch(command, &site.socket());
    daemon.client().create(CreateSegment::new("a", 1 << 20));
    let mut buffer = vec![0; 64 << 10];
    let created = loop {
        let len = journal.recv(&mut buffer).unwrap();
        let entry = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if entry.contains("MESSAGE=created") {
            break entry;
        }
    };
    let uid = nix::unistd::geteuid();
    for field in
        ["PRIORITY=6", "SYSLOG_IDENTIFIER=hshmd", "HSHM_SEGMENT=a", &format!("HSHM_UID={uid}")]
    {
        assert!(created.lines().any(|line| line == field), "{field} in {created}");
    }
    assert!(!daemon.log().contains("created"), "it is said once: {}", daemon.log());
}
