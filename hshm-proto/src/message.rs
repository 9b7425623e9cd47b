//! Requests and replies.
//!
//! Within one protocol version the order of an enum's variants and of a struct's fields is part of
//! the encoding. Whoever changes either raises [`VersionRange::SUPPORTED`](crate::VersionRange).

use std::path::PathBuf;

use hshm_memory::backend::Obtained;
use hshm_memory::gpu::pool::PoolReport;
use hshm_memory::gpu::{DriverInfo, GpuVendor};
use hshm_memory::report::WorkerReport;
use hshm_memory::{
    AllocatorId, AllocatorKind, BackendKind, BackendOptions, CheckReport, HeapReport,
    OffsetPointer, OnExit, ProcessId, RepairReport,
};
use serde::{Deserialize, Serialize};

use crate::error::ErrorReply;
use crate::event::{EventCursor, EventPage};
use crate::handshake::Version;

/// A request packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Chosen by the client and repeated in the reply.
    pub id: u64,
    /// What is asked for.
    pub body: RequestBody,
}

/// A reply packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// That of the request it answers; 0 if the request was too short to have one.
    pub id: u64,
    /// What was asked for, or why not.
    pub body: Result<ReplyBody, ErrorReply>,
}

/// What a client can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RequestBody {
    /// Whether anybody is there. Answered by [`ReplyBody::Done`].
    Ping,
    /// The daemon itself. Answered by [`ReplyBody::Status`].
    Status,
    /// Make a segment with an allocator in it. Answered by [`ReplyBody::Created`].
    Create(CreateSegment),
    /// Hand over a segment. Answered by [`ReplyBody::Attached`], with one file descriptor.
    Attach {
        /// The segment.
        name: String,
    },
    /// This session does not use the segment any more. Answered by [`ReplyBody::Done`].
    Detach {
        /// The segment.
        name: String,
    },
    /// Unlink a segment. Processes that have it mapped keep its memory until they let go of it.
    /// Answered by [`ReplyBody::Done`].
    Destroy {
        /// The segment.
        name: String,
        /// Even if living processes hold worker slots of it.
        force: bool,
    },
    /// Make a segment's committed length at least `size_bytes`. Answered by [`ReplyBody::Grown`].
    Grow {
        /// The segment.
        name: String,
        /// The committed length to reach, in bytes, the segment's own tables included; rounded up
        /// to whole units.
        size_bytes: u64,
    },
    /// Segments that the caller may see, by ascending name. Answered by [`ReplyBody::Segments`].
    List {
        /// Begin after this name: the last one of the page before.
        after: Option<String>,
    },
    /// A segment's geometry and heap. Answered by [`ReplyBody::Inspected`].
    Inspect {
        /// The segment.
        name: String,
        /// Begin the list of workers after this slot: the last one of the page before, or 0.
        after_slot: u32,
    },
    /// Walk the whole heap and assert its invariants. Answered by [`ReplyBody::Checked`].
    Check {
        /// The segment.
        name: String,
    },
    /// The processes that the daemon knows. Answered by [`ReplyBody::Sessions`].
    Sessions {
        /// Begin after this session: the last one of the page before.
        after: Option<u64>,
    },
    /// Repair a segment that nobody uses, as far as can be told what is right. Answered by
    /// [`ReplyBody::Repaired`].
    Repair {
        /// The segment.
        name: String,
    },
    /// Make a segment whose memory is to be had in a certain way. Answered by
    /// [`ReplyBody::Created`].
    CreateWith {
        /// The segment.
        segment: CreateSegment,
        /// How its memory is to be had.
        memory: BackendOptions,
    },
    /// How a segment's memory was had. Answered by [`ReplyBody::Memory`].
    Memory {
        /// The segment.
        name: String,
    },
    /// The drivers of graphics processors that the daemon finds. Answered by [`ReplyBody::Drivers`].
    Drivers,
    /// Whether a driver takes a segment that is for devices. Answered by [`ReplyBody::Device`].
    Device {
        /// The segment.
        name: String,
    },
    /// Have memory of a device's own beside a segment that is for devices. Answered by
    /// [`ReplyBody::DeviceMemory`], with one file descriptor.
    AddDeviceMemory {
        /// The segment.
        name: String,
        /// The device, as its driver counts them.
        device: u32,
        /// How much, in bytes, to be rounded up to what the driver divides memory into.
        bytes: u64,
    },
    /// Hand over the memory of a device's own that a segment has. Answered by [`ReplyBody::DeviceMemory`], with
    /// one file descriptor.
    DeviceMemory {
        /// The segment.
        name: String,
    },
    /// How much of it is in use. Answered by [`ReplyBody::DevicePool`].
    DevicePool {
        /// The segment.
        name: String,
    },
    /// What happened to segments that the caller may see. Answered by [`ReplyBody::Events`]: as soon as
    /// there is something to tell, or empty when the time is over.
    Events {
        /// Of this segment only; it need not exist yet.
        name: Option<String>,
        /// After these. Without a cursor the answer has no events, but the cursor of the last one that
        /// there was, and comes at once.
        after: Option<EventCursor>,
        /// How long to wait for something, in milliseconds; the daemon waits at most
        /// [`MAX_EVENT_WAIT_MS`](crate::limits::MAX_EVENT_WAIT_MS).
        wait_ms: u32,
    },
    /// Hand over a segment for reading alone: a file that cannot be mapped for writing. Answered by
    /// [`ReplyBody::Attached`], with one file descriptor. From version 2 on.
    AttachReadOnly {
        /// The segment.
        name: String,
    },
}

