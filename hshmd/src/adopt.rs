//! What a starting daemon makes of the records and objects that it finds, and of the files that the
//! service manager kept for it.
//!
//! | record | object | kept | what is done |
//! |---|---|---|---|
//! | creating or destroying | any | any | the object is removed and the file let go of, then the record |
//! | ready | there | the same, or none | validated; adopted, or kept as unusable |
//! | ready | gone, another, or a memfd | there | the same, without a name from now on |
//! | ready | gone, or a memfd | none | the record is dropped |
//! | none | there, with our prefix | any | validated; adopted if it is whole, else left alone |
//! | none | none | there | the same |
//!
//! An object that another daemon holds a lock on is never touched.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hshm_memory::{
    AllocatorId, AnyAllocator, BackendError, BackendKind, BackendOptions, PosixShmMmap,
    SegmentError,
};
use nix::sys::stat::fstat;
use tracing::{debug, error, info, warn};

use crate::error::DaemonError;
use crate::manager::{KeptFiles, KeptName};
use crate::registry::{Registry, named_backend, take_or_absent, unlink};
use crate::segment::{Heap, ObjectLock, Segment, UNUSABLE};
use crate::size::format_size;
use crate::state::{Phase, Record};

impl Registry {
    /// Finds the segments of the daemon before this one.
    ///
    /// # Errors
    /// If the state directory cannot be read or written. A single segment that cannot be used is
    /// no error.
    pub(crate) fn adopt_all(&self, mut kept: KeptFiles) -> Result<(), DaemonError> {
        let (records, broken) = self.state.records()?;
        for (file, why) in broken {
            warn!(file, why, "a record cannot be understood and is set aside");
            let set_aside = self.state.set_aside(&file);
            set_aside.map_err(|e| DaemonError::file("cannot rename record", &file, e))?;
        }
        for record in records {
            let file = kept.remove(&KeptName::from(&record));
            match record.phase {
                Phase::Ready => self.adopt(record, file)?,
                Phase::Creating | Phase::Destroying => self.finish_removal(record)?,
            }
        }
        match self.namespace.objects() {
            Ok(objects) => objects.iter().try_for_each(|object| self.adopt_orphan(object))?,
            Err(error) => warn!(%error, "cannot look for segments without a record"),
        }
        kept.into_iter().try_for_each(|(name, file)| self.adopt_kept(&name, &file))
    }

    /// Finishes what the daemon before this one was doing when it died.
    fn finish_removal(&self, record: Record) -> Result<(), DaemonError> {
        if let Err(why) = remove_own_object(&record) {
            error!(segment = record.name, why, "a half-made segment cannot be removed");
            let reason = format!("it is half made: {why}");
            let heap = Heap::Unusable { reason, bytes: 0, file: None };
            self.insert(Segment::new(record, heap, None));
            return Ok(());
        }
        self.manager.forget(&KeptName::from(&record));
        hshm_memory::crash_point!("daemon.removal_half_done");
        info!(segment = record.name, phase = ?record.phase, "removed a half-made segment");
        self.drop_record(&record)
    }

    fn adopt(&self, record: Record, kept: Option<OwnedFd>) -> Result<(), DaemonError> {
        let named = match record.object.as_deref().map(PosixShmMmap::open) {
            Some(Ok(file)) => Some(file),
            None | Some(Err(BackendError::NotFound { .. })) => None,
            Some(Err(error)) => {
                self.insert(quarantined(record, error.to_string(), (0, None), None));
                return Ok(());
            }
        };
        let was_kept = kept.is_some();
        let segment = match (record.object.clone(), named, kept) {
            (Some(object), Some(file), kept) if kept.iter().all(|kept| is_same(kept, &file)) => {
                match ObjectLock::take(&object) {
                    Ok(lock) => validated(record, file, Some(lock)),
                    Err(why) => quarantined(record, why, (0, None), None),
                }
            }
            (_, _, Some(file)) => validated(self.nameless(record)?, file, None),
            (Some(object), _, None) => {
                warn!(segment = record.name, object, "dropped: its object is gone");
                return self.drop_record(&record);
            }
            (None, _, None) => {
                warn!(
                    segment = record.name,
                    "dropped: its memory, a memfd, went with the daemon that owned it"
                );
                return self.drop_record(&record);
            }
        };
        // A daemon before this one may have had nobody to keep it.
        if let Some(allocator) = segment.usable().filter(|_| !was_kept) {
            self.keep(&segment.record, allocator);
        }
        self.insert(segment);
        hshm_memory::crash_point!("daemon.adopting");
        Ok(())
    }

