//! A process is killed at each crash point of the scalable-page allocator, all of which lie under its
//! lock: the next one takes the lock over, every block is there or not, and every byte is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hshm_memory::crash::{CRASH_POINTS, arm};
use hshm_memory::{
    Allocator, AllocatorId, HeapOptions, MemContext, MemfdMmap, OffsetPointer,
    ScalablePageAllocator, ShmAllocator,
};
use hshm_tests::crash::process;
use hshm_tests::random::Random;
use nix::sys::signal::{Signal, kill};

/// How often a point is passed at most before the death.
const PASSES: u32 = 6;
/// Blocks of this many bytes have as many: 15 granules.
const SMALL: usize = 240;
const LARGE: usize = 20_000;

/// A heap and the blocks that the survivor knows.
struct World {
    heap: ScalablePageAllocator,
    blocks: Vec<OffsetPointer>,
}

impl World {
    fn new() -> Self {
        let backend = Arc::new(MemfdMmap::create("crash", 1 << 20, 4 << 20).unwrap());
        let options = HeapOptions { custom_header_bytes: 64 };
        let id = AllocatorId::new(0, 1);
        let heap = ScalablePageAllocator::shm_init(id, backend, &options).unwrap();
        Self { heap, blocks: Vec::new() }
    }

    fn hold(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            let block = self.allocate(bytes, 1);
            self.stamp(block);
            self.blocks.push(block);
        }
    }

    fn allocate(&self, bytes: usize, align: usize) -> OffsetPointer {
        self.heap.aligned_allocate_offset(MemContext::DEFAULT, bytes, align).unwrap()
    }

    /// Allocates a block, for nobody to know.
    fn take(&self, align: usize) {
        assert!(!self.allocate(SMALL, align).is_null());
    }

    fn free(&self, block: OffsetPointer) {
        // SAFETY: [owned] each block is freed by the one process that is told to.
        unsafe { self.heap.free_offset_no_null_check(MemContext::DEFAULT, block) }.unwrap();
    }

    fn resize(&self, block: OffsetPointer, bytes: usize) -> OffsetPointer {
        // SAFETY: [owned] as above.
        unsafe { self.heap.reallocate_offset_no_null_check(MemContext::DEFAULT, block, bytes) }
            .unwrap()
    }

    /// Frees the blocks at these places of the list, and takes them out of it.
    fn punch(&mut self, places: &[usize]) {
        for &place in places.iter().rev() {
            let block = self.blocks.remove(place);
            self.free(block);
        }
    }

    /// The first `count` words of a block.
    fn words(&self, block: OffsetPointer, count: usize) -> &[AtomicU64] {
        let address = self.heap.resolve(block, count * 8).unwrap().cast();
        // SAFETY: [mapped] it was resolved, and blocks are aligned; [atomic] only used as atomics.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), count) }
    }

    /// Fills a block with its own offset.
    fn stamp(&self, block: OffsetPointer) {
        let words = self.words(block, self.heap.usable_bytes(block).unwrap() / 8);
        words.iter().for_each(|word| word.store(block.offset_bytes(), Ordering::Relaxed));
    }

    /// Whether its first `bytes` still are so.
    fn is_stamped(&self, block: OffsetPointer, bytes: usize) -> bool {
        let is_stamp = |word: &AtomicU64| word.load(Ordering::Relaxed) == block.offset_bytes();
        self.words(block, bytes / 8).iter().all(is_stamp)
    }

    /// What `check` found, which must be nothing.
    fn clean(&self, when: &str) -> Result<(), String> {
        let report = self.heap.check();
        let violation = report.violations.first();
        violation
            .map_or(Ok(()), |found| Err(format!("{when}, {}: {}", found.invariant, found.what)))
    }

    fn allocated(&self) -> i64 {
        self.heap.allocated_bytes().cast_signed()
    }
}

/// What an operation that was interrupted may have come to.
#[derive(Clone, Copy)]
struct Outcome {
    /// How many bytes more are allocated than before.
    delta: i64,
    /// How many are allocated in blocks that nobody knows.
    leaked: i64,
}

const NOTHING: Outcome = Outcome { delta: 0, leaked: 0 };

