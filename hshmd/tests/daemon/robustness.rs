//! Clients that misbehave, and those beside them that must not notice.

use std::os::fd::AsRawFd;

use hshm_proto::limits::{MAX_REPLY_BYTES, MAX_REQUEST_BYTES};
use hshm_proto::{
    CreateSegment, ErrorCode, Hello, Request, RequestBody, VersionRange, WelcomeOrRefusal,
    decode_reply, encode_request,
};

use crate::harness::{Site, wait_until};
use crate::wire::Client;

/// Sends a packet that is no request, and checks that a typed error and the end come back.
fn offend(client: &Client, packet: &[u8], id: u64) {
    client.send(packet).unwrap();
    let (reply, _) = client.receive(MAX_REPLY_BYTES);
    let reply = decode_reply(&reply).unwrap();
    assert_eq!(reply.id, id);
    assert_eq!(reply.body.unwrap_err().kind(), Some(ErrorCode::Malformed));
    assert!(client.is_closed());
}

#[test]
fn versions_that_do_not_meet_are_told_which_side_is_too_old() {
    let site = Site::new();
    let daemon = site.start(&[]);
    for (min, max, advice) in [(7, 9, "upgrade hshmd"), (0, 0, "upgrade the client")] {
        let client = Client::dial(&site.socket()).unwrap();
        let hello = Hello { versions: VersionRange { min, max }, ..Hello::new("old or new") };
        let WelcomeOrRefusal::Refusal(refusal) = client.greet(&hello) else {
            panic!("versions {min} to {max} are welcome")
        };
        assert_eq!(refusal.code, ErrorCode::Version.to_u32());
        assert_eq!(refusal.versions, VersionRange::SUPPORTED);
        assert_eq!(refusal.advice, advice);
        assert!(client.is_closed());
    }
    // One that speaks more than we do gets on with what both speak.
    let client = Client::dial(&site.socket()).unwrap();
    let hello = Hello { versions: VersionRange { min: 1, max: 99 }, ..Hello::new("newer") };
    let WelcomeOrRefusal::Welcome(welcome) = client.greet(&hello) else { panic!("not welcome") };
    assert_eq!(welcome.version, VersionRange::SUPPORTED.max);
    // And one that speaks less.
    let client = Client::dial(&site.socket()).unwrap();
    let hello = Hello { versions: VersionRange { min: 1, max: 1 }, ..Hello::new("older") };
    let WelcomeOrRefusal::Welcome(welcome) = client.greet(&hello) else { panic!("not welcome") };
    assert_eq!(welcome.version, 1);
    drop(daemon);
}

#[test]
fn another_layout_may_do_everything_but_attach() {
    let site = Site::new();
    let daemon = site.start(&[]);
    daemon.client().create(CreateSegment::new("a", 8 << 20));
    let mut client = Client::dial(&site.socket()).unwrap();
    let hello = Hello { layout_version: 99, ..Hello::new("later layout") };
    assert!(matches!(client.greet(&hello), WelcomeOrRefusal::Welcome(_)));
    assert_eq!(client.names(), ["a"]);
    let error = client.refused(RequestBody::Attach { name: "a".into() }, ErrorCode::Layout);
    assert!(error.message.contains("99") && error.advice.contains("hshmd"), "{error}");
}

#[test]
fn whatever_is_no_greeting_is_refused() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut bystander = daemon.client();
    let named = Hello { client_name: "a\x1b[31mred".into(), ..Hello::new("") }.encode();
    for packet in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0], &[0xff; 4096], &vec![1; 60_000], &named] {
        let client = Client::dial(&site.socket()).unwrap();
        client.send(packet).unwrap();
        let (answer, _) = client.receive(MAX_REPLY_BYTES);
        let WelcomeOrRefusal::Refusal(refusal) = WelcomeOrRefusal::decode(&answer).unwrap() else {
            panic!("{packet:?} is welcome")
        };
        assert_eq!(refusal.code, ErrorCode::Malformed.to_u32());
        assert!(client.is_closed());
    }
    bystander.ask(RequestBody::Ping).unwrap();
}