    /// The record of a segment that is found by the file that was kept alone. What stands under its
    /// object's name by now, if anything, is not its own.
    fn nameless(&self, record: Record) -> Result<Record, DaemonError> {
        let Some(object) = &record.object else { return Ok(record) };
        warn!(
            segment = record.name,
            object, "its object was taken away; it goes on without a name"
        );
        let record = Record { object: None, ..record };
        self.write_found(&record)?;
        Ok(record)
    }

    /// Adopts an object of this namespace that no record tells of: the state directory was lost, or
    /// a record was unreadable. It goes to the daemon's own user, for nothing says whose it was.
    fn adopt_orphan(&self, object: &str) -> Result<(), DaemonError> {
        let Some(name) = self.namespace.segment(object) else { return Ok(()) };
        if hshm_proto::validate_segment_name(name).is_err() || self.get(name).is_ok() {
            return Ok(());
        }
        let left_alone = |why: &dyn std::fmt::Display| {
            warn!(object, %why, "a shared-memory object without a record is left alone");
            Ok(())
        };
        let lock = match ObjectLock::take(object) {
            Ok(lock) => lock,
            Err(why) => return left_alone(&why),
        };
        let file = match PosixShmMmap::open(object) {
            Ok(file) => file,
            Err(why) => return left_alone(&why),
        };
        let allocator = match AnyAllocator::open_fd(BackendKind::PosixShm, file) {
            Ok(allocator) => allocator,
            Err(why) => return left_alone(&why),
        };
        let backend = named_backend(allocator.id());
        let again = (backend != BackendKind::PosixShm).then(|| PosixShmMmap::open(object));
        let allocator = match again {
            None => allocator,
            Some(Err(why)) => return left_alone(&why),
            Some(Ok(file)) => match AnyAllocator::open_fd(backend, file) {
                Ok(allocator) => allocator,
                Err(why) => return left_alone(&why),
            },
        };
        let (kind, id) = (allocator.kind(), allocator.id());
        let object = Some(object.to_owned());
        let record = Record::creating(name, backend, kind, object, id);
        self.adopt_without_record(record, allocator, Some(lock))
    }

    /// Adopts a file that was kept, and of which no record tells.
    fn adopt_kept(&self, name: &KeptName, file: &OwnedFd) -> Result<(), DaemonError> {
        if self.get(&name.segment).is_ok() {
            // It is that segment's under another name, or was its predecessor's.
            self.manager.forget(name);
            return Ok(());
        }
        let opened = |backend| {
            let file = file.try_clone().map_err(copy_failed)?;
            AnyAllocator::open_fd(backend, file).map(|allocator| (backend, allocator))
        };
        let opened = opened(BackendKind::Memfd).or_else(|_| opened(BackendKind::PosixShm));
        let (backend, allocator) = match opened {
            Ok(opened) => opened,
            Err(why) => {
                warn!(%name, %why, "a kept file without a record is left alone");
                return Ok(());
            }
        };
        let (kind, id) = (allocator.kind(), allocator.id());
        let record = Record::creating(&name.segment, backend, kind, None, id);
        let record = Record { created_unix_ms: name.created_unix_ms, ..record };
        self.adopt_without_record(record, allocator, None)
    }

    fn adopt_without_record(
        &self,
        record: Record,
        allocator: AnyAllocator,
        lock: Option<ObjectLock>,
    ) -> Result<(), DaemonError> {
        let record = Record { phase: Phase::Ready, ..record };
        hshm_memory::crash_point!("daemon.orphan_found");
        self.write_found(&record)?;
        info!(
            segment = record.name,
            object = record.object,
            "adopted a segment that had no record"
        );
        self.keep(&record, &allocator);
        self.insert(Segment::new(record, Heap::Usable(allocator), lock.map(Arc::new)));
        Ok(())
    }

