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
    assert!(ask(&socket, "POST /metrics").starts_with("HTTP/1.1 405 "));
    assert!(ask(&socket, "nonsense").starts_with("HTTP/1.1 400 "));
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
