//! The endpoint for metrics, as whoever watches the daemon meets it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hshm_proto::{CreateSegment, ErrorCode, RequestBody};
use nix::sys::signal::Signal;

use crate::harness::Site;

/// Sends a request line and returns everything that comes back.
pub(crate) fn ask(socket: &Path, line: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "{line} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn segments_sessions_and_requests_are_counted() {
    let site = Site::new();
    let socket = site.state_dir().join("metrics.sock");
    let config = site.write_config(&format!("[metrics]\nlisten = {socket:?}\n"));
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut client = daemon.client();
    client.create(CreateSegment::new("jobs", 2 << 20));
    client.refused(RequestBody::Create(CreateSegment::new("jobs", 2 << 20)), ErrorCode::Exists);

    let answer = ask(&socket, "GET /metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.to_lowercase().contains("content-type: application/openmetrics-text"));
    for line in [
        "hshm_segments 1",
        "hshm_sessions 1",
        "hshm_unusable_segments 0",
        "hshm_segment_allocated_bytes{segment=\"jobs\"} 0",
        "hshm_segment_operations_total{segment=\"jobs\",operation=\"allocate\"} 0",
        "hshm_requests_total{request=\"create\",result=\"done\"} 1",
        "hshm_requests_total{request=\"create\",result=\"refused\"} 1",
        "hshm_recovered_processes_total 0",
        "# TYPE hshm_segment_committed_bytes gauge",
        "# UNIT hshm_segment_committed_bytes bytes",
    ] {
        assert!(answer.lines().any(|found| found == line), "no {line:?} in {answer}");
    }
    assert!(answer.contains("hshm_build_info{version=\""), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
    assert!(ask(&socket, "GET /").starts_with("HTTP/1.1 404 "));
    let answer = ask(&socket, "POST /metrics");
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET\r\n"), "{answer}");
    assert!(ask(&socket, "nonsense").starts_with("HTTP/1.1 400 "));
}

#[test]
fn names_follow_the_conventions_of_openmetrics() {
    let site = Site::new();
    let socket = site.state_dir().join("metrics.sock");
    let config = site.write_config(&format!("[metrics]\nlisten = {socket:?}\n"));
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    daemon.client().create(CreateSegment::new("jobs", 2 << 20));
    let answer = ask(&socket, "GET /metrics");
    let (_, text) = answer.split_once("\r\n\r\n").unwrap();
    let about = |what: &str| -> Vec<(&str, &str)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        lines.map(|line| line.trim().split_once(' ').unwrap()).collect()
    };
    let (types, helps, units) = (about("# TYPE "), about("# HELP "), about("# UNIT "));
    assert!(types.len() > 10, "{text}");
    for (name, kind) in &types {
        let is_theirs = |found: &&(&str, &str)| found.0 == *name;
        assert_eq!(types.iter().filter(is_theirs).count(), 1, "{name} is one family");
        assert!(name.starts_with("hshm_") && !name.ends_with("_total"), "{name}");
        let help: Vec<_> = helps.iter().filter(is_theirs).collect();
        assert!(help.len() == 1 && help[0].1.ends_with('.'), "{name}: {help:?}");
        for (_, unit) in units.iter().filter(is_theirs) {
            assert!(name.ends_with(&format!("_{unit}")), "{name} is in {unit}");
        }
        for unit in ["bytes", "seconds"] {
            if name.ends_with(unit) {
                assert!(units.contains(&(*name, unit)), "{name} does not say its unit");
            }
        }
        let suffix = match *kind {
            "counter" => "_total",
            "info" => "_info",
            "gauge" => "",
            other => panic!("{name} is of type {other}"),
        };
        let is_sample = |line: &&str| {
            let rest = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(suffix));
            rest.is_some_and(|rest| rest.starts_with([' ', '{']))
        };
        assert!(text.lines().any(|line| is_sample(&line)), "{name} has no sample: {text}");
    }
    assert_eq!(helps.len(), types.len());
    assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
}

#[test]
fn its_socket_is_the_daemons_own_and_goes_with_it() {
    let site = Site::new();
    let socket = site.state_dir().join("metrics.sock");
    let config = site.write_config(&format!("[metrics]\nlisten = {socket:?}\n"));
    let arguments = ["--config", config.to_str().unwrap()];
    let daemon = site.start(&arguments);
    let found = fs::symlink_metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o660);
    // One that a crash left behind is replaced.
    daemon.crash();
    assert!(socket.exists());
    let daemon = site.start(&arguments);
    // Those who connect and say nothing do not keep others out for long.
    let _silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    assert!(ask(&socket, "GET /metrics").contains("hshm_segments 0"));
    daemon.stop(Signal::SIGTERM);
    assert!(!socket.exists());

    fs::write(&socket, "somebody's").unwrap();
    let said = site.start_in_vain(&["--config", config.to_str().unwrap(), "--log-level", "error"]);
    assert!(said.contains("no socket"), "{said}");
    let config = site.write_config("[metrics]\nlisten = \"0.0.0.0:9177\"\n");
    let said = site.start_in_vain(&["--config", config.to_str().unwrap()]);
    assert!(said.contains("line 2") && said.contains("elsewhere"), "{said}");
}
