//! The command line.

use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use hshm_client::{AllocatorKind, BackendKind, BackendOptions, HugePages, NumaPolicy, OnExit};
use hshmd::size::parse_size;

use crate::demo::{DemoArgs, PartArgs};
use crate::exit::EXIT_CODES;

const SIZES: &str = "Sizes are in bytes, or with a unit of K, M, G or T, which are powers of 1024: \
                     1G = 1GiB = 1073741824.";

const COMPLETIONS: &str =
    "For this shell alone: source <(hshmctl completions bash). For good, write them to
  bash  ~/.local/share/bash-completion/completions/hshmctl
  zsh   a file _hshmctl in a directory of $fpath
  fish  ~/.config/fish/completions/hshmctl.fish";

/// Looks at and changes the shared-memory segments of an hshmd.
#[derive(Debug, Parser)]
#[command(name = "hshmctl", version, after_help = EXIT_CODES, propagate_version = true)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    /// Where the daemon listens [default: HSHM_SOCKET if set, otherwise the user's own daemon,
    /// otherwise the system's]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,

    /// Print JSON rather than text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How many seconds to wait for the daemon's answer
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: u64,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the daemon: its release, where it listens, what it holds
    Status,
    /// List the segments
    List,
    /// Make a segment
    #[command(after_help = SIZES)]
    Create(CreateArgs),
    /// Show a segment's geometry, workers, occupancy and fragmentation
    Inspect {
        /// The segment
        name: String,
    },
    /// Draw a segment's heap: what each part of it is, and how full
    #[command(
        after_help = "It attaches the segment to look into it, which takes the right to do so; \
                            the segment is one of the thread-local allocator."
    )]
    Dump {
        /// The segment
        name: String,
        /// Draw it in colour to this file, too
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// List the processes that the daemon knows
    Sessions,
    /// Show the segments, their occupancy and their rates of operations, live
    #[command(
        after_help = "Keys: q ends it, s sorts by another column, ? helps. Rates are of what \
                            workers have counted, which they do at times and not at each block. \
                            Where standard output is no terminal it prints one frame and ends."
    )]
    Top {
        /// Seconds from one look to the next
        #[arg(long, short, value_name = "SECONDS", default_value_t = 2)]
        #[arg(value_parser = clap::value_parser!(u32).range(1..=3600))]
        interval: u32,
        /// Print one frame, measured over one interval, and end
        #[arg(long)]
        once: bool,
    },
    /// Tell what happens to segments, as it happens: one line each, or one JSON object a line
    #[command(
        after_help = "Events are created, attached, detached, died (a process that used it), \
                            recovered (what that process held), grown and destroyed. After a restart \
                            of the daemon it goes on with the new one; it ends with exit code 1 where \
                            there is none."
    )]
    Watch {
        /// This segment alone, which need not exist yet
        name: Option<String>,
    },
    /// Make a segment longer, for all who use it
    #[command(after_help = SIZES)]
    Grow {
        /// The segment
        name: String,
        /// The length that it is to have afterwards
        #[arg(long, value_parser = parse_size)]
        size: u64,
    },
    /// Remove a segment; who has it attached keeps its memory until it lets go of it
    Destroy {
        /// The segment
        name: String,
        /// Do not ask, even if living processes use it
        #[arg(long, short)]
        force: bool,
    },
    /// Walk a segment's whole heap and assert its invariants (exit code 3 if one is broken)
    #[command(after_help = "While processes allocate, what they do meanwhile may show as \
                            violations: check a segment that is at rest.")]
    Check {
        /// The segment
        name: String,
        /// Repair first what can be repaired without guessing; nobody may use the segment meanwhile
        #[arg(long)]
        repair: bool,
    },
    /// Look for what stands in hshm's way on this machine, with advice (exit code 3 if something
    /// must be mended)
    Doctor,
    /// Share the files under a directory among processes, kill one of them, and check the outcome
    Demo(DemoArgs),
    /// Print what a shell needs to complete hshmctl's command lines
    #[command(after_help = COMPLETIONS)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write manual pages of hshmctl and its commands
    Manual {
        /// Where to: a directory that exists
        directory: PathBuf,
    },
    /// A process of the demo
    #[command(hide = true)]
    DemoPart(PartArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Its name: letters, digits and . _ -
    #[arg(value_hint = ValueHint::Other)]
    pub(crate) name: String,
    /// How long it is at first
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: u64,
    /// How far it can grow [default: the daemon's choice]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) capacity: Option<u64>,
    /// What it is made of: posix-shm (a name in /dev/shm), memfd (no name), or cuda-shm or rocm-shm (a
    /// name in /dev/shm, and processes register it with the driver of NVIDIA's or AMD's devices)
    #[arg(long, default_value_t, value_parser = one_of::<BackendKind>(&BACKENDS))]
    pub(crate) backend: BackendKind,
    /// Which allocator is laid over it
    #[arg(long, default_value_t, value_parser = one_of::<AllocatorKind>(&ALLOCATORS))]
    pub(crate) allocator: AllocatorKind,
    /// Bytes at a fixed place that the application uses as it likes
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    pub(crate) custom_header: u64,
    /// What becomes of the blocks of a process that died
    #[arg(long, value_name = "POLICY", default_value_t, value_parser = one_of::<OnExit>(&ON_EXIT))]
    pub(crate) on_exit: OnExit,
    /// How many threads, over all processes, can use it at once [default: the library's choice]
    #[arg(long, value_name = "N")]
    pub(crate) worker_slots: Option<u32>,
    /// Who may use it, as a file's permission bits in octal
    #[arg(long, value_name = "MODE", value_parser = parse_mode, default_value = "600")]
    pub(crate) mode: u32,
    /// Memory of a device's own beside it, for a cuda-shm or rocm-shm with the thread-local allocator: all who
    /// attach the segment share it, and allocate from it by tables in the segment
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) device_memory: Option<u64>,
    /// Of which device, as hshmctl status counts them
    #[arg(long, value_name = "N", default_value_t = 0, requires = "device_memory")]
    pub(crate) device: u32,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

