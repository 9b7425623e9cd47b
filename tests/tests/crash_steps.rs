//! A process is killed after each instruction of each operation that changes the segment, and after
//! some of the others: after so many as `HSHM_CRASH_STEPS` says, or `all`.
#![cfg(target_arch = "x86_64")]

use std::io::Write as _;
use std::time::Instant;

use hshm_memory::crash::arm;
use hshm_tests::crash::operations::{OPERATIONS, Operation};
use hshm_tests::crash::scalable;
use hshm_tests::crash::stage::Stage;
use hshm_tests::crash::stepper::{Theatre, Trace};

/// Kills of each operation besides those after which the segment is another.
const MORE: usize = 16;
/// How often a kill is tried again when the process took another way than the one recorded: what the
/// kernel tells of processes, in figures of more or fewer digits, is part of some operations. In the
/// midst of reading such figures no two processes may be at the same place; nothing changes there.
const TRIES: usize = 3;
/// How often an operation is recorded anew at most before a kill after a change succeeds.
const RECORDS: usize = 20;
/// Misses after which it is recorded anew: the way recorded may have been a rare one.
const MISSES: usize = 32;
/// Failures of each operation that are described.
const SHOWN: usize = 3;

#[test]
fn nothing_is_lost_after_any_instruction_of_a_worker() {
    kill_in_all(OPERATIONS.iter().filter(|operation| operation.victim.is_none()).map(act));
}

#[test]
fn nothing_is_lost_after_any_instruction_of_a_recovery() {
    kill_in_all(OPERATIONS.iter().filter(|operation| operation.victim.is_some()).map(act));
}

#[test]
fn nothing_is_lost_after_any_instruction_under_the_lock_of_a_page_table() {
    kill_in_all(scalable::operations::OPERATIONS.iter().map(|operation| Act {
        name: operation.name,
        long: false,
        open: Box::new(move || {
            Theatre::open(move |begin| scalable::Stage::set(operation, arm, begin, nothing as fn()))
        }),
    }));
}

/// Not a closure: each would be a copy of what the process runs of its own, elsewhere in the program.
fn nothing() {}

/// An operation to be killed in.
struct Act {
    name: &'static str,
    /// Whether it is gone through only where all instructions are.
    long: bool,
    open: Box<dyn Fn() -> Result<Theatre, String>>,
}

fn act(operation: &'static Operation) -> Act {
    let set = move |begin: fn()| Stage::set(operation, arm, begin, nothing as fn());
    let open = Box::new(move || Theatre::open(set));
    Act { name: operation.name, long: operation.long, open }
}

fn kill_in_all(acts: impl Iterator<Item = Act>) {
    let only = std::env::var("HSHM_CRASH_ONLY").unwrap_or_default();
    let more = match std::env::var("HSHM_CRASH_STEPS") {
        Ok(word) if word == "all" => usize::MAX,
        Ok(word) => word.parse().expect("HSHM_CRASH_STEPS is a number, or all"),
        Err(_) => MORE,
    };
    let mut tally = Tally::default();
    for act in acts {
        if act.name.contains(&only) && (more == usize::MAX || !act.long) {
            tally.kill_in(&act, more);
        }
    }
    let Tally { kills, records, changes, missed, failures } = tally;
    say(&format!(
        "{kills} distinct kills, {changes} of them after a change; {missed} instructions that change \
         nothing were not met again; {records} recorded\n"
    ));
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(!only.is_empty() || kills > 100, "there are more operations than that");
}

/// What was done and found.
#[derive(Default)]
struct Tally {
    kills: usize,
    records: usize,
    changes: usize,
    /// Instructions at which no process was again when it was to be killed.
    missed: usize,
    failures: Vec<String>,
}

impl Tally {
    fn kill_in(&mut self, act: &Act, more: usize) {
        let start = Instant::now();
        let (before, failed) = (self.kills, self.failures.len());
        let trace = self.kill_after_each(act, more).unwrap_or_else(|error| {
            self.failures.push(format!("{}: {error}", act.name));
            Trace::default()
        });
        self.changes += trace.changes.len();
        say(&format!(
            "{:48} {:6} instructions, {:4} changes, {:6} kills, {:3} failures, {:5.1} s\n",
            act.name,
            trace.len(),
            trace.changes.len(),
            self.kills - before,
            self.failures.len() - failed,
            start.elapsed().as_secs_f64(),
        ));
    }

    /// Kills after each change, and after `more` other instructions.
    fn kill_after_each(&mut self, act: &Act, more: usize) -> Result<Trace, String> {
        let mut theatre = (act.open)()?;
        let (mut done, mut failed, mut stuck) = (None, 0, 0);
        loop {
            let trace = theatre.record()?;
            self.records += 1;
            let mut chosen = trace.choose(more);
            chosen.retain(|steps| done < Some(*steps));
            let mut took_another_way = false;
            for steps in chosen {
                let is_change = trace.changes.binary_search(&steps).is_ok();
                let tries = if stuck == 0 || is_change { TRIES } else { 1 };
                match kill_after(&mut theatre, &trace, steps, tries) {
                    Ok(true) => {
                        self.kills += 1;
                        stuck = 0;
                    }
                    Ok(false) if stuck == 0 || (is_change && stuck < RECORDS) => {
                        stuck += 1;
                        took_another_way = true;
                        break;
                    }
                    Ok(false) if is_change => {
                        return Err(format!(
                            "no process is again where the segment changed, {steps} steps on"
                        ));
                    }
                    // Each of those tried was killed nearby, and what it left was judged.
                    Ok(false) => {
                        self.missed += 1;
                        stuck = if self.missed.is_multiple_of(MISSES) { 0 } else { stuck };
                    }
                    Err(error) => {
                        failed += 1;
                        if failed <= SHOWN {
                            let place = format!("{}, after {steps}", act.name);
                            self.failures.push(format!("{place}: {error}"));
                        }
                    }
                }
                done = Some(steps);
            }
            if !took_another_way {
                return Ok(trace);
            }
        }
    }
}

/// Kills after `steps` steps. False if the process never goes that way.
fn kill_after(
    theatre: &mut Theatre,
    trace: &Trace,
    steps: usize,
    tries: usize,
) -> Result<bool, String> {
    for _ in 0..tries {
        if theatre.kill_after(trace, steps)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Past the test harness, which would keep it to itself.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(line.as_bytes());
}
