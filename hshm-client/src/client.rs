//! Requests to the daemon.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use hshm_memory::backend::Obtained;
use hshm_memory::gpu::pool::PoolReport;
use hshm_memory::report::WorkerReport;
use hshm_memory::{BackendOptions, CheckReport, HeapReport, RepairReport};
use hshm_proto::{
    CreateSegment, DeviceMemoryInfo, DriverStatus, ErrorCode, ErrorReply, ReplyBody, RequestBody,
    SegmentDevice, SegmentInfo, SessionInfo, StatusInfo, validate_client_name,
};

use crate::allocator::SegmentAllocator;
use crate::connection::{Answer, Connection, Failure};
use crate::error::Error;
use crate::events::Events;
use crate::read_only::ReadOnlySegment;
use crate::segment::{DeviceChoice, Segment};
use crate::target::Target;

/// A line to the daemon. Cheap to clone; all clones share one connection.
///
/// Requests of several threads wait for one another. When the daemon was restarted, the next request
/// opens a new connection. A child of `fork` gets a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    target: Target,
    timeout: Duration,
    name: String,
    /// The state of the process that made the client; those of its forked children hang on it.
    first: ProcessState,
}

/// What belongs to one process. A child of `fork` must not use its parent's connection, whose
/// replies both would read, nor even wait for its lock, which a thread that was not forked along may
/// hold. So it appends a state of its own.
#[derive(Debug)]
struct ProcessState {
    pid: u32,
    link: Mutex<Link>,
    next: OnceLock<Box<ProcessState>>,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    /// How often each segment is attached by this process.
    attached: BTreeMap<String, usize>,
}

impl ProcessState {
    fn new() -> Self {
        Self { pid: process::id(), link: Mutex::default(), next: OnceLock::new() }
    }
}

/// How a [`Client`] is to reach the daemon.
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    socket: Option<PathBuf>,
    timeout: Duration,
    name: Option<String>,
}

/// A segment seen from the daemon.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// How the lists show it.
    pub segment: SegmentInfo,
    /// Its heap, with all workers.
    pub heap: HeapReport,
}

impl ClientBuilder {
    /// The socket where the daemon listens. Without it: `HSHM_SOCKET` if set, otherwise the user's
    /// own daemon if there is one, otherwise the system's.
    #[must_use]
    pub fn socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket = Some(path.into());
        self
    }

    /// How long to wait for the answer to a request; 30 seconds if not set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// What the daemon's lists and logs call this process; the name of its executable if not set.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Error::NoDaemon`], [`Error::SocketPermission`], [`Error::BadSocket`], [`Error::Version`],
    /// [`Error::Timeout`], or a reason that the daemon gives.
    pub fn connect(self) -> Result<Client, Error> {
        let inner = self.inner()?;
        let connection = inner.open()?;
        inner.lock().connection = Some(connection);
        Ok(Client { inner: Arc::new(inner) })
    }

    /// Connects and attaches a segment at once: for a process that is started to use one, it saves the time in
    /// which `connect` waits for the daemon's welcome before [`Client::attach`] asks for more.
    ///
    /// # Errors
    /// As for [`ClientBuilder::connect`] and [`Client::attach`].
    ///
    /// # Examples
    /// ```no_run
    /// # use hshm_client::Client;
    /// let (client, segment) = Client::builder().attach("jobs")?;
    /// let block = segment.allocate(64)?;
    /// # Ok::<(), hshm_client::Error>(())
    /// ```
    pub fn attach(self, name: &str) -> Result<(Client, Segment), Error> {
        let body = RequestBody::Attach { name: name.to_owned() };
        body.validate()?;
        let inner = self.inner()?;
        let reply = inner.exchange_first(&body)?;
        let client = Client { inner: Arc::new(inner) };
        let segment = client.attached(reply, DeviceChoice::default())?;
        Ok((client, segment))
    }

    fn inner(self) -> Result<Inner, Error> {
        let name = self.name.unwrap_or_else(executable_name);
        validate_client_name(&name)?;
        let target = self.socket.map_or_else(Target::from_environment, Target::at);
        Ok(Inner { target, timeout: self.timeout, name, first: ProcessState::new() })
    }
}