/// What another process does before, and where it dies.
type Victim = (fn(&World), &'static str);

struct Operation {
    name: &'static str,
    prepare: fn(&mut World),
    victim: Option<Victim>,
    run: fn(&World),
    outcomes: &'static [Outcome],
}

const FREED: Outcome = Outcome { delta: -(SMALL as i64), leaked: 0 };

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "a block cut from a larger page",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| world.take(1),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64, leaked: SMALL as i64 }],
    },
    Operation {
        name: "a page taken whole",
        prepare: |world| {
            world.hold(8, SMALL);
            world.punch(&[1, 3, 5]);
        },
        victim: None,
        run: |world| world.take(1),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64, leaked: SMALL as i64 }],
    },
    Operation {
        name: "an aligned block",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| world.take(4096),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64, leaked: SMALL as i64 }],
    },
    Operation {
        name: "a free between free neighbours",
        prepare: |world| {
            world.hold(6, SMALL);
            world.punch(&[1, 3]);
            // The block between them is the first now.
            world.blocks.swap(0, 1);
        },
        victim: None,
        run: |world| world.free(world.blocks[0]),
        outcomes: &[NOTHING, FREED],
    },
    Operation {
        name: "a free next to a cache that is not empty",
        prepare: |world| {
            world.hold(8, SMALL);
            world.punch(&[2, 4]);
        },
        victim: None,
        run: |world| world.free(world.blocks[0]),
        outcomes: &[NOTHING, FREED],
    },
    Operation {
        name: "a block that grows where it stands",
        prepare: |world| {
            world.hold(4, SMALL);
            world.punch(&[1]);
        },
        victim: None,
        run: |world| assert_eq!(world.resize(world.blocks[0], SMALL + 64), world.blocks[0]),
        outcomes: &[NOTHING, Outcome { delta: 64, leaked: 0 }],
    },
    Operation {
        name: "a block that grows to all of its neighbour",
        prepare: |world| {
            world.hold(4, SMALL);
            world.punch(&[1]);
        },
        victim: None,
        run: |world| assert_eq!(world.resize(world.blocks[0], 2 * SMALL), world.blocks[0]),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64 + 16, leaked: 0 }],
    },
    Operation {
        name: "a block that shrinks",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| assert_eq!(world.resize(world.blocks[0], SMALL - 128), world.blocks[0]),
        outcomes: &[NOTHING, Outcome { delta: -128, leaked: 0 }],
    },
    Operation {
        name: "a block that moves",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| assert!(world.resize(world.blocks[0], LARGE) != world.blocks[0]),
        outcomes: &[
            NOTHING,
            Outcome { delta: LARGE as i64, leaked: LARGE as i64 },
            Outcome { delta: LARGE as i64 - SMALL as i64, leaked: LARGE as i64 },
        ],
    },
    Operation {
        name: "a segment that grows",
        prepare: |world| world.hold(3, LARGE),
        victim: None,
        run: |world| assert_eq!(world.heap.grow(2 << 20).unwrap(), 2 << 20),
        outcomes: &[NOTHING],
    },
    Operation {
        name: "an allocation after one who died freeing",
        prepare: |world| {
            world.hold(9, SMALL);
            world.punch(&[1, 3, 6]);
            world.blocks.swap(0, 1);
        },
        victim: Some((|world| world.free(world.blocks[0]), "scalable.freed")),
        run: |world| world.take(1),
        outcomes: &[FREED, Outcome { delta: 0, leaked: SMALL as i64 }],
    },
    Operation {
        name: "a free after one who died allocating",
        prepare: |world| {
            world.hold(9, SMALL);
            world.punch(&[1, 3, 6]);
            world.blocks.swap(0, 1);
        },
        victim: Some((|world| world.take(64), "scalable.taken")),
        run: |world| world.free(world.blocks[0]),
        outcomes: &[
            Outcome { delta: SMALL as i64, leaked: SMALL as i64 },
            Outcome { delta: 0, leaked: SMALL as i64 },
        ],
    },
];

/// Kills a process at `point` of `operation`. False if it does not come by there so often.
fn kill_at(operation: &Operation, point: &str, passes: u32) -> Result<bool, String> {
    let mut world = World::new();
    (operation.prepare)(&mut world);
    let before = world.allocated();
    if let Some((act, point)) = operation.victim {
        let dying = process::spawn(|| {
            assert!(arm(point, 0));
            act(&world);
        })?;
        if !process::was_killed(process::wait(dying)?)? {
            return Err(format!("the first victim never came to {point}"));
        }
    }
    let child = process::spawn(|| {
        assert!(arm(point, passes));
        (operation.run)(&world);
    })?;
    let killed = process::was_killed(process::wait(child)?)?;
    // Another process goes on first, and takes over whatever there is to take over.
    process::run(|| work(&world))?;
    world.clean("after a death")?;
    let delta = world.allocated() - before;
    let outcome = operation.outcomes.iter().find(|outcome| outcome.delta == delta);
    let outcome = outcome.ok_or_else(|| {
        let expected: Vec<_> = operation.outcomes.iter().map(|outcome| outcome.delta).collect();
        format!("{delta} bytes more than before are allocated, not one of {expected:?}")
    })?;
    let finished = operation.outcomes.last().is_some_and(|last| last.delta == delta);
    if !killed && !finished {
        return Err(format!("nobody died, and the sum is {delta} off"));
    }
    finish(&world, *outcome)?;
    Ok(killed)
}

/// Allocates, resizes and frees.
fn work(world: &World) {
    let mine: Vec<_> = [SMALL, 16, LARGE, SMALL, 700].map(|bytes| world.allocate(bytes, 1)).into();
    mine.iter().for_each(|&block| world.stamp(block));
    let known = world.blocks.iter().skip(1);
    for &block in mine.iter().chain(known) {
        let bytes = world.heap.usable_bytes(block).unwrap();
        assert!(world.is_stamped(block, bytes), "{block} was handed out twice");
    }
    let moved = world.resize(mine[1], 5000);
    world.free(moved);
    for &block in [0, 2, 3, 4].map(|index| &mine[index]) {
        world.free(block);
    }
}

/// Frees all that is known: the rest is what was lost, and all else one free page.
fn finish(world: &World, outcome: Outcome) -> Result<(), String> {
    work(world);
    for (index, &block) in world.blocks.iter().enumerate() {
        match world.heap.usable_bytes(block) {
            Ok(bytes) => {
                // The first one may have been resized.
                let bytes = if index == 0 { bytes.min(SMALL - 128) } else { bytes };
                if !world.is_stamped(block, bytes) {
                    return Err(format!("block {index} was overwritten"));
                }
                world.free(block);
            }
            Err(_) if index == 0 => {}
            Err(error) => return Err(format!("block {index} is gone: {error}")),
        }
    }
    world.clean("after all was freed")?;
    let left = world.allocated();
    if left != outcome.leaked {
        return Err(format!("{left} bytes are left where {} should be", outcome.leaked));
    }
    let report = world.heap.check();
    let most = if outcome.leaked == 0 { 1 } else { 2 };
    if report.free_blocks > most {
        return Err(format!("what is free lies in {} pages", report.free_blocks));
    }
    Ok(())
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
    &world.words(world.heap.custom_header().0, 1)[0]
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
