//! A short kill storm of each kind: workers and the daemon are killed while blocks pass between them.

use std::process::Command;

use hshm_tests::process::binary;

const STORM: &str = env!("CARGO_BIN_EXE_kill-storm");

/// Runs the instrument with `arguments` and asserts that it found nothing wrong.
fn storm(arguments: &[&str]) {
    let mut command = Command::new(STORM);
    command.arg("--daemon").arg(binary("hshmd", STORM));
    let output = command.args(arguments).output().expect("the storm runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{said}{complained}", output.status);
    assert!(said.contains("bytes unaccounted     0\n"), "{said}");
}

#[test]
fn five_hundred_kills_lose_not_one_byte() {
    storm(&["--kills", "500", "--daemon-kills", "10", "--seed", "501"]);
}

#[test]
fn kills_lose_not_one_byte_where_blocks_go_with_their_process() {
    storm(&["--kills", "200", "--daemon-kills", "4", "--on-exit", "reclaim", "--seed", "502"]);
}
