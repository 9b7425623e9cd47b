//! A process is killed at each crash point of the scalable-page allocator, all of which lie under its
//! lock: the next one takes the lock over, every block is there or not, and every byte is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hshm_memory::crash::{CRASH_POINTS, arm};
use hshm_memory::{Allocator, MemContext, OffsetPointer};
use hshm_tests::crash::process;
use hshm_tests::crash::scalable::operations::{OPERATIONS, Operation};
use hshm_tests::crash::scalable::world::World;
use hshm_tests::crash::scalable::{Stage, work};
use hshm_tests::random::Random;
use nix::sys::signal::{Signal, kill};

/// How often a point is passed at most before the death.
const PASSES: u32 = 6;
/// Kills a process at `point` of `operation`. False if it does not come by there so often.
fn kill_at(operation: &'static Operation, point: &str, passes: u32) -> Result<bool, String> {
    Stage::set(operation, arm, || {}, || assert!(arm(point, passes)))?.go_on()
}

#[test]
fn nobody_waits_for_the_dead_and_nothing_is_lost() {
    let points: Vec<_> =
        CRASH_POINTS.iter().map(|p| p.name).filter(|name| name.starts_with("scalable.")).collect();
    let mut kills = 0;
    let mut failures = Vec::new();
    let mut reached: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for operation in OPERATIONS {
        for &point in &points {
            for passes in 0..PASSES {
                match kill_at(operation, point, passes) {
                    Ok(true) => kills += 1,
                    Ok(false) => break,
                    Err(error) => {
                        let place = format!("{}, {point} after {passes}", operation.name);
                        failures.push(format!("{place}: {error}"));
                        break;
                    }
                }
                let operations = reached.entry(point).or_default();
                if operations.last() != Some(&operation.name) {
                    operations.push(operation.name);
                }
            }
        }
    }
    let mut table = String::new();
    for point in &points {
        let operations = reached.get(point).map_or(&[][..], Vec::as_slice);
        table += &format!("{point:28} {:3}  {}\n", operations.len(), operations.join("; "));
    }
    let summary = format!("{table}{kills} kills at {} crash points\n", reached.len());
    // Past the test harness, which would keep it to itself.
    let _ = std::io::stderr().write_all(summary.as_bytes());
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let missed: Vec<_> = points.iter().filter(|name| !reached.contains_key(*name)).collect();
    assert!(missed.is_empty(), "no operation comes by {missed:?}");
}

/// Counts the workers' operations, for whoever is to see that they go on.
fn progress(world: &World) -> &AtomicU64 {
    &world.header()[0]
}

/// Allocates, resizes and frees at random, and never ends.
fn churn(world: &World, seed: u64) {
    let mut random = Random::new(seed);
    let mut mine: Vec<OffsetPointer> = Vec::new();
    loop {
        let bytes = random.size(1, 9000);
        match random.below(5) {
            0 | 1 if mine.len() < 40 => {
                let align = 1 << random.below(8);
                let block = world.heap.aligned_allocate_offset(MemContext::DEFAULT, bytes, align);
                // What the dead held is lost.
                if let Ok(block) = block {
                    world.stamp(block);
                    mine.push(block);
                }
            }
            _ if mine.is_empty() => {}
            2 => {
                let block = mine.swap_remove(random.index(mine.len()));
                let kept = world.heap.usable_bytes(block).unwrap();
                assert!(world.is_stamped(block, kept), "another one's block was handed out");
                world.free(block);
            }
            3 => {
                let block = mine.pop().unwrap();
                let kept = world.heap.usable_bytes(block).unwrap();
                assert!(world.is_stamped(block, kept), "another one's block was handed out");
                // SAFETY: [owned] the block is this process's.
                let moved = unsafe {
                    world.heap.reallocate_offset_no_null_check(MemContext::DEFAULT, block, bytes)
                };
                let block = moved.unwrap_or(block);
                world.stamp(block);
                mine.push(block);
            }
            _ => {
                world.heap.allocated_bytes();
            }
        }
        progress(world).fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn workers_go_on_whoever_is_killed_whenever() {
    const ROUNDS: u64 = 40;
    let world = World::new();
    world.heap.grow(4 << 20).unwrap();
    let mut workers: Vec<_> =
        (0..3).map(|seed| process::spawn(|| churn(&world, seed)).unwrap()).collect();
    let mut random = Random::new(7);
    let deadline = Instant::now() + Duration::from_secs(120);
    for round in 0..ROUNDS {
        let goal = progress(&world).load(Ordering::SeqCst) + 100 + random.below(400);
        while progress(&world).load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < deadline, "the others wait for the dead");
            std::thread::yield_now();
        }
        let victim = workers.remove(0);
        kill(victim, Signal::SIGKILL).unwrap();
        assert!(process::was_killed(process::wait(victim).unwrap()).unwrap());
        // While the others are at it.
        world.clean("beside the workers").unwrap();
        workers.push(process::spawn(|| churn(&world, 10 + round)).unwrap());
    }
    for worker in workers {
        kill(worker, Signal::SIGKILL).unwrap();
        assert!(process::was_killed(process::wait(worker).unwrap()).unwrap());
    }
    world.clean("after all died").unwrap();
    process::run(|| work(&world)).unwrap();
    world.clean("after the survivor's work").unwrap();
}