#[test]
fn a_malformed_request_costs_its_sender_the_connection_and_nobody_else() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut bystander = daemon.client();
    bystander.create(CreateSegment::new("a", 8 << 20));
    let good = encode_request(&Request { id: 7, body: RequestBody::Status }).unwrap();
    let trailing = [good.as_slice(), &[0]].concat();
    let unknown = [7_u64.to_le_bytes().as_slice(), &[200]].concat();
    let mut too_long = vec![0; MAX_REQUEST_BYTES + 1];
    for (place, byte) in too_long.iter_mut().zip(7_u64.to_le_bytes()) {
        *place = byte;
    }
    for (packet, id) in [(&trailing, 7), (&unknown, 7), (&too_long, 7), (&vec![1, 2, 3], 0)] {
        offend(&daemon.client(), packet, id);
        bystander.ask(RequestBody::Ping).unwrap();
    }
    assert_eq!(bystander.names(), ["a"]);
    assert!(!daemon.log().contains("panicked"));
}

#[test]
fn one_who_sends_nonsense_all_the_time_does_not_fill_the_log() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let started = std::time::Instant::now();
    let nonsense = [7_u64.to_le_bytes().as_slice(), &[200]].concat();
    for _ in 0..200 {
        offend(&daemon.client(), &nonsense, 7);
    }
    // What was said up to then has been read when a line is there that is said later.
    daemon.client().create(CreateSegment::new("end", 1 << 20));
    wait_until("the log is read", || daemon.log().contains("created"));
    let log = daemon.log();
    let complaints: Vec<_> =
        log.lines().filter(|line| line.contains("malformed request")).collect();
    // Five a minute.
    let minutes = usize::try_from(started.elapsed().as_secs() / 60).unwrap();
    assert!((5..=5 * (minutes + 1)).contains(&complaints.len()), "{log}");
    assert!(complaints[4].contains("more of this user's are not logged for a minute"), "{log}");
    assert!(complaints[0].contains(&format!("pid={}", std::process::id())), "{log}");
}

#[test]
fn random_packets_never_bring_the_daemon_down() {
    let site = Site::new();
    let daemon = site.start(&["--log-level", "error"]);
    let mut bystander = daemon.client();
    // A linear congruential generator, so that a failure comes again.
    let mut state = 0x1234_5678_u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for round in 0..300 {
        let client = daemon.client();
        let len = usize::try_from(random() % 200).unwrap() + 1;
        let mut packet: Vec<u8> = (0..len).map(|_| random().to_le_bytes()[0]).collect();
        if let Some(kind) = packet.get_mut(8) {
            // Most are of a kind there is, to get further.
            *kind %= 12;
        }
        client.send(&packet).unwrap();
        let (reply, _) = client.receive(MAX_REPLY_BYTES);
        decode_reply(&reply).unwrap();
        if round % 50 == 0 {
            bystander.ask(RequestBody::Ping).unwrap();
        }
    }
    bystander.ask(RequestBody::Ping).unwrap();
    assert_eq!(bystander.names(), Vec::<String>::new());
}

#[test]
fn descriptors_from_clients_are_not_accepted() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let open_before = open_descriptors(daemon.pid());
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds = vec![file.as_raw_fd(); 50];
    for _ in 0..20 {
        let client = daemon.client();
        let packet = encode_request(&Request { id: 3, body: RequestBody::Ping }).unwrap();
        client.send_with(&packet, &fds).unwrap();
        let (reply, _) = client.receive(MAX_REPLY_BYTES);
        let reply = decode_reply(&reply).unwrap();
        assert_eq!(reply.body.unwrap_err().kind(), Some(ErrorCode::Malformed));
    }
    wait_until("all descriptors are closed again", || {
        open_descriptors(daemon.pid()) <= open_before
    });
}

