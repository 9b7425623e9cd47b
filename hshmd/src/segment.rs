//! A segment that the daemon owns.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::{AllocatorKind, AnyAllocator, OnExit, PosixShmMmap, ProcessId};
use hshm_proto::{ErrorCode, ErrorReply, SegmentDescriptor, SegmentInfo};
use nix::fcntl::{Flock, FlockArg};

use crate::access::Peer;
use crate::state::Record;

/// A segment that stands, whole or not.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) record: Record,
    pub(crate) heap: Heap,
    /// Tells other daemons that see the same `/dev/shm` that this object is taken.
    pub(crate) lock: Option<Arc<ObjectLock>>,
    /// The longest that its file was ever found to be, in bytes.
    longest: AtomicU64,
}

/// Why a segment is unusable whose file is shorter than it was.
pub(crate) const CUT_SHORT: &str =
    "its file was cut short by another program; what was beyond is lost";

/// What is logged of such a one.
pub(crate) const UNUSABLE: &str = "a segment is unusable, until it is repaired or destroyed";

/// What is in a segment.
#[derive(Debug)]
pub(crate) enum Heap {
    /// An allocator that was validated.
    Usable(AnyAllocator),
    /// Something else, which can only be repaired or destroyed.
    Unusable {
        /// Why.
        reason: String,
        /// How long it is.
        bytes: u64,
        /// Its file, if nothing else leads to that.
        file: Option<OwnedFd>,
    },
}

/// An advisory lock on a shared-memory object, through an open file of its own: the one that is
/// handed to clients must not carry it, or it would outlive the daemon.
#[derive(Debug)]
pub(crate) struct ObjectLock {
    _file: Flock<File>,
}

impl ObjectLock {
    /// Takes the object, unless another daemon has it.
    pub(crate) fn take(object: &str) -> Result<Self, String> {
        let file: OwnedFd = PosixShmMmap::open(object).map_err(|error| error.to_string())?;
        match Flock::lock(File::from(file), FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                Err(format!("another daemon uses the shared-memory object {object:?}"))
            }
            Err((_, errno)) => Err(format!("cannot lock the shared-memory object: {errno}")),
        }
    }
}

impl Segment {
    pub(crate) fn new(record: Record, heap: Heap, lock: Option<Arc<ObjectLock>>) -> Self {
        let longest = match &heap {
            Heap::Usable(allocator) => allocator.backend().committed_bytes(),
            Heap::Unusable { .. } => 0,
        };
        Self { record, heap, lock, longest: AtomicU64::new(longest) }
    }

    /// Whether somebody cut its file short, which no seal can forbid for a named object.
    pub(crate) fn is_cut_short(&self) -> bool {
        let Heap::Usable(allocator) = &self.heap else { return false };
        let bytes = allocator.backend().committed_bytes();
        // ORDER: Relaxed: the number stands for itself.
        let longest = self.longest.fetch_max(bytes, Ordering::Relaxed);
        allocator.backend().is_damaged() || bytes < longest
    }

    /// Its allocator.
    ///
    /// # Errors
    /// [`ErrorCode::Unusable`].
    pub(crate) fn allocator(&self, verb: &str) -> Result<&AnyAllocator, ErrorReply> {
        let reason = match &self.heap {
            Heap::Usable(_) if self.is_cut_short() => CUT_SHORT,
            Heap::Usable(allocator) => return Ok(allocator),
            Heap::Unusable { reason, .. } => reason,
        };
        Err(ErrorReply::new(
            ErrorCode::Unusable,
            format_args!("cannot {verb} segment {:?}: {reason}", self.record.name),
            "try hshmctl check --repair, or destroy it and create it anew",
        ))
    }

    /// Its allocator, if there is one.
    pub(crate) fn usable(&self) -> Option<&AnyAllocator> {
        match &self.heap {
            Heap::Usable(allocator) => Some(allocator),
            Heap::Unusable { .. } => None,
        }
    }

