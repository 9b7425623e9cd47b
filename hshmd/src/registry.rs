//! The segments there are. What is done here may block: callers are not on the daemon's main
//! thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use hshm_memory::gpu::GpuVendor;
use hshm_memory::{
    AllocatorId, AnyAllocator, Backend, BackendKind, BackendOptions, CudaShmMmap, InitOptions,
    MemfdMmap, PosixShmMmap, ProcessId, RocmShmMmap, SegmentError,
};
use hshm_proto::{CreateSegment, ErrorCode, ErrorReply, EventKind};

use crate::access::Peer;
use crate::config::Limits;
use crate::error::{allocator_reply, creation_reply, internal_reply, shutting_down};
use crate::events::Events;
use crate::gpu;
use crate::manager::{KeptName, Manager};
use crate::paths::Namespace;
use crate::quota::{Demand, Usage};
use crate::segment::{CUT_SHORT, Heap, ObjectLock, Segment, SharedSegment, UNUSABLE};
use crate::state::{Phase, Record, StateDir};

/// A shared-memory object belongs to the daemon's user alone: others get it as a descriptor, after
/// the daemon has looked at the segment's own owner and mode.
const OBJECT_MODE: u32 = 0o600;

/// How far a segment can grow if its creator did not say: eight times its size. Its tables are laid
/// out for that at once, at 0.2 % of it in address space, of which only what is used has memory.
const DEFAULT_GROWTH: u64 = 8;

/// And at least so far, so that the tables of a tiny one find room.
const LEAST_DEFAULT_CAPACITY: u64 = 4 << 20;

