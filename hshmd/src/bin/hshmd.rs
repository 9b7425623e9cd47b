//! `hshmd`: the daemon as a command.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use hshm_memory::gpu::GpuVendor;
use hshmd::DaemonError;
use hshmd::config::{Config, FileConfig, LogFormat, Overrides};
use hshmd::gpu::Errand;

const AFTER_HELP: &str = "\
Defaults:
  as root       socket /run/hshm/hshmd.sock, state directory /var/lib/hshm
  as a user     socket $XDG_RUNTIME_DIR/hshm/hshmd.sock (/tmp/hshm-UID/hshmd.sock without that
                variable), state directory $XDG_STATE_HOME/hshm (~/.local/state/hshm)
  HSHM_SOCKET   overrides the default socket, here and for clients

Configuration file (TOML; every key may be left out; options go first, then what files in the
directory FILE.d say, the last by name before the others, then FILE):
  socket = \"/run/hshm/hshmd.sock\"
  socket_mode = 0o660             # who may connect; 0o600 for a user's daemon
  socket_group = \"hshm\"           # and the group that this is about
  state_dir = \"/var/lib/hshm\"
  remove_on_shutdown = false      # destroy all segments when the daemon stops
  sweep_interval_ms = 1000        # how often worker slots are searched for the dead
  [limits]
  max_segments = 4096
  max_segment_bytes = \"64G\"       # no limit by default but the machine's
  max_total_bytes = \"256G\"        # no limit by default
  max_sessions = 4096
  max_user_segments = 64          # of one user, root and the daemon's own excepted; no limits by
  max_user_bytes = \"16G\"         # default
  max_user_sessions = 256         # and never more than three quarters of max_sessions
  [access]
  admin_group = \"hshm-admin\"      # its members may do what root may; [default: nobody else]
  create_group = \"hshm\"           # only its members may create segments [default: anybody]
  [metrics]
  listen = \"/run/hshm/metrics.sock\"  # OpenMetrics over HTTP, GET /metrics; also 127.0.0.1:9177
                                  # [default: nowhere]
  [log]
  format = \"human\"                # or json
  level = \"info\"
  [[segment]]                     # created at the start if it is not there; as hshmctl create has it
  name = \"frames\"
  size = \"1G\"
  capacity = \"8G\"
  backend = \"posix-shm\"
  allocator = \"thread-local\"
  custom_header = \"4K\"
  on_exit = \"keep\"
  worker_slots = 64
  mode = 0o660
  owner = \"camera\"               # [default: the daemon's user]
  group = \"video\"
  memory = { huge_pages = \"try\", numa = \"default\", lock = false, populate = false }

SIGTERM and SIGINT stop it. On SIGHUP it reads the configuration file again: limits, access, the log's
level and new segments take effect, the log names what would at the next start only, and if there is an
error all stays as it was. Without a configuration file SIGHUP stops it.

Segments stay in /dev/shm when it stops, and the next start takes them over; processes that use them go
on meanwhile. Segments of the backend memfd go with the daemon, unless the service manager that started
it keeps them (systemd's FileDescriptorStoreMax=). A socket that the service manager hands over is
listened on in place of the one in the settings.

Exit codes: 0 stopped by a signal, 1 it could not start or go on, 2 wrong usage.";

/// The daemon that owns shared-memory segments: it creates them, hands them to processes, and
/// recovers what dead processes left in them. Runs in the foreground.
#[derive(Debug, Parser)]
#[command(name = "hshmd", version, after_long_help = AFTER_HELP)]
struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where to keep the records of segments, from which the next start finds them
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Read settings from this file, and from the files *.toml in the directory FILE.d
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the settings and the users and groups that they name, say which files were read, and exit
    #[arg(long)]
    check_config: bool,
    /// Print the manual page, in troff, and exit
    #[arg(long, exclusive = true)]
    manual: bool,
    /// Say what this process finds of a vendor's driver, in JSON, and exit: what the daemon's children do
    #[arg(long, hide = true, value_name = "VENDOR")]
    gpu_probe: Option<GpuVendor>,
    /// And whether the driver takes the segment in this shared-memory object
    #[arg(long, hide = true, value_name = "OBJECT", requires = "gpu_probe")]
    gpu_object: Option<String>,
    /// Or take so many bytes of a device's own memory, and pass the descriptor to the standard input
    #[arg(long, hide = true, value_name = "BYTES", requires = "gpu_probe")]
    gpu_take: Option<u64>,
    /// Of this device
    #[arg(long, hide = true, value_name = "N", default_value_t = 0, requires = "gpu_take")]
    gpu_device: u32,
    /// Destroy all segments when the daemon stops
    #[arg(long)]
    ephemeral: bool,
    /// Form of the log on standard error
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// How much to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.manual {
        return match manual(&mut std::io::stdout().lock()) {
            // Whoever closed the output has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                fail(&format_args!("cannot write the manual page: {error}"))
            }
            _ => ExitCode::SUCCESS,
        };
    }
    if let Some(vendor) = arguments.gpu_probe {
        let errand = match (arguments.gpu_object, arguments.gpu_take) {
            (Some(object), _) => Errand::Register(object),
            (None, Some(bytes)) => Errand::Take { device: arguments.gpu_device, bytes },
            (None, None) => Errand::None,
        };
        return probe(vendor, &errand);
    }
    let check_config = arguments.check_config;
    let file = arguments.config.clone();
    match configure(arguments) {
        Ok(config) if check_config => match check(&config, file.as_deref()) {
            Ok(said) => {
                // The exit code says it too.
                let _ = writeln!(std::io::stdout(), "{said}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Ok(config) => match hshmd::daemon::run(config, |_| ()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Err(error) => fail(&error),
    }
}

fn manual(out: &mut impl Write) -> io::Result<()> {
    let page = clap_mangen::Man::new(Arguments::command()).section("8").manual("hshm");
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    text.extend_from_slice(include_bytes!("../../manual/hshmd.8"));
    out.write_all(&text)?;
    out.flush()
}

fn probe(vendor: GpuVendor, errand: &Errand) -> ExitCode {
    let said = hshmd::gpu::answer(vendor, errand);
    let written = said.map(|said| writeln!(std::io::stdout().lock(), "{said}"));
    if let Ok(Ok(())) = written { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn configure(arguments: Arguments) -> Result<Config, DaemonError> {
    let overrides = Overrides {
        socket: arguments.socket,
        state_dir: arguments.state_dir,
        ephemeral: arguments.ephemeral,
        log_format: arguments.log_format,
        log_level: arguments.log_level,
    };
    let file = arguments.config.as_deref();
    let config = Config::load(overrides, file, hshmd::paths::environment())?;
    hshmd::logging::start(&config.log)?;
    Ok(config)
}

/// What was found to be in order. An administrator is to see that a file was not read.
fn check(config: &Config, file: Option<&Path>) -> Result<String, DaemonError> {
    hshmd::check::names(config)?;
    let Some(file) = file else {
        return Ok(
            "the options are in order; no file was read, since --config names none".to_owned()
        );
    };
    let files = FileConfig::files(file)?;
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    Ok(format!("in order: {}", files.join(", ")))
}

/// One line, whatever the log's form: whoever started the daemon by hand reads it.
fn fail(error: &dyn Display) -> ExitCode {
    // A closed standard error is no reason to panic.
    let _ = writeln!(std::io::stderr(), "hshmd: {error}");
    ExitCode::FAILURE
}
