//! Deaths in the allocator whose one table is under a lock: the next one takes the lock over, every
//! block is there or not, and every byte is counted.

pub mod operations;
pub mod world;

use hshm_memory::Allocator;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use self::operations::{Operation, Outcome};
use self::world::{LARGE, SMALL, World};
use super::process;
use super::stage::{Scene, stopped};
use super::verdict::First;
use super::world::Arm;

/// A heap and a process that waits for its death.
#[derive(Debug)]
pub struct Stage {
    world: World,
    before: i64,
    child: Pid,
    operation: &'static Operation,
}

impl Stage {
    /// Sets the scene for `operation`. The process calls `begin` before it stops; when it goes on,
    /// it calls `last` and then does the operation.
    ///
    /// # Errors
    /// If something goes wrong before anybody should have died.
    ///
    /// # Panics
    /// If there is no such crash point as the earlier victim is to die at.
    pub fn set(
        operation: &'static Operation,
        arm: Arm,
        begin: fn(),
        last: impl FnOnce(),
    ) -> Result<Self, String> {
        let mut world = World::new();
        (operation.prepare)(&mut world);
        let before = world.allocated();
        if let Some((act, point)) = operation.victim {
            let dying = process::spawn(|| {
                assert!(arm(point, 0), "there is no crash point {point}");
                act(&world);
            })?;
            if !process::was_killed(process::wait(dying)?)? {
                return Err(format!("the first victim never came to {point}"));
            }
        }
        let child = stopped(|| {
            // Which thread this is, is looked up once, and not what is to be tested.
            drop(hshm_memory::robust::RobustLock::new().lock());
            begin();
            process::stop();
            last();
            (operation.run)(&world);
            world.finish();
        })?;
        Ok(Self { world, before, child, operation })
    }

    /// Lets the process go on, to its death or its end, and judges what it leaves. Whether it died.
    ///
    /// # Errors
    /// What is not as it must be.
    pub fn go_on(self) -> Result<bool, String> {
        kill(self.child, Signal::SIGCONT).map_err(|errno| errno.to_string())?;
        let killed = process::was_killed(process::wait(self.child)?)?;
        let outcome = self.outcome()?;
        let finished = self.operation.outcomes.last();
        if !killed && finished.is_some_and(|last| last.delta != outcome.delta) {
            return Err(format!("nobody died, and {} bytes more are allocated", outcome.delta));
        }
        Ok(killed)
    }

    fn outcome(&self) -> Result<Outcome, String> {
        let Self { world, operation, .. } = self;
        // Another process goes on first, and takes over whatever there is to take over.
        process::run(|| work(world))?;
        world.clean("after a death")?;
        let delta = world.allocated() - self.before;
        let outcome = operation.outcomes.iter().find(|outcome| outcome.delta == delta);
        let outcome = outcome.ok_or_else(|| {
            let expected: Vec<_> = operation.outcomes.iter().map(|outcome| outcome.delta).collect();
            format!("{delta} bytes more than before are allocated, not one of {expected:?}")
        })?;
        finish(world, *outcome)?;
        Ok(*outcome)
    }
}

impl Scene for Stage {
    fn child(&self) -> Pid {
        self.child
    }

    fn bytes(&self) -> &[u8] {
        self.world.bytes()
    }

    fn is_finished(&self) -> bool {
        self.world.is_finished()
    }

    /// Whoever comes first takes the lock over, and the others wait for that.
    fn judge(&self, _: First) -> Result<(), String> {
        self.outcome().map(drop)
    }
}

/// Allocates, resizes and frees.
///
/// # Panics
/// If a block cannot be had, or is another one's.
pub fn work(world: &World) {
    let mine: Vec<_> = [SMALL, 16, LARGE, SMALL, 700].map(|bytes| world.allocate(bytes, 1)).into();
    mine.iter().for_each(|&block| world.stamp(block));
    let known = world.blocks.iter().skip(1);
    for &block in mine.iter().chain(known) {
        let bytes = world.heap.usable_bytes(block).expect("a block");
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
