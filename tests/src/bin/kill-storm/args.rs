//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use hshm_memory::OnExit;

const AFTER_HELP: &str = "\
Exit codes: 0 if not one byte was lost and nobody hung, 1 if so, 2 for wrong usage, 130 if it was
interrupted. It leaves nothing behind.";

/// Kills workers and the daemon at random while they allocate, and sees whether a byte is lost
///
/// Workers allocate blocks into cells of a shared table, fill them with what can be recognised, pass
/// them on, verify and free them. They are killed with SIGKILL, or stopped for a while, and replaced
/// at once. A daemon of the storm's own recovers what they leave, and is killed now and then too.
#[derive(Debug, Parser)]
#[command(name = "kill-storm", after_long_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
    #[command(flatten)]
    pub(crate) storm: StormArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// One of the workers
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct StormArgs {
    /// Worker processes at a time
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub(crate) workers: u64,
    /// How many of them to kill
    #[arg(long, default_value_t = 2000)]
    pub(crate) kills: u64,
    /// End after so many seconds, however many were killed
    #[arg(long, value_name = "S")]
    pub(crate) seconds: Option<u64>,
    /// How often to kill the daemon; by default once for each 100 workers
    #[arg(long, value_name = "N")]
    pub(crate) daemon_kills: Option<u64>,
    /// What becomes of the blocks of the dead: keep or reclaim
    #[arg(long, value_name = "POLICY", default_value = "keep")]
    pub(crate) on_exit: OnExit,
    /// Where chance begins
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The hshmd to run; by default the one beside this program, which is built if cargo runs this
    #[arg(long, value_name = "PATH")]
    pub(crate) daemon: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    pub(crate) socket: PathBuf,
    #[arg(long)]
    pub(crate) segment: String,
    /// Which of the workers it is.
    #[arg(long)]
    pub(crate) worker: usize,
    /// Among how many it passes blocks on; 0 if its threads keep to themselves.
    #[arg(long)]
    pub(crate) workers: usize,
    /// Unique over all workers of the storm.
    #[arg(long)]
    pub(crate) incarnation: u64,
    #[arg(long)]
    pub(crate) threads: usize,
    #[arg(long)]
    pub(crate) seed: u64,
    #[arg(long)]
    pub(crate) claimed_from: usize,
    #[arg(long)]
    pub(crate) claimed_to: usize,
    #[arg(long)]
    pub(crate) wild_to: usize,
}
