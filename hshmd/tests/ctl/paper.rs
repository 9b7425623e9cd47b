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
    assert!(page.contains(".SH EXIT STATUS") && page.contains("hshmctl (1)"), "{page}");
    assert!(directory.path().join("hshmctl.1").exists());
    assert!(!directory.path().join("hshmctl-demo-part.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let output = hshmctl().args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["inspect", "custom-header", "posix-shm", "scalable-page", "reclaim"] {
            assert!(script.contains(word), "{shell}: no {word} in {script}");
        }
        assert!(output.status.success());
    }
}

#[test]
fn shells_complete_the_names_of_segments() {
    let daemon = crate::harness::Daemon::start();
    for name in ["jobs", "jokes", "other"] {
        daemon.text(&format!("create {name} --size 1M"));
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_hshmctl")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let complete = r#"
        source <(hshmctl completions bash)
        complete_line() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _hshmctl_with_segments hshmctl "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}"
        }
        complete_line hshmctl destroy jo
        complete_line hshmctl --socket "$HSHM_SOCKET" grow o
        complete_line hshmctl check --repair ""
        complete_line hshmctl create x --backend m
        complete_line hshmctl dest
        complete -p hshmctl
    "#;
    let mut bash = Command::new("bash");
    bash.args(["-c", complete]).env("PATH", path).env("HSHM_SOCKET", daemon.socket());
    let output = bash.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = said.lines().collect();
    let expected = ["jobs jokes", "other", "jobs jokes other", "memfd", "destroy"];
    assert_eq!(&lines[..5], expected, "{}", String::from_utf8_lossy(&output.stderr));
    assert!(lines[5].contains("_hshmctl_with_segments"), "{said}");
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
    for section in ["FILES", "ENVIRONMENT", "SIGNALS", "EXIT STATUS", "SEE ALSO"] {
        assert!(page.contains(&format!(".SH {section}\n")), "{page}");
    }
    // Whoever packs it must learn that it was not written.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hshmd"));
    let output = command.arg("--manual").stdout(full).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write the manual page"), "{said}");
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
