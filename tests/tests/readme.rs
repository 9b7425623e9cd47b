//! What the README says of commands and limits is so. That its example compiles, the package's
//! documentation test sees to.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::collections::BTreeSet;
use std::process::Command;

use hshm_memory::InitOptions;
use hshm_tests::process::binary;

const README: &str = include_str!("../../README.md");

#[test]
fn it_names_every_command_and_no_other() {
    let output = Command::new(binary("hshmctl", env!("CARGO_BIN_EXE_hshm-test-worker")))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let there_are: BTreeSet<_> = commands
        .take_while(|line| !line.is_empty())
        // Continued descriptions are indented further.
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    let named: BTreeSet<_> = README
        .split("`hshmctl ")
        .skip(1)
        .filter_map(|rest| rest.split(['`', ' ']).next())
        .collect();
    assert!(there_are.contains("status"), "{help}");
    assert_eq!(named, there_are);
}

#[test]
fn its_limits_are_those_of_the_library() {
    let slots = InitOptions::default().worker_slots;
    let says = |text: String| assert!(README.contains(&text), "the README does not say {text:?}");
    says(format!("{slots} by default, {} at most", InitOptions::MAX_WORKER_SLOTS));
    says(format!("| {} MiB |", InitOptions::MAX_CUSTOM_HEADER_BYTES >> 20));
    says(format!("| segment name | {} bytes", hshm_proto::limits::MAX_SEGMENT_NAME_BYTES));
    says(format!("to {} MiB on request", hshm_memory::backend::BASE_ALIGN >> 20));
}
