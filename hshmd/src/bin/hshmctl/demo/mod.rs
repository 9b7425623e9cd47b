//! `hshmctl demo`: several processes share the files under a directory through one heap.
//!
//! The coordinator (the process that was started) starts a daemon of its own in a temporary
//! directory, producers and workers: each is this same executable, as a process. What they have in
//! common is a segment with a *board* in it ([`board`]): a table whose rows are items of work.
//! One item is a piece of a file, and goes round like this:
//!
//! ```text
//!   coordinator            producer               worker                 coordinator
//!   writes which piece ──► reads it into an ────► counts its words, ───► collects the
//!   into a job block       input block, and       computes its CRC-32    result, frees the
//!                          frees the job block    into a result block,   result block
//!                                                 frees the input block
//! ```
//!
//! Each block is allocated by one process and freed by another, and nobody is told more of a block
//! than its offset. Each step leaves the row in a state that names who works on it, so that when that
//! process is killed, it is plain what was done and what is to be done again ([`graves`]): each item
//! yields one result, no more and no less. Midway, the demo kills one worker.
//!
//! In the end the results are compared with a plain computation over the same files in one process
//! ([`verify`]), the heap is checked, and nothing may be left allocated, in `/dev/shm` or in the
//! temporary directory.

mod board;
mod coordinator;
mod counts;
mod family;
mod graves;
mod ledger;
mod patience;
mod pieces;
mod private_daemon;
mod producer;
mod progress;
mod shared;
pub(crate) mod signals;
mod sizing;
mod summary;
mod verify;
mod walk;
mod worker;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use hshm_client::{BackendKind, Client};
use hshmd::size::parse_size;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::exit::Exit;
use crate::ui::Ui;

use self::family::Role;
use self::progress::Progress;
use self::signals::{Interrupted, Signals};
use self::summary::Summary;

/// What the demo can be told.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The demo starts a daemon of its own, needs no root and leaves nothing behind."
)]
pub(crate) struct DemoArgs {
    /// The directory whose files are shared, or one file
    #[arg(default_value = ".")]
    path: PathBuf,
    /// How many processes count
    #[arg(long, value_name = "N", default_value_t = 4)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    workers: u32,
    /// How many processes read files
    #[arg(long, value_name = "N", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=256))]
    producers: u32,
    /// How many processes are killed: first a worker in the middle of an item, then any at any
    /// moment
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000))]
    kills: u32,
    /// How long the segment is; files larger than it pass through it piece by piece [default: what
    /// the files need, at most 512M and half of what is free in /dev/shm]
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// What the segment is made of: posix-shm or memfd
    #[arg(long, default_value_t)]
    backend: BackendKind,
    /// Skip files larger than this
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "1G")]
    max_file: u64,
}

/// Which part a process of the demo plays.
#[derive(Debug, clap::Args)]
pub(crate) struct PartArgs {
    role: Role,
    /// The coordinator: without it there is nothing to do.
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    socket: Option<PathBuf>,
    #[arg(long)]
    segment: Option<String>,
    /// By which number the board knows this process.
    #[arg(long, default_value_t)]
    part: u32,
}

/// Runs the demo.
pub(crate) fn run(args: &DemoArgs, ui: &mut Ui) -> Result<Exit> {
    // Before there is another thread, so that none gets the signals in the old way.
    let signals = Signals::take_over()?;
    match share_and_verify(args, ui, &signals) {
        Ok(summary) => {
            ui.show(&summary, |ui| summary.print(ui))?;
            if !summary.is_verified() {
                ui.finish()?;
                bail!("the demo is not verified, as told above: please report it");
            }
            Ok(Exit::Success)
        }
        Err(error) => match error.downcast_ref::<Interrupted>() {
            // The coordinator and the daemon have cleaned up on the way here.
            Some(interrupted) => interrupted.report(),
            None => Err(error),
        },
    }
}

fn share_and_verify(args: &DemoArgs, ui: &Ui, signals: &Signals) -> Result<Summary> {
    let progress = Progress::new(ui);
    progress.begin("looking for files");
    let tree = walk::walk(&args.path, args.max_file, signals)
        .with_context(|| format!("cannot share {}", args.path.display()))?;
    let started = Instant::now();
    let (ledger, shared) = coordinator::share(args, &tree, signals, &progress)?;
    let shared_time = started.elapsed();
    let started = Instant::now();
    let comparison = verify::compare(&tree, &ledger, signals, &progress)?;
    progress.end();
    Ok(Summary::new(&tree, &ledger, shared, comparison, shared_time, started.elapsed()))
}

/// Plays a part of the demo that another process runs.
pub(crate) fn run_part(args: &PartArgs) -> Result<()> {
    Signals::restore()?;
    if args.role == Role::Daemon {
        return private_daemon::run();
    }
    // Producers and workers end with the coordinator, however it ends.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid().as_raw() != args.parent {
        bail!("the coordinator is gone");
    }
    let name = format!("demo-{}-{}", args.role, args.part);
    let (Some(socket), Some(segment)) = (&args.socket, &args.segment) else {
        bail!("a {} needs --socket and --segment", args.role);
    };
    let client = Client::builder().socket(socket).name(name).connect()?;
    let segment = client.attach(segment)?;
    match args.role {
        Role::Producer => producer::produce(&segment, args.part),
        Role::Worker | Role::Daemon => worker::work(&segment, args.part),
    }?;
    segment.detach()?;
    Ok(())
}
