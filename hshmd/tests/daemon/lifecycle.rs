//! Starting, stopping, and what a start makes of what it finds.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use hshm_memory::BackendKind;
use hshm_proto::{CreateSegment, ErrorCode, RequestBody};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Site, wait_until};
use crate::wire::Client;
use crate::worker::{Role, Worker};

/// Of a segment on which nothing depends.
const SIZE: u64 = 8 << 20;

fn small(name: &str) -> CreateSegment {
    CreateSegment { worker_slots: Some(8), ..CreateSegment::new(name, SIZE) }
}

#[test]
fn a_daemon_that_was_killed_is_followed_by_one_that_has_its_segments() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    let before = client.create(CreateSegment { mode: 0o640, ..small("kept") });
    client.create(CreateSegment { backend: BackendKind::Memfd, ..small("memfd") });
    let allocator = client.allocator("kept");
    let block = allocator.allocate(100).unwrap();
    let busy = Worker::start(&site.socket(), "kept", Role::Busy, None);
    drop(client);
    daemon.crash();
    assert!(site.socket().exists(), "a killed daemon cannot clean up");
    // Who has it mapped goes on meanwhile.
    allocator.allocate(100).unwrap();

    let daemon = site.start(&[]);
    let mut client = daemon.client();
    let found = client.list();
    let [after] = found.as_slice() else { panic!("one segment: {found:?}") };
    assert_eq!((&after.name, after.id, after.mode), (&before.name, before.id, 0o640));
    assert_eq!(after.created_unix_ms, before.created_unix_ms);
    assert_eq!(after.problem, None);
    assert!(daemon.log().contains("memfd"), "{}", daemon.log());
    assert!(!site.record("memfd").exists());
    let again = client.allocator("kept");
    assert!(again.usable_bytes(block).unwrap() >= 100, "the block is where it was");
    let newcomer = Worker::start(&site.socket(), "kept", Role::Connected, None);
    // Both that were there before are known again, although they never connected to this daemon.
    crate::harness::wait_until("workers from before the restart are watched", || {
        let sessions = client.sessions();
        let has = |pid| sessions.iter().any(|session| session.process.pid == pid);
        has(std::process::id()) && has(busy.pid()) && has(newcomer.pid())
    });
    let said = busy.finish();
    assert!(said.starts_with("did ") && said != "did 0 rounds", "{said}");
    newcomer.finish();
}

#[test]
fn what_a_killed_daemon_left_half_made_is_cleaned_up() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    for name in ["whole", "half-made", "half-gone", "no-object", "unborn", "gone-already"] {
        client.create(small(name));
    }
    drop(client);
    daemon.crash();
    // Each state that a kill between two steps of creation or destruction leaves.
    let phase = |name: &str, phase: &str| {
        let text = fs::read_to_string(site.record(name)).unwrap();
        fs::write(site.record(name), text.replace("\"ready\"", phase)).unwrap();
    };
    let object = |name: &str| Path::new("/dev/shm").join(site.namespace().object(name));
    phase("half-made", "\"creating\"");
    fs::write(object("half-made"), "").unwrap();
    phase("unborn", "\"creating\"");
    fs::remove_file(object("unborn")).unwrap();
    phase("half-gone", "\"destroying\"");
    phase("gone-already", "\"destroying\"");
    fs::remove_file(object("gone-already")).unwrap();
    fs::remove_file(object("no-object")).unwrap();
    fs::write(site.state_dir().join("segments/whole.tmp"), "form").unwrap();

    let daemon = site.start(&[]);
    let mut client = daemon.client();
    assert_eq!(client.names(), ["whole"]);
    assert_eq!(site.objects(), [site.namespace().object("whole")]);
    assert_eq!(fs::read_dir(site.state_dir().join("segments")).unwrap().count(), 1);
    for name in ["half-made", "half-gone", "no-object", "unborn", "gone-already"] {
        client.create(small(name));
    }
}

