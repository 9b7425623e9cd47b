//! The daemon without its process, for fuzz targets: real connections, registry, state directory and
//! reaper, on a clock that stands still while anything is left to do and leaps when nothing is. So a
//! client that is waited for costs no time, and what happens depends on the input alone.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::{Config, Limits};
use crate::daemon::{CLIENT_BLOCKING_THREADS, Shared};
use crate::manager::Manager;
use crate::paths::{Namespace, SHM_DIR};
use crate::processes::Processes;
use crate::reaper::Reaper;
use crate::registry::Registry;
use crate::session::serve;
use crate::state::StateDir;
use crate::strangers::MAX_USER_STRANGERS;

/// Longer than a session may wait for anything, once its client is gone.
const FAREWELL: Duration = Duration::from_secs(120);

/// A daemon whose connections are given to it.
#[derive(Debug)]
pub struct Rehearsal {
    shared: Arc<Shared>,
    sessions: JoinSet<()>,
    runtime: Runtime,
    _dir: TempDir,
}

/// Who owns a segment, and who else may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// The segment's number.
    pub minor: u32,
    /// Its user.
    pub uid: u32,
    /// Its permission bits.
    pub mode: u32,
}

impl Rehearsal {
    /// A daemon without segments.
    ///
    /// # Panics
    /// If the machine has no room for it.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        hshm_memory::backend::survive_truncation().expect("a signal's action can be set");
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .max_blocking_threads(2)
            .build()
            .expect("a runtime can be built");
        // Records are synced; in memory that takes no time.
        let dir = TempDir::new_in(SHM_DIR).expect("there is room in /dev/shm");
        let mut config = Config::new(dir.path().join("socket"), dir.path());
        config.limits = limits;
        // While nobody does anything it would only take time.
        config.sweep_interval = Duration::from_secs(30);
        let state = StateDir::open(&config.state_dir).expect("the directory is new");
        let namespace = Namespace::of(&config.state_dir).expect("the directory is there");
        let registry = Registry::new(state, namespace, limits, Manager::default());
        let (registry, processes) = (Arc::new(registry), Arc::new(Processes::default()));
        let _context = runtime.enter();
        let (reaper, watcher) = Reaper::new(Arc::clone(&registry), Arc::clone(&processes));
        let (stop, stopping) = watch::channel(false);
        runtime.spawn(reaper.run(config.sweep_interval, stopping));
        let shared = Arc::new(Shared {
            as_read: config.clone(),
            config,
            rules: std::sync::RwLock::default(),
            reloading: tokio::sync::Mutex::default(),
            registry,
            processes,
            watcher,
            strangers: Arc::default(),
            complaints: crate::complaints::Complaints::default(),
            blocking_permits: Arc::new(Semaphore::new(CLIENT_BLOCKING_THREADS)),
            counted: crate::metrics::Counted::default(),
            drivers: crate::gpu::Drivers::default(),
            device_memories: crate::device_memory::DeviceMemories::default(),
            started: Instant::now(),
            stop,
        });
        drop(_context);
        Self { shared, sessions: JoinSet::new(), runtime, _dir: dir }
    }

    /// Serves a connection from now on. The socket must not block.
    pub fn serve(&mut self, socket: OwnedFd) {
        self.sessions.spawn_on(serve(Arc::clone(&self.shared), socket), self.runtime.handle());
    }

    /// Lets everybody go on until they have nothing left to do, and then `time` pass.
    ///
    /// # Panics
    /// If a session did.
    pub fn pass(&mut self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
        while let Some(ended) = self.sessions.try_join_next() {
            ended.expect("a session failed inside the daemon");
        }
        self.check();
    }

    /// Whose the segment `name` is.
    #[must_use]
    pub fn ownership(&self, name: &str) -> Option<Ownership> {
        let segment = self.shared.registry.get(name).ok()?;
        let record = &segment.record;
        Some(Ownership { minor: record.id.minor, uid: record.uid, mode: record.mode })
    }

    /// What holds at any time.
    fn check(&self) {
        let limits = &self.shared.config.limits;
        let connections = self.shared.processes.counts().connections;
        assert!(connections <= u64::try_from(limits.max_sessions).unwrap_or(u64::MAX));
        assert!(connections <= u64::try_from(self.sessions.len()).unwrap_or(u64::MAX));
        assert!(self.shared.registry.usage().segments <= limits.max_segments);
    }

    /// Ends, when all clients have closed their connections. Nothing is left of them then, and when the
    /// segments are removed nothing of those.
    ///
    /// # Panics
    /// If something is left.
    pub fn finish(mut self, uids: &[u32]) {
        let shared = Arc::clone(&self.shared);
        self.runtime.block_on(async {
            let farewell = async { while self.sessions.join_next().await.is_some() {} };
            tokio::time::timeout(FAREWELL, farewell).await.expect("a session outlives its client");
            assert_eq!(shared.processes.counts().connections, 0);
            assert_eq!(shared.blocking_permits.available_permits(), CLIENT_BLOCKING_THREADS);
            for uid in uids {
                let places: Vec<_> =
                    (0..MAX_USER_STRANGERS).map_while(|_| shared.strangers.enter(*uid)).collect();
                assert_eq!(places.len(), MAX_USER_STRANGERS, "places of user {uid} are not free");
            }
            for segment in shared.registry.all() {
                let attached = shared.processes.attached(&segment.record.name);
                assert_eq!(attached.0, 0, "{:?} is still attached", segment.record.name);
            }
            shared.stop.send_replace(true);
        });
        // Its tasks and threads end with it.
        drop(self.runtime);
        shared.registry.remove_all();
        let usage = shared.registry.usage();
        assert_eq!((usage.segments, usage.bytes), (0, 0));
        let objects = shared.registry.namespace.objects().expect("/dev/shm can be read");
        assert!(objects.is_empty(), "left in /dev/shm: {objects:?}");
        let (records, broken) = shared.registry.state.records().expect("records can be read");
        assert!(records.is_empty() && broken.is_empty(), "left: {records:?} {broken:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use hshm_proto::{
        CreateSegment, Hello, Reply, ReplyBody, Request, RequestBody, WelcomeOrRefusal,
    };
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
    use std::os::fd::AsRawFd;

    use super::*;

    fn ask(socket: &OwnedFd, daemon: &mut Rehearsal, packet: &[u8]) -> Vec<u8> {
        send(socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL).unwrap();
        daemon.pass(Duration::from_millis(1));
        let mut buffer = vec![0; 128 << 10];
        let len = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap();
        buffer.truncate(len);
        buffer
    }

    #[test]
    fn a_rehearsed_daemon_serves_and_leaves_nothing() {
        let mut daemon = Rehearsal::new(Limits::default());
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        daemon.serve(theirs);
        let welcome = ask(&ours, &mut daemon, &Hello::new("test").encode());
        assert!(matches!(WelcomeOrRefusal::decode(&welcome), Ok(WelcomeOrRefusal::Welcome(_))));
        let body = RequestBody::Create(CreateSegment::new("s", 1 << 20));
        let packet = hshm_proto::encode_request(&Request { id: 7, body }).unwrap();
        let reply = hshm_proto::decode_reply(&ask(&ours, &mut daemon, &packet)).unwrap();
        assert!(matches!(reply, Reply { id: 7, body: Ok(ReplyBody::Created(_)) }), "{reply:?}");
        assert_eq!(daemon.ownership("s").unwrap().mode, 0o600);
        // Half a minute passes at once: nobody is waited for.
        daemon.pass(Duration::from_secs(30));
        drop(UnixStream::from(ours));
        daemon.finish(&[4_000_001]);
    }
}
