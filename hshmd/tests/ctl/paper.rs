use std::process::Command;

use crate::harness::hshmctl;

#[test]
fn every_command_has_a_manual_page_and_can_be_completed() {
    let directory = tempfile::tempdir().unwrap();
    let output = hshmctl().arg("manual").arg(directory.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let page = std::fs::read_to_string(directory.path().join("hshmctl-create.1")).unwrap();
    assert!(page.contains("\\-\\-on\\-exit"), "{page}");
    assert!(directory.path().join("hshmctl.1").exists());
    assert!(!directory.path().join("hshmctl-demo-part.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let output = hshmctl().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(script.contains("inspect") && script.contains("custom-header"), "{script}");
        assert!(output.status.success());
    }
}

#[test]
fn a_manual_that_has_no_place_is_an_error_in_one_line() {
    let output = hshmctl().args(["manual", "/nonexistent/man"]).output().unwrap();
    crate::harness::assert_refused(&output, &["/nonexistent/man", "cannot write"]);
}

#[test]
fn the_daemon_has_a_manual_page_too() {
    let output = Command::new(env!("CARGO_BIN_EXE_hshmd")).arg("--manual").output().unwrap();
    let page = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && page.contains("state\\-dir"), "{page}");
}
