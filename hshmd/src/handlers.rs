//! What each request does.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hshm_memory::{AnyAllocator, BackendOptions, CheckReport, ProcessId};
use hshm_proto::limits::{MAX_TEXT_BYTES, SEGMENTS_PER_PAGE, WORKERS_PER_PAGE, truncated};
use hshm_proto::{
    CreateSegment, ErrorCode, ErrorReply, EventKind, HeapPage, ReplyBody, RequestBody, StatusInfo,
    Version, VersionRange,
};
use nix::sys::stat::{Mode, fchmod};
use tracing::{error, info};

use crate::access::Peer;
use crate::daemon::Shared;
use crate::device_memory::DeviceMemory;
use crate::error::{internal_reply, shutting_down};
use crate::events::is_ending;
use crate::gpu;
use crate::segment::{Segment, SharedSegment};

/// A request that looks at all segments is answered on the thread that serves all sessions if there are
/// no more of them, and no more processes that hold worker slots: a walk over sixteen segments' slots and
/// as many files in `/proc` take some hundred microseconds at most.
const FEW_SEGMENTS: usize = 16;
const FEW_HOLDERS: usize = 16;

/// Whoever asks.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) session: u64,
    pub(crate) peer: Peer,
    /// The protocol version that is spoken with it.
    pub(crate) version: Version,
    /// The segment layout that it reads.
    pub(crate) layout_version: u32,
}

/// A reply, with what has the descriptor that goes with it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) body: ReplyBody,
    pub(crate) descriptor_of: Passed,
}

/// What is passed with a reply.
#[derive(Debug)]
pub(crate) enum Passed {
    Nothing,
    Segment(AnyAllocator),
    ReadOnly(OwnedFd),
    DeviceMemory(Arc<DeviceMemory>),
}

impl Passed {
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Nothing => None,
            Self::Segment(allocator) => allocator.backend().fd(),
            Self::ReadOnly(file) => Some(file.as_fd()),
            Self::DeviceMemory(memory) => Some(memory.file.as_fd()),
        }
    }
}

/// Does what `request` asks for.
///
/// # Errors
/// The reply that says why not.
pub(crate) async fn handle(
    shared: &Arc<Shared>,
    caller: &Caller,
    request: RequestBody,
) -> Result<Outcome, ErrorReply> {
    request.validate()?;
    let body = match request {
        RequestBody::Attach { name } => return attach(shared, caller, &name),
        RequestBody::AttachReadOnly { name } => return attach_read_only(shared, caller, &name),
        RequestBody::DeviceMemory { name } => return device_memory(shared, caller, &name),
        RequestBody::AddDeviceMemory { name, device, bytes } => {
            let name_again = name.clone();
            blocking(shared, caller, move |shared, caller| {
                add_device_memory(shared, caller, &name, device, bytes)
            })
            .await?;
            return device_memory(shared, caller, &name_again);
        }
        RequestBody::DevicePool { name } => {
            blocking(shared, caller, move |shared, caller| device_pool(shared, caller, &name))
                .await?
        }
        RequestBody::Detach { name } => detach(shared, caller, &name)?,
        RequestBody::Events { name, after, wait_ms } => {
            let events = &shared.registry.events;
            ReplyBody::Events(events.after(&caller.peer, name.as_deref(), after, wait_ms).await)
        }
        RequestBody::Ping => ReplyBody::Done,
        RequestBody::Sessions { after } => {
            let (sessions, more) = shared.processes.page(after, &caller.peer, caller.version);
            ReplyBody::Sessions { sessions, more }
        }
        RequestBody::Status if has_few_segments(shared) => status(shared),
        RequestBody::Status => blocking(shared, caller, |shared, _| Ok(status(shared))).await?,
        RequestBody::Drivers => {
            blocking(shared, caller, |shared, _| Ok(ReplyBody::Drivers(shared.drivers.all())))
                .await?
        }
        RequestBody::Device { name } => {
            blocking(shared, caller, move |shared, caller| device(shared, caller, &name)).await?
        }
        RequestBody::Create(request) => {
            let memory = BackendOptions::default();
            blocking(shared, caller, move |shared, caller| {
                create(shared, caller, &request, &memory)
            })
            .await?
        }
        RequestBody::CreateWith { segment, memory } => {
            blocking(shared, caller, move |shared, caller| {
                create(shared, caller, &segment, &memory)
            })
            .await?
        }
        RequestBody::Memory { name } => {
            blocking(shared, caller, move |shared, caller| memory(shared, caller, &name)).await?
        }
        RequestBody::Destroy { name, force } => {
            blocking(shared, caller, move |shared, caller| destroy(shared, caller, &name, force))
                .await?
        }
        RequestBody::Grow { name, size_bytes } => {
            blocking(shared, caller, move |shared, caller| grow(shared, caller, &name, size_bytes))
                .await?
        }
        RequestBody::List { after } => match list_few(shared, caller, after.as_deref()) {
            Some(few) => few,
            None => {
                let list = |shared: &Shared, caller: &Caller| Ok(list(shared, caller, after));
                blocking(shared, caller, list).await?
            }
        },
        RequestBody::Inspect { name, after_slot } => {
            blocking(shared, caller, move |shared, caller| {
                inspect(shared, caller, &name, after_slot)
            })
            .await?
        }
        RequestBody::Check { name } => {
            blocking(shared, caller, move |shared, caller| check(shared, caller, &name)).await?
        }
        RequestBody::Repair { name } => {
            blocking(shared, caller, move |shared, caller| repair(shared, caller, &name)).await?
        }
    };
    Ok(Outcome { body, descriptor_of: Passed::Nothing })
}