/// How a segment's memory is to be had.
#[derive(Debug, clap::Args)]
pub(crate) struct MemoryArgs {
    /// Memory in huge pages: as the system is set up, never, try or require. Those that a memfd has
    /// are set aside at once (vm.nr_hugepages); a posix-shm asks for transparent ones, and populating
    /// it has them for all who use it
    #[arg(long, value_name = "POLICY", default_value_t)]
    #[arg(value_parser = one_of::<HugePages>(&HUGE_PAGES))]
    pub(crate) huge_pages: HugePages,
    /// How large huge pages are to be [default: the system's usual size]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) huge_page_size: Option<u64>,
    /// Which nodes of the machine memory comes from: default, or bind:NODES, interleave:NODES or
    /// preferred:NODES, with nodes as in 0,2-3
    #[arg(long, value_name = "POLICY", default_value_t)]
    pub(crate) numa: NumaPolicy,
    /// The daemon keeps what it uses of the memory from being swapped out, which with --populate is
    /// all of it; for root and the daemon's user
    #[arg(long)]
    pub(crate) lock: bool,
    /// All of the memory at once, rather than as it is used
    #[arg(long)]
    pub(crate) populate: bool,
}

impl MemoryArgs {
    pub(crate) fn options(&self) -> BackendOptions {
        BackendOptions {
            huge_pages: self.huge_pages,
            huge_page_bytes: self.huge_page_size,
            numa: self.numa.clone(),
            lock: self.lock,
            populate: self.populate,
        }
    }
}

// Of each kind those that the daemon makes segments of; what shells complete.
const BACKENDS: [&str; 4] = ["posix-shm", "memfd", "cuda-shm", "rocm-shm"];
const ALLOCATORS: [&str; 3] = ["thread-local", "scalable-page", "stack"];
const ON_EXIT: [&str; 2] = ["keep", "reclaim"];
const HUGE_PAGES: [&str; 4] = ["system", "never", "try", "require"];

/// Reads one of these names.
fn one_of<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr + Clone + Send + Sync + 'static,
    T::Err: Into<Box<dyn Error + Send + Sync>>,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .map_err(|_| format!("{text:?} is no mode: write octal digits, such as 660"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_name_that_is_offered_is_understood() {
        fn all<T: FromStr<Err: std::fmt::Debug> + ToString>(names: &[&str]) {
            for name in names {
                assert_eq!(name.parse::<T>().unwrap().to_string(), *name);
            }
        }
        all::<BackendKind>(&BACKENDS);
        all::<AllocatorKind>(&ALLOCATORS);
        all::<OnExit>(&ON_EXIT);
        all::<HugePages>(&HUGE_PAGES);
    }

    #[test]
    fn sizes_and_modes_are_read_in_their_units() {
        let args = Args::try_parse_from([
            "hshmctl",
            "create",
            "a",
            "--size",
            "64KiB",
            "--mode",
            "0640",
            "--custom-header",
            "4K",
        ]);
        let Command::Create(create) = args.unwrap().command else { panic!("not create") };
        assert_eq!((create.size, create.mode, create.custom_header), (65_536, 0o640, 4096));
        assert!(Args::try_parse_from(["hshmctl", "create", "a", "--size", "much"]).is_err());
        assert!(Args::try_parse_from(["hshmctl", "create", "a"]).is_err());
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [["hshmctl", "--json", "list"], ["hshmctl", "list", "--json"]] {
            assert!(Args::try_parse_from(line).unwrap().json);
        }
    }
}
