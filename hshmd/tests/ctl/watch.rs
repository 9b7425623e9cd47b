//! `hshmctl watch`: what happens, as it happens.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use hshm_client::{EventKind, Watched};
use serde_json::{Value, json};

use crate::harness::Daemon;

struct Watch {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(daemon: &Daemon, arguments: &[&str]) -> Self {
        let mut command = daemon.command();
        command.arg("watch").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("it goes on").unwrap()
    }

    fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }
}

#[test]
fn each_thing_that_happens_is_a_line_at_once() {
    let daemon = Daemon::start();
    let mut watch = Watch::start(&daemon, &["--json"]);
    assert_eq!(watch.json(), json!({ "type": "watching", "segment": null }));
    daemon.text("create jobs --size 1M --capacity 8M");
    let created = watch.json();
    assert_eq!((&created["type"], &created["segment"]), (&"event".into(), &"jobs".into()));
    assert!(created["what"]["created"]["committed_bytes"].as_u64() > Some(1 << 20), "{created}");
    let client = daemon.client();
    let segment = client.attach("jobs").unwrap();
    let attached = watch.json();
    let pid = u64::from(std::process::id());
    assert_eq!(attached["what"]["attached"]["process"]["pid"], pid, "{attached}");
    drop(segment);
    assert!(watch.json()["what"]["detached"].is_object());
    daemon.text("grow jobs --size 4M");
    assert!(watch.json()["what"]["grown"]["committed_bytes"].as_u64() >= Some(4 << 20));
    daemon.text("destroy jobs");
    let destroyed = watch.json();
    assert_eq!((&destroyed["segment"], &destroyed["what"]), (&"jobs".into(), &"destroyed".into()));
    assert!(destroyed["sequence"].as_u64() > created["sequence"].as_u64());
    assert!(destroyed["unix_ms"].as_u64() >= created["unix_ms"].as_u64());
    watch.child.kill().unwrap();
    watch.child.wait().unwrap();
}

#[test]
fn a_library_that_watches_learns_of_a_restart_and_of_the_end() {
    let mut daemon = Daemon::start();
    let client = daemon.client();
    let mut events = client.events(Some("jobs")).unwrap();
    let options = |name| hshm_client::CreateOptions::new(name, 1 << 20);
    client.create(&options("other")).unwrap();
    client.create(&options("jobs")).unwrap();
    let Some(Ok(Watched::Event(event))) = events.next() else { panic!("an event") };
    assert_eq!(event.segment, "jobs");
    assert!(matches!(event.what, EventKind::Created { .. }), "{event:?}");
    // A client that closes its connection lets go of what it attached, and lives on.
    let other = daemon.client();
    let segment = other.attach("jobs").unwrap();
    let Some(Ok(Watched::Event(event))) = events.next() else { panic!("an event") };
    assert!(matches!(event.what, EventKind::Attached { .. }), "{event:?}");
    drop((segment, other));
    let Some(Ok(Watched::Event(event))) = events.next() else { panic!("an event") };
    assert!(matches!(event.what, EventKind::Detached { .. }), "{event:?}");

    daemon.kill();
    daemon.restart();
    assert_eq!(events.next().unwrap().unwrap(), Watched::Restarted);
    daemon.client().destroy("jobs", true).unwrap();
    let Some(Ok(Watched::Event(event))) = events.next() else { panic!("an event") };
    assert_eq!(event.what, EventKind::Destroyed);
    daemon.kill();
    assert!(matches!(events.next(), Some(Err(hshm_client::Error::NoDaemon { .. }))));
    assert!(events.next().is_none());
    daemon.restart();
}

#[test]
fn it_ends_when_nobody_reads_or_the_daemon_is_gone() {
    let mut daemon = Daemon::start();
    let Watch { mut child, lines } = Watch::start(&daemon, &[]);
    drop(lines);
    assert!(child.wait().unwrap().success());

    let mut watch = Watch::start(&daemon, &["jobs", "--json"]);
    assert_eq!(watch.json()["segment"], "jobs");
    daemon.kill();
    let status = watch.child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let stderr = std::io::read_to_string(watch.child.stderr.take().unwrap()).unwrap();
    assert!(stderr.contains("no daemon is running") && stderr.lines().count() == 1, "{stderr}");
    daemon.restart();
}