/// Runs `work` on a thread that may block. Clients together have only so many of them, so that
/// recovery always finds one.
async fn blocking(
    shared: &Arc<Shared>,
    caller: &Caller,
    work: impl FnOnce(&Shared, &Caller) -> Result<ReplyBody, ErrorReply> + Send + 'static,
) -> Result<ReplyBody, ErrorReply> {
    let permit = Arc::clone(&shared.blocking_permits).acquire_owned().await;
    let permit = permit.map_err(|_| shutting_down())?;
    let (shared, caller) = (Arc::clone(shared), caller.clone());
    let task = tokio::task::spawn_blocking(move || {
        let result = work(&shared, &caller);
        drop(permit);
        result
    });
    task.await.unwrap_or_else(|error| {
        error!(%error, "a request failed inside the daemon");
        Err(internal_reply("the request failed inside the daemon"))
    })
}

fn create(
    shared: &Shared,
    caller: &Caller,
    request: &CreateSegment,
    memory: &BackendOptions,
) -> Result<ReplyBody, ErrorReply> {
    caller.peer.require_create(&request.name)?;
    if memory.lock {
        caller.peer.require_lock(&request.name)?;
    }
    let segment = shared.registry.create(request, memory, &caller.peer)?;
    let (name, bytes) = (&segment.record.name, segment.committed_bytes());
    info!(segment = name, bytes, uid = caller.peer.uid, "created");
    Ok(ReplyBody::Created(segment.info(0, Vec::new())))
}

fn destroy(
    shared: &Shared,
    caller: &Caller,
    name: &str,
    force: bool,
) -> Result<ReplyBody, ErrorReply> {
    let (_, attached) = shared.processes.attached(name);
    shared.registry.destroy(name, force, &caller.peer, &attached)?;
    shared.processes.forget_segment(name);
    shared.device_memories.forget(name, &shared.registry.manager);
    info!(segment = name, force, uid = caller.peer.uid, "destroyed");
    Ok(ReplyBody::Done)
}

