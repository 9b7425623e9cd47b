//! Setting the scene for a death: the survivor's preparations, an earlier victim, and the process
//! that is to die, stopped right before it begins.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::operations::{OPERATIONS, Operation};
use super::process;
use super::verdict::{self, Before, First};
use super::world::{Arm, World};

/// A process that waits for its death, and what must be true after it.
pub trait Scene {
    /// The process.
    fn child(&self) -> Pid;

    /// The whole segment, to be looked at while nobody writes to it.
    fn bytes(&self) -> &[u8];

    /// Whether the process has done what it was to do.
    fn is_finished(&self) -> bool;

    /// Recovers what the process, which is dead now, left.
    ///
    /// # Errors
    /// What is not as it must be.
    fn judge(&self, first: First) -> Result<(), String>;
}

/// A segment and a process that waits for its death.
#[derive(Debug)]
pub struct Stage {
    operation: Operation,
    /// The segment.
    pub world: World,
    /// What it holds if nothing happens.
    pub before: Before,
    /// The process, stopped.
    pub child: Pid,
}

impl Stage {
    /// Sets the scene for `operation`. The process calls `begin` before it stops; when it goes on,
    /// it calls `last` and then does the operation.
    ///
    /// # Errors
    /// If something goes wrong before anybody should have died.
    pub fn set(
        operation: &Operation,
        arm: Arm,
        begin: fn(),
        last: impl FnOnce(),
    ) -> Result<Self, String> {
        let (bytes, capacity) = operation.size;
        let world = World::new(bytes, capacity, operation.on_exit, arm);
        (operation.prepare)(&world);
        let mut before = Before::prepared(&world)?;
        if let Some(victim) = operation.victim {
            let about = OPERATIONS.iter().find(|other| other.name == victim.operation);
            let about = about.ok_or_else(|| format!("no operation {}", victim.operation))?;
            let armed = || world.arm(victim.point, victim.passes);
            let dying = stopped_before(about, &world, || {}, armed)?;
            before = before.ready(about, &world)?;
            kill(dying, Signal::SIGCONT).map_err(|errno| errno.to_string())?;
            if !process::was_killed(process::wait(dying)?)? {
                return Err(format!("{} never came to {}", victim.operation, victim.point));
            }
        }
        let child = stopped_before(operation, &world, begin, last)?;
        if operation.victim.is_none() {
            before = before.ready(operation, &world)?;
        }
        Ok(Self { operation: *operation, world, before, child })
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

    fn judge(&self, first: First) -> Result<(), String> {
        verdict::judge(&self.operation, &self.world, self.before, first).map(drop)
    }
}

/// A process that has made its preparations for `operation` and stopped.
fn stopped_before(
    operation: &Operation,
    world: &World,
    begin: fn(),
    last: impl FnOnce(),
) -> Result<Pid, String> {
    stopped(|| {
        // Who this process is, is looked up once, and not what is to be tested.
        let _ = hshm_memory::ProcessId::current();
        (operation.setup)(world);
        begin();
        process::stop();
        last();
        (operation.run)(world);
        world.finish();
    })
}

/// A process that runs `work`, which stops it once, when it has stopped.
pub(super) fn stopped(work: impl FnOnce()) -> Result<Pid, String> {
    let child = process::spawn(work)?;
    match waitpid(child, Some(WaitPidFlag::WUNTRACED)) {
        Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => Ok(child),
        status => Err(format!("the process was to make its preparations, but {status:?}")),
    }
}
