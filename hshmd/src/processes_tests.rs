//! Tests of the table of processes.

use super::*;

fn peer(uid: u32, pid: u32) -> Peer {
    let process = Some(ProcessId { pid, start_ticks: 1 });
    Peer { uid, gid: uid, groups: Vec::new(), process, rules: Arc::default() }
}

fn connect(processes: &Arc<Processes>, peer: &Peer) -> Connected {
    processes.connect(peer, "test", Arc::default(), &Limits::default()).unwrap()
}

fn at_most(max_sessions: usize) -> Limits {
    Limits { max_sessions, ..Limits::default() }
}

/// A watcher that never reports.
fn watcher() -> AbortHandle {
    tokio::spawn(std::future::pending::<()>()).abort_handle()
}

#[test]
fn sessions_beyond_the_limit_are_refused() {
    let processes = Arc::new(Processes::default());
    let first = processes.connect(&peer(1, 1), "a", Arc::default(), &at_most(1)).unwrap();
    assert!(processes.connect(&peer(1, 2), "b", Arc::default(), &at_most(1)).is_err());
    drop(first);
    assert!(processes.connect(&peer(1, 2), "b", Arc::default(), &at_most(1)).is_ok());
}

#[test]
fn pages_hold_every_session_once_and_only_what_the_viewer_may_see() {
    let processes = Arc::new(Processes::default());
    let me = nix::unistd::geteuid().as_raw();
    let stranger = 4_000_001;
    let _open: Vec<Connected> = (0..SESSIONS_PER_PAGE + 5)
        .map(|n| {
            let uid = if n < 3 { stranger } else { me };
            connect(&processes, &peer(uid, u32::try_from(n).unwrap() + 1))
        })
        .collect();
    let admin = peer(0, 99);
    let (first, more) = processes.page(None, &admin, 3);
    assert!(more && first.len() == SESSIONS_PER_PAGE);
    let (second, more) = processes.page(first.last().map(|session| session.session), &admin, 3);
    assert!(!more && second.len() == 5);
    let numbers: BTreeSet<u64> = first.iter().chain(&second).map(|s| s.session).collect();
    assert_eq!(numbers.len(), SESSIONS_PER_PAGE + 5);
    assert_eq!(processes.page(None, &peer(stranger, 99), 3).0.len(), 3);
}

#[tokio::test]
async fn a_process_without_connection_stays_watched_only_while_it_holds_slots() {
    let processes = Arc::new(Processes::default());
    let client = peer(1, 7);
    let process = client.process.unwrap();
    let number = connect(&processes, &client);
    assert!(processes.watch(process, Some(&client), watcher()));
    assert!(!processes.watch(process, None, watcher()), "one watch is enough");

    processes.update_holders(&HashMap::new());
    assert!(processes.is_watched(process), "it is connected");
    drop(number);
    let holders = HashMap::from([(process, BTreeSet::from(["s".to_owned()]))]);
    processes.update_holders(&holders);
    let (sessions, _) = processes.page(None, &peer(0, 99), 3);
    let [session] = sessions.as_slice() else { panic!("one session: {sessions:?}") };
    assert_eq!((session.state, session.uid), (SessionState::Holding, Some(1)));
    assert_eq!(session.segments, ["s"]);

    processes.update_holders(&HashMap::new());
    assert!(!processes.is_watched(process));
    assert!(processes.page(None, &peer(0, 99), 3).0.is_empty());
}

#[tokio::test]
async fn a_death_closes_the_connections_of_that_process_alone() {
    let processes = Arc::new(Processes::default());
    let (dead, other) = (peer(1, 7), peer(1, 8));
    let (close_dead, close_other) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let _dead = processes.connect(&dead, "a", Arc::clone(&close_dead), &at_most(9)).unwrap();
    let _other = processes.connect(&other, "b", Arc::clone(&close_other), &at_most(9)).unwrap();
    processes.died(dead.process.unwrap(), &BTreeSet::new());
    close_dead.notified().await;
    let pending =
        tokio::time::timeout(std::time::Duration::from_millis(20), close_other.notified());
    assert!(pending.await.is_err(), "the other goes on");
}