#[test]
fn a_daemon_killed_at_any_moment_leaves_every_segment_whole_or_gone() {
    let site = Site::new();
    for round in 0..40_u64 {
        let daemon = site.start(&["--log-level", "warn"]);
        let mut client = daemon.client();
        // Every segment is whole, and nothing else is there.
        let found = client.list();
        assert!(found.iter().all(|segment| segment.problem.is_none()), "{found:?}");
        let mut expected: Vec<String> =
            found.iter().map(|segment| site.namespace().object(&segment.name)).collect();
        expected.sort();
        assert_eq!(site.objects(), expected);
        assert_eq!(fs::read_dir(site.state_dir().join("segments")).unwrap().count(), found.len());
        for segment in found {
            client.attach(&segment.name).unwrap();
            client.destroy(&segment.name, true).unwrap();
        }
        let killed = std::thread::scope(|scope| {
            let turns = scope.spawn(move || {
                for turn in 0_u64.. {
                    let create = RequestBody::Create(small(&format!("s{}", turn % 5)));
                    let name = format!("s{}", (turn + 2) % 5);
                    let destroy = RequestBody::Destroy { name, force: false };
                    if client.try_ask(create).is_none() || client.try_ask(destroy).is_none() {
                        return turn;
                    }
                }
                0
            });
            std::thread::sleep(std::time::Duration::from_micros(10_000 + round * 1_371));
            daemon.crash();
            turns.join().unwrap()
        });
        assert!(killed < 1_000_000);
    }
}

#[test]
fn a_segment_whose_bytes_are_not_those_of_one_is_kept_aside_until_it_is_destroyed() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    for name in ["good", "foreign", "truncated", "header", "older"] {
        client.create(small(name));
    }
    drop(client);
    daemon.crash();
    let object = |name: &str| Path::new("/dev/shm").join(site.namespace().object(name));
    fs::write(object("foreign"), "not a segment, but long enough to have a header of its own")
        .unwrap();
    fs::OpenOptions::new().write(true).open(object("truncated")).unwrap().set_len(100).unwrap();
    let mut bytes = fs::read(object("header")).unwrap();
    for byte in bytes.iter_mut().skip(24).take(64) {
        *byte ^= 0x5a;
    }
    fs::write(object("header"), bytes).unwrap();
    let mut bytes = fs::read(object("older")).unwrap();
    bytes[8] -= 1;
    fs::write(object("older"), bytes).unwrap();

    let daemon = site.start(&[]);
    let mut client = daemon.client();
    assert_eq!(client.names(), ["foreign", "good", "header", "older", "truncated"]);
    for segment in client.list() {
        if segment.name == "older" {
            let problem = segment.problem.as_deref().unwrap_or_default();
            let ours = hshm_memory::LAYOUT_VERSION;
            let both = [ours - 1, ours].iter().all(|v| problem.contains(&format!("version {v}")));
            assert!(both, "{problem}");
        }
        assert_eq!(segment.problem.is_some(), segment.name != "good", "{segment:?}");
    }
    assert_eq!(client.status().unusable_segments, 4);
    for name in ["foreign", "header", "older", "truncated"] {
        let attach = RequestBody::Attach { name: name.into() };
        let error = client.refused(attach, ErrorCode::Unusable);
        assert!(error.advice.contains("destroy"), "{error}");
        client.refused(
            RequestBody::Inspect { name: name.into(), after_slot: 0 },
            ErrorCode::Unusable,
        );
        client.refused(RequestBody::Create(small(name)), ErrorCode::Exists);
        client.destroy(name, false).unwrap();
        client.create(small(name));
    }
}