/// All segments.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) state: StateDir,
    pub(crate) namespace: Namespace,
    limits: RwLock<Limits>,
    pub(crate) manager: Manager,
    pub(crate) events: Events,
    segments: Mutex<BTreeMap<String, SharedSegment>>,
    /// Held by whoever creates, destroys, repairs or grows, so that limits and names hold meanwhile. True when
    /// nothing may be created any more.
    pub(crate) change: Mutex<bool>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks is left half done by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(crate) fn new(
        state: StateDir,
        namespace: Namespace,
        limits: Limits,
        manager: Manager,
    ) -> Self {
        let (segments, change) = (Mutex::new(BTreeMap::new()), Mutex::new(false));
        let events = Events::new();
        let limits = RwLock::new(limits);
        Self { state, namespace, limits, manager, events, segments, change }
    }

    /// What clients may use up, as of now.
    pub(crate) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes these the limits. What exceeds them already stays.
    pub(crate) fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// The segment `name`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub(crate) fn get(&self, name: &str) -> Result<SharedSegment, ErrorReply> {
        lock(&self.segments).get(name).cloned().ok_or_else(|| {
            ErrorReply::new(
                ErrorCode::NotFound,
                format_args!("there is no segment {name:?}"),
                "see hshmctl list for those there are, or create it",
            )
        })
    }

    /// All segments, by ascending name.
    pub(crate) fn all(&self) -> Vec<SharedSegment> {
        lock(&self.segments).values().cloned().collect()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        lock(&self.segments).len()
    }

    /// Puts a segment in, in place of the one of the same name if there is one.
    pub(crate) fn insert(&self, segment: Segment) -> SharedSegment {
        let segment = Arc::new(segment);
        lock(&self.segments).insert(segment.record.name.clone(), Arc::clone(&segment));
        segment
    }

    /// Takes a segment out of use that turned out to be unusable. It can still be destroyed.
    pub(crate) fn quarantine(&self, segment: &SharedSegment, reason: String) {
        let bytes = segment.committed_bytes();
        let file = segment.nameless_file();
        let heap = Heap::Unusable { reason: reason.clone(), bytes, file };
        let unusable = Segment::new(segment.record.clone(), heap, segment.lock.clone());
        if self.replace(segment, unusable) {
            tracing::error!(segment = segment.record.name, reason, "{UNUSABLE}");
        }
    }

    /// Puts `other` in the place of `segment`. False if that was destroyed meanwhile; another may be
    /// there under its name.
    pub(crate) fn replace(&self, segment: &SharedSegment, other: Segment) -> bool {
        let mut segments = lock(&self.segments);
        let found = segments.get_mut(&segment.record.name);
        let found = found.filter(|found| Arc::ptr_eq(found, segment));
        found.map(|found| *found = Arc::new(other)).is_some()
    }

    /// Takes segments out of use whose files somebody cut short.
    pub(crate) fn quarantine_cut_short(&self) {
        for segment in self.all() {
            if segment.is_cut_short() {
                self.quarantine(&segment, CUT_SHORT.to_owned());
            }
        }
    }

    /// What there is.
    pub(crate) fn usage(&self) -> Usage {
        self.all().iter().collect()
    }

    /// What of it belongs to one user.
    fn usage_of(&self, uid: u32) -> Usage {
        self.all().iter().filter(|segment| segment.record.uid == uid).collect()
    }

    /// Makes a segment for `owner`. The request is valid in itself.
    pub(crate) fn create(
        &self,
        request: &CreateSegment,
        memory: &BackendOptions,
        owner: &Peer,
    ) -> Result<SharedSegment, ErrorReply> {
        let changing = lock(&self.change);
        if *changing {
            return Err(shutting_down());
        }
        let name = &request.name;
        if self.get(name).is_ok() {
            return Err(ErrorReply::new(
                ErrorCode::Exists,
                format_args!("a segment named {name:?} exists already"),
                "choose another name, or destroy it first",
            ));
        }
        let demand = Demand {
            verb: "create",
            name,
            backend: request.backend,
            size_bytes: request.size_bytes,
            present_bytes: 0,
        };
        demand.check_limits(&self.limits(), self.usage())?;
        demand.check_user_limits(&self.limits(), owner.uid, self.usage_of(owner.uid))?;
        demand.check_machine()?;

        let object = request.backend.is_named().then(|| self.namespace.object(name));
        refuse_stranger(name, object.as_deref())?;
        let id = self.next_id(request.backend);
        let record = Record::creating(name, request.backend, request.allocator, object, id);
        let (uid, gid, memory) = (owner.uid, owner.gid, memory.clone());
        let record = Record { uid, gid, mode: request.mode, memory, ..record };
        self.write(&record)?;
        // Died here, or anywhere up to the record's becoming ready: it says that whatever stands
        // there is to be removed.
        hshm_memory::crash_point!("daemon.create_recorded");
        let made = self.make(&record, request).and_then(|(allocator, lock)| {
            self.keep(&record, &allocator);
            hshm_memory::crash_point!("daemon.laid_out");
            let ready = Record { phase: Phase::Ready, ..record.clone() };
            if let Err(error) = self.write(&ready) {
                unlink_or_log(&record);
                self.manager.forget(&KeptName::from(&record));
                return Err(error);
            }
            Ok(Segment::new(ready, Heap::Usable(allocator), lock.map(Arc::new)))
        });
        match made {
            Ok(segment) => {
                hshm_memory::crash_point!("daemon.create_ready");
                let (committed_bytes, uid) = (segment.committed_bytes(), segment.record.uid);
                let segment = self.insert(segment);
                self.events.publish(&segment.record, EventKind::Created { committed_bytes, uid });
                Ok(segment)
            }
            Err(error) => {
                if let Err(error) = self.state.remove(name) {
                    tracing::warn!(segment = name, %error, "cannot remove the record of a failed creation");
                }
                Err(error)
            }
        }
    }

    /// The memory and the allocator in it.
    fn make(
        &self,
        record: &Record,
        request: &CreateSegment,
    ) -> Result<(AnyAllocator, Option<ObjectLock>), ErrorReply> {
        let (name, size) = (&request.name, request.size_bytes);
        let capacity = request.capacity_bytes.unwrap_or_else(|| default_capacity(size));
        let failed = |error: &SegmentError| creation_reply(name, error);
        let options = InitOptions {
            custom_header_bytes: request.custom_header_bytes,
            on_exit: request.on_exit,
            worker_slots: request.worker_slots.unwrap_or_else(|| default_worker_slots(size)),
        };
        let init = |backend: Arc<dyn Backend>| {
            AnyAllocator::shm_init(request.allocator, record.id, backend, &options)
                .map_err(|error| failed(&error))
        };
        let Some(object) = &record.object else {
            let backend = MemfdMmap::create_with(name, size, capacity, &record.memory);
            return Ok((init(Arc::new(backend.map_err(|error| failed(&error.into()))?))?, None));
        };
        let backend: Result<Arc<dyn Backend>, _> = match request.backend.vendor() {
            None => PosixShmMmap::create_with(object, size, capacity, OBJECT_MODE, &record.memory)
                .map(|made| Arc::new(made) as _),
            Some(GpuVendor::Cuda) => {
                CudaShmMmap::create_with(object, size, capacity, OBJECT_MODE, &record.memory)
                    .map(|made| Arc::new(made) as _)
            }
            Some(GpuVendor::Rocm) => {
                RocmShmMmap::create_with(object, size, capacity, OBJECT_MODE, &record.memory)
                    .map(|made| Arc::new(made) as _)
            }
        };
        let backend = backend.map_err(|error| failed(&error.into()))?;
        hshm_memory::crash_point!("daemon.object_made");
        // The lock goes first: another daemon that finds the object whole finds it locked.
        let made = ObjectLock::take(object)
            .map_err(internal_reply)
            .and_then(|lock| Ok((init(backend)?, Some(lock))))
            .and_then(|made| require_device(name, request.backend, object).map(|()| made));
        if made.is_err() {
            unlink_or_log(record);
        }
        made
    }

    /// Has the service manager keep a segment's file, if there is one to.
    pub(crate) fn keep(&self, record: &Record, allocator: &AnyAllocator) {
        if let Some(file) = allocator.backend().fd() {
            self.manager.keep(record, file);
        }
    }

    /// Takes a segment away. Processes that have it mapped keep its memory until they let go of it.
    /// `attached` are processes that have it attached; those that hold worker slots are found here.
    pub(crate) fn destroy(
        &self,
        name: &str,
        force: bool,
        by: &Peer,
        attached: &[ProcessId],
    ) -> Result<(), ErrorReply> {
        let _changing = lock(&self.change);
        let segment = self.get(name)?;
        if !by.may_manage(&segment.record) {
            return Err(by.refusal("destroy", &segment.record));
        }
        if !force {
            let advice = "let them detach or end, or destroy it with --force";
            segment.require_unused(by, attached, advice)?;
        }
        self.remove(&segment)
    }

    /// Takes all segments away, whoever uses them, and lets no more be created.
    pub(crate) fn remove_all(&self) {
        let mut changing = lock(&self.change);
        *changing = true;
        for segment in self.all() {
            let name = &segment.record.name;
            match self.remove(&segment) {
                Ok(()) => tracing::info!(segment = name, "removed"),
                Err(error) => tracing::warn!(segment = name, %error, "cannot remove a segment"),
            }
        }
    }

    /// Takes a segment away, whoever uses it.
    fn remove(&self, segment: &Segment) -> Result<(), ErrorReply> {
        let record = &segment.record;
        // Kept to the end, so that no other daemon takes the object for an orphan meanwhile.
        let _taken = match (&segment.lock, &record.object) {
            (None, Some(object)) => take_or_absent(object).map_err(|why| {
                ErrorReply::new(
                    ErrorCode::Unusable,
                    format_args!("cannot destroy segment {:?}: {why}", record.name),
                    "ask that daemon",
                )
            })?,
            _ => None,
        };
        self.write(&Record { phase: Phase::Destroying, ..record.clone() })?;
        // Died here: the next start finishes it.
        hshm_memory::crash_point!("daemon.destroy_recorded");
        unlink(record).map_err(internal_reply)?;
        self.manager.forget(&KeptName::from(record));
        hshm_memory::crash_point!("daemon.object_removed");
        lock(&self.segments).remove(&record.name);
        self.events.publish(record, EventKind::Destroyed);
        self.state.remove(&record.name).map_err(|error| {
            internal_reply(format_args!("cannot remove the record of {:?}: {error}", record.name))
        })?;
        hshm_memory::crash_point!("daemon.removed");
        Ok(())
    }

    /// Makes a segment at least `size_bytes` long, and says how long it is then.
    pub(crate) fn grow(&self, name: &str, size_bytes: u64, by: &Peer) -> Result<u64, ErrorReply> {
        let _changing = lock(&self.change);
        let segment = self.get(name)?;
        if !by.may_manage(&segment.record) {
            return Err(by.refusal("grow", &segment.record));
        }
        let allocator = segment.allocator("grow")?;
        let present_bytes = allocator.committed_bytes();
        if size_bytes <= present_bytes {
            return Ok(present_bytes);
        }
        let capacity = allocator.capacity_bytes();
        if size_bytes > capacity {
            return Err(ErrorReply::new(
                ErrorCode::BadArgument,
                format_args!(
                    "cannot grow segment {name:?} to {size_bytes} bytes: its capacity, fixed when it was created, is {capacity}"
                ),
                "grow it less, or create another with a larger --capacity",
            ));
        }
        let backend = segment.record.backend;
        let demand = Demand { verb: "grow", name, backend, size_bytes, present_bytes };
        let owner = segment.record.uid;
        demand.check_limits(&self.limits(), self.usage())?;
        demand.check_user_limits(&self.limits(), owner, self.usage_of(owner))?;
        demand.check_machine()?;
        let grown = allocator.grow(size_bytes);
        let committed_bytes = grown.map_err(|error| allocator_reply("grow", name, &error))?;
        self.events.publish(&segment.record, EventKind::Grown { committed_bytes });
        Ok(committed_bytes)
    }

    fn write(&self, record: &Record) -> Result<(), ErrorReply> {
        self.state.write(record).map_err(|error| {
            let dir = self.state.path().display();
            internal_reply(format_args!(
                "cannot write the record of segment {:?} in {dir}: {error}",
                record.name
            ))
        })
    }

    fn next_id(&self, backend: BackendKind) -> AllocatorId {
        let minors = self.all();
        let highest = minors.iter().map(|segment| segment.record.id.minor).max().unwrap_or(0);
        AllocatorId::new(backend_number(backend), highest.saturating_add(1))
    }
}