#[tokio::test]
async fn the_recovery_of_the_dead_shows_until_it_is_over() {
    let processes = Arc::new(Processes::default());
    let client = peer(1, 7);
    let process = client.process.unwrap();
    let session = connect(&processes, &client);
    assert!(processes.watch(process, Some(&client), watcher()));
    processes.attach(session.number, "s");
    assert_eq!(processes.counts().recovering, 0);

    let held = BTreeSet::from(["t".to_owned()]);
    let used = processes.died(process, &held);
    assert_eq!(used, BTreeSet::from(["s".to_owned(), "t".to_owned()]));
    drop(session);
    let shown = |viewer, version| processes.page(None, &peer(viewer, 99), version).0;
    let [dying] = &shown(1, 3)[..] else { panic!("one is dead: {:?}", shown(1, 3)) };
    assert_eq!((dying.state, dying.process), (SessionState::Recovering, process));
    assert_eq!((dying.uid, dying.client_name.as_str()), (Some(1), "test"));
    assert_eq!(dying.segments, ["s", "t"]);
    assert!(shown(2, 3).is_empty(), "it is of another user");
    assert!(shown(1, 2).is_empty(), "a client of an earlier release knows of no such state");

    processes.count_recovered(process, 32);
    processes.recovered_in(process, "s");
    assert_eq!(shown(0, 3)[0].segments, ["t"]);
    let counts = processes.counts();
    assert_eq!((counts.recovering, counts.recovered_slots, counts.recovered_processes), (1, 32, 0));

    processes.recovered_in(process, "t");
    assert_eq!(processes.buried(process), 32);
    assert!(shown(0, 3).is_empty());
    let counts = processes.counts();
    assert_eq!((counts.recovering, counts.recovered_slots, counts.recovered_processes), (0, 32, 1));
}

#[test]
fn what_a_session_attached_counts_until_it_detaches() {
    let processes = Arc::new(Processes::default());
    let (a, b) = (connect(&processes, &peer(1, 7)), connect(&processes, &peer(1, 8)));
    processes.attach(a.number, "s");
    processes.attach(b.number, "s");
    processes.attach(b.number, "t");
    assert_eq!(processes.attached("s").0, 2);
    assert!(processes.detach(a.number, "s"));
    assert!(!processes.detach(a.number, "s"));
    assert_eq!(processes.attached("s").1, [peer(1, 8).process.unwrap()]);
    drop(b);
    assert_eq!(processes.attached("s").0, 0);
    assert_eq!(processes.attached("t").0, 0);
}

#[test]
fn a_command_name_is_bounded_and_printable() {
    let name = command_name(ProcessId::current().unwrap());
    assert!(!name.is_empty() && name.len() <= 16);
    assert_eq!(command_name(ProcessId { pid: u32::MAX, start_ticks: 0 }), "");
}

#[test]
fn a_user_has_only_so_many_connections_and_others_are_not_concerned() {
    let processes = Arc::new(Processes::default());
    let limits = Limits { max_user_sessions: Some(1), ..Limits::default() };
    let own = nix::unistd::geteuid().as_raw();
    let connect = |uid, pid| processes.connect(&peer(uid, pid), "a", Arc::default(), &limits);
    let first = connect(own + 1, 1).unwrap();
    assert_eq!(connect(own + 1, 2).unwrap_err(), TooMany::OfUser(1));
    let _other = connect(own + 2, 3).unwrap();
    let _privileged = [connect(0, 4).unwrap(), connect(0, 5).unwrap(), connect(own, 6).unwrap()];
    drop(first);
    assert!(connect(own + 1, 7).is_ok());
}
