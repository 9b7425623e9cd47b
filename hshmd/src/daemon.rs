//! Starting, running and stopping.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::access::Rules;
use crate::complaints::Complaints;
use crate::config::{Config, Limits};
use crate::device_memory::DeviceMemories;
use crate::error::DaemonError;
use crate::gpu::Drivers;
use crate::listen::Listener;
use crate::manager::{Inherited, Manager};
use crate::metrics::{self, Counted};
use crate::paths::Namespace;
use crate::processes::Processes;
use crate::reaper::{Reaper, Watcher};
use crate::registry::Registry;
use crate::reload;
use crate::session::serve;
use crate::size::format_size;
use crate::state::StateDir;
use crate::strangers::Strangers;

/// The daemon's release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Threads that may block, and how many of them serve clients' requests; the rest is the reaper's.
const BLOCKING_THREADS: usize = 16;
pub(crate) const CLIENT_BLOCKING_THREADS: usize = 12;

/// Connections beyond the limit on sessions that may be open for a greeting, or its refusal, of which one
/// user has at most [`MAX_USER_STRANGERS`](crate::strangers::MAX_USER_STRANGERS). Further ones wait in
/// the kernel's queue.
const MAX_STRANGERS: usize = 128;

/// How long sessions may take to finish what they are doing when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What holds until the daemon stops.
    pub(crate) config: Config,
    /// The same as it was read, before it was fitted to what was found.
    pub(crate) as_read: Config,
    pub(crate) rules: RwLock<Arc<Rules>>,
    /// Held while the configuration is read again.
    pub(crate) reloading: tokio::sync::Mutex<()>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) watcher: Watcher,
    pub(crate) strangers: Arc<Strangers>,
    pub(crate) complaints: Complaints,
    pub(crate) blocking_permits: Arc<Semaphore>,
    pub(crate) counted: Counted,
    pub(crate) drivers: Drivers,
    pub(crate) device_memories: DeviceMemories,
    pub(crate) started: Instant,
    /// Becomes true when the daemon stops.
    pub(crate) stop: watch::Sender<bool>,
}

impl Shared {
    /// Which groups are more than others, for who connects now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the daemon until it is told to stop by SIGTERM or SIGINT. On SIGHUP it reads its configuration
/// again, or stops as well if that is from no file.
///
/// `on_ready` is called once, when clients can connect. The log goes wherever the process's tracing
/// subscriber takes it (see [`crate::logging::start`]).
///
/// # Errors
/// Why it could not start. Segments that cannot be used are no reason: they are listed as such.
pub fn run(config: Config, on_ready: impl FnOnce(&Config)) -> Result<(), DaemonError> {
    let inherited = Inherited::take()?;
    raise_descriptor_limit();
    hshm_memory::backend::survive_truncation().map_err(|error| {
        DaemonError::system("cannot prepare for damaged segments", io::Error::other(error))
    })?;
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|error| DaemonError::system("cannot start the runtime", error))?;
    let result = runtime.block_on(run_async(config, inherited, on_ready));
    // Nothing that still runs there may be waited for: a walk of a large heap takes long.
    runtime.shutdown_background();
    result
}

