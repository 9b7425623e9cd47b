//! Reading the configuration again, segments that it declares, and groups that are more than others.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use hshm_memory::{BackendKind, OnExit};
use hshm_proto::{CreateSegment, ErrorCode, RequestBody};
use nix::sys::signal::Signal;

use crate::harness::{Daemon, Site, wait_until};

const MIB: u64 = 1 << 20;
/// A user and groups that exist nowhere.
const ALICE: u32 = 4_000_001;
const ADMINS: u32 = 4_000_011;
const CREATORS: u32 = 4_000_012;

/// Writes the configuration anew and has the daemon read it, until the log says so for the `times`th time.
fn reload(site: &Site, daemon: &Daemon<'_>, text: &str, says: &str) {
    let before = daemon.log().matches(says).count();
    site.write_config(text);
    daemon.signal(Signal::SIGHUP);
    wait_until(says, || daemon.log().matches(says).count() > before);
}

const READ: &str = "read the configuration again";

#[test]
fn limits_and_the_logs_level_change_while_it_runs_and_the_rest_is_named() {
    let site = Site::new();
    let config = site.write_config("[limits]\nmax_segments = 1\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    let small = |name: &str| CreateSegment::new(name, 4 * MIB);
    client.create(small("a"));
    client.refused(RequestBody::Create(small("b")), ErrorCode::Quota);
    let more = "sweep_interval_ms = 500\n[limits]\nmax_segments = 2\n[log]\nlevel = \"debug\"\n";
    reload(&site, &daemon, more, READ);
    client.create(small("b"));
    assert!(daemon.log().contains("sweep_interval_ms"), "{}", daemon.log());
    assert!(!daemon.log().contains("DEBUG") || daemon.log().contains(READ));
    drop(client);
    wait_until("what is logged at the new level", || daemon.log().contains("session ended"));

    // What cannot be understood changes nothing, nor does what stands beside it.
    let wrong = "[limits]\nmax_segments = 1\nmax_segmnets = 9\n";
    reload(&site, &daemon, wrong, "stays as it was");
    let log = daemon.log();
    assert!(log.contains("line 3") && log.contains("did you mean `max_segments`"), "{log}");
    let mut client = daemon.client();
    client.destroy("b", false).unwrap();
    client.create(small("b"));
    let no_group = "[access]\nadmin_group = \"there-is-no-such-group\"\n";
    reload(&site, &daemon, no_group, "stays as it was");
    assert!(daemon.log().contains("there-is-no-such-group"));
    assert!(daemon.stop(Signal::SIGTERM).success());
}

#[test]
fn without_a_file_to_read_again_a_hangup_ends_it() {
    let site = Site::new();
    let daemon = site.start(&[]);
    assert!(daemon.stop(Signal::SIGHUP).success());
}

#[test]
fn declared_segments_are_there_from_the_start_and_after_a_reload() {
    let site = Site::new();
    let frames = "[[segment]]\nname = \"frames\"\nsize = \"6M\"\ncapacity = \"32M\"\nmode = 0o640\n\
                  on_exit = \"reclaim\"\nworker_slots = 9\ncustom_header = \"4K\"\n";
    let config = site.write_config(frames);
    // One more beside the file, which may be said differently there.
    let beside = config.with_file_name("hshmd.toml.d");
    fs::create_dir(&beside).unwrap();
    let memfd = "[[segment]]\nname = \"scratch\"\nsize = 5242880\nbackend = \"memfd\"\n\
                 memory = { populate = true }\n";
    fs::write(beside.join("1.toml"), memfd).unwrap();
    let arguments = ["--config", config.to_str().unwrap()];
    let daemon = site.start(&arguments);
    let mut client = daemon.client();
    let found = client.list();
    let [frame, scratch] = found.as_slice() else { panic!("two segments: {found:?}") };
    assert_eq!(
        (frame.name.as_str(), frame.mode, frame.on_exit),
        ("frames", 0o640, OnExit::Reclaim)
    );
    assert_eq!((scratch.backend, scratch.problem.as_ref()), (BackendKind::Memfd, None));
    assert!(frame.committed_bytes >= 6 * MIB && frame.capacity_bytes >= 32 * MIB, "{frame:?}");
    let id = frame.id;

    // It stays the same one; what is said differently is named; what cannot be is, too, and does no harm.
    let wider = format!(
        "{}{}",
        frames.replace("0o640", "0o660"),
        "[[segment]]\nname = \"late\"\nsize = \"4M\"\n\
        [[segment]]\nname = \"huge\"\nsize = \"64T\"\n[[segment]]\nname = \"whose\"\nsize = \"4M\"\nowner = \"no-such-user\"\n"
    );
    reload(&site, &daemon, &wider, READ);
    assert_eq!(client.names(), ["frames", "late", "scratch"]);
    assert_eq!(client.list()[0].id, id);
    let log = daemon.log();
    for says in ["property=\"mode\"", "no-such-user", "\"huge\""] {
        assert!(log.contains(says), "{says}: {log}");
    }
    // What is no longer declared stays, and the next start finds what there is.
    drop(client);
    assert!(daemon.stop(Signal::SIGTERM).success());
    let daemon = site.start(&arguments);
    assert_eq!(daemon.client().names(), ["frames", "late", "scratch"]);
    reload(&site, &daemon, "", READ);
    assert_eq!(daemon.client().names(), ["frames", "late", "scratch"]);
}

#[test]
fn a_declaration_that_makes_no_sense_keeps_it_from_starting() {
    let site = Site::new();
    for (text, says) in [
        ("[[segment]]\nname = \"a\"\n", "missing field `size`"),
        ("[[segment]]\nname = \"a\"\nsize = \"4M\"\nsizes = 1\n", "did you mean `size`"),
        ("[[segment]]\nname = \"a/b\"\nsize = \"4M\"\n", "a/b"),
        ("[[segment]]\nname = \"a\"\nsize = 9\n[[segment]]\nname = \"a\"\nsize = 9\n", "twice"),
    ] {
        let config = site.write_config(text);
        let said = site.start_in_vain(&["--config", config.to_str().unwrap()]);
        assert!(said.contains(says) && said.lines().count() == 1, "{text}: {said}");
    }
}

/// Runs `hshmctl` as a user of one group: a copy beside the socket, which he can reach. It is made by
/// another process, as nothing can be run that is open for writing here.
fn ctl_as(uid: u32, gid: u32, socket: &Path, line: &str) -> Output {
    let copy = socket.with_file_name("hshmctl");
    let original = env!("CARGO_BIN_EXE_hshmctl");
    assert!(Command::new("cp").arg(original).arg(&copy).status().unwrap().success());
    Command::new(copy)
        .env("HSHM_SOCKET", socket)
        .args(line.split_whitespace())
        .current_dir("/")
        .gid(gid)
        .uid(uid)
        .output()
        .unwrap()
}

#[test]
fn groups_decide_who_creates_and_who_administers() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let site = Site::new();
    let open = "socket_mode = 0o666\n";
    let config = site.write_config(open);
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    daemon.client().create(CreateSegment::new("roots", 4 * MIB));
    let run = |gid, line: &str| {
        let output = ctl_as(ALICE, gid, &site.socket(), line);
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(run(ALICE, "create first --size 4M").0);
    let (done, why) = run(ADMINS, "destroy roots --force");
    assert!(!done && why.contains("may not destroy"), "{why}");

    let groups =
        format!("{open}[access]\nadmin_group = \"{ADMINS}\"\ncreate_group = \"{CREATORS}\"\n");
    reload(&site, &daemon, &groups, READ);
    let (done, why) = run(ALICE, "create second --size 4M");
    assert!(!done && why.contains("only members of group \"4000012\" may"), "{why}");
    assert!(run(CREATORS, "create second --size 4M").0);
    assert!(!run(CREATORS, "destroy roots --force").0);
    // An administrator may do both.
    assert!(run(ADMINS, "create third --size 4M --lock").0);
    let (done, why) = run(ADMINS, "destroy roots --force");
    assert!(done, "{why}");
    assert_eq!(daemon.client().names(), ["first", "second", "third"]);
}
