//! A process is killed after each instruction of each operation that changes the segment, and after
//! some of the others; after all of them if `HSHM_CRASH_STEPS=all` is set.
#![cfg(target_arch = "x86_64")]

use std::io::Write as _;
use std::time::Instant;

use hshm_memory::crash::arm;
use hshm_tests::crash::operations::{OPERATIONS, Operation};
use hshm_tests::crash::stepper;

/// Kills of each operation besides those after which the segment is another.
const MORE: usize = 16;
/// Failures of each operation that are described.
const SHOWN: usize = 3;

#[test]
#[ignore = "its second run may take another way than the recorded one: run it with --ignored"]
fn nothing_is_lost_after_any_instruction_of_a_worker() {
    kill_in_all(|operation| operation.victim.is_none());
}

#[test]
#[ignore = "its second run may take another way than the recorded one: run it with --ignored"]
fn nothing_is_lost_after_any_instruction_of_a_recovery() {
    kill_in_all(|operation| operation.victim.is_some());
}

fn kill_in_all(chosen: fn(&Operation) -> bool) {
    let only = std::env::var("HSHM_CRASH_ONLY").unwrap_or_default();
    let all = std::env::var("HSHM_CRASH_STEPS").is_ok_and(|which| which == "all");
    let mut tally = Tally::default();
    for operation in OPERATIONS {
        if operation.name.contains(&only) && (all || !operation.copies) && chosen(operation) {
            tally.kill_in(operation, all);
        }
    }
    let Tally { kills, missed, changes, failures } = tally;
    say(&format!("{kills} distinct kills, {changes} of them after a change; {missed} missed\n"));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(missed * 50 <= kills, "too many took another way than the one recorded");
}

/// What was done and found.
#[derive(Default)]
struct Tally {
    kills: usize,
    missed: usize,
    changes: usize,
    failures: Vec<String>,
}

impl Tally {
    fn kill_in(&mut self, operation: &Operation, all: bool) {
        let start = Instant::now();
        let trace = match stepper::record(operation, arm) {
            Ok(trace) => trace,
            Err(error) => {
                self.failures.push(format!("{}, not killed: {error}", operation.name));
                return;
            }
        };
        let chosen = trace.choose(if all { usize::MAX } else { MORE });
        let mut failed = 0;
        for &steps in &chosen {
            match stepper::kill_after(operation, arm, &trace, steps) {
                Ok(true) => self.kills += 1,
                Ok(false) => self.missed += 1,
                Err(error) => {
                    failed += 1;
                    if failed <= SHOWN {
                        let place = format!("{}, after {steps}", operation.name);
                        self.failures.push(format!("{place}: {error}"));
                    }
                }
            }
        }
        self.changes += trace.changes.len();
        say(&format!(
            "{:48} {:6} instructions, {:4} changes, {:6} kills, {failed:3} failures, {:5.1} s\n",
            operation.name,
            trace.len(),
            trace.changes.len(),
            chosen.len(),
            start.elapsed().as_secs_f64(),
        ));
    }
}

/// Past the test harness, which would keep it to itself.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}