fn grow(
    shared: &Shared,
    caller: &Caller,
    name: &str,
    size_bytes: u64,
) -> Result<ReplyBody, ErrorReply> {
    let committed_bytes = shared.registry.grow(name, size_bytes, &caller.peer)?;
    info!(segment = name, bytes = committed_bytes, uid = caller.peer.uid, "grown");
    Ok(ReplyBody::Grown { committed_bytes })
}

/// Whether looking at all segments is so little work that handing it to another thread would take
/// longer.
fn has_few_segments(shared: &Shared) -> bool {
    shared.registry.count() <= FEW_SEGMENTS
}

/// The list at once, if it is little work: as [`has_few_segments`], and few processes to be looked for
/// in `/proc`.
fn list_few(shared: &Shared, caller: &Caller, after: Option<&str>) -> Option<ReplyBody> {
    if !has_few_segments(shared) {
        return None;
    }
    let (segments, more) = page_of_segments(shared, caller, after);
    let holders: Vec<_> = segments.iter().map(|segment| segment.holders()).collect();
    if holders.iter().map(Vec::len).sum::<usize>() > FEW_HOLDERS {
        return None;
    }
    let infos = segments.iter().zip(holders);
    let segments = infos.map(|(found, holders)| info_of(shared, found, holders)).collect();
    Some(ReplyBody::Segments { segments, more })
}

fn list(shared: &Shared, caller: &Caller, after: Option<String>) -> ReplyBody {
    let (segments, more) = page_of_segments(shared, caller, after.as_deref());
    let segments = segments.iter().map(|found| info_of(shared, found, found.holders())).collect();
    ReplyBody::Segments { segments, more }
}

/// Segments that the caller may see, as many as fit a page, and whether there are more.
fn page_of_segments(
    shared: &Shared,
    caller: &Caller,
    after: Option<&str>,
) -> (Vec<SharedSegment>, bool) {
    let mut segments = shared.registry.all();
    segments.retain(|segment| {
        let beyond = after.is_none_or(|after| *segment.record.name > *after);
        beyond && caller.peer.may_see(&segment.record)
    });
    let more = segments.len() > SEGMENTS_PER_PAGE;
    segments.truncate(SEGMENTS_PER_PAGE);
    (segments, more)
}

fn check(shared: &Shared, caller: &Caller, name: &str) -> Result<ReplyBody, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "check", &segment)?;
    let mut report = segment.allocator("check")?.check();
    shared.device_memories.check(&segment, &mut report)?;
    report.violations.truncate(CheckReport::MAX_VIOLATIONS);
    for violation in &mut report.violations {
        violation.what = truncated(&violation.what, MAX_TEXT_BYTES);
    }
    Ok(ReplyBody::Checked(report))
}

fn memory(shared: &Shared, caller: &Caller, name: &str) -> Result<ReplyBody, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "inspect", &segment)?;
    let obtained = segment.allocator("inspect")?.backend().obtained();
    obtained.map(ReplyBody::Memory).map_err(internal_reply)
}

fn repair(shared: &Shared, caller: &Caller, name: &str) -> Result<ReplyBody, ErrorReply> {
    let (_, attached) = shared.processes.attached(name);
    let report = shared.registry.repair(name, &caller.peer, &attached)?;
    let (changed, remaining) = (report.is_changed(), report.remaining.violations_total);
    info!(segment = name, changed, remaining, uid = caller.peer.uid, "repaired");
    Ok(ReplyBody::Repaired(report))
}

fn info_of(shared: &Shared, segment: &Segment, holders: Vec<ProcessId>) -> hshm_proto::SegmentInfo {
    segment.info(shared.processes.attached(&segment.record.name).0, holders)
}

fn require_attach(peer: &Peer, verb: &str, segment: &Segment) -> Result<(), ErrorReply> {
    if peer.may_attach(&segment.record) { Ok(()) } else { Err(peer.refusal(verb, &segment.record)) }
}

