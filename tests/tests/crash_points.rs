//! A process is killed at each crash point of the thread-local allocator, in each operation that comes by it.

use std::collections::BTreeMap;
use std::io::Write as _;

use hshm_memory::crash::arm;
use hshm_tests::crash::allocator_points;
use hshm_tests::crash::operations::{OPERATIONS, Operation};
use hshm_tests::crash::process;
use hshm_tests::crash::stage::Stage;
use hshm_tests::crash::verdict::{self, First};
use nix::sys::signal::{Signal, kill};

/// How often a point is passed at most before the death.
const PASSES: u32 = 9;

/// Kills a process at `point` of `operation`. False if it does not come by there so often.
fn kill_at(
    operation: &Operation,
    point: &'static str,
    passes: u32,
    first: First,
) -> Result<bool, String> {
    let stage = Stage::set(operation, arm, || {}, || assert!(arm(point, passes)))?;
    kill(stage.child, Signal::SIGCONT).map_err(|errno| errno.to_string())?;
    let killed = process::was_killed(process::wait(stage.child)?)?;
    verdict::judge(operation, &stage.world, stage.before, first)?;
    Ok(killed)
}

/// Where a recovery may come by, from its beginning to its end, and how many are killed there in turn:
/// one where the next need not come by again.
const OF_RECOVERY: &[(&str, usize)] = &[
    ("recover.taken", 3),
    ("units.run_unbound", 1),
    ("free.linked", 1),
    ("free.pushed", 1),
    ("page.adopted", 1),
    ("recover.journal_done", 3),
    ("page.saved", 1),
    ("units.page_unbound", 1),
    ("units.released", 1),
    ("page.abandoned", 1),
    ("slot.vacated", 3),
];

/// Who recovers is killed, who recovers from that is killed a little later, and so on, until one comes
/// to the end. Returns how many died.
fn kill_recoverers(operation: &Operation) -> Result<usize, String> {
    let mut reached = Vec::new();
    for &(point, times) in OF_RECOVERY {
        if kill_at(operation, point, 0, First::Recovery)? {
            reached.extend(std::iter::repeat_n(point, times));
        }
    }
    let stage = Stage::set(operation, arm, || {}, || {})?;
    kill(stage.child, Signal::SIGKILL).map_err(|errno| errno.to_string())?;
    process::wait(stage.child)?;
    let mut deaths = 0;
    for point in reached {
        let recoverer = process::spawn(|| {
            assert!(arm(point, 0));
            (operation.run)(&stage.world);
        })?;
        if !process::was_killed(process::wait(recoverer)?)? {
            // What was left of the work is done, and did not come by here any more.
            break;
        }
        deaths += 1;
    }
    verdict::judge(operation, &stage.world, stage.before, First::Recovery)?;
    Ok(deaths)
}

#[test]
fn a_recovery_that_is_killed_again_and_again_comes_to_its_end() {
    let mut deaths = Vec::new();
    for operation in OPERATIONS.iter().filter(|operation| {
        operation.name.contains("recover ") || operation.name == "reclaim: recover"
    }) {
        let outcome = kill_recoverers(operation);
        deaths.push(outcome.unwrap_or_else(|error| panic!("{}: {error}", operation.name)));
    }
    let _ = writeln!(std::io::stderr(), "{deaths:?} recoverers of one death killed in turn");
    let (least, all) = (deaths.iter().min().copied(), deaths.iter().sum::<usize>());
    assert!(least >= Some(4) && all >= 120, "{deaths:?}");
}

#[test]
fn nothing_is_lost_at_any_crash_point() {
    let only = std::env::var("HSHM_CRASH_ONLY").unwrap_or_default();
    let mut kills = 0;
    let mut failures = Vec::new();
    let mut reached: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for operation in OPERATIONS.iter().filter(|operation| operation.name.contains(&only)) {
        for point in allocator_points() {
            for (passes, first) in (0..PASSES).flat_map(|n| First::ALL.map(|f| (n, f))) {
                match kill_at(operation, point.name, passes, first) {
                    Ok(true) => kills += 1,
                    Ok(false) => break,
                    Err(error) => {
                        let name = operation.name;
                        let place =
                            format!("{name}, {} after {passes}, {first:?} first", point.name);
                        failures.push(format!("{place}: {error}"));
                        break;
                    }
                }
                let operations = reached.entry(point.name).or_default();
                if operations.last() != Some(&operation.name) {
                    operations.push(operation.name);
                }
            }
        }
    }
    let mut table = String::new();
    for point in allocator_points() {
        let operations = reached.get(point.name).map_or(&[][..], Vec::as_slice);
        table += &format!("{:28} {:3}  {}\n", point.name, operations.len(), operations.join("; "));
    }
    let summary = format!("{table}{kills} kills at {} crash points\n", reached.len());
    // Past the test harness, which would keep it to itself.
    let _ = std::io::stderr().write_all(summary.as_bytes());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    if only.is_empty() {
        let missed: Vec<_> =
            allocator_points().map(|p| p.name).filter(|name| !reached.contains_key(name)).collect();
        assert!(missed.is_empty(), "no operation comes by {missed:?}");
    }
}