impl Client {
    /// Connects to the daemon at `HSHM_SOCKET` if set, otherwise to the user's own daemon if there
    /// is one, otherwise to the system's.
    ///
    /// # Errors
    /// See [`ClientBuilder::connect`].
    pub fn connect() -> Result<Self, Error> {
        Self::builder().connect()
    }

    /// A client that is to be set up differently.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder { socket: None, timeout: Duration::from_secs(30), name: None }
    }

    /// Makes a segment with an allocator in it.
    ///
    /// # Errors
    /// [`Error::Daemon`] if the name is taken or cannot be one, an option is out of its range, a
    /// quota would be exceeded or there is not enough memory; or what can befall any request:
    /// [`Error::NoDaemon`], [`Error::Timeout`], [`Error::Disconnected`].
    pub fn create(&self, options: &CreateSegment) -> Result<SegmentInfo, Error> {
        let reply = self.inner.request(RequestBody::Create(options.clone()))?;
        let ReplyBody::Created(segment) = reply else { return Err(unexpected("create")) };
        Ok(segment)
    }

    /// The same, with options for how its memory is to be had: in huge pages, from which nodes of the
    /// machine, populated at once, and kept from being swapped out. The daemon applies them, and holds
    /// the lock.
    ///
    /// # Errors
    /// As for [`Client::create`]; [`Error::Daemon`] too if an option cannot be had, or this user may
    /// not have memory locked.
    pub fn create_with(
        &self,
        options: &CreateSegment,
        memory: &BackendOptions,
    ) -> Result<SegmentInfo, Error> {
        let (segment, memory) = (options.clone(), memory.clone());
        let reply = self.inner.request(RequestBody::CreateWith { segment, memory })?;
        let ReplyBody::Created(segment) = reply else { return Err(unexpected("create")) };
        Ok(segment)
    }

    /// How a segment's memory was had, as the kernel says of the daemon's mapping: huge pages count as
    /// far as the daemon itself used them.
    ///
    /// # Errors
    /// As for [`Client::inspect`].
    pub fn memory(&self, name: &str) -> Result<Obtained, Error> {
        let reply = self.inner.request(RequestBody::Memory { name: name.to_owned() })?;
        let ReplyBody::Memory(obtained) = reply else { return Err(unexpected("inspect")) };
        Ok(obtained)
    }

    /// Maps a segment into this process. It is let go of when the last clone of the result is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Daemon`] if there is no such segment or this user may not use it;
    /// [`Error::Segment`] if what stands in it is not usable, or another allocator, or if it is for
    /// devices, and there is a driver, which refuses it (see [`DeviceChoice`]); or as for any
    /// request.
    pub fn attach(&self, name: &str) -> Result<Segment, Error> {
        self.attach_with(name, DeviceChoice::default())
    }

    /// The same for a segment with an allocator of another kind:
    /// `attach_as::<ScalablePageAllocator>(name)`.
    ///
    /// # Errors
    /// As [`Client::attach`].
    pub fn attach_as<A: SegmentAllocator>(&self, name: &str) -> Result<Segment<A>, Error> {
        self.attach_with(name, DeviceChoice::default())
    }

    /// The same, with a say in which device a segment of the backend `cuda-shm` or `rocm-shm` is
    /// registered for. For the other backends it means nothing.
    ///
    /// # Errors
    /// As [`Client::attach`]; [`Error::Segment`] with the driver's reason if it does not register
    /// the segment.
    pub fn attach_with<A: SegmentAllocator>(
        &self,
        name: &str,
        device: DeviceChoice,
    ) -> Result<Segment<A>, Error> {
        let body = RequestBody::Attach { name: name.to_owned() };
        self.attached(self.inner.exchange(&body)?, device)
    }

    /// Opens what the daemon handed over.
    fn attached<A: SegmentAllocator>(
        &self,
        reply: (ReplyBody, Option<OwnedFd>),
        device: DeviceChoice,
    ) -> Result<Segment<A>, Error> {
        let (ReplyBody::Attached(descriptor), Some(file)) = reply else {
            return Err(unexpected("attach"));
        };
        let mut link = self.inner.lock();
        *link.attached.entry(descriptor.name.clone()).or_default() += 1;
        let counts_alike = link.connection.as_ref().is_some_and(Connection::counts_alike);
        drop(link);
        Segment::open(Arc::clone(&self.inner), descriptor, file, device, counts_alike)
    }

    /// Maps a segment into this process for reading alone, which permission to read suffices for: the kernel
    /// lets nobody write through it.
    ///
    /// # Errors
    /// As [`Client::attach`]; [`Error::Daemon`] with [`ErrorCode::Unsupported`](crate::ErrorCode::Unsupported)
    /// if the daemon is of a release that cannot do this.
    pub fn attach_read_only(&self, name: &str) -> Result<ReadOnlySegment, Error> {
        let body = RequestBody::AttachReadOnly { name: name.to_owned() };
        let (ReplyBody::Attached(descriptor), Some(file)) = self.inner.exchange(&body)? else {
            return Err(unexpected("attach"));
        };
        *self.inner.lock().attached.entry(descriptor.name.clone()).or_default() += 1;
        ReadOnlySegment::open(Arc::clone(&self.inner), descriptor, file)
    }

    /// Unlinks a segment. Processes that have it attached keep its memory until they let go of it.
    ///
    /// # Errors
    /// [`Error::Daemon`] with [`ErrorCode::InUse`](crate::ErrorCode::InUse) if living processes
    /// hold worker slots of it and `force` is not set, or if there is no such segment or this user
    /// may not destroy it; or as for any request.
    pub fn destroy(&self, name: &str, force: bool) -> Result<(), Error> {
        self.inner.expect_done(RequestBody::Destroy { name: name.to_owned(), force })
    }

    /// Makes a segment at least `size_bytes` long, for all who have it attached, and returns its
    /// length.
    ///
    /// # Errors
    /// [`Error::Daemon`] if there is no such segment, this user may not grow it, or the size is
    /// beyond its capacity, a quota or the machine's memory; or as for any request.
    pub fn grow(&self, name: &str, size_bytes: u64) -> Result<u64, Error> {
        let reply = self.inner.request(RequestBody::Grow { name: name.to_owned(), size_bytes })?;
        let ReplyBody::Grown { committed_bytes } = reply else { return Err(unexpected("grow")) };
        Ok(committed_bytes)
    }

    /// The segments that this user may see, by ascending name.
    ///
    /// # Errors
    /// As for any request.
    pub fn list(&self) -> Result<Vec<SegmentInfo>, Error> {
        let mut all: Vec<SegmentInfo> = Vec::new();
        loop {
            let after = all.last().map(|segment| segment.name.clone());
            let reply = self.inner.request(RequestBody::List { after })?;
            let ReplyBody::Segments { segments, more } = reply else {
                return Err(unexpected("list"));
            };
            let go_on = more && !segments.is_empty();
            all.extend(segments);
            if !go_on {
                return Ok(all);
            }
        }
    }

    /// A segment's geometry and heap.
    ///
    /// # Errors
    /// [`Error::Daemon`] if there is no such segment, this user may not see it, or it is unusable;
    /// or as for any request.
    pub fn inspect(&self, name: &str) -> Result<Inspection, Error> {
        let mut workers: Vec<WorkerReport> = Vec::new();
        loop {
            let after_slot = workers.last().map_or(0, |worker| worker.slot);
            let body = RequestBody::Inspect { name: name.to_owned(), after_slot };
            let reply = self.inner.request(body)?;
            let ReplyBody::Inspected(page) = reply else { return Err(unexpected("inspect")) };
            let go_on = page.more_workers && !page.workers.is_empty();
            workers.extend(page.workers);
            if !go_on {
                let heap = HeapReport { workers, ..page.heap };
                return Ok(Inspection { segment: page.segment, heap });
            }
        }
    }

    /// Walks a segment's whole heap and asserts its invariants. While others allocate, what they do
    /// meanwhile may show as violations.
    ///
    /// # Errors
    /// As for [`Client::inspect`].
    pub fn check(&self, name: &str) -> Result<CheckReport, Error> {
        let reply = self.inner.request(RequestBody::Check { name: name.to_owned() })?;
        let ReplyBody::Checked(report) = reply else { return Err(unexpected("check")) };
        Ok(report)
    }

    /// Repairs a segment that nobody uses, as far as can be told what is right; what cannot be told is
    /// in [`RepairReport::remaining`]. A segment that was unusable for its broken heap is in use again
    /// if nothing remains.
    ///
    /// # Errors
    /// [`Error::Daemon`] with [`ErrorCode::InUse`](crate::ErrorCode::InUse) if living processes use
    /// it, or if there is no such segment, this user may not manage it, or its header is broken too; or
    /// as for any request.
    pub fn repair(&self, name: &str) -> Result<RepairReport, Error> {
        let reply = self.inner.request(RequestBody::Repair { name: name.to_owned() })?;
        let ReplyBody::Repaired(report) = reply else { return Err(unexpected("repair")) };
        Ok(report)
    }

    /// The processes that the daemon knows.
    ///
    /// # Errors
    /// As for any request.
    pub fn sessions(&self) -> Result<Vec<SessionInfo>, Error> {
        let mut all: Vec<SessionInfo> = Vec::new();
        loop {
            let after = all.last().map(|session| session.session);
            let reply = self.inner.request(RequestBody::Sessions { after })?;
            let ReplyBody::Sessions { sessions, more } = reply else {
                return Err(unexpected("sessions"));
            };
            let go_on = more && !sessions.is_empty();
            all.extend(sessions);
            if !go_on {
                return Ok(all);
            }
        }
    }

    /// The drivers of graphics processors that the daemon finds, one answer for each vendor.
    ///
    /// # Errors
    /// As for any request.
    pub fn drivers(&self) -> Result<Vec<DriverStatus>, Error> {
        let reply = self.inner.request(RequestBody::Drivers)?;
        let ReplyBody::Drivers(drivers) = reply else { return Err(unexpected("drivers")) };
        Ok(drivers)
    }

    /// Whether a driver takes a segment that is for devices: the daemon tries it, for a moment.
    ///
    /// # Errors
    /// As for [`Client::inspect`], and if the segment is not for devices.
    pub fn device(&self, name: &str) -> Result<SegmentDevice, Error> {
        let reply = self.inner.request(RequestBody::Device { name: name.to_owned() })?;
        let ReplyBody::Device(device) = reply else { return Err(unexpected("device")) };
        Ok(device)
    }

    /// Has the daemon take memory of a device's own for a segment of the backend `cuda-shm` or `rocm-shm`. Its
    /// users map it with [`Segment::device_part`].
    ///
    /// # Errors
    /// [`Error::Daemon`] if the segment is not for devices or not of the thread-local allocator, has such memory
    /// already or no room for its tables, this user may not manage it, or the driver refuses; or as for any request.
    pub fn add_device_memory(
        &self,
        name: &str,
        device: u32,
        bytes: u64,
    ) -> Result<DeviceMemoryInfo, Error> {
        let body = RequestBody::AddDeviceMemory { name: name.to_owned(), device, bytes };
        let (ReplyBody::DeviceMemory(info), _) = self.inner.exchange(&body)? else {
            return Err(unexpected("add device memory to"));
        };
        Ok(info)
    }

    /// The memory of a device's own that a segment has, if it has some, and how much of it is in use.
    ///
    /// # Errors
    /// As for [`Client::inspect`].
    pub fn device_pool(&self, name: &str) -> Result<Option<(DeviceMemoryInfo, PoolReport)>, Error> {
        let reply = self.inner.request(RequestBody::DevicePool { name: name.to_owned() })?;
        let ReplyBody::DevicePool(found) = reply else { return Err(unexpected("inspect")) };
        Ok(found)
    }

    /// What happens from now on to the segments that this user may see, or to the one of a name, which
    /// need not exist yet. It takes a session of its own.
    ///
    /// # Errors
    /// [`Error::Daemon`] if the name cannot be one; or as for any request.
    pub fn events(&self, name: Option<&str>) -> Result<Events, Error> {
        let Inner { target, timeout, name: called, .. } = &*self.inner;
        let first = ProcessState::new();
        let (target, called) = (target.clone(), called.clone());
        let inner = Inner { target, timeout: *timeout, name: called, first };
        Events::begin(Self { inner: Arc::new(inner) }, name)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    pub(crate) fn request(&self, body: RequestBody) -> Result<ReplyBody, Error> {
        self.inner.request(body)
    }

    /// The daemon itself.
    ///
    /// # Errors
    /// As for any request.
    pub fn status(&self) -> Result<StatusInfo, Error> {
        let reply = self.inner.request(RequestBody::Status)?;
        let ReplyBody::Status(status) = reply else { return Err(unexpected("status")) };
        Ok(status)
    }

    /// Whether the daemon answers.
    ///
    /// # Errors
    /// As for any request.
    pub fn ping(&self) -> Result<(), Error> {
        self.inner.expect_done(RequestBody::Ping)
    }
}

