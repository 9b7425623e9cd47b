//! What the two fast paths cost, in instructions, which callgrind counts the same on every machine.
//!
//! It needs valgrind and an optimised build, and so is asked for:
//! `cargo test --release -p hshm-bench --test instructions -- --ignored`

use std::process::Command;

/// An allocation that the cache serves, the block's address included, and its free into the cache:
/// 55 with Rust 1.95. There is room for what another compiler makes of it, but not for a call.
const MOST: f64 = 70.0;
/// Sizes whose blocks are cached.
const SIZES: [u64; 4] = [16, 64, 256, 1024];

#[test]
#[ignore = "it needs valgrind and an optimised build"]
fn an_allocation_and_its_free_take_few_instructions() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.json");
    let status = Command::new(env!("CARGO_BIN_EXE_hshm-bench"))
        .args(["--workload", "pair", "--allocator", "hshm", "--allocator", "null"])
        .args(["--clock", "instructions", "--runs", "1", "--json"])
        .arg(&report)
        .status();
    assert!(status.expect("it runs").success(), "is valgrind there?");
    let text = std::fs::read_to_string(&report).expect("a report");
    let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    let cases: Vec<serde_json::Value> = lines.collect();
    for size in SIZES {
        let case = cases.iter().find(|case| case["size"] == size).expect("the size was measured");
        let number = |field: &str| case[field].as_f64().expect("a number");
        let taken = number("ns_per_op") - number("harness_ns");
        assert!(taken <= MOST, "{size} bytes took {taken} instructions");
    }
}
