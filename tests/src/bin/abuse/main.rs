//! Abuses a daemon in every way there is, while an honest client asks on, and prints what became of it.
//!
//! `cargo run --release -p hshm-tests --bin abuse`

mod honest;
mod hostile;
mod site;
mod wire;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::hostile::Kind;
use crate::site::Site;

/// Abuses a daemon while an honest client asks on, and prints what became of it
///
/// The hostile client is a process of another user if root starts this, and otherwise of the same, for
/// whom limits do not hold. It fails if the honest client is not answered, or the daemon dies, or keeps
/// memory or descriptors.
#[derive(Debug, Parser)]
#[command(name = "abuse", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The hostile client
    #[command(hide = true)]
    Hostile(HostileArgs),
}

#[derive(Debug, Args)]
struct ShowArgs {
    /// How long each kind of abuse goes on
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// Only this kind
    #[arg(long, value_name = "KIND")]
    only: Option<Kind>,
    /// The hshmd to run; by default the one beside this program, which is built if cargo runs this
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct HostileArgs {
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    socket: PathBuf,
    #[arg(long)]
    seconds: f64,
    /// Whom to become first.
    #[arg(long)]
    uid: Option<u32>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.role {
        Some(Role::Hostile(role)) => {
            let duration = Duration::from_secs_f64(role.seconds);
            hostile::run(role.kind, &role.socket, duration, role.uid)
        }
        None => show(&arguments.show),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "abuse: {why}");
            ExitCode::FAILURE
        }
    }
}

const HEAD: &str = "\
| abuse | what came of it | honest requests: p50, p99 | newcomers: p50, p99, failed | daemon's own memory | descriptors |
|---|---|---|---|---|---|";

fn show(arguments: &ShowArgs) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    let mut failures = Vec::new();
    let _ = writeln!(out, "{HEAD}");
    let kinds = <Kind as clap::ValueEnum>::value_variants();
    for kind in kinds.iter().copied().filter(|kind| arguments.only.is_none_or(|only| only == *kind))
    {
        let mut site = Site::start(kind, arguments.daemon.as_deref())?;
        let row = site.abuse(kind, Duration::from_secs_f64(arguments.seconds))?;
        let _ = writeln!(out, "{}", row.text);
        failures.extend(row.failure.map(|why| format!("{}: {why}", kind.what())));
    }
    if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
}