#[test]
fn segments_are_found_again_when_their_records_are_lost() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(CreateSegment { mode: 0o666, ..small("lost") });
    client.create(small("torn"));
    drop(client);
    daemon.crash();
    fs::remove_file(site.record("lost")).unwrap();
    fs::write(site.record("torn"), "format = 1\nname =").unwrap();

    let daemon = site.start(&[]);
    let mut client = daemon.client();
    assert_eq!(client.names(), ["lost", "torn"]);
    assert!(client.list().iter().all(|found| found.mode == 0o600), "only its owner may use it");
    assert!(daemon.log().contains("torn.toml"), "{}", daemon.log());
    client.allocator("lost").allocate(10).unwrap();
    // The records were written anew.
    drop(client);
    daemon.crash();
    let daemon = site.start(&[]);
    assert_eq!(daemon.client().names(), ["lost", "torn"]);
}

#[test]
fn a_second_daemon_is_refused_whether_it_shares_the_directory_or_the_socket() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(small("mine"));
    let said = site.start_in_vain(&[]);
    assert!(said.contains(&format!("pid {}", daemon.pid())), "{said}");

    let other = Site::new();
    let socket = site.socket();
    let mut command = other.command(&[]);
    let output = command.arg("--socket").arg(&socket).output().unwrap();
    // clap takes one --socket only.
    assert_eq!(output.status.code(), Some(2));
    let config = other.write_config("");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hshmd"));
    command.arg("--config").arg(config).arg("--socket").arg(&socket);
    let output = command.arg("--state-dir").arg(other.state_dir()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another daemon listens on"), "{said}");
    // The first is not disturbed.
    assert_eq!(client.names(), ["mine"]);
    assert_eq!(Client::connect(&socket).names(), ["mine"]);
}

#[test]
fn what_stands_in_the_sockets_place_is_not_overwritten_unless_it_is_a_dead_socket() {
    let site = Site::new();
    fs::write(site.socket(), "precious").unwrap();
    let said = site.start_in_vain(&[]);
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(site.socket()).unwrap(), "precious");
    fs::remove_file(site.socket()).unwrap();

    let daemon = site.start(&[]);
    daemon.crash();
    assert!(fs::metadata(site.socket()).unwrap().file_type().is_socket());
    let daemon = site.start(&[]);
    let found = fs::metadata(site.socket()).unwrap();
    let mode = if found.uid() == 0 { 0o660 } else { 0o600 };
    assert_eq!(found.permissions().mode() & 0o777, mode);
    daemon.stop(Signal::SIGTERM);
    let others: Vec<_> = fs::read_dir(site.socket().parent().unwrap()).unwrap().collect();
    assert_eq!(others.len(), 1, "only the state directory is left: {others:?}");
}

#[test]
fn a_clean_stop_removes_the_socket_and_keeps_the_segments() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let site = Site::new();
        let daemon = site.start(&[]);
        let mut client = daemon.client();
        client.create(small("kept"));
        daemon.stop(signal);
        assert!(client.is_closed());
        assert!(!site.socket().exists());
        assert_eq!(site.objects().len(), 1);
        let daemon = site.start(&[]);
        assert_eq!(daemon.client().names(), ["kept"]);
    }
}

#[test]
fn an_ephemeral_daemon_leaves_nothing() {
    let site = Site::new();
    let daemon = site.start(&["--ephemeral"]);
    let mut client = daemon.client();
    client.create(small("a"));
    client.create(CreateSegment { backend: BackendKind::Memfd, ..small("b") });
    let allocator = client.allocator("a");
    allocator.allocate(10).unwrap();
    daemon.stop(Signal::SIGINT);
    assert!(site.objects().is_empty());
    assert!(!site.socket().exists());
    assert_eq!(fs::read_dir(site.state_dir().join("segments")).unwrap().count(), 0);
    allocator.allocate(10).unwrap();
}