    fn write_found(&self, record: &Record) -> Result<(), DaemonError> {
        let written = self.state.write(record);
        written.map_err(|e| DaemonError::file("cannot write a record in", self.state.path(), e))
    }

    /// Walks the heaps that no living process uses, and takes those out of use that are corrupt. In
    /// a heap at work the walk could meet states that are whole only a moment later.
    pub(crate) fn check_idle(&self) {
        for segment in self.all() {
            let Some(allocator) = segment.usable() else { continue };
            if segment.holders().iter().any(|process| process.is_alive()) {
                continue;
            }
            let started = Instant::now();
            let mut report = allocator.check();
            if !report.is_clean() {
                // A process that had it mapped before this daemon started may have begun to use it
                // just now. What is broken stays broken.
                std::thread::sleep(Duration::from_millis(100));
                report = allocator.check();
            }
            let (name, elapsed_ms) = (&segment.record.name, started.elapsed().as_millis());
            debug!(segment = name, elapsed_ms, clean = report.is_clean(), "checked");
            let Some(first) = report.violations.first() else { continue };
            let reason = format!(
                "its heap is corrupt: {} broken invariants, the first at {:#x}: {}",
                report.violations_total, first.offset, first.what
            );
            self.quarantine(&segment, reason);
        }
    }

    fn drop_record(&self, record: &Record) -> Result<(), DaemonError> {
        self.state
            .remove(&record.name)
            .map_err(|e| DaemonError::file("cannot remove a record in", self.state.path(), e))
    }
}

fn quarantined(
    record: Record,
    reason: String,
    (bytes, file): (u64, Option<OwnedFd>),
    lock: Option<Arc<ObjectLock>>,
) -> Segment {
    error!(segment = record.name, reason, "{UNUSABLE}");
    Segment::new(record, Heap::Unusable { reason, bytes, file }, lock)
}

/// The segment in `file`, if its bytes are those of one.
fn validated(record: Record, file: OwnedFd, lock: Option<ObjectLock>) -> Segment {
    let lock = lock.map(Arc::new);
    let bytes = file.try_clone().map(File::from).and_then(|file| file.metadata());
    let bytes = bytes.map_or(0, |metadata| metadata.len());
    let nameless = record.object.is_none().then(|| file.try_clone().ok()).flatten();
    match open_again(&record, file) {
        Ok(allocator) => {
            let (size, id) = (format_size(bytes), allocator.id());
            let id_changed = id != AllocatorId::default() && id != record.id;
            if id_changed {
                warn!(segment = record.name, recorded = %record.id, found = %id, "its identity is not the recorded one");
            }
            let kind = allocator.kind();
            if kind != record.allocator {
                warn!(segment = record.name, recorded = %record.allocator, found = %kind, "its allocator is not the recorded one");
            }
            let record = Record { allocator: kind, ..record };
            info!(segment = record.name, size, "adopted");
            Segment::new(record, Heap::Usable(allocator), lock)
        }
        Err(error) => quarantined(record, error.to_string(), (bytes, nameless), lock),
    }
}

/// Maps a segment's file, as it was wanted when it was created if that can be had.
fn open_again(record: &Record, file: OwnedFd) -> Result<AnyAllocator, SegmentError> {
    let memory = record.memory_again();
    if memory != BackendOptions::default() {
        let wanted = file.try_clone().map_err(copy_failed)?;
        match AnyAllocator::open_fd_with(record.backend, wanted, &memory) {
            Err(SegmentError::Backend(error)) => {
                warn!(segment = record.name, %error, "its memory is not had as it was wanted");
            }
            opened => return opened,
        }
    }
    AnyAllocator::open_fd(record.backend, file)
}

fn copy_failed(source: io::Error) -> SegmentError {
    SegmentError::Backend(BackendError::System { what: "cannot copy a descriptor", source })
}

/// Whether both are the same file.
fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let identity = |fd: &OwnedFd| fstat(fd.as_fd()).map(|found| (found.st_dev, found.st_ino));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Takes the name of a half-made segment's object away, unless another daemon has it.
fn remove_own_object(record: &Record) -> Result<(), String> {
    let Some(object) = &record.object else { return Ok(()) };
    match take_or_absent(object)? {
        None => Ok(()),
        Some(_taken) => unlink(record).map_err(|error| error.to_string()),
    }
}