fn open_descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn a_client_that_does_not_read_is_not_waited_for_by_others() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let greedy = daemon.client();
    let packet = encode_request(&Request { id: 1, body: RequestBody::Status }).unwrap();
    // Until neither the daemon reads nor the kernel takes any more.
    let never = nix::sys::time::TimeVal::new(0, 200_000);
    nix::sys::socket::setsockopt(greedy.socket(), nix::sys::socket::sockopt::SendTimeout, &never)
        .unwrap();
    let mut sent = 0_u64;
    while greedy.send(&packet).is_ok() {
        sent += 1;
        assert!(sent < 1_000_000, "somebody keeps it all");
    }
    let mut other = daemon.client();
    for _ in 0..100 {
        other.ask(RequestBody::Ping).unwrap();
    }
    wait_until("its connection is closed", || other.status().connections == 1);
}

#[test]
fn a_segment_that_is_cut_short_is_taken_out_of_use_and_the_daemon_lives() {
    let site = Site::new();
    let config = site.write_config("sweep_interval_ms = 3600000\n");
    for round in 0..2 {
        // Once a request meets the damage first, once the sweep.
        let config = config.to_str().unwrap();
        let arguments = if round == 0 { &["--config", config][..] } else { &[] };
        let daemon = site.start(arguments);
        let mut client = daemon.client();
        client.create(CreateSegment::new("cut", 16 << 20));
        client.create(CreateSegment::new("other", 16 << 20));
        let object = std::path::Path::new("/dev/shm").join(site.namespace().object("cut"));
        std::fs::OpenOptions::new().write(true).open(object).unwrap().set_len(8192).unwrap();
        if round == 0 {
            for request in [
                RequestBody::Check { name: "cut".into() },
                RequestBody::Inspect { name: "cut".into(), after_slot: 0 },
                RequestBody::Grow { name: "cut".into(), size_bytes: 32 << 20 },
                RequestBody::Attach { name: "cut".into() },
            ] {
                let error = client.refused(request, ErrorCode::Unusable);
                assert!(error.message.contains("cut short"), "{error}");
            }
        } else {
            wait_until("the damage is noticed", || client.status().unusable_segments == 1);
            assert!(client.list().iter().any(|segment| segment.problem.is_some()));
        }
        client.destroy("cut", false).unwrap();
        client.attach("other").unwrap();
        client.destroy("other", false).unwrap();
    }
}

#[test]
fn sessions_beyond_the_limit_are_refused_and_places_become_free_again() {
    let site = Site::new();
    let config = site.write_config("[limits]\nmax_sessions = 3\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let clients = [daemon.client(), daemon.client(), daemon.client()];
    let fourth = Client::dial(&site.socket()).unwrap();
    let WelcomeOrRefusal::Refusal(refusal) = fourth.greet(&Hello::new("one too many")) else {
        panic!("a fourth is welcome")
    };
    assert_eq!(refusal.code, ErrorCode::Busy.to_u32());
    assert!(refusal.advice.contains("max_sessions"), "{refusal:?}");
    drop(clients);
    wait_until("a place is free", || {
        let client = Client::dial(&site.socket()).unwrap();
        matches!(client.greet(&Hello::new("next")), WelcomeOrRefusal::Welcome(_))
    });
}

#[test]
fn sessions_come_in_pages() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut clients: Vec<Client> = (0..150).map(|_| daemon.client()).collect();
    let viewer = clients.first_mut().unwrap();
    let sessions = viewer.sessions();
    assert_eq!(sessions.len(), 150);
    assert!(sessions.iter().all(|session| session.client_name == "test client"));
    assert!(sessions.iter().all(|session| session.process.pid == std::process::id()));
    assert_eq!(viewer.status().watched_processes, 1, "one process, however many connections");
}
