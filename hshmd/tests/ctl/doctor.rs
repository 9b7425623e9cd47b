use crate::harness::{Daemon, hshmctl};

#[test]
fn the_doctor_finds_the_daemon_or_says_that_there_is_none() {
    let mut daemon = Daemon::start();
    let socket = daemon.socket();
    let ask = || {
        let mut command = hshmctl();
        let output = command.arg("--socket").arg(&socket).args(["--json", "doctor"]).output();
        let output = output.unwrap();
        let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let first = findings[0].clone();
        assert_eq!(first["what"], "daemon");
        assert!(findings.as_array().unwrap().len() > 5, "{findings}");
        (first, output.status.code())
    };
    let (found, _) = ask();
    assert_eq!(found["verdict"], "ok", "{found}");
    daemon.kill();
    let (found, code) = ask();
    assert_eq!((&found["verdict"], code), (&"problem".into(), Some(3)));
    assert!(found["advice"].as_str().unwrap().contains("start hshmd"), "{found}");
}