    /// Its file, if nothing else leads to that.
    pub(crate) fn nameless_file(&self) -> Option<OwnedFd> {
        let file = self.usable().filter(|_| self.record.object.is_none())?.backend().fd()?;
        file.try_clone_to_owned().ok()
    }

    /// How long it is now, in bytes.
    pub(crate) fn committed_bytes(&self) -> u64 {
        match &self.heap {
            Heap::Usable(allocator) => allocator.committed_bytes(),
            Heap::Unusable { bytes, .. } => *bytes,
        }
    }

    /// Processes that hold worker slots of it, living or not.
    pub(crate) fn holders(&self) -> Vec<ProcessId> {
        let mut holders = self.usable().map(AnyAllocator::holders).unwrap_or_default();
        // This daemon holds slots only while it recovers them.
        holders.retain(|process| process.pid != std::process::id());
        holders
    }

    /// Refuses if somebody else than `by` uses it: living processes that hold slots, or `attached`
    /// ones.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`], with `advice`.
    pub(crate) fn require_unused(
        &self,
        by: &Peer,
        attached: &[ProcessId],
        advice: &str,
    ) -> Result<(), ErrorReply> {
        let mut users = self.holders();
        users.retain(|process| process.is_alive());
        users.extend_from_slice(attached);
        // Of all that ever had a number, one lives, whatever it calls itself.
        users.retain(|process| by.process.is_none_or(|by| by.pid != process.pid));
        users.sort_unstable();
        users.dedup_by_key(|process| process.pid);
        let Some(first) = users.first() else { return Ok(()) };
        Err(ErrorReply::new(
            ErrorCode::InUse,
            format_args!(
                "segment {:?} is in use by {} living {}, among them pid {first}",
                self.record.name,
                users.len(),
                if users.len() == 1 { "process" } else { "processes" },
            ),
            advice,
        ))
    }

    /// The segment as lists show it. `sessions` have it attached, and of `holders` the living are counted, by
    /// `/proc`, which may take a while.
    pub(crate) fn info(&self, sessions: u32, mut holders: Vec<ProcessId>) -> SegmentInfo {
        holders.retain(|process| process.is_alive());
        holders.dedup_by_key(|process| process.pid);
        let (allocator, record) = (self.usable(), &self.record);
        let problem = match &self.heap {
            Heap::Usable(_) => None,
            Heap::Unusable { reason, .. } => {
                Some(hshm_proto::limits::truncated(reason, hshm_proto::limits::MAX_TEXT_BYTES))
            }
        };
        SegmentInfo {
            name: record.name.clone(),
            backend: record.backend,
            allocator: record.allocator,
            id: allocator.map_or(record.id, |allocator| allocator.id()),
            problem,
            capacity_bytes: allocator.map_or(0, AnyAllocator::capacity_bytes),
            committed_bytes: self.committed_bytes(),
            on_exit: allocator.map_or(OnExit::default(), AnyAllocator::on_exit),
            uid: record.uid,
            gid: record.gid,
            mode: record.mode,
            created_unix_ms: record.created_unix_ms,
            object: record.object.clone(),
            holders: u32::try_from(holders.len()).unwrap_or(u32::MAX),
            sessions,
        }
    }

    /// What a process that attaches it as `identity` is told.
    pub(crate) fn descriptor(
        &self,
        allocator: &AnyAllocator,
        identity: ProcessId,
    ) -> SegmentDescriptor {
        let identity = if self.record.allocator == AllocatorKind::ThreadLocal {
            identity
        } else {
            // Clients of earlier releases can use these too, and compare it with their own start.
            ProcessId::of(identity.pid).unwrap_or(identity)
        };
        SegmentDescriptor {
            name: self.record.name.clone(),
            backend: self.record.backend,
            allocator: self.record.allocator,
            id: allocator.id(),
            layout_version: hshm_proto::LAYOUT_VERSION,
            capacity_bytes: allocator.capacity_bytes(),
            committed_bytes: allocator.committed_bytes(),
            on_exit: allocator.on_exit(),
            identity,
        }
    }
}

/// A segment as the registry shares it.
pub(crate) type SharedSegment = Arc<Segment>;