/// What a backend counts as in an allocator's identity.
fn backend_number(backend: BackendKind) -> u32 {
    match backend {
        BackendKind::PosixShm => 1,
        BackendKind::Memfd => 2,
        BackendKind::CudaShm => 4,
        BackendKind::RocmShm => 5,
        // Requests for others are refused when they are read.
        BackendKind::File
        | BackendKind::PosixMmap
        | BackendKind::Malloc
        | BackendKind::Array
        | BackendKind::Slice
        | _ => 0,
    }
}

/// The backend of a named object whose allocator has this identity. Those for devices must be known again:
/// giving memory back to the kernel is not for them.
pub(crate) fn named_backend(id: AllocatorId) -> BackendKind {
    let kinds = [BackendKind::CudaShm, BackendKind::RocmShm];
    let found = kinds.into_iter().find(|kind| backend_number(*kind) == id.major);
    found.unwrap_or(BackendKind::PosixShm)
}

/// Refuses a segment for devices that no driver takes: better now than for each process that attaches it.
fn require_device(name: &str, backend: BackendKind, object: &str) -> Result<(), ErrorReply> {
    let Some(vendor) = backend.vendor() else { return Ok(()) };
    match gpu::try_segment(vendor, object).problem {
        None => Ok(()),
        Some(why) => Err(ErrorReply::new(
            ErrorCode::BadArgument,
            format_args!("cannot create segment {name:?} with backend {backend}: {why}"),
            "use the backend posix-shm where no device is to take part",
        )),
    }
}

