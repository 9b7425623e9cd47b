//! A hostile client of each kind, for a short while, beside an honest one.

use std::process::Command;

use hshm_tests::process::binary;

const ABUSE: &str = env!("CARGO_BIN_EXE_abuse");

#[test]
fn a_hostile_client_is_no_harm_to_an_honest_one() {
    let mut command = Command::new(ABUSE);
    command.args(["--seconds", "0.5", "--daemon"]).arg(binary("hshmd", ABUSE));
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}:\n{said}{complained}", output.status);
    assert!(!complained.contains("panicked"), "{complained}");
    // A head of two lines, and a row for each kind.
    assert_eq!(said.lines().count(), 2 + 12, "{said}");
}