/// The caller's process. Without it nobody could tell when the slots it claims are a dead one's.
fn identity(caller: &Caller) -> Result<ProcessId, ErrorReply> {
    caller.peer.process.ok_or_else(|| {
        ErrorReply::new(
            ErrorCode::Permission,
            "cannot attach: the daemon cannot see your process, because it runs in another pid namespace or /proc hides it",
            "run the client in the daemon's pid namespace (docker run --pid), or the daemon in one that contains it",
        )
    })
}

fn attach(shared: &Shared, caller: &Caller, name: &str) -> Result<Outcome, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "attach", &segment)?;
    let allocator = segment.allocator("attach")?;
    let identity = identity(caller)?;
    require_layout(caller, name)?;
    note_attached(shared, caller, &segment, identity);
    hshm_memory::crash_point!("daemon.attached");
    Ok(Outcome {
        body: ReplyBody::Attached(segment.descriptor(allocator, identity)),
        descriptor_of: Passed::Segment(allocator.clone()),
    })
}

/// The same without permission to write, and without worker slots: it need not be known whose they would
/// be.
fn attach_read_only(shared: &Shared, caller: &Caller, name: &str) -> Result<Outcome, ErrorReply> {
    let segment = shared.registry.get(name)?;
    if !caller.peer.may_read(&segment.record) {
        return Err(caller.peer.refusal("read", &segment.record));
    }
    let allocator = segment.allocator("attach")?;
    require_layout(caller, name)?;
    let file = read_only_file(allocator).map_err(|error| {
        internal_reply(format_args!("cannot open segment {name:?} for reading: {error}"))
    })?;
    let identity = caller.peer.process.unwrap_or_default();
    note_attached(shared, caller, &segment, identity);
    Ok(Outcome {
        body: ReplyBody::Attached(segment.descriptor(allocator, identity)),
        descriptor_of: Passed::ReadOnly(file),
    })
}

/// The segment's file, open for reading alone. Who gets it could open it anew, for writing, by its entry in
/// `/proc`, if its permissions let them; a memory file is born with all of them. Who has it open for
/// writing already does not need any.
fn read_only_file(allocator: &AnyAllocator) -> io::Result<OwnedFd> {
    let file = allocator.backend().fd().ok_or(io::ErrorKind::Unsupported)?;
    fchmod(file, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

fn require_layout(caller: &Caller, name: &str) -> Result<(), ErrorReply> {
    if caller.layout_version != hshm_proto::LAYOUT_VERSION {
        let (ours, theirs) = (hshm_proto::LAYOUT_VERSION, caller.layout_version);
        let older = if theirs < ours { "the client" } else { "hshmd" };
        return Err(ErrorReply::new(
            ErrorCode::Layout,
            format_args!(
                "cannot attach segment {name:?}: it has layout version {ours}, and the client reads version {theirs}"
            ),
            format_args!("upgrade {older}, so that both are of the same hshm release"),
        ));
    }
    Ok(())
}

fn note_attached(shared: &Shared, caller: &Caller, segment: &Segment, process: ProcessId) {
    if shared.processes.attach(caller.session, &segment.record.name) {
        let attached = EventKind::Attached { session: caller.session, process };
        shared.registry.events.publish(&segment.record, attached);
    }
}

fn detach(shared: &Shared, caller: &Caller, name: &str) -> Result<ReplyBody, ErrorReply> {
    if shared.processes.detach(caller.session, name) {
        detached(shared, caller, name);
        return Ok(ReplyBody::Done);
    }
    shared.registry.get(name)?;
    Err(ErrorReply::new(
        ErrorCode::NotFound,
        format_args!("this session has not attached segment {name:?}"),
        "",
    ))
}

fn detached(shared: &Shared, caller: &Caller, name: &str) {
    // One that is gone meanwhile is told of as such.
    if let Ok(segment) = shared.registry.get(name) {
        let (session, process) = (caller.session, caller.peer.process.unwrap_or_default());
        let detached = EventKind::Detached { session, process };
        shared.registry.events.publish(&segment.record, detached);
    }
}

/// A session ended: it has nothing attached any more. If its process dies, that is what is told.
pub(crate) fn forget_session(shared: &Shared, caller: &Caller) {
    let attached = shared.processes.end(caller.session);
    if attached.is_empty() {
        return;
    }
    match caller.peer.process.filter(|process| is_ending(*process)) {
        Some(process) => shared.processes.leave(process, attached),
        None => attached.iter().for_each(|name| detached(shared, caller, name)),
    }
}

fn inspect(
    shared: &Shared,
    caller: &Caller,
    name: &str,
    after_slot: u32,
) -> Result<ReplyBody, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "inspect", &segment)?;
    let mut heap = segment.allocator("inspect")?.report();
    let mut workers = std::mem::take(&mut heap.workers);
    workers.retain(|worker| worker.slot > after_slot);
    workers.sort_by_key(|worker| worker.slot);
    let more_workers = workers.len() > WORKERS_PER_PAGE;
    workers.truncate(WORKERS_PER_PAGE);
    let segment = info_of(shared, &segment, segment.holders());
    Ok(ReplyBody::Inspected(Box::new(HeapPage { segment, heap, workers, more_workers })))
}