impl RequestBody {
    /// The first version of the protocol that has this request.
    #[must_use]
    pub const fn since(&self) -> Version {
        if matches!(self, Self::AttachReadOnly { .. }) { 2 } else { 1 }
    }

    /// The request's name, for logs and messages.
    #[must_use]
    pub const fn verb(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Status => "status",
            Self::Create(_) | Self::CreateWith { .. } => "create",
            Self::Attach { .. } | Self::AttachReadOnly { .. } => "attach",
            Self::Detach { .. } => "detach",
            Self::Destroy { .. } => "destroy",
            Self::Grow { .. } => "grow",
            Self::List { .. } => "list",
            Self::Inspect { .. } => "inspect",
            Self::Check { .. } => "check",
            Self::Sessions { .. } => "sessions",
            Self::Repair { .. } => "repair",
            Self::Memory { .. } => "inspect",
            Self::Drivers => "drivers",
            Self::Device { .. } => "device",
            Self::AddDeviceMemory { .. } => "add device memory to",
            Self::DeviceMemory { .. } => "attach device memory of",
            Self::DevicePool { .. } => "inspect",
            Self::Events { .. } => "watch",
        }
    }
}

/// The segment that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSegment {
    /// Its name, unique within the daemon.
    pub name: String,
    /// Room for blocks at first, in bytes. The segment's own tables, some percent of it, come on top
    /// as far as the capacity allows.
    pub size_bytes: u64,
    /// How far it can grow, in bytes, its own tables included; the daemon chooses if none is given.
    pub capacity_bytes: Option<u64>,
    /// What it is made of.
    pub backend: BackendKind,
    /// Which allocator is laid over it.
    pub allocator: AllocatorKind,
    /// Bytes that the application keeps at a fixed place in it.
    pub custom_header_bytes: u64,
    /// What becomes of the blocks of a process that died.
    pub on_exit: OnExit,
    /// How many threads can use it at once; the daemon chooses by the size if none is given.
    pub worker_slots: Option<u32>,
    /// Permission bits as of a file: who may read and write may attach.
    pub mode: u32,
}

impl CreateSegment {
    /// The mode of a segment that only its owner may use.
    pub const DEFAULT_MODE: u32 = 0o600;