#[test]
fn an_ephemeral_daemon_leaves_nothing_even_if_it_is_stopped_at_work() {
    for round in 0..8_u64 {
        let site = Site::new();
        let daemon = site.start(&["--ephemeral"]);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let mut client = daemon.client();
                scope.spawn(move || {
                    for turn in 0_u64.. {
                        let create = RequestBody::Create(small(&format!("s{thread}-{turn}")));
                        if client.try_ask(create).is_none() {
                            return;
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(5 + round * 3));
            daemon.stop(Signal::SIGTERM);
        });
        assert!(site.objects().is_empty());
        assert_eq!(fs::read_dir(site.state_dir().join("segments")).unwrap().count(), 0);
    }
}

#[test]
fn an_object_that_another_daemon_has_is_never_touched() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    for name in ["listed", "half-made", "orphan"] {
        client.create(small(name));
    }
    drop(client);
    daemon.crash();
    let text = fs::read_to_string(site.record("half-made")).unwrap();
    fs::write(site.record("half-made"), text.replace("\"ready\"", "\"creating\"")).unwrap();
    fs::remove_file(site.record("orphan")).unwrap();
    // This process plays the other daemon, one that sees the same /dev/shm from another container.
    let taken: Vec<_> = site
        .objects()
        .iter()
        .map(|object| {
            let file = fs::File::open(Path::new("/dev/shm").join(object)).unwrap();
            nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap()
        })
        .collect();

    let daemon = site.start(&[]);
    let mut client = daemon.client();
    assert_eq!(client.names(), ["half-made", "listed"]);
    for name in ["half-made", "listed"] {
        let error = client.refused(RequestBody::Attach { name: name.into() }, ErrorCode::Unusable);
        assert!(error.message.contains("another daemon"), "{error}");
        let destroy = RequestBody::Destroy { name: name.into(), force: true };
        client.refused(destroy, ErrorCode::Unusable);
    }
    assert_eq!(site.objects().len(), 3);
    drop(client);
    daemon.crash();
    drop(taken);
    // The other is gone: everything is as it would have been without it.
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    assert_eq!(client.names(), ["listed", "orphan"]);
    assert!(client.list().iter().all(|segment| segment.problem.is_none()));
    assert_eq!(site.objects().len(), 2);
}

#[test]
fn the_service_manager_is_told_when_the_daemon_is_ready_and_when_it_stops() {
    let site = Site::new();
    let path = site.state_dir().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(std::time::Duration::from_secs(120))).unwrap();
    let mut command = site.command(&["--log-level", "error"]);
    let mut child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer.get(..len).unwrap().to_vec()).unwrap()
    };
    let wait_for = |state| while !told().contains(state) {};
    wait_for("READY=1");
    // Ready means that clients can connect.
    Client::connect(&site.socket());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    wait_for("STOPPING=1");
    assert!(child.wait().unwrap().success());
}