fn default_capacity(size_bytes: u64) -> u64 {
    size_bytes.saturating_mul(DEFAULT_GROWTH).max(LEAST_DEFAULT_CAPACITY)
}

/// Worker slots for a segment of `size_bytes` whose creator did not say: one for each 64 KiB, so
/// that their tables take at most 2 % of it, from 16 to the library's default.
fn default_worker_slots(size_bytes: u64) -> u32 {
    let most = InitOptions::default().worker_slots;
    u32::try_from(size_bytes >> 16).unwrap_or(most).clamp(16, most)
}

/// Takes an object, unless it is gone.
///
/// # Errors
/// Who has it.
pub(crate) fn take_or_absent(object: &str) -> Result<Option<ObjectLock>, String> {
    match PosixShmMmap::open(object) {
        Err(hshm_memory::BackendError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
        Ok(_) => ObjectLock::take(object).map(Some),
    }
}

/// Takes the name of a segment's object away; it may be gone already.
pub(crate) fn unlink(record: &Record) -> Result<(), hshm_memory::BackendError> {
    match record.object.as_deref().map(PosixShmMmap::unlink) {
        None | Some(Ok(()) | Err(hshm_memory::BackendError::NotFound { .. })) => Ok(()),
        Some(Err(error)) => Err(error),
    }
}

/// The same where another error is at hand, which says more than one from cleaning up would.
fn unlink_or_log(record: &Record) {
    if let Err(error) = unlink(record) {
        tracing::warn!(segment = record.name, %error, "cannot clean up after a failed creation");
    }
}

/// Refuses to create a segment whose object stands there although no record tells of it: it is not
/// known whose it is, so nothing that follows may take it away.
fn refuse_stranger(name: &str, object: Option<&str>) -> Result<(), ErrorReply> {
    let Some(object) = object else { return Ok(()) };
    match PosixShmMmap::open(object) {
        Err(hshm_memory::BackendError::NotFound { .. }) => Ok(()),
        _ => Err(ErrorReply::new(
            ErrorCode::Exists,
            format_args!(
                "cannot create segment {name:?}: a file {}/{object} stands there that this daemon knows nothing of",
                crate::paths::SHM_DIR
            ),
            "choose another name, or remove the file if nobody needs it",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_slots_follow_the_size() {
        for (bytes, slots) in
            [(1, 16), (1 << 20, 16), (4 << 20, 64), (1 << 30, 1024), (u64::MAX, 1024)]
        {
            assert_eq!(default_worker_slots(bytes), slots, "{bytes} bytes");
        }
    }
}
