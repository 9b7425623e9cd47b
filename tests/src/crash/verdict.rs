//! What must be true after a death.

use hshm_memory::{OnExit, RecoveryReport};

use super::operations::Operation;
use super::outcomes::Outcome;
use super::process;
use super::situations::{LARGE, MEDIUM, SMALL};
use super::world::{CELLS, World};

/// Blocks of this size fill units to the last byte.
const FILLER: usize = 8 << 10;
const FILLERS_PER_UNIT: u64 = 8;

/// Who comes first after a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Whoever recovers the dead.
    Recovery,
    /// The others, who work on the same pages meanwhile and wait for nobody.
    Survivors,
}

impl First {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Recovery, Self::Survivors];
}

/// How things stand before an operation.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    /// Bytes allocated, blocks in cells apart, which will be so if the operation does nothing.
    bytes: i64,
    /// Blocks in the table whose owners do not die.
    survivors: u64,
}

impl Before {
    /// To be asked when the survivor has made its preparations and nobody has died.
    ///
    /// # Errors
    /// If the cells contradict the heap.
    pub fn prepared(world: &World) -> Result<Self, String> {
        let bytes = allocated(world)? - world.cell_bytes()?;
        Ok(Self { bytes, survivors: world.known() })
    }

    /// To be asked when those who will die are about to do what they are killed in.
    ///
    /// # Errors
    /// If the table names a block that is none.
    pub fn ready(self, operation: &Operation, world: &World) -> Result<Self, String> {
        if operation.on_exit == OnExit::Reclaim {
            return Ok(self);
        }
        let mut bytes = 0;
        for index in 0..world.known() {
            let block = world.block(index);
            let usable = world.heap.usable_bytes(block).map_err(|error| error.to_string())?;
            bytes += signed(usable as u64)?;
        }
        Ok(Self { bytes, survivors: world.known() })
    }
}

/// Recovers the segment, when the survivors have worked on it if they are `first`, and tests everything
/// that can be said of it, then lets the survivors work on it and free what there is. Returns what the
/// recovery found.
///
/// # Errors
/// What is not as it must be.
pub fn judge(
    operation: &Operation,
    world: &World,
    before: Before,
    first: First,
) -> Result<RecoveryReport, String> {
    if operation.on_exit == OnExit::Reclaim {
        // Nobody uses the blocks of the dead any more.
        world.forget_from(before.survivors);
    }
    if first == First::Survivors {
        let known = world.known();
        work(operation, world)?;
        world.drop_blocks(known..world.known());
    }
    let recovered = world.heap.recover_dead();
    clean(world, "after recovery")?;
    let outcome = balance(operation, world, before)?;
    if outcome.freed {
        world.forget(0);
    }
    work(operation, world)?;
    clean(world, "after the survivor's work")?;
    free_all(world)?;
    clean(world, "after all was freed")?;
    let left = allocated(world)?;
    if left != outcome.leaked {
        return Err(format!("{left} bytes are left where {} should be", outcome.leaked));
    }
    fill_to_the_end(world, outcome)?;
    Ok(recovered)
}

fn signed(bytes: u64) -> Result<i64, String> {
    i64::try_from(bytes).map_err(|_| format!("{bytes} bytes"))
}

fn allocated(world: &World) -> Result<i64, String> {
    signed(world.heap.report().allocated_bytes)
}

/// No invariant is broken, and both ways of counting agree.
fn clean(world: &World, when: &str) -> Result<(), String> {
    let check = world.heap.check();
    if let Some(violation) = check.violations.first() {
        return Err(format!(
            "{when}, {} violations; {}: {}",
            check.violations_total, violation.invariant, violation.what
        ));
    }
    let report = world.heap.report();
    if check.allocated_bytes != report.allocated_bytes {
        return Err(format!(
            "{when}, {} bytes are allocated by the lists, {} by their lengths",
            check.allocated_bytes, report.allocated_bytes
        ));
    }
    Ok(())
}

fn balance(operation: &Operation, world: &World, before: Before) -> Result<Outcome, String> {
    let delta = allocated(world)? - world.cell_bytes()? - before.bytes;
    let found = operation.outcomes.iter().find(|outcome| outcome.delta == delta);
    let found = found.copied().ok_or_else(|| {
        let expected: Vec<_> = operation.outcomes.iter().map(|outcome| outcome.delta).collect();
        format!(
            "after recovery {delta} bytes more than before are allocated, not one of {expected:?}"
        )
    })?;
    let this = std::process::id();
    let strangers = world.heap.holders().into_iter().filter(|holder| holder.pid != this).count();
    if strangers == 0 { Ok(found) } else { Err(format!("{strangers} dead still hold slots")) }
}

/// The survivor, and a newcomer, allocate and free on the same pages.
fn work(operation: &Operation, world: &World) -> Result<(), String> {
    let known = world.known();
    // The first block may have been moved or resized, and its ends be another's.
    let broken = (1..known).find(|&index| !world.is_stamped(world.block(index)));
    if let Some(index) = broken {
        return Err(format!("block {index}, at {}, was overwritten", world.block(index)));
    }
    let some = |world: &World| {
        for bytes in [SMALL, 16, MEDIUM, LARGE / 2] {
            for _ in 0..5 {
                match world.heap.allocate(bytes) {
                    Ok(block) => world.enter(block),
                    // Some of these segments are nearly full.
                    Err(_) => break,
                }
            }
        }
    };
    some(world);
    if operation.on_exit == OnExit::Keep {
        process::run(|| {
            some(world);
            world.heap.detach_thread();
        })?;
    }
    let broken = (known..world.known()).find(|&index| !world.is_stamped(world.block(index)));
    broken.map_or(Ok(()), |index| Err(format!("the new block {index} was handed out twice")))
}

fn free_all(world: &World) -> Result<(), String> {
    while world.known() > 0 {
        let block = world.block(world.known() - 1);
        // SAFETY: [owned] the table's blocks are this process's now.
        unsafe { world.heap.free(block) }.map_err(|error| error.to_string())?;
        world.forget_from(world.known() - 1);
    }
    for cell in 0..CELLS {
        // SAFETY: [owned] so are those in cells.
        unsafe { world.heap.free_from(world.cell(cell)) }.map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// All memory can be had: none is lost to a missing hint.
fn fill_to_the_end(world: &World, outcome: Outcome) -> Result<(), String> {
    let report = world.heap.report();
    let mut expected = report.units_total * FILLERS_PER_UNIT;
    if outcome.leaked > 0 {
        // The page or run of the block that nobody knows.
        let lost = if outcome.leaked == 32 << 10 {
            8
        } else {
            outcome.leaked.cast_unsigned().div_ceil(65_536)
        };
        expected -= lost.max(1) * FILLERS_PER_UNIT;
    }
    let mut found = 0;
    while world.heap.allocate(FILLER).is_ok() {
        found += 1;
    }
    if found < expected {
        return Err(format!("{found} blocks fill the segment where there is room for {expected}"));
    }
    clean(world, "after the segment was filled")
}