#[test]
fn wrong_settings_are_one_line_and_exit_code_1() {
    let site = Site::new();
    let config = site.write_config("sokcet = \"/x\"\n");
    let config = config.to_str().unwrap();
    for arguments in [vec!["--config", config], vec!["--config", config, "--check-config"]] {
        let said = site.start_in_vain(&arguments);
        assert!(said.contains("hshmd.toml") && said.contains("sokcet"), "{said}");
    }
    let said = site.start_in_vain(&["--log-level", "lou=d=er"]);
    assert!(said.contains("log level"), "{said}");
    let said = site.start_in_vain(&["--config", "/nonexistent/hshmd.toml"]);
    assert!(said.contains("/nonexistent/hshmd.toml"), "{said}");

    let good = site.write_config("socket_mode = \"0600\"\n[log]\nformat = \"json\"\n");
    let output =
        site.command(&["--check-config", "--config", good.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, format!("in order: {}\n", good.display()));
    let output = site.command(&["--check-config"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("no file was read"));
    assert!(!site.socket().exists());
}

#[test]
fn users_and_groups_that_are_not_there_are_told_by_a_check_and_by_a_start() {
    let site = Site::new();
    let declared = "[[segment]]\nname = \"a\"\nsize = \"4M\"\n";
    for (text, keeps_it_from_starting) in [
        ("socket_group = \"no-such-name\"\n".to_owned(), true),
        ("[access]\nadmin_group = \"no-such-name\"\n".to_owned(), true),
        ("[access]\ncreate_group = \"no-such-name\"\n".to_owned(), true),
        // The others are served all the same.
        (format!("{declared}owner = \"no-such-name\"\n"), false),
        (format!("{declared}group = \"no-such-name\"\n"), false),
    ] {
        let config = site.write_config(&text);
        let arguments = ["--config", config.to_str().unwrap(), "--log-level", "error"];
        let said = site.start_in_vain(&[&arguments[..], &["--check-config"]].concat());
        assert!(said.contains("no-such-name") && said.contains("create it"), "{said}");
        if keeps_it_from_starting {
            let said = site.start_in_vain(&arguments);
            assert!(said.contains("no-such-name"), "{said}");
        }
    }
}

#[test]
fn a_socket_path_that_is_too_long_or_nowhere_is_told() {
    let site = Site::new();
    let state = site.state_dir();
    let state = state.to_str().unwrap();
    let try_socket = |socket: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hshmd"));
        command.args(["--socket", socket, "--state-dir", state, "--log-level", "error"]);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    };
    let long = site.state_dir().join("x".repeat(150));
    assert!(try_socket(long.to_str().unwrap()).contains("longer"));
    assert!(try_socket("/nonexistent/dir/hshmd.sock").contains("/nonexistent/dir"));
}

#[test]
fn the_log_is_json_when_asked_for() {
    let site = Site::new();
    let daemon = site.start(&["--log-format", "json", "--log-level", "debug"]);
    drop(daemon.client());
    crate::harness::wait_until("the session's end is logged", || {
        daemon.log().contains("closed by the client")
    });
    let log = daemon.log();
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect(line);
        assert!(value.get("level").is_some() && value.get("message").is_some(), "{line}");
    }
    daemon.stop(Signal::SIGTERM);
}

#[test]
fn a_log_that_cannot_be_written_is_no_reason_to_end() {
    let site = Site::new();
    for is_full in [false, true] {
        for arguments in [&["--log-level", "debug"][..], &["--log-format", "json"]] {
            let mut command = site.command(arguments);
            if is_full {
                command.stderr(fs::OpenOptions::new().write(true).open("/dev/full").unwrap());
            } else {
                // Nobody reads at the other end.
                command.stderr(std::io::pipe().unwrap().1);
            }
            let mut child = command.spawn().unwrap();
            drop(command);
            wait_until("it listens", || Client::dial(&site.socket()).is_ok());
            let mut client = Client::connect(&site.socket());
            client.create(small("a"));
            client.destroy("a", false).unwrap();
            kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
            assert!(child.wait().unwrap().success());
        }
    }
}

#[test]
fn a_log_that_nobody_reads_is_not_waited_for() {
    const ROUNDS: usize = 300;
    let site = Site::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // As little as there can be: a page.
    nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let mut command = site.command(&[]);
    let mut child = command.stderr(writer).spawn().unwrap();
    drop(command);
    wait_until("it listens", || Client::dial(&site.socket()).is_ok());
    let socket = site.socket();
    let busy = std::thread::spawn(move || {
        let mut client = Client::connect(&socket);
        for _ in 0..ROUNDS {
            client.create(small("a"));
            client.destroy("a", false).unwrap();
        }
    });
    wait_until("all is answered", || busy.is_finished());
    busy.join().unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&log);
    let reading = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = reader.read(&mut buffer) {
            into.lock().unwrap().extend_from_slice(&buffer[..len]);
        }
    });
    wait_until("there is room again", || !log.lock().unwrap().is_empty());
    // What is lost is said before the next line.
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    reading.join().unwrap();
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(log.contains("lines of the log are lost"), "{log}");
    assert!(log.matches("created").count() < ROUNDS, "{log}");
}