async fn run_async(
    mut config: Config,
    inherited: Inherited,
    on_ready: impl FnOnce(&Config),
) -> Result<(), DaemonError> {
    let as_read = config.clone();
    let rules = Rules::find(&config.access)?;
    let mut signals = Signals::new(config.source.is_some())?;
    let manager = Manager::of_environment();
    manager.notify(&[NotifyState::Status("taking over segments")]);
    manager.check_room(config.limits.max_segments);
    let strangers = fit_descriptors(&mut config.limits);
    let state = StateDir::open(&config.state_dir)?;
    let namespace = Namespace::of(&config.state_dir)
        .map_err(|error| DaemonError::file("cannot find", &config.state_dir, error))?;
    let registry = Arc::new(Registry::new(state, namespace, config.limits, manager.clone()));
    let processes = Arc::new(Processes::default());
    let (mut reaper, watcher) = Reaper::new(Arc::clone(&registry), Arc::clone(&processes));

    let (stop, stopping) = watch::channel(false);

    registry.adopt_all(inherited.kept)?;
    // The dead of the time without daemon are recovered before the first client comes, and only
    // then are heaps walked.
    reaper.sweep(&stopping).await;
    registry.check_idle();

    registry.create_declared(&config.segments);
    let device_memories = DeviceMemories::default();
    device_memories.adopt(inherited.kept_memory, &registry);

    let listener = match inherited.listening {
        Some(socket) => Listener::inherit(socket)?,
        None => Listener::bind(&config)?,
    };
    // A socket unit may listen elsewhere than the settings say.
    if let Some(path) = listener.path() {
        config.socket = path.to_path_buf();
    }
    let sweeping = tokio::spawn(reaper.run(config.sweep_interval, stopping.clone()));
    let shared = Arc::new(Shared {
        config,
        as_read,
        rules: RwLock::new(Arc::new(rules)),
        reloading: tokio::sync::Mutex::default(),
        registry,
        processes,
        watcher,
        strangers: Arc::default(),
        complaints: Complaints::default(),
        blocking_permits: Arc::new(Semaphore::new(CLIENT_BLOCKING_THREADS)),
        counted: Counted::default(),
        drivers: Drivers::default(),
        device_memories,
        started: Instant::now(),
        stop,
    });
    let measuring = match &shared.config.metrics {
        Some(address) => {
            let endpoint = metrics::Endpoint::bind(address).await?;
            Some(tokio::spawn(endpoint.run(Arc::clone(&shared))))
        }
        None => None,
    };
    let usage = shared.registry.usage();
    info!(
        version = VERSION,
        socket = %shared.config.socket.display(),
        state_dir = %shared.config.state_dir.display(),
        segments = usage.segments,
        size = format_size(usage.bytes),
        "ready"
    );
    manager.notify(&[NotifyState::Ready]);
    tokio::spawn(manager.clone().report(Arc::clone(&shared), stopping));
    on_ready(&shared.config);

    let mut sessions = JoinSet::new();
    let stop = accept_until(&shared, strangers, &listener, &mut signals, &mut sessions);
    let signal = stop.await;

    info!(signal, "stopping");
    manager.notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    drop(listener);
    shared.blocking_permits.close();
    shared.stop.send_replace(true);
    let farewell = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        warn!("some requests were still running and are broken off");
    }
    sweeping.abort();
    if let Some(measuring) = measuring {
        measuring.abort();
        // Its socket's file goes with it.
        let _ = measuring.await;
    }
    if shared.config.remove_on_shutdown {
        shared.registry.remove_all();
    }
    info!("stopped");
    Ok(())
}

/// Serves connections until a signal says stop. Returns its name.
async fn accept_until(
    shared: &Arc<Shared>,
    strangers: usize,
    listener: &Listener,
    signals: &mut Signals,
    sessions: &mut JoinSet<()>,
) -> &'static str {
    let mut failing = false;
    loop {
        let most = shared.registry.limits().max_sessions.saturating_add(strangers);
        tokio::select! {
            signal = signals.next() => match signal {
                Told::Stop(signal) => return signal,
                Told::Reload => drop(tokio::spawn(reload::reload(Arc::clone(shared)))),
            },
            ended = sessions.join_next(), if !sessions.is_empty() => {
                if let Some(Err(error)) = ended {
                    error!(%error, "a session failed inside the daemon");
                }
            }
            accepted = listener.accept(), if sessions.len() < most => match accepted {
                Ok(socket) => {
                    failing = false;
                    sessions.spawn(serve(Arc::clone(shared), socket));
                }
                Err(error) => {
                    if !failing {
                        warn!(%error, "cannot accept connections");
                    }
                    failing = true;
                    // Most likely too many open files; accepting again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// What a signal says.
enum Told {
    /// With the signal's name.
    Stop(&'static str),
    Reload,
}

/// The signals that the daemon heeds. From its construction on they do not kill it.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// Whether there is a configuration to be read again.
    reloads: bool,
}

impl Signals {
    fn new(reloads: bool) -> Result<Self, DaemonError> {
        let on = |kind| {
            signal(kind).map_err(|error| DaemonError::system("cannot wait for signals", error))
        };
        Ok(Self {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hangup: on(SignalKind::hangup())?,
            reloads,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Told::Stop("SIGINT"),
            _ = self.hangup.recv() => if self.reloads { Told::Reload } else { Told::Stop("SIGHUP") },
        }
    }
}

/// Each session takes two descriptors and each segment two: as many as the system lets us have.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(errno) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        warn!(%errno, "cannot raise the limit on open files");
    }
}

/// Lets no more sessions in than there are descriptors for, so that some are left for segments and
/// records: a daemon without any could not serve those either who are connected. How many connections
/// may be open besides, for a greeting.
pub(crate) fn fit_descriptors(limits: &mut Limits) -> usize {
    let Ok((files, _)) = getrlimit(Resource::RLIMIT_NOFILE) else { return MAX_STRANGERS };
    // A connection takes two; a quarter is for other things.
    let connections = usize::try_from(files / 4 * 3 / 2).unwrap_or(usize::MAX);
    let strangers = MAX_STRANGERS.min(connections / 4).max(1);
    let most = connections.saturating_sub(strangers).max(1);
    if limits.max_sessions > most {
        warn!(
            files,
            sessions = most,
            "the limit on open files leaves room for fewer sessions than limits.max_sessions: raise it (LimitNOFILE=, ulimit -n)"
        );
        limits.max_sessions = most;
    }
    strangers
}