    /// A segment with the defaults: POSIX shared memory, thread-local allocator, blocks of the dead
    /// kept, for its owner alone.
    #[must_use]
    pub fn new(name: impl Into<String>, size_bytes: u64) -> Self {
        Self {
            name: name.into(),
            size_bytes,
            capacity_bytes: None,
            backend: BackendKind::default(),
            allocator: AllocatorKind::default(),
            custom_header_bytes: 0,
            on_exit: OnExit::default(),
            worker_slots: None,
            mode: Self::DEFAULT_MODE,
        }
    }
}

/// What the daemon answers when it did what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplyBody {
    /// It is done, and there is nothing to tell.
    Done,
    /// The daemon.
    Status(StatusInfo),
    /// The new segment.
    Created(SegmentInfo),
    /// What comes with the file descriptor.
    Attached(SegmentDescriptor),
    /// The segment grew, or was that long already.
    Grown {
        /// Its committed length now, in bytes.
        committed_bytes: u64,
    },
    /// A page of segments.
    Segments {
        /// At most [`SEGMENTS_PER_PAGE`](crate::limits::SEGMENTS_PER_PAGE).
        segments: Vec<SegmentInfo>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// A segment's heap.
    Inspected(Box<HeapPage>),
    /// The whole-heap check.
    Checked(CheckReport),
    /// A page of sessions.
    Sessions {
        /// At most [`SESSIONS_PER_PAGE`](crate::limits::SESSIONS_PER_PAGE).
        sessions: Vec<SessionInfo>,
        /// Whether there are more after the last one.
        more: bool,
    },
    /// What a repair did, and could not do.
    Repaired(RepairReport),
    /// How a segment's memory was had, as the kernel says of the daemon's mapping.
    Memory(Obtained),
    /// The drivers of graphics processors, one answer for each vendor.
    Drivers(Vec<DriverStatus>),
    /// What a driver makes of a segment.
    Device(SegmentDevice),
    /// What comes with the file descriptor.
    DeviceMemory(DeviceMemoryInfo),
    /// The device's own memory that a segment has, if it has some, and what is in it.
    DevicePool(Option<(DeviceMemoryInfo, PoolReport)>),
    /// A page of events.
    Events(EventPage),
}

/// Memory of a device's own that belongs to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemoryInfo {
    /// Whose device.
    pub vendor: GpuVendor,
    /// Which, as the daemon's driver counts them: a process that is shown fewer devices counts differently.
    pub device: u32,
    /// How much, in bytes.
    pub bytes: u64,
    /// Where in the segment the tables stand that say which of it is whose
    /// ([`DevicePool`](hshm_memory::gpu::pool::DevicePool)).
    pub pool: OffsetPointer,
}

/// What the daemon found of a vendor's driver. What a client's process would find may differ: device files
/// and libraries are each container's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverStatus {
    /// Whose devices.
    pub vendor: GpuVendor,
    /// The driver, if there is one and a device; of its devices the first
    /// [`DEVICES_SHOWN`](crate::limits::DEVICES_SHOWN).
    pub driver: Option<DriverInfo>,
    /// Why not, if not.
    pub problem: Option<String>,
}

/// What a driver makes of a segment: it was registered for a moment, by a process of the daemon's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentDevice {
    /// Whose devices the segment is for.
    pub vendor: GpuVendor,
    /// The device that it was tried on.
    pub device: u32,
    /// What that is called.
    pub device_name: Option<String>,
    /// How many bytes were registered; `None` if that failed.
    pub registered_bytes: Option<u64>,
    /// Why it failed, if so.
    pub problem: Option<String>,
}

/// A segment's heap, with one page of its workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeapPage {
    /// The segment.
    pub segment: SegmentInfo,
    /// The heap; `workers` in it is empty.
    pub heap: HeapReport,
    /// Workers by ascending slot, at most [`WORKERS_PER_PAGE`](crate::limits::WORKERS_PER_PAGE).
    pub workers: Vec<WorkerReport>,
    /// Whether there are more after the last one.
    pub more_workers: bool,
}

