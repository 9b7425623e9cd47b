//! Killing a process after any one of an operation's instructions.
//!
//! One process is run through the operation step by step, and the address of each instruction is
//! noted, and whether it changed the segment. To kill another after the same number of steps, it
//! runs to a breakpoint nearby, at an instruction that was not met often before, and is stepped from
//! there: so a kill costs little, however long the operation. Killed between two instructions that
//! change nothing, a process leaves the same as if killed one earlier; so those after which the
//! segment is another than before are all that can differ, and the others are for good measure.
//!
//! All these processes descend from one that stays as it is ([`super::zygote`]): so they go the same
//! way, unless the kernel tells them something else.

use std::collections::HashMap;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::process;
use super::stage::Scene;
use super::verdict::First;
use super::zygote::Zygote;

/// How far before the instruction a breakpoint may be.
const STRETCH: usize = 48;
/// Steps after which an operation is taken to never end.
const MOST_STEPS: usize = 20_000_000;
/// Set in the address of an instruction after which the segment is another. Programs have none of the
/// upper half of the address space.
const CHANGES: u64 = 1 << 63;

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

fn traced() {
    ptrace::traceme().expect("a process can be traced by its parent");
}

/// Where one operation is recorded, and killed in again and again.
#[derive(Debug)]
pub struct Theatre(Zygote);

/// What is asked of the zygote's children.
const RECORD: u64 = 0;
/// To be killed, then recovered.
const KILL: u64 = 1;
/// To be killed, then recovered when the survivors have gone on.
const KILL_AMONG_SURVIVORS: u64 = 2;
/// The address of no instruction: the operation is over.
const OVER: u64 = 0;

impl Theatre {
    /// Makes it ready for the operation that `set` sets the scene for: a process that calls what it
    /// is given and then stops, and goes on to its end. It is set alike each time, by the same code.
    ///
    /// # Errors
    /// If there can be no more processes.
    pub fn open<S: Scene>(
        set: impl Fn(fn()) -> Result<S, String> + 'static,
    ) -> Result<Self, String> {
        let zygote = Zygote::start(move |request| {
            let [what, address, earlier, steps, expected] = request;
            let scene = set(traced);
            let outcome = scene.and_then(|scene| {
                if what == RECORD {
                    record(&scene)
                } else {
                    let first = if what == KILL { First::Recovery } else { First::Survivors };
                    kill_after(&scene, (address, earlier), steps, expected, first)
                }
            });
            match outcome {
                Ok(mut words) => {
                    words.insert(0, 1);
                    words.into_iter().flat_map(u64::to_ne_bytes).collect()
                }
                Err(error) => [&0_u64.to_ne_bytes(), error.as_bytes()].concat(),
            }
        })?;
        Ok(Self(zygote))
    }

    fn ask(&mut self, request: [u64; 5]) -> Result<Vec<u64>, String> {
        let reply = self.0.ask(request)?;
        let (is_good, rest) = reply.split_at_checked(8).ok_or("it says nothing")?;
        if is_good == [0; 8] {
            return Err(String::from_utf8_lossy(rest).into_owned());
        }
        let (words, _) = rest.as_chunks();
        Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
    }

    /// Runs one process through the operation and notes its steps.
    ///
    /// # Errors
    /// If it ends badly, or what it leaves is not as it must be.
    pub fn record(&mut self) -> Result<Trace, String> {
        let words = self.ask([RECORD, 0, 0, 0, 0])?;
        let mut trace = Trace::default();
        let mut met: HashMap<u64, u32> = HashMap::new();
        for (at, word) in words.into_iter().enumerate() {
            let (address, is_change) = (word & !CHANGES, word & CHANGES != 0);
            let earlier = met.entry(address).or_default();
            trace.addresses.push(address);
            trace.earlier.push(*earlier);
            *earlier += 1;
            if is_change {
                trace.changes.push(at + 1);
            }
        }
        Ok(trace)
    }

    /// Kills another process after `steps` steps and judges what it leaves. False if it was not where
    /// the recorded one was then, because it took another way.
    ///
    /// # Errors
    /// What is not as it must be.
    pub fn kill_after(&mut self, trace: &Trace, steps: usize) -> Result<bool, String> {
        let nearby = steps.saturating_sub(STRETCH)..=steps.min(trace.len() - 1);
        let anchor = nearby.min_by_key(|&at| (trace.earlier[at], steps - at)).unwrap_or(0);
        let anchor = if steps <= STRETCH { 0 } else { anchor };
        let expected = trace.addresses.get(steps).copied().unwrap_or(OVER);
        let (address, earlier) = (trace.addresses[anchor], trace.earlier[anchor]);
        // What is the same after several steps is recovered both ways, if there is a kill after each.
        let what = if steps.is_multiple_of(2) { KILL } else { KILL_AMONG_SURVIVORS };
        let steps = (steps - anchor) as u64;
        let words = self.ask([what, address, earlier.into(), steps, expected])?;
        Ok(words == [1])
    }
}

/// Runs the process through the operation. Returns the address of each instruction, with [`CHANGES`]
/// where the segment was another afterwards.
fn record(scene: &impl Scene) -> Result<Vec<u64>, String> {
    let mut addresses = Vec::new();
    let mut seen = scene.bytes().to_vec();
    while !scene.is_finished() {
        let address = address_of(scene.child())?;
        step(scene.child())?;
        let now = scene.bytes();
        let is_change = now != seen;
        if is_change {
            seen.clear();
            seen.extend_from_slice(now);
        }
        addresses.push(address | if is_change { CHANGES } else { 0 });
        if addresses.len() > MOST_STEPS {
            return Err("it does not come to an end".to_owned());
        }
    }
    end(scene.child())?;
    scene.judge(First::Recovery)?;
    Ok(addresses)
}

/// Kills the process `steps` steps after it has met an instruction `earlier` times and is about to
/// meet it again. Returns 1 if it was at the instruction `expected` then.
fn kill_after(
    scene: &impl Scene,
    (address, earlier): (u64, u64),
    steps: u64,
    expected: u64,
    first: First,
) -> Result<Vec<u64>, String> {
    let child = scene.child();
    if !run_to(child, address, earlier)? {
        return Ok(vec![0]);
    }
    for _ in 0..steps {
        step(child)?;
    }
    let is_there = match expected {
        OVER => scene.is_finished(),
        next => address_of(child)? == next,
    };
    end(child)?;
    scene.judge(first)?;
    Ok(vec![u64::from(is_there)])
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
fn run_to(child: Pid, address: u64, earlier: u64) -> Result<bool, String> {
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
