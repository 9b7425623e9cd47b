//! The benchmark: hshm's allocator beside private and shared ones, in the same harness.

mod allocator;
mod board;
mod case;
mod cli;
mod clock;
mod daemon;
mod plot;
mod random;
mod report;
mod run;
mod system;
mod team;
mod workload;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::allocator::Name;
use crate::case::Workload;
use crate::cli::Arguments;
use crate::team::{Job, Settings};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.job {
        Some(job) => do_job(job),
        None if arguments.list => list().map_err(|error| error.to_string()),
        None => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(io::stderr(), "{why}");
            ExitCode::FAILURE
        }
    }
}

fn do_job(job: &str) -> Result<(), String> {
    let job: Job = serde_json::from_str(job).map_err(|error| format!("--job: {error}"))?;
    if let Some(measurement) = job.run()? {
        let text = serde_json::to_string(&measurement).map_err(|error| error.to_string())?;
        writeln!(io::stdout(), "{text}").map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn list() -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "workloads:")?;
    for workload in Workload::value_variants() {
        let labels: Vec<_> =
            workload.cases(system::cores().len()).iter().map(|c| c.label()).collect();
        writeln!(out, "  {:<10} {}", workload.to_string(), labels.join(", "))?;
    }
    writeln!(out, "allocators:")?;
    for name in Name::value_variants() {
        let version = name.version().unwrap_or_else(|why| format!("absent: {why}"));
        let label = report::label(*name);
        writeln!(out, "  {label:<10} {version}; {}", name.called())?;
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<(), String> {
    if cfg!(debug_assertions) {
        return Err("built without optimisation: run it with cargo run --release".to_owned());
    }
    let workloads = chosen(&arguments.workload);
    let allocators = chosen(&arguments.allocator);
    let settings = Settings { run_ms: arguments.run_ms, clock: arguments.clock, rounds: None };
    let outcomes = run::run_all(&workloads, &allocators, arguments.runs, settings);
    let report = report::Report::new(outcomes, arguments.runs, arguments.clock);
    let write = |path: &std::path::Path, text: String| {
        std::fs::write(path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    };
    if let Some(path) = &arguments.json {
        write(path, report.json())?;
    }
    if let Some(path) = &arguments.plot {
        write(path, plot::draw(&report))?;
    }
    write!(io::stdout(), "{}", report.table()).map_err(|error| error.to_string())
}

/// What was asked for, or everything.
fn chosen<T: ValueEnum + Clone>(asked: &[T]) -> Vec<T> {
    if asked.is_empty() { T::value_variants().to_vec() } else { asked.to_vec() }
}
