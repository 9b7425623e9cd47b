//! The client against a daemon that misbehaves in chosen ways.
#![allow(missing_docs, reason = "a test binary")]
#![allow(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hshm_client::{Client, CreateOptions, Error, ErrorCode, ErrorReply};
use hshm_memory::{AllocatorId, AllocatorKind, BackendKind, OnExit};
use hshm_proto::limits::{MAX_REQUEST_BYTES, SEGMENTS_PER_PAGE};
use hshm_proto::{
    Hello, Refusal, Reply, ReplyBody, SegmentInfo, VersionRange, Welcome, decode_request,
    encode_reply,
};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recv,
    send, socket,
};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

/// What the fake does at one step with one connection.
enum Step {
    /// Accept a connection and answer the greeting.
    Accept,
    /// Accept a connection, and close it when the greeting is there.
    HangUp,
    /// Accept a connection, then refuse it for its versions.
    RefuseVersion(VersionRange),
    /// Read a request, which must have this verb, and answer.
    Answer(&'static str, Result<ReplyBody, ErrorReply>),
    /// Read a request, which must have this verb, and say nothing.
    Swallow(&'static str),
    /// Answer the request just swallowed with these bytes.
    Raw(Vec<u8>),
    /// Close the connection.
    Close,
}

struct Fake {
    directory: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    fn run(steps: Vec<Step>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = listen_at(&directory.path().join("s"));
        let thread = thread::spawn(move || {
            let mut open = None;
            for step in steps {
                step.run(&listener, &mut open);
            }
        });
        Self { directory, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn connect(&self) -> Result<Client, Error> {
        Client::builder().socket(self.socket()).timeout(Duration::from_secs(60)).connect()
    }

    /// The fake went through all its steps.
    fn finish(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

fn listen_at(path: &Path) -> OwnedFd {
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(listener.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    listener
}

fn accept_one(listener: &OwnedFd) -> OwnedFd {
    let raw = accept(listener.as_raw_fd()).unwrap();
    // SAFETY: [ffi] accept just made it, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn receive(from: &OwnedFd) -> Vec<u8> {
    let mut packet = vec![0; MAX_REQUEST_BYTES];
    let len = recv(from.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
    packet.truncate(len);
    packet
}

fn say(to: &OwnedFd, packet: &[u8]) {
    send(to.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
}

impl Step {
    fn run(self, listener: &OwnedFd, open: &mut Option<(OwnedFd, u64)>) {
        match self {
            Self::Accept => {
                let connection = accept_one(listener);
                Hello::decode(&receive(&connection)).unwrap();
                let welcome = Welcome {
                    version: 1,
                    layout_version: hshm_proto::LAYOUT_VERSION,
                    identity: hshm_client::ProcessId::of(std::process::id()).unwrap(),
                    session: 1,
                    server_version: "fake".into(),
                };
                say(&connection, &welcome.encode());
                *open = Some((connection, 0));
            }
            Self::HangUp => drop(receive(&accept_one(listener))),
            Self::RefuseVersion(versions) => {
                let connection = accept_one(listener);
                Hello::decode(&receive(&connection)).unwrap();
                let refusal = Refusal {
                    code: ErrorCode::Version.to_u32(),
                    versions,
                    server_version: "9.9".into(),
                    message: "no".into(),
                    advice: String::new(),
                };
                say(&connection, &refusal.encode());
            }
            Self::Answer(verb, body) => {
                Self::Swallow(verb).run(listener, open);
                let (connection, id) = open.as_ref().unwrap();
                say(connection, &encode_reply(&Reply { id: *id, body }).unwrap());
            }
            Self::Swallow(verb) => {
                let (connection, last) = open.as_mut().unwrap();
                let request = decode_request(&receive(connection)).unwrap();
                assert_eq!(request.body.verb(), verb);
                *last = request.id;
            }
            Self::Raw(packet) => say(&open.as_ref().unwrap().0, &packet),
            Self::Close => *open = None,
        }
    }
}

const DONE: Result<ReplyBody, ErrorReply> = Ok(ReplyBody::Done);

#[test]
fn nobody_listening_and_a_path_too_long_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none");
    let error = Client::builder().socket(&socket).connect().unwrap_err();
    assert!(matches!(error, Error::NoDaemon { .. }), "{error}");
    assert!(error.to_string().contains("start hshmd"), "{error}");

    // A socket that a dead daemon left behind.
    drop(listen_at(&socket));
    let error = Client::builder().socket(&socket).connect().unwrap_err();
    assert!(matches!(error, Error::NoDaemon { .. }), "{error}");

    let long = directory.path().join("x".repeat(200));
    let error = Client::builder().socket(long).connect().unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

#[test]
fn a_listener_of_another_kind_is_no_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("stream");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = Client::builder().socket(&socket).connect().unwrap_err();
    assert!(matches!(error, Error::BadSocket { .. }), "{error}");
}

#[test]
fn a_version_mismatch_says_who_must_upgrade() {
    let newer = VersionRange { min: 100, max: 101 };
    let fake = Fake::run(vec![Step::RefuseVersion(newer)]);
    let error = fake.connect().unwrap_err();
    assert!(matches!(error, Error::Version { .. }), "{error}");
    assert!(error.to_string().ends_with("upgrade the program that uses this library"), "{error}");
    fake.finish();

    let older = VersionRange { min: 0, max: 0 };
    let fake = Fake::run(vec![Step::RefuseVersion(older)]);
    let error = fake.connect().unwrap_err();
    assert!(error.to_string().ends_with("upgrade hshmd"), "{error}");
    fake.finish();
}

#[test]
fn a_daemon_that_cannot_hand_out_segments_for_reading_is_to_be_upgraded() {
    let fake = Fake::run(vec![Step::Accept, Step::Answer("ping", DONE)]);
    let client = fake.connect().unwrap();
    let error = client.attach_read_only("s").unwrap_err();
    assert_eq!(error.daemon_code(), Some(ErrorCode::Unsupported));
    assert!(error.to_string().contains("protocol version 1"), "{error}");
    assert!(error.to_string().ends_with("upgrade hshmd"), "{error}");
    // The connection is none the worse for it.
    client.ping().unwrap();
    fake.finish();
}

#[test]
fn a_daemon_that_says_nothing_times_out_and_its_late_reply_answers_nothing() {
    let fake = Fake::run(vec![
        Step::Accept,
        Step::Swallow("ping"),
        Step::Accept,
        Step::Answer("status", Err(ErrorReply::new(ErrorCode::Internal, "second", ""))),
    ]);
    let client = Client::builder().socket(fake.socket()).timeout(Duration::from_secs(1)).connect();
    // The greeting itself may take longer than that on a busy machine.
    let Ok(client) = client else { return };
    let error = client.ping().unwrap_err();
    assert!(matches!(error, Error::Timeout { verb: "ping", .. }), "{error}");
    match client.status().unwrap_err() {
        Error::Daemon(reply) => assert_eq!(reply.message, "second"),
        Error::Timeout { .. } => return,
        other => panic!("{other}"),
    }
    fake.finish();
}

#[test]
fn an_idempotent_request_is_sent_again_after_a_restart_and_another_is_reported() {
    let fake = Fake::run(vec![
        Step::Accept,
        Step::Swallow("ping"),
        Step::Close,
        Step::Accept,
        Step::Answer("ping", DONE),
        Step::Swallow("create"),
        Step::Close,
        Step::Accept,
        Step::Answer("ping", DONE),
    ]);
    let client = fake.connect().unwrap();
    client.ping().unwrap();
    let error = client.create(&CreateOptions::new("s", 1 << 20)).unwrap_err();
    assert!(matches!(error, Error::Disconnected { verb: "create" }), "{error}");
    client.ping().unwrap();
    fake.finish();
}

#[test]
fn a_request_that_cannot_have_arrived_is_sent_again_whatever_it_is() {
    let (closed_tx, closed_rx) = std::sync::mpsc::channel();
    let directory = tempfile::tempdir().unwrap();
    let listener = listen_at(&directory.path().join("s"));
    let thread = thread::spawn(move || {
        let mut open = None;
        Step::Accept.run(&listener, &mut open);
        Step::Close.run(&listener, &mut open);
        closed_tx.send(()).unwrap();
        Step::Accept.run(&listener, &mut open);
        let refused = Err(ErrorReply::new(ErrorCode::Exists, "arrived", ""));
        Step::Answer("create", refused).run(&listener, &mut open);
    });
    let client = Client::builder().socket(directory.path().join("s")).connect().unwrap();
    closed_rx.recv().unwrap();
    let error = client.create(&CreateOptions::new("s", 1 << 20)).unwrap_err();
    assert_eq!(error.daemon_code(), Some(ErrorCode::Exists), "{error}");
    thread.join().unwrap();
}

#[test]
fn what_a_daemon_about_to_stop_does_not_do_its_successor_is_asked_for() {
    let too_late = || Err(ErrorReply::new(ErrorCode::ShuttingDown, "it stops", "later"));
    let fake = Fake::run(vec![
        Step::Accept,
        Step::Answer("destroy", too_late()),
        Step::Accept,
        Step::Answer("destroy", DONE),
        Step::Answer("ping", too_late()),
        Step::Accept,
        // Once is enough.
        Step::Answer("ping", too_late()),
        Step::Close,
    ]);
    let client = fake.connect().unwrap();
    client.destroy("a", false).unwrap();
    let error = client.ping().unwrap_err();
    assert_eq!(error.daemon_code(), Some(ErrorCode::ShuttingDown), "{error}");
    fake.finish();
}

#[test]
fn a_daemon_that_hangs_up_on_a_newcomer_has_its_successor_greeted() {
    let fake = Fake::run(vec![Step::HangUp, Step::Accept, Step::Answer("ping", DONE)]);
    fake.connect().unwrap().ping().unwrap();
    fake.finish();
    // Once is enough.
    let fake = Fake::run(vec![Step::HangUp, Step::HangUp]);
    let error = fake.connect().unwrap_err();
    assert!(matches!(error, Error::NoDaemon { .. }), "{error}");
    fake.finish();
}

#[test]
fn nonsense_from_the_daemon_is_an_error_and_costs_the_connection() {
    for nonsense in [vec![1, 2, 3], vec![0xff; 40], vec![7; 200 << 10]] {
        let fake = Fake::run(vec![
            Step::Accept,
            Step::Swallow("ping"),
            Step::Raw(nonsense),
            Step::Accept,
            Step::Answer("ping", Ok(ReplyBody::Grown { committed_bytes: 1 })),
            Step::Answer("ping", DONE),
        ]);
        let client = fake.connect().unwrap();
        let error = client.ping().unwrap_err();
        assert!(matches!(error, Error::Protocol { verb: "ping", .. }), "{error}");
        let error = client.ping().unwrap_err();
        assert!(error.to_string().contains("another request"), "{error}");
        client.ping().unwrap();
        fake.finish();
    }
}

#[test]
fn a_reply_longer_than_those_before_arrives_whole() {
    let segment = SegmentInfo {
        name: "s".repeat(90),
        backend: BackendKind::Memfd,
        allocator: AllocatorKind::ThreadLocal,
        id: AllocatorId::new(2, 1),
        problem: Some("x".repeat(500)),
        capacity_bytes: 0,
        committed_bytes: 0,
        on_exit: OnExit::Keep,
        uid: 1,
        gid: 1,
        mode: 0o600,
        created_unix_ms: 0,
        object: None,
        holders: 0,
        sessions: 0,
    };
    let page =
        |count| Ok(ReplyBody::Segments { segments: vec![segment.clone(); count], more: false });
    let fake = Fake::run(vec![
        Step::Accept,
        Step::Answer("list", page(1)),
        Step::Answer("list", page(SEGMENTS_PER_PAGE)),
        Step::Answer("list", page(2)),
    ]);
    let client = fake.connect().unwrap();
    for count in [1, SEGMENTS_PER_PAGE, 2] {
        assert_eq!(client.list().unwrap(), vec![segment.clone(); count]);
    }
    fake.finish();
}

#[test]
fn a_daemon_that_ends_with_a_first_request_in_hand_has_a_successor_asked() {
    let gone = || Err(ErrorReply::new(ErrorCode::NotFound, "no such segment", ""));
    let fake = Fake::run(vec![
        Step::Accept,
        Step::Swallow("attach"),
        Step::Close,
        Step::Accept,
        Step::Answer("attach", gone()),
    ]);
    let error = Client::builder().socket(fake.socket()).attach("s").unwrap_err();
    assert!(
        matches!(&error, Error::Daemon(reply) if reply.message == "no such segment"),
        "{error}"
    );
    fake.finish();
}

#[test]
fn a_refusal_is_read_although_a_first_request_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let listener = listen_at(&directory.path().join("s"));
    let thread = thread::spawn(move || {
        let connection = accept_one(&listener);
        Hello::decode(&receive(&connection)).unwrap();
        // The request is there, so that hanging up resets the connection.
        recv(connection.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK).unwrap();
        let refusal = Refusal {
            code: ErrorCode::Busy.to_u32(),
            versions: VersionRange::SUPPORTED,
            server_version: "9.9".into(),
            message: "too many".into(),
            advice: String::new(),
        };
        say(&connection, &refusal.encode());
    });
    let error = Client::builder().socket(directory.path().join("s")).attach("s").unwrap_err();
    assert!(matches!(&error, Error::Daemon(reply) if reply.message == "too many"), "{error}");
    thread.join().unwrap();
}

#[test]
fn names_that_cannot_be_are_refused_before_anything_is_sent() {
    let fake = Fake::run(vec![Step::Accept]);
    let client = fake.connect().unwrap();
    for name in ["", "a/b", &"n".repeat(300)] {
        let error = client.attach(name).unwrap_err();
        assert_eq!(error.daemon_code(), Some(ErrorCode::BadName), "{error}");
    }
    fake.finish();
}

#[test]
fn a_forked_child_opens_a_connection_of_its_own() {
    let fake = Fake::run(vec![
        Step::Accept,
        Step::Answer("ping", DONE),
        Step::Accept,
        Step::Answer("ping", DONE),
    ]);
    let client = fake.connect().unwrap();
    client.ping().unwrap();
    // SAFETY: [ffi] the child calls this library and _exit, and no lock of the allocator's can be
    // held by the fake's thread for long: it waits in accept.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let code = i32::from(client.ping().is_err());
            // SAFETY: [ffi] ends the child without running the parent's test harness in it.
            unsafe { nix::libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert_eq!(status, WaitStatus::Exited(child, 0));
        }
    }
    fake.finish();
}