impl Inner {
    /// This process's state.
    fn state(&self) -> &ProcessState {
        let pid = process::id();
        let mut state = &self.first;
        while state.pid != pid {
            // The parent's. This copy of its socket would keep the session's connection open after
            // the parent's death; if the lock is free, so is the way to close it.
            if let Ok(mut link) = state.link.try_lock() {
                link.connection = None;
            }
            state = state.next.get_or_init(|| Box::new(ProcessState::new()));
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        // A panic while the lock was held left no connection: it is taken out during a request.
        self.state().link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the first daemon there is.
    fn open(&self) -> Result<Connection, Error> {
        self.open_asking(None).map(|(connection, _)| connection)
    }

    /// The same with a first request, as [`Connection::open_asking`].
    fn open_asking(&self, first: Option<&RequestBody>) -> Result<(Connection, Option<u64>), Error> {
        for socket in self.target.sockets() {
            self.target.require_trusted(socket)?;
            let opened = Connection::open_asking(socket, &self.name, first, self.timeout)?;
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
        Err(Error::NoDaemon { sockets: self.target.sockets().to_vec() })
    }

    /// Connects with a first request, which must be idempotent.
    fn exchange_first(&self, body: &RequestBody) -> Result<(ReplyBody, Option<OwnedFd>), Error> {
        let (mut connection, asked) = self.open_asking(Some(body))?;
        let answer = match asked {
            Some(id) => connection.answer(body.verb(), id, self.timeout),
            None => Err(Failure::NotSent),
        };
        match answer {
            Ok((Err(reply), _)) if is_too_late(&reply) => self.exchange(body),
            Ok((reply, file)) => {
                self.lock().connection = Some(connection);
                Ok((reply?, file))
            }
            Err(Failure::Final(error)) => Err(error),
            // It went away meanwhile; the next one is asked.
            Err(Failure::NotSent | Failure::Lost) => self.exchange(body),
        }
    }

    /// A connection in the place of one that broke. The daemon is told again what this session
    /// uses; a segment that is gone by now is no reason to fail.
    fn reopen(&self, link: &Link) -> Result<Connection, Error> {
        let mut connection = self.open()?;
        for name in link.attached.keys() {
            // Who may not write has it for reading.
            let bodies = [
                RequestBody::Attach { name: name.clone() },
                RequestBody::AttachReadOnly { name: name.clone() },
            ];
            for body in bodies {
                match connection.call(&body, self.timeout) {
                    Ok((Ok(_), _)) => break,
                    Ok((Err(_), _)) => {}
                    Err(_) => return self.open(),
                }
            }
        }
        Ok(connection)
    }

    fn request(&self, body: RequestBody) -> Result<ReplyBody, Error> {
        self.exchange(&body).map(|(reply, _)| reply)
    }

    fn expect_done(&self, body: RequestBody) -> Result<(), Error> {
        let verb = body.verb();
        let ReplyBody::Done = self.request(body)? else { return Err(unexpected(verb)) };
        Ok(())
    }

    /// Sends a request, over a new connection if the old one broke.
    fn exchange(&self, body: &RequestBody) -> Result<(ReplyBody, Option<OwnedFd>), Error> {
        body.validate()?;
        let mut link = self.lock();
        let mut may_reconnect = link.connection.is_some();
        let mut is_refused = false;
        loop {
            let mut connection = match link.connection.take() {
                Some(connection) => connection,
                None => self.reopen(&link)?,
            };
            let lost = match connection.call(body, self.timeout) {
                // Its successor is asked, if there is one.
                Ok((Err(reply), _)) if !is_refused && is_too_late(&reply) => {
                    is_refused = true;
                    continue;
                }
                Ok(answer) => {
                    link.connection = Some(connection);
                    let (reply, file): Answer = answer;
                    return Ok((reply?, file));
                }
                // The connection goes with the error: a late reply on it would answer nothing.
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::NotSent) => false,
                Err(Failure::Lost) => true,
            };
            if !may_reconnect || (lost && !is_idempotent(body)) {
                return Err(Error::Disconnected { verb: body.verb() });
            }
            may_reconnect = false;
        }
    }

    /// The memory of a device's own that a segment has.
    pub(crate) fn device_memory(&self, name: &str) -> Result<(DeviceMemoryInfo, OwnedFd), Error> {
        let reply = self.exchange(&RequestBody::DeviceMemory { name: name.to_owned() })?;
        let (ReplyBody::DeviceMemory(info), Some(file)) = reply else {
            return Err(unexpected("attach device memory of"));
        };
        Ok((info, file))
    }

    /// Counts one attachment less, and tells the daemon when it was the last. A daemon that is gone
    /// needs not be told: what this session attached ended with the session, and the next one, of a daemon
    /// started meanwhile, has not attached it.
    pub(crate) fn detach(&self, name: &str) -> Result<(), Error> {
        let mut link = self.lock();
        match link.attached.get_mut(name) {
            Some(count) if *count > 1 => {
                *count -= 1;
                return Ok(());
            }
            Some(_) => drop(link.attached.remove(name)),
            None => return Ok(()),
        }
        let Some(mut connection) = link.connection.take() else { return Ok(()) };
        let body = RequestBody::Detach { name: name.to_owned() };
        match connection.call(&body, self.timeout) {
            Ok((Err(reply), _)) if is_too_late(&reply) => Ok(()),
            Ok((reply, _)) => {
                link.connection = Some(connection);
                let ReplyBody::Done = reply? else { return Err(unexpected(body.verb())) };
                Ok(())
            }
            Err(Failure::Final(error)) => Err(error),
            Err(Failure::NotSent | Failure::Lost) => Ok(()),
        }
    }
}

/// Whether a daemon that is about to stop says that it did not do what it was asked for.
fn is_too_late(reply: &ErrorReply) -> bool {
    reply.kind() == Some(ErrorCode::ShuttingDown)
}

/// Whether a request does no more harm when it is carried out twice.
fn is_idempotent(body: &RequestBody) -> bool {
    !matches!(
        body,
        RequestBody::Create(_)
            | RequestBody::CreateWith { .. }
            | RequestBody::Destroy { .. }
            | RequestBody::AddDeviceMemory { .. }
    )
}

pub(crate) fn unexpected(verb: &'static str) -> Error {
    Error::Protocol { verb, why: "it answers another request".into() }
}

fn executable_name() -> String {
    // What it was started as costs no system call.
    let path =
        std::env::args_os().next().map(PathBuf::from).filter(|path| path.file_name().is_some());
    let path = path.unwrap_or_else(|| std::env::current_exe().unwrap_or_default());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let printable: String = name.chars().filter(|c| !c.is_control()).collect();
    hshm_proto::limits::truncated(&printable, hshm_proto::limits::MAX_CLIENT_NAME_BYTES)
}
