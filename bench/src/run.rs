//! Runs the measurements, each in a process of its own, those of the allocators in turn.

use std::io::{IsTerminal, Read, Write, stderr};
use std::process::Child;
use std::time::{Duration, Instant};

use crate::allocator::Name;
use crate::case::{Case, Measurement, Workload};
use crate::clock::Clock;
use crate::system;
use crate::team::{self, Job, Settings};

/// How long a measurement may take before it is taken to hang.
const DEADLINE: Duration = Duration::from_secs(120);

/// The runs of one case with one allocator, or why there are none.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) case: Case,
    pub(crate) allocator: Name,
    pub(crate) runs: Result<Vec<Measurement>, String>,
}

/// Measures every case of `workloads` with every one of `allocators`.
pub(crate) fn run_all(
    workloads: &[Workload],
    allocators: &[Name],
    runs: u32,
    settings: Settings,
) -> Vec<Outcome> {
    let cores = system::cores().len();
    let cases = workloads.iter().flat_map(|workload| workload.cases(cores));
    cases.flat_map(|case| run_case(case, allocators, runs, settings)).collect()
}

fn run_case(case: Case, allocators: &[Name], runs: u32, settings: Settings) -> Vec<Outcome> {
    let start = |&allocator: &Name| {
        let refusal = case.refuses(allocator);
        let runs = refusal.map_or_else(|| Ok(Vec::new()), Err);
        Outcome { case, allocator, runs }
    };
    let concerned = allocators.iter().filter(|allocator| allocator.is_concerned(&case));
    let mut outcomes: Vec<_> = concerned.map(start).collect();
    for run in 0..runs as usize {
        // Each run begins with another allocator, so that none always follows the same one.
        for turn in 0..outcomes.len() {
            let at = (run + turn) % outcomes.len();
            let Outcome { allocator, runs: measured, .. } = &mut outcomes[at];
            let Ok(earlier) = measured else { continue };
            progress(&case, *allocator, run);
            match run_once(case, *allocator, settings) {
                Ok(measurement) => earlier.push(measurement),
                Err(why) => *measured = Err(why),
            }
        }
    }
    if stderr().is_terminal() {
        let _ = write!(stderr(), "\r\x1b[K");
    }
    outcomes
}

impl Case {
    fn refuses(&self, allocator: Name) -> Option<String> {
        allocator.version().err().or_else(|| allocator.refuses(self).map(str::to_owned))
    }
}

fn progress(case: &Case, allocator: Name, run: usize) {
    if stderr().is_terminal() {
        let label = case.label();
        let _ =
            write!(stderr(), "\r\x1b[K{} {label}: run {}, {allocator:?}", case.workload, run + 1);
    }
}

fn run_once(case: Case, allocator: Name, settings: Settings) -> Result<Measurement, String> {
    let segment = format!("hshm-bench-{}", std::process::id());
    let job = Job { case, allocator, segment, settings, process: 0, board: None };
    let result = if settings.clock == Clock::Instructions { count(&job) } else { time(&job) };
    // Whatever was created is removed here, however the processes ended.
    system::remove_shared(&job.segment);
    result
}

fn time(job: &Job) -> Result<Measurement, String> {
    let (found, _) = wait(&mut team::spawn(job)?)?;
    serde_json::from_str(&found).map_err(|error| format!("unreadable result: {error}"))
}

/// The instructions of an operation: the difference between many and twice as many.
fn count(job: &Job) -> Result<Measurement, String> {
    let no_count = "not counted: instructions would depend on chance";
    let (rounds, per_round) = job.case.countable().ok_or(no_count)?;
    let mut counts = [0.0; 2];
    for (times, count) in (1..).zip(&mut counts) {
        let settings = Settings { rounds: Some(times * rounds), ..job.settings };
        let (_, said) = wait(&mut team::spawn(&Job { settings, ..job.clone() })?)?;
        let collected = said.split("Collected : ").nth(1).unwrap_or_default();
        let digits = collected.split_whitespace().next().unwrap_or_default();
        *count = digits.parse().map_err(|_| format!("valgrind counted nothing: {said}"))?;
        system::remove_shared(&job.segment);
    }
    // Each process does its rounds twice: to warm up, and to be measured.
    Ok(Measurement::of((counts[1] - counts[0]) / (2 * rounds * per_round) as f64))
}

/// Waits for the process that measures, and reads what it printed on both streams.
fn wait(child: &mut Child) -> Result<(String, String), String> {
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break status,
            None if begin.elapsed() > DEADLINE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it hung for {} seconds and was killed", DEADLINE.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let (mut found, mut said) = (String::new(), String::new());
    if let Some(mut stdout) = child.stdout.take() {
        let _ = stdout.read_to_string(&mut found);
    }
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    if !status.success() {
        let said = said.trim();
        // What this program says is enough; what ends otherwise crashed.
        let is_ours = status.code().is_some_and(|code| code <= 3);
        return Err(if is_ours { said.to_owned() } else { format!("{status}: {}", gist(said)) });
    }
    Ok((found, said))
}

/// The last line that says something, without valgrind's own.
fn gist(said: &str) -> &str {
    let mut lines = said.lines().filter(|line| !line.starts_with("==") && !line.trim().is_empty());
    lines.next_back().unwrap_or("it said nothing")
}
