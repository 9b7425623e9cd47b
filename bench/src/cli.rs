//! The command line.

use std::path::PathBuf;

use clap::Parser;

use crate::allocator::Name;
use crate::case::Workload;
use crate::clock::Clock;

/// Measures hshm's allocator beside private and shared ones.
///
/// Prints a table. Each measurement runs in a process of its own, and those of the allocators
/// alternate.
#[derive(Debug, Parser)]
#[command(name = "hshm-bench", version)]
pub(crate) struct Arguments {
    /// A workload to measure; all if none is given
    #[arg(long, value_name = "NAME")]
    pub(crate) workload: Vec<Workload>,
    /// An allocator to measure; all if none is given
    #[arg(long, value_name = "NAME")]
    pub(crate) allocator: Vec<Name>,
    /// Runs of each measurement, whose median is reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) runs: u32,
    /// How long the measured part of a run takes, roughly, in milliseconds
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(10..=60_000))]
    pub(crate) run_ms: u64,
    /// What measures time: on a machine that others use at the same time, the processor time of the
    /// threads says more than the time that passed
    #[arg(long, value_enum, default_value_t = Clock::Wall)]
    pub(crate) clock: Clock,
    /// Also write the results to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Also draw the results to FILE, as SVG
    #[arg(long, value_name = "FILE")]
    pub(crate) plot: Option<PathBuf>,
    /// List workloads, and allocators with their versions or why they are absent
    #[arg(long)]
    pub(crate) list: bool,
    /// What a process that this program starts is to do
    #[arg(long, hide = true)]
    pub(crate) job: Option<String>,
}
