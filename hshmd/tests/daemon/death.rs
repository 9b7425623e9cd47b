//! Processes that die, and what becomes of what they held.

use hshm_proto::limits::WORKERS_PER_PAGE;
use hshm_proto::{
    CreateSegment, ErrorCode, Event, EventKind, ReplyBody, RequestBody, SessionState,
};

use nix::sys::signal::{Signal, kill};

use crate::harness::{Site, wait_until};
use crate::wire::Client;
use crate::worker::{MANY_SLOTS, Role, Worker};

fn segment(name: &str) -> CreateSegment {
    CreateSegment { worker_slots: Some(16), ..CreateSegment::new(name, 16 << 20) }
}

fn holders(client: &mut Client, name: &str) -> u32 {
    let found = client.list().into_iter().find(|segment| segment.name == name);
    found.expect("the segment is listed").holders
}

fn slots_in_use(client: &mut Client, name: &str) -> usize {
    let inspect = RequestBody::Inspect { name: name.into(), after_slot: 0 };
    match client.ask(inspect).unwrap() {
        hshm_proto::ReplyBody::Inspected(page) => page.workers.len(),
        other => panic!("{other:?}"),
    }
}

fn check_is_clean(client: &mut Client, name: &str) {
    match client.ask(RequestBody::Check { name: name.into() }).unwrap() {
        hshm_proto::ReplyBody::Checked(report) => assert!(report.is_clean(), "{report:?}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_slots_of_a_killed_client_are_recovered() {
    let site = Site::new();
    // No sweep will come to help: it is the pidfd that tells.
    let config = site.write_config("sweep_interval_ms = 3600000\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(segment("a"));
    client.create(segment("b"));
    let worker = Worker::start(&site.socket(), "a", Role::Busy, None);
    let other = Worker::start(&site.socket(), "a", Role::Connected, None);
    assert_eq!(holders(&mut client, "a"), 2);
    let pid = worker.pid();
    worker.kill();
    wait_until("the dead worker's slot is recovered", || client.status().recovered_processes == 1);
    assert_eq!(slots_in_use(&mut client, "a"), 1);
    assert_eq!(client.status().recovered_slots, 1);
    check_is_clean(&mut client, "a");
    // What the daemon writes is read by another thread of this process.
    wait_until("its log says whose", || {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("recovered what a dead process held"));
        line.is_some_and(|line| line.contains(&format!("pid={pid}")))
    });
    assert!(client.sessions().iter().all(|session| session.process.pid != pid));
    other.finish();
    wait_until("the other's slot is free too", || slots_in_use(&mut client, "a") == 0);
    check_is_clean(&mut client, "a");
}

#[test]
fn what_held_many_slots_is_recovered_in_steps_that_the_log_and_the_metrics_show() {
    let site = Site::new();
    let socket = site.state_dir().join("metrics.sock");
    let config = site.write_config(&format!("[metrics]\nlisten = {socket:?}\n"));
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(CreateSegment { worker_slots: Some(200), ..CreateSegment::new("a", 16 << 20) });
    let worker = Worker::start(&site.socket(), "a", Role::Many, None);
    assert_eq!(slots_in_use(&mut client, "a") as u64, MANY_SLOTS.min(WORKERS_PER_PAGE as u64));
    let pid = worker.pid();
    worker.kill();
    wait_until("the dead worker's slots are recovered", || {
        client.status().recovered_processes == 1
    });
    assert_eq!(client.status().recovered_slots, MANY_SLOTS);
    assert_eq!(slots_in_use(&mut client, "a"), 0);
    check_is_clean(&mut client, "a");
    let metrics = crate::metrics::ask(&socket, "GET /metrics");
    for line in [
        "hshm_recovering_processes 0".to_owned(),
        "hshm_recovered_processes_total 1".to_owned(),
        format!("hshm_recovered_slots_total {MANY_SLOTS}"),
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line:?} in {metrics}");
    }
    wait_until("its log tells of each step", || {
        let log = daemon.log();
        let of_it = |line: &&str| line.contains(&format!("pid={pid}"));
        let steps = log.lines().filter(of_it).filter(|line| line.contains("recovering what"));
        let ends = log.lines().filter(of_it).filter(|line| line.contains("recovered what"));
        (steps.count(), ends.count()) == (3, 1)
    });
}

#[test]
fn who_watches_is_told_of_a_death_and_of_what_was_recovered() {
    let site = Site::new();
    let config = site.write_config("sweep_interval_ms = 3600000\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(segment("a"));
    let mut cursor = None;
    let mut next = || {
        let body = RequestBody::Events { name: Some("a".into()), after: cursor, wait_ms: 10_000 };
        let ReplyBody::Events(page) = client.ask(body).unwrap() else { panic!("events") };
        cursor = Some(page.cursor);
        page.events
    };
    assert!(next().is_empty());
    let worker = Worker::start(&site.socket(), "a", Role::Busy, None);
    let pid = worker.pid();
    let attached = next();
    let [Event { what: EventKind::Attached { process, .. }, .. }] = attached.as_slice() else {
        panic!("it is told that it attached: {attached:?}")
    };
    assert_eq!(process.pid, pid);
    worker.kill();
    let mut told = Vec::new();
    while told.len() < 2 {
        told.extend(next().into_iter().map(|event| event.what));
    }
    let [EventKind::Died { process: dead }, EventKind::Recovered { process: whose, report, .. }] =
        told.as_slice()
    else {
        panic!("death and recovery, in this order: {told:?}")
    };
    assert_eq!((dead, whose, report.slots), (process, process, 1));
}

#[test]
fn a_client_that_closed_its_connection_keeps_its_slots_until_it_dies() {
    let site = Site::new();
    let config = site.write_config("sweep_interval_ms = 20\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(segment("a"));
    let worker = Worker::start(&site.socket(), "a", Role::Disconnected, None);
    wait_until("it is known to hold slots without a connection", || {
        client.sessions().iter().any(|session| {
            session.process.pid == worker.pid()
                && session.state == SessionState::Holding
                && session.segments == ["a"]
        })
    });
    assert_eq!(holders(&mut client, "a"), 1);
    let error =
        client.refused(RequestBody::Destroy { name: "a".into(), force: false }, ErrorCode::InUse);
    assert!(error.message.contains("1 living process"), "{error}");
    worker.kill();
    wait_until("its slot is recovered", || client.status().recovered_slots == 1);
    assert_eq!(slots_in_use(&mut client, "a"), 0);
    client.destroy("a", false).unwrap();
}

#[test]
fn a_client_that_hangs_keeps_what_it_has_and_hinders_nobody() {
    let site = Site::new();
    let config = site.write_config("sweep_interval_ms = 10\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(segment("a"));
    let hanging = Worker::start(&site.socket(), "a", Role::Busy, None);
    let stopped = nix::unistd::Pid::from_raw(hanging.pid().cast_signed());
    kill(stopped, Signal::SIGSTOP).unwrap();
    // Others come, work and die, and the daemon looks for the dead many times.
    for round in 1..=5 {
        Worker::start(&site.socket(), "a", Role::Busy, None).kill();
        wait_until("the other is recovered", || client.status().recovered_slots == round);
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!((slots_in_use(&mut client, "a"), holders(&mut client, "a")), (1, 1));
    client.refused(RequestBody::Destroy { name: "a".into(), force: false }, ErrorCode::InUse);
    client.refused(RequestBody::Repair { name: "a".into() }, ErrorCode::InUse);
    kill(stopped, Signal::SIGCONT).unwrap();
    // It looks at each of its blocks before it frees it.
    assert!(hanging.finish().starts_with("did "), "it goes on as if nothing had been");
    wait_until("its slot is free", || slots_in_use(&mut client, "a") == 0);
    check_is_clean(&mut client, "a");
    assert_eq!(client.status().recovered_slots, 5);
}

#[test]
fn a_client_that_becomes_another_program_holds_its_slots_until_that_ends() {
    let site = Site::new();
    let config = site.write_config("sweep_interval_ms = 10\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(segment("a"));
    // The program that it has become has a slot of its own beside the one that nobody uses any more.
    let worker = Worker::start(&site.socket(), "a", Role::Replaced, None);
    let neighbour = Worker::start(&site.socket(), "a", Role::Busy, None);
    assert_eq!((slots_in_use(&mut client, "a"), holders(&mut client, "a")), (3, 2));
    std::thread::sleep(std::time::Duration::from_millis(200));
    // The process lives: nothing of it is taken.
    assert_eq!(client.status().recovered_slots, 0);
    worker.kill();
    wait_until("both are recovered", || client.status().recovered_slots == 2);
    assert_eq!((slots_in_use(&mut client, "a"), holders(&mut client, "a")), (1, 1));
    // One that ends in order leaves the slot of the program that it was.
    let worker = Worker::start(&site.socket(), "a", Role::Replaced, None);
    assert!(worker.finish().starts_with("did "));
    wait_until("that one is recovered", || client.status().recovered_slots == 3);
    assert!(neighbour.finish().starts_with("did "));
    wait_until("no slot is in use", || slots_in_use(&mut client, "a") == 0);
    check_is_clean(&mut client, "a");
    client.destroy("a", false).unwrap();
}

#[test]
fn a_segment_in_use_is_destroyed_only_by_force() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(segment("a"));
    let workers =
        [Role::Connected, Role::Busy].map(|role| Worker::start(&site.socket(), "a", role, None));
    let destroy = |force| RequestBody::Destroy { name: "a".into(), force };
    let error = client.refused(destroy(false), ErrorCode::InUse);
    assert!(error.message.contains("2 living processes"), "{error}");
    assert!(error.advice.contains("--force"), "{error}");
    assert_eq!(client.names(), ["a"]);
    client.ask(destroy(true)).unwrap();
    assert!(client.names().is_empty() && site.objects().is_empty());
    for worker in workers {
        // They go on with what they have mapped.
        assert!(worker.finish().starts_with("did "));
    }
}

#[test]
fn a_segment_that_was_attached_but_not_used_yet_is_in_use_too() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(segment("a"));
    // This process has it attached twice, which is no obstacle to itself.
    client.attach("a").unwrap();
    daemon.client().attach("a").unwrap();
    client.destroy("a", false).unwrap();
}

#[test]
fn workers_that_died_while_there_was_no_daemon_are_recovered_at_its_start() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(segment("a"));
    let dying = Worker::start(&site.socket(), "a", Role::Busy, None);
    let living = Worker::start(&site.socket(), "a", Role::Busy, None);
    drop(client);
    daemon.crash();
    dying.kill();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    // Done before the first client came.
    assert_eq!(client.status().recovered_slots, 1);
    assert_eq!(slots_in_use(&mut client, "a"), 1);
    // The other, which never connected to this daemon, is watched.
    living.kill();
    wait_until("the other is recovered as well", || client.status().recovered_slots == 2);
    assert_eq!(slots_in_use(&mut client, "a"), 0);
    check_is_clean(&mut client, "a");
}

#[test]
fn many_workers_killed_at_once_are_all_recovered() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let mut client = daemon.client();
    client.create(CreateSegment { size_bytes: 32 << 20, ..segment("a") });
    for round in 1..=3_u64 {
        let workers: Vec<Worker> =
            (0..8).map(|_| Worker::start(&site.socket(), "a", Role::Busy, None)).collect();
        for worker in workers {
            worker.kill();
        }
        wait_until("all slots are recovered", || client.status().recovered_slots == round * 8);
        assert_eq!(slots_in_use(&mut client, "a"), 0);
        check_is_clean(&mut client, "a");
    }
}
