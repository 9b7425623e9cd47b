//! Kills workers and the daemon at random while they allocate, and sees whether a byte is lost.
//!
//! `cargo run --release -p hshm-tests --bin kill-storm -- --workers 6 --kills 2000 --seed 1`

mod args;
mod audit;
mod crew;
mod interrupt;
mod site;
mod storm;
mod table;
mod worker;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::args::{Arguments, Role};

/// How a storm ends that was not let to its end.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A signal came.
    Interrupted,
    /// Something was lost, hung, or could not be done.
    Failed(String),
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let code = match arguments.role {
        Some(Role::Worker(worker)) => {
            // A storm that dies takes its workers with it; a thread that fails, its process.
            let _ = set_pdeathsig(Signal::SIGKILL);
            std::panic::set_hook(Box::new(|panic| {
                let _ = writeln!(std::io::stderr(), "kill-storm: a worker found: {panic}");
                std::process::exit(1);
            }));
            worker::run(&worker).map_err(Failure::Failed)
        }
        None => storm::run(&arguments.storm),
    };
    match code {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Interrupted) => {
            let _ = writeln!(std::io::stderr(), "kill-storm: interrupted; nothing is left behind");
            ExitCode::from(130)
        }
        Err(Failure::Failed(why)) => {
            let _ = writeln!(std::io::stderr(), "kill-storm: {why}");
            ExitCode::FAILURE
        }
    }
}
