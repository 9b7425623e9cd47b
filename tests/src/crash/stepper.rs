//! Killing a process after any one of an operation's instructions.
//!
//! One process is run through the operation step by step, and the address of each instruction is
//! noted, and whether it changed the segment. To kill another after the same number of steps, it
//! runs to a breakpoint nearby, at an instruction that was not met often before, and is stepped from
//! there: so a kill costs little, however long the operation. Killed between two instructions that
//! change nothing, a process leaves the same as if killed one earlier; so those after which the
//! segment is another than before are all that can differ, and the others are for good measure.

use std::collections::HashMap;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::operations::Operation;
use super::process;
use super::stage::Stage;
use super::verdict;
use super::world::Arm;

/// How far before the instruction a breakpoint may be.
const STRETCH: usize = 48;
/// Steps after which an operation is taken to never end.
const MOST_STEPS: usize = 20_000_000;

/// The instructions of one operation.
#[derive(Debug, Default)]
pub struct Trace {
    addresses: Vec<u64>,
    /// How often the same address was met before.
    earlier: Vec<u32>,
    /// The steps after which the segment was another than before.
    pub changes: Vec<usize>,
}

impl Trace {
    /// Instructions.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The steps to kill after: all that change the segment, and `more` others evenly spread.
    #[must_use]
    pub fn choose(&self, more: usize) -> Vec<usize> {
        let stride = (self.len() / more.max(1)).max(1);
        let mut chosen: Vec<_> =
            self.changes.iter().copied().chain((0..self.len()).step_by(stride)).collect();
        chosen.sort_unstable();
        chosen.dedup();
        chosen
    }
}

/// Not a closure: each would be a copy of what the process runs of its own, elsewhere in the program.
fn nothing() {}

fn traced() {
    ptrace::traceme().expect("a process can be traced by its parent");
}

/// Runs one process through the operation and notes its steps.
///
/// # Errors
/// If it ends badly, or what it leaves is not as it must be.
pub fn record(operation: &Operation, arm: Arm) -> Result<Trace, String> {
    let stage = Stage::set(operation, arm, traced, nothing as fn())?;
    let mut trace = Trace::default();
    let mut met: HashMap<u64, u32> = HashMap::new();
    let mut seen = stage.world.bytes().to_vec();
    while !stage.world.is_finished() {
        let address = address_of(stage.child)?;
        let earlier = met.entry(address).or_default();
        trace.addresses.push(address);
        trace.earlier.push(*earlier);
        *earlier += 1;
        step(stage.child)?;
        let now = stage.world.bytes();
        if now != seen {
            seen.clear();
            seen.extend_from_slice(now);
            trace.changes.push(trace.addresses.len());
        }
        if trace.len() > MOST_STEPS {
            return Err("it does not come to an end".to_owned());
        }
    }
    end(stage.child)?;
    verdict::judge(operation, &stage.world, stage.before)?;
    Ok(trace)
}

/// Kills another process after `steps` steps and judges what it leaves. False if it was not where the
/// recorded one was then, because it took another way.
///
/// # Errors
/// What is not as it must be.
pub fn kill_after(
    operation: &Operation,
    arm: Arm,
    trace: &Trace,
    steps: usize,
) -> Result<bool, String> {
    let stage = Stage::set(operation, arm, traced, nothing as fn())?;
    let nearby = steps.saturating_sub(STRETCH)..=steps.min(trace.len() - 1);
    let anchor = nearby.min_by_key(|&at| (trace.earlier[at], steps - at)).unwrap_or(0);
    let anchor = if steps <= STRETCH { 0 } else { anchor };
    if !run_to(stage.child, trace.addresses[anchor], trace.earlier[anchor])? {
        return Ok(false);
    }
    for _ in anchor..steps {
        step(stage.child)?;
    }
    let is_there = match trace.addresses.get(steps) {
        Some(&next) => address_of(stage.child)? == next,
        None => stage.world.is_finished(),
    };
    end(stage.child)?;
    verdict::judge(operation, &stage.world, stage.before)?;
    Ok(is_there)
}

fn failed(what: &'static str) -> impl Fn(nix::errno::Errno) -> String {
    move |errno| format!("cannot {what} the process: {errno}")
}

/// Kills a stopped process.
fn end(child: Pid) -> Result<(), String> {
    kill(child, Signal::SIGKILL).map_err(failed("kill"))?;
    if process::was_killed(process::wait(child)?)? {
        Ok(())
    } else {
        Err("the process ended before it was killed".to_owned())
    }
}

fn step(child: Pid) -> Result<(), String> {
    ptrace::step(child, None).map_err(failed("step"))?;
    if trapped(child)? { Ok(()) } else { Err("the process ended within a step".to_owned()) }
}

/// Waits for the process's next trap. False if it ended instead.
fn trapped(child: Pid) -> Result<bool, String> {
    match waitpid(child, None) {
        Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => Ok(true),
        Ok(WaitStatus::Exited(_, 0)) => Ok(false),
        status => Err(format!("the process was to go on, but {status:?}")),
    }
}

fn address_of(child: Pid) -> Result<u64, String> {
    Ok(ptrace::getregs(child).map_err(failed("look at"))?.rip)
}

/// Lets the process run until it has met the instruction at `address` `earlier` times and is about
/// to meet it again. False if it ended before.
fn run_to(child: Pid, address: u64, earlier: u32) -> Result<bool, String> {
    let place = std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(usize::MAX));
    let original = ptrace::read(child, place).map_err(failed("read"))?;
    let trap = original & !0xff | 0xcc;
    let mut met = 0;
    loop {
        if address_of(child)? == address {
            if met == earlier {
                return Ok(true);
            }
            met += 1;
            step(child)?;
            continue;
        }
        ptrace::write(child, place, trap).map_err(failed("write to"))?;
        ptrace::cont(child, None).map_err(failed("continue"))?;
        if !trapped(child)? {
            return Ok(false);
        }
        ptrace::write(child, place, original).map_err(failed("write to"))?;
        let mut registers = ptrace::getregs(child).map_err(failed("look at"))?;
        registers.rip -= 1;
        ptrace::setregs(child, registers).map_err(failed("change"))?;
    }
}