/// All that a process needs beside the file descriptor to attach a segment. The segment's own
/// header says the same; a client compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentDescriptor {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub backend: BackendKind,
    /// Which allocator stands in it.
    pub allocator: AllocatorKind,
    /// The allocator's identity.
    pub id: AllocatorId,
    /// The layout that it is written in.
    pub layout_version: u32,
    /// How far it can grow, in bytes.
    pub capacity_bytes: u64,
    /// How long it is now, in bytes.
    pub committed_bytes: u64,
    /// What becomes of the blocks of a process that died.
    pub on_exit: OnExit,
    /// The client's process as the daemon sees it: worker slots must be claimed under this identity
    /// ([`ThreadLocalAllocator::set_identity`](hshm_memory::ThreadLocalAllocator::set_identity)), or
    /// the daemon could not tell whose they are.
    pub identity: ProcessId,
}

/// A segment as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Its name.
    pub name: String,
    /// What it is made of.
    pub backend: BackendKind,
    /// Which allocator stands in it.
    pub allocator: AllocatorKind,
    /// The allocator's identity.
    pub id: AllocatorId,
    /// Why it cannot be used, if so; it can still be destroyed.
    pub problem: Option<String>,
    /// How far it can grow, in bytes.
    pub capacity_bytes: u64,
    /// How long it is now, in bytes.
    pub committed_bytes: u64,
    /// What becomes of the blocks of a process that died.
    pub on_exit: OnExit,
    /// User who owns it.
    pub uid: u32,
    /// Group that the group's permission bits are for.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
    /// When it was created, in milliseconds since 1970-01-01 UTC.
    pub created_unix_ms: u64,
    /// Its name in `/dev/shm`, if it has one.
    pub object: Option<String>,
    /// Living processes that hold worker slots of it.
    pub holders: u32,
    /// Sessions that attached it and did not detach.
    pub sessions: u32,
}

/// A process that the daemon knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Its number, unique for the daemon's lifetime.
    pub session: u64,
    /// The process.
    pub process: ProcessId,
    /// Its user; unknown for a process that never connected.
    pub uid: Option<u32>,
    /// Its group; unknown for a process that never connected.
    pub gid: Option<u32>,
    /// What it calls itself, or its command's name.
    pub client_name: String,
    /// How the daemon knows it.
    pub state: SessionState,
    /// Since when, in milliseconds since 1970-01-01 UTC.
    pub since_unix_ms: u64,
    /// Segments that it attached or holds worker slots of, the first
    /// [`SEGMENTS_PER_SESSION_SHOWN`](crate::limits::SEGMENTS_PER_SESSION_SHOWN) by name.
    pub segments: Vec<String>,
    /// How many there are in all.
    pub segments_total: u32,
}

/// How the daemon knows a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SessionState {
    /// It has a connection open.
    Connected,
    /// It has none, but lives and holds worker slots: it closed its connection, was forked by a
    /// process that had one, or comes from before the daemon's start.
    Holding,
    /// It died, and what it held of the segments named is being recovered. From version 3 on; told to
    /// nobody who speaks an earlier one.
    Recovering,
}

/// The daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusInfo {
    /// Its release.
    pub server_version: String,
    /// The oldest protocol version that it speaks.
    pub protocol_min: u32,
    /// The newest protocol version that it speaks.
    pub protocol_max: u32,
    /// The segment layout that it writes and reads.
    pub layout_version: u32,
    /// Its process, as it sees itself.
    pub pid: u32,
    /// The user it runs as.
    pub uid: u32,
    /// Where it listens.
    pub socket: PathBuf,
    /// Where it keeps its records.
    pub state_dir: PathBuf,
    /// How long it has run, in milliseconds.
    pub uptime_ms: u64,
    /// Segments, unusable ones included.
    pub segments: u64,
    /// Those of them that are unusable.
    pub unusable_segments: u64,
    /// Committed bytes of all segments.
    pub committed_bytes: u64,
    /// Open connections.
    pub connections: u64,
    /// Processes watched for their death.
    pub watched_processes: u64,
    /// Dead processes whose slots were recovered since the start.
    pub recovered_processes: u64,
    /// Worker slots recovered since the start.
    pub recovered_slots: u64,
}
