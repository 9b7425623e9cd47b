use std::fs;
use std::path::Path;
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

/// The keys of a table of the configuration, as the daemon lists them when it finds another: at the
/// top level if `table` is empty.
fn keys_of(table: &str, directory: &Path) -> Vec<String> {
    let file = directory.join("hshmd.toml");
    let head = if table.is_empty() { String::new() } else { format!("[{table}]\n") };
    fs::write(&file, format!("{head}no_such_key = 1\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hshmd"));
    let output = command.arg("--check-config").arg("--config").arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("unknown field `no_such_key`"), "{said}");
    let quoted = said.split('`').skip(1).step_by(2).skip(1);
    quoted.map(str::to_owned).collect()
}

#[test]
fn every_key_of_the_configuration_is_in_its_manual_page_and_in_the_help() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/hshmd.toml.5");
    let page = fs::read_to_string(page).unwrap();
    let help = Command::new(env!("CARGO_BIN_EXE_hshmd")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let top = keys_of("", directory.path());
    assert!(top.iter().any(|key| key == "limits"), "{top:?}");
    for table in ["", "limits", "access", "metrics", "log", "[segment]"] {
        for key in keys_of(table, directory.path()) {
            for (what, text) in [("hshmd.toml.5", &page), ("hshmd --help", &help)] {
                let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                assert!(words.any(|word| word == key), "{what} does not name {key:?} of [{table}]");
            }
        }
    }
}
