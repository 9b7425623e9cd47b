//! The records on disk from which a restarted daemon finds its segments again.
//!
//! Each segment has a file `segments/NAME.toml`. It is written before anything is created and
//! removed after everything is gone, so that whatever moment the daemon is killed at, the next start
//! finds either a whole segment or a note of what is to be cleaned up ([`Phase`]). A file is
//! replaced by renaming, and both it and its directory are synced.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use hshm_memory::backend::HugePages;
use hshm_memory::{AllocatorId, BackendKind, BackendOptions};
use hshm_proto::AllocatorKind;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::error::DaemonError;

/// The form of the records.
const FORMAT: u32 = 1;
const SUFFIX: &str = ".toml";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What is known of a segment besides what stands in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`FORMAT`].
    pub(crate) format: u32,
    pub(crate) name: String,
    pub(crate) phase: Phase,
    pub(crate) backend: BackendKind,
    pub(crate) allocator: AllocatorKind,
    /// The shared-memory object, for a backend whose segments have names.
    pub(crate) object: Option<String>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
    pub(crate) created_unix_ms: u64,
    /// After the rest, because TOML wants tables after values.
    pub(crate) id: AllocatorId,
    /// How its memory was to be had. Records of earlier releases do not say.
    #[serde(default)]
    pub(crate) memory: BackendOptions,
}

impl Record {
    /// How a mapping of what is there already is to be: what only creating can do is not done again,
    /// and nothing is a reason to lose the segment.
    pub(crate) fn memory_again(&self) -> BackendOptions {
        let huge_pages = match self.memory.huge_pages {
            HugePages::Require => HugePages::Try,
            asked @ (HugePages::System | HugePages::Never | HugePages::Try | _) => asked,
        };
        let BackendOptions { huge_page_bytes, lock, .. } = self.memory;
        BackendOptions { huge_pages, huge_page_bytes, lock, ..BackendOptions::default() }
    }
}

/// How far a segment's creation or destruction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Its object may or may not be there, and is good for nothing.
    Creating,
    /// It is whole.
    Ready,
    /// Its object may or may not be there any more.
    Destroying,
}

impl Record {
    /// A record of a segment whose creation begins.
    pub(crate) fn creating(
        name: &str,
        backend: BackendKind,
        allocator: AllocatorKind,
        object: Option<String>,
        id: AllocatorId,
    ) -> Self {
        Self {
            format: FORMAT,
            name: name.to_owned(),
            phase: Phase::Creating,
            backend,
            allocator,
            object,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            mode: 0o600,
            created_unix_ms: now_unix_ms(),
            id,
            memory: BackendOptions::default(),
        }
    }
}

/// Milliseconds since 1970-01-01 UTC.
pub(crate) fn now_unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A file that should be a record and is none: its name, and what is wrong with it.
type BrokenFile = (String, String);

/// The state directory, held by this daemon alone.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    segments: PathBuf,
    /// Held until the daemon ends, however it ends.
    _lock: Flock<File>,
}

impl StateDir {
    /// Makes the directory if it is not there, and takes it.
    pub(crate) fn open(path: &Path) -> Result<Self, DaemonError> {
        let segments = path.join("segments");
        DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&segments)
            .map_err(|error| DaemonError::file("cannot create state directory", path, error))?;
        let lock = lock_dir(path)?;
        Ok(Self { path: path.to_path_buf(), segments, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// All records by name, and the files that are none. Leftovers of interrupted writes are
    /// removed.
    pub(crate) fn records(&self) -> Result<(Vec<Record>, Vec<BrokenFile>), DaemonError> {
        let failed = |error| DaemonError::file("cannot read", &self.segments, error);
        let (mut records, mut broken) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.segments).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.file_name().to_string_lossy().into_owned();
            if file.ends_with(TEMPORARY_SUFFIX) {
                // Died here: the write was never renamed, so the record before it still holds.
                fs::remove_file(entry.path())
                    .map_err(|error| DaemonError::file("cannot remove", entry.path(), error))?;
            } else if let Some(name) = file.strip_suffix(SUFFIX) {
                match read_record(&entry.path(), name) {
                    Ok(record) => records.push(record),
                    Err(why) => broken.push((file, why)),
                }
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((records, broken))
    }

    /// Puts a file that is no record out of the way, so that it is kept but not read again.
    pub(crate) fn set_aside(&self, file: &str) -> io::Result<()> {
        fs::rename(self.segments.join(file), self.segments.join(format!("{file}.broken")))
    }

    /// Writes a segment's record, replacing the one there is. It is on disk when this returns.
    pub(crate) fn write(&self, record: &Record) -> io::Result<()> {
        let text = toml::to_string(record).map_err(io::Error::other)?;
        let path = self.record_path(&record.name);
        let temporary = self.segments.join(format!("{}{TEMPORARY_SUFFIX}", record.name));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        // Died here: the temporary file is removed at the next start.
        fs::rename(&temporary, &path)?;
        self.sync_dir()
    }

    /// Removes a segment's record, if it is there.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.record_path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_dir(),
        }
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.segments.join(format!("{name}{SUFFIX}"))
    }

    fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.segments)?.sync_all()
    }
}

fn read_record(path: &Path, name: &str) -> Result<Record, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let record: Record = toml::from_str(&text).map_err(|error| error.message().to_owned())?;
    if record.format != FORMAT {
        return Err(format!("it has format {}, and this release reads {FORMAT}", record.format));
    }
    if record.name != name {
        return Err(format!("it is the record of {:?}", record.name));
    }
    hshm_proto::validate_segment_name(name).map_err(|error| error.to_string())?;
    if let Some(object) = &record.object {
        // The directory may have been moved, so that the namespace was another's; but what a record
        // names may be removed, so it must at least be a segment's object.
        let ours = object.starts_with("hshm.") && object.ends_with(&format!(".{name}"));
        hshm_memory::backend::validate_name(object)
            .ok()
            .filter(|()| ours)
            .ok_or_else(|| format!("{object:?} is not how its object would be called"))?;
    }
    Ok(record)
}

/// One daemon at a time: the kernel gives the lock up with the process, so it is never stale.
fn lock_dir(path: &Path) -> Result<Flock<File>, DaemonError> {
    let lock_path = path.join("lock");
    let failed = |error| DaemonError::file("cannot open", &lock_path, error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock_path)
        .map_err(failed)?;
    match Flock::lock(file.try_clone().map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            // For the message to whoever comes second; nobody relies on it.
            let pid = std::process::id().to_string();
            let written = file.set_len(0).and_then(|()| file.rewind());
            written.and_then(|()| file.write_all(pid.as_bytes())).map_err(failed)?;
            Ok(lock)
        }
        Err((_, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            Err(DaemonError::StateDirInUse {
                path: path.to_path_buf(),
                pid: pid.trim().parse().ok(),
            })
        }
        Err((_, errno)) => Err(DaemonError::file("cannot lock", lock_path, errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str) -> Record {
        let object = Some(format!("hshm.x.{name}"));
        let id = AllocatorId::new(1, 2);
        let record =
            Record::creating(name, BackendKind::PosixShm, AllocatorKind::ThreadLocal, object, id);
        Record { created_unix_ms: 5, ..record }
    }

    #[test]
    fn what_is_written_is_read_and_what_is_removed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let memfd = Record { backend: BackendKind::Memfd, object: None, ..record("b.toml") };
        let ready = Record { phase: Phase::Ready, ..record("a") };
        for written in [&record("a"), &memfd, &ready] {
            state.write(written).unwrap();
        }
        assert_eq!(state.records().unwrap(), (vec![ready, memfd.clone()], vec![]));
        state.remove("a").unwrap();
        state.remove("a").unwrap();
        assert_eq!(state.records().unwrap(), (vec![memfd], vec![]));
    }

    #[test]
    fn an_interrupted_write_leaves_the_record_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write(&record("a")).unwrap();
        let temporary = dir.path().join("segments/a.tmp");
        fs::write(&temporary, "form").unwrap();
        assert_eq!(state.records().unwrap().0, [record("a")]);
        assert!(!temporary.exists());
    }

    #[test]
    fn a_file_that_is_no_record_is_told_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.write(&record("a")).unwrap();
        let segments = dir.path().join("segments");
        fs::write(segments.join("torn.toml"), "format = 1\nname = \"to").unwrap();
        fs::copy(segments.join("a.toml"), segments.join("other.toml")).unwrap();
        let stranger = Record { object: Some("somebody-elses".into()), ..record("stranger") };
        state.write(&stranger).unwrap();
        let future = toml::to_string(&Record { format: 9, ..record("future") }).unwrap();
        fs::write(segments.join("future.toml"), future).unwrap();
        let (records, mut broken) = state.records().unwrap();
        assert_eq!(records, [record("a")]);
        broken.sort();
        let files: Vec<&str> = broken.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(files, ["future.toml", "other.toml", "stranger.toml", "torn.toml"]);
        state.set_aside("torn.toml").unwrap();
        assert_eq!(state.records().unwrap().1.len(), 3);
    }

    #[test]
    fn a_second_daemon_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }
}