fn device(shared: &Shared, caller: &Caller, name: &str) -> Result<ReplyBody, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "inspect", &segment)?;
    let record = &segment.record;
    let (Some(vendor), Some(object)) = (record.backend.vendor(), &record.object) else {
        return Err(ErrorReply::new(
            ErrorCode::BadArgument,
            format_args!(
                "segment {name:?} is of {}, whose memory is not for devices",
                record.backend
            ),
            "create one with the backend cuda-shm or rocm-shm",
        ));
    };
    Ok(ReplyBody::Device(gpu::try_segment(vendor, object)))
}

fn add_device_memory(
    shared: &Shared,
    caller: &Caller,
    name: &str,
    device: u32,
    bytes: u64,
) -> Result<ReplyBody, ErrorReply> {
    let segment = shared.registry.get(name)?;
    let peer = &caller.peer;
    let added = shared.device_memories.add(&shared.registry, &segment, peer, device, bytes)?;
    let bytes = added.info.bytes;
    info!(segment = name, bytes, device, uid = peer.uid, "device memory added");
    Ok(ReplyBody::Done)
}

fn device_memory(shared: &Shared, caller: &Caller, name: &str) -> Result<Outcome, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "attach", &segment)?;
    let memory = shared.device_memories.require(&segment)?;
    let body = ReplyBody::DeviceMemory(memory.info);
    Ok(Outcome { body, descriptor_of: Passed::DeviceMemory(memory) })
}

fn device_pool(shared: &Shared, caller: &Caller, name: &str) -> Result<ReplyBody, ErrorReply> {
    let segment = shared.registry.get(name)?;
    require_attach(&caller.peer, "inspect", &segment)?;
    Ok(ReplyBody::DevicePool(shared.device_memories.pool(&segment)?))
}

fn status(shared: &Shared) -> ReplyBody {
    let (usage, counts) = (shared.registry.usage(), shared.processes.counts());
    let unusable =
        shared.registry.all().iter().filter(|segment| segment.usable().is_none()).count();
    ReplyBody::Status(StatusInfo {
        server_version: crate::daemon::VERSION.to_owned(),
        protocol_min: VersionRange::SUPPORTED.min,
        protocol_max: VersionRange::SUPPORTED.max,
        layout_version: hshm_proto::LAYOUT_VERSION,
        pid: std::process::id(),
        uid: nix::unistd::geteuid().as_raw(),
        socket: shared.config.socket.clone(),
        state_dir: shared.config.state_dir.clone(),
        uptime_ms: u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        segments: usage.segments,
        unusable_segments: u64::try_from(unusable).unwrap_or(u64::MAX),
        committed_bytes: usage.bytes,
        connections: counts.connections,
        watched_processes: counts.watched,
        recovered_processes: counts.recovered_processes,
        recovered_slots: counts.recovered_slots,
    })
}
