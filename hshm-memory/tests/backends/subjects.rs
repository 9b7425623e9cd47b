//! The backends that the suite runs over, each made and found again in its own way.

use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hshm_memory::backend::{NodeSet, NumaPolicy};
use hshm_memory::{
    ArrayBackend, Backend, BackendError, BackendKind, BackendOptions, BackendSlice, FileMmap,
    MallocBackend, MemfdMmap, PosixMmapBackend, PosixShmMmap,
};

/// Everything that a backend does, or is excused from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    Create,
    Alignment,
    ZeroFilled,
    Grow,
    Populate,
    Punch,
    Capacity,
    GrownByOther,
    SecondHandle,
    SecondProcess,
    Destroy,
    Unmap,
    Threads,
    Options,
    Allocator,
}

impl Property {
    pub(crate) const ALL: [Self; 15] = [
        Self::Create,
        Self::Alignment,
        Self::ZeroFilled,
        Self::Grow,
        Self::Populate,
        Self::Punch,
        Self::Capacity,
        Self::GrownByOther,
        Self::SecondHandle,
        Self::SecondProcess,
        Self::Destroy,
        Self::Unmap,
        Self::Threads,
        Self::Options,
        Self::Allocator,
    ];
}

/// Why a property is not one of a backend.
pub(crate) type Excuse = (Property, &'static str);

const ONE_PROCESS: [Excuse; 4] = [
    (Property::GrownByOther, "one process"),
    (Property::SecondHandle, "one process"),
    (Property::SecondProcess, "one process"),
    (Property::Destroy, "no name"),
];
const CALLERS: [Excuse; 7] = [
    ONE_PROCESS[0],
    ONE_PROCESS[1],
    ONE_PROCESS[2],
    ONE_PROCESS[3],
    (Property::Grow, "fixed"),
    (Property::Options, "no options"),
    (Property::Unmap, "the caller's"),
];
const MALLOCS: [Excuse; 6] =
    [ONE_PROCESS[0], ONE_PROCESS[1], ONE_PROCESS[2], ONE_PROCESS[3], CALLERS[4], CALLERS[5]];
const MEMFDS: [Excuse; 1] = [(Property::Destroy, "no name")];
const PARTS: [Excuse; 5] = [
    CALLERS[4],
    CALLERS[5],
    (Property::GrownByOther, "fixed"),
    (Property::Destroy, "no name"),
    (Property::Unmap, "the whole's"),
];
const PRIVATE_PARTS: [Excuse; 7] = [
    CALLERS[4],
    CALLERS[5],
    PARTS[4],
    ONE_PROCESS[0],
    ONE_PROCESS[1],
    ONE_PROCESS[2],
    ONE_PROCESS[3],
];

/// A way to make a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Array,
    Malloc,
    PosixMmap,
    PosixShm,
    Memfd,
    FileInTmpfs,
    FileOnDisk,
    SharedPart,
    PrivatePart,
    HugeMemfd,
    HugeFile,
}

impl Subject {
    pub(crate) const ALL: [Self; 11] = [
        Self::Array,
        Self::Malloc,
        Self::PosixMmap,
        Self::PosixShm,
        Self::Memfd,
        Self::FileInTmpfs,
        Self::FileOnDisk,
        Self::SharedPart,
        Self::PrivatePart,
        Self::HugeMemfd,
        Self::HugeFile,
    ];

    pub(crate) fn kind(self) -> BackendKind {
        match self {
            Self::Array => BackendKind::Array,
            Self::Malloc => BackendKind::Malloc,
            Self::PosixMmap => BackendKind::PosixMmap,
            Self::PosixShm => BackendKind::PosixShm,
            Self::Memfd | Self::HugeMemfd => BackendKind::Memfd,
            Self::FileInTmpfs | Self::FileOnDisk | Self::HugeFile => BackendKind::File,
            Self::SharedPart | Self::PrivatePart => BackendKind::Slice,
        }
    }

    /// What it does not do, and why.
    pub(crate) fn excuses(self) -> &'static [Excuse] {
        match self {
            Self::Array => &CALLERS,
            Self::Malloc => &MALLOCS,
            Self::PosixMmap => &ONE_PROCESS,
            Self::Memfd | Self::HugeMemfd => &MEMFDS,
            Self::PosixShm | Self::FileInTmpfs | Self::FileOnDisk | Self::HugeFile => &[],
            Self::SharedPart => &PARTS,
            Self::PrivatePart => &PRIVATE_PARTS,
        }
    }

    /// Whether it is made of the pages that a system keeps for this purpose.
    pub(crate) fn is_huge(self) -> bool {
        matches!(self, Self::HugeMemfd | Self::HugeFile)
    }

    /// Why it cannot be looked at on this machine.
    pub(crate) fn missing(self) -> Option<String> {
        if !self.is_huge() {
            return None;
        }
        if self == Self::HugeFile && hugetlbfs().is_none() {
            return Some("no hugetlbfs is mounted".to_owned());
        }
        let free = fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
        let free = free.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0);
        (free < 160).then(|| format!("{free} huge pages are free, and 160 are needed"))
    }

    /// Makes one, of the kinds that have options with these.
    pub(crate) fn create(self, size: u64, capacity: u64, options: &BackendOptions) -> Made {
        self.try_create(size, capacity, options).unwrap()
    }

    pub(crate) fn try_create(
        self,
        size: u64,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Made, BackendError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let label = format!("hshm-suite.{}.{count}", std::process::id());
        let mut made = Made { backend: None, place: None, label: label.clone(), memory: None };
        let part = size / 4096 * 4096;
        let backend: Arc<dyn Backend> = match self {
            Self::Array => {
                let len = usize::try_from(capacity).unwrap() + 100;
                let memory = Box::leak(vec![0xff_u8; len].into_boxed_slice());
                let memory = NonNull::from(memory);
                made.memory = Some(memory);
                // SAFETY: [owned] the memory was leaked, and is taken back after the backend.
                Arc::new(unsafe { ArrayBackend::create(memory.cast(), len)? })
            }
            Self::Malloc => Arc::new(MallocBackend::create(capacity)?),
            Self::PosixMmap => Arc::new(PosixMmapBackend::create_with(size, capacity, options)?),
            Self::PosixShm => {
                made.place = Some(Place::new(BackendKind::PosixShm, label.clone(), capacity));
                Arc::new(PosixShmMmap::create_with(&label, size, capacity, 0o600, options)?)
            }
            Self::Memfd => Arc::new(MemfdMmap::create_with(&label, size, capacity, options)?),
            Self::HugeMemfd => {
                use hshm_memory::backend::HugePages::Require;
                let options = BackendOptions { huge_pages: Require, ..options.clone() };
                Arc::new(MemfdMmap::create_with(&label, size, capacity, &options)?)
            }
            Self::FileInTmpfs | Self::FileOnDisk | Self::HugeFile => {
                let special = if self == Self::HugeFile { hugetlbfs() } else { None };
                let in_memory = (self == Self::FileInTmpfs).then(|| PathBuf::from("/dev/shm"));
                let folder = special.or(in_memory).unwrap_or_else(std::env::temp_dir);
                let path = folder.join(&label);
                let shown = path.to_str().unwrap().to_owned();
                made.place = Some(Place::new(BackendKind::File, shown, capacity));
                Arc::new(FileMmap::create_with(&path, size, capacity, 0o600, options)?)
            }
            Self::SharedPart => {
                let whole = MemfdMmap::create(&label, size + (1 << 16), capacity + (1 << 16))?;
                let place = Place::of_fd(&whole, capacity + (1 << 16));
                made.place = Some(Place { part: Some(1 << 16..part + (1 << 16)), ..place });
                Arc::new(BackendSlice::new(Arc::new(whole), 1 << 16..part + (1 << 16))?)
            }
            Self::PrivatePart => {
                let whole = PosixMmapBackend::create_with(size + 4096, capacity + 4096, options)?;
                Arc::new(BackendSlice::new(Arc::new(whole), 4096..part + 4096)?)
            }
        };
        if self.kind() == BackendKind::Memfd {
            made.place = Some(Place::of_fd(&*backend, backend.capacity_bytes()));
        }
        made.backend = Some(backend);
        Ok(made)
    }
}

/// Where a file system of huge pages is mounted.
fn hugetlbfs() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mut folders = mounts.lines().filter_map(|mount| {
        let mut words = mount.split(' ').skip(1);
        let folder = words.next()?;
        (words.next()? == "hugetlbfs").then(|| PathBuf::from(folder))
    });
    folders.find(|folder| nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_ok())
}

/// Whether this process may keep memory from being swapped out.
pub(crate) fn may_lock() -> bool {
    let lock = BackendOptions { lock: true, ..BackendOptions::default() };
    PosixMmapBackend::create_with(8 << 20, 8 << 20, &lock).is_ok()
}

/// Whether this process may say which nodes memory comes from, which containers often forbid.
pub(crate) fn may_bind() -> bool {
    let nodes = NodeSet::new([0]).unwrap();
    let bound = BackendOptions { numa: NumaPolicy::Bind(nodes), ..BackendOptions::default() };
    PosixMmapBackend::create_with(4096, 4096, &bound).is_ok()
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Array => "array",
            Self::Malloc => "malloc",
            Self::PosixMmap => "posix-mmap",
            Self::PosixShm => "posix-shm",
            Self::Memfd => "memfd",
            Self::FileInTmpfs => "file in tmpfs",
            Self::FileOnDisk => "file on disk",
            Self::SharedPart => "slice of memfd",
            Self::PrivatePart => "slice of posix-mmap",
            Self::HugeMemfd => "memfd, huge pages",
            Self::HugeFile => "file in hugetlbfs",
        })
    }
}

/// A backend, what else is needed to find it again, and what has to be cleaned up after it.
#[derive(Debug)]
pub(crate) struct Made {
    backend: Option<Arc<dyn Backend>>,
    pub(crate) place: Option<Place>,
    /// What it is called in the list of mappings, if it is there by name.
    pub(crate) label: String,
    memory: Option<NonNull<[u8]>>,
}

impl Made {
    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        self.backend.as_ref().unwrap()
    }

    /// Lets go of the mapping.
    pub(crate) fn detach(&mut self) {
        let last = self.backend.take().map(|backend| Arc::strong_count(&backend));
        assert_eq!(last, Some(1), "somebody else has it still");
    }

    /// Takes its name away.
    pub(crate) fn destroy(&mut self) {
        self.place.take().unwrap().destroy().unwrap();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.backend = None;
        if let Some(place) = self.place.take() {
            // It was destroyed already, or has no name.
            let _ = place.destroy();
        }
        if let Some(memory) = self.memory {
            // SAFETY: [owned] it was leaked from a box, and the backend is gone.
            drop(unsafe { Box::from_raw(memory.as_ptr()) });
        }
    }
}

/// Where another handle, in whichever process, finds a backend.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    kind: BackendKind,
    path: String,
    capacity: u64,
    part: Option<Range<u64>>,
}

impl Place {
    fn new(kind: BackendKind, path: String, capacity: u64) -> Self {
        Self { kind, path, capacity, part: None }
    }

    /// A file without name, as other processes of the same user see it.
    fn of_fd(backend: &dyn Backend, capacity: u64) -> Self {
        let fd = backend.fd().unwrap().as_raw_fd();
        Self::new(backend.kind(), format!("/proc/{}/fd/{fd}", std::process::id()), capacity)
    }

    pub(crate) fn open(&self) -> Arc<dyn Backend> {
        let file: OwnedFd = match self.kind {
            BackendKind::PosixShm => PosixShmMmap::open(&self.path).unwrap(),
            BackendKind::File => FileMmap::open(self.path.as_ref()).unwrap(),
            BackendKind::Memfd | _ => {
                File::options().read(true).write(true).open(&self.path).unwrap().into()
            }
        };
        let whole = self.kind.open_fd(file, self.capacity).unwrap();
        match &self.part {
            Some(part) => Arc::new(BackendSlice::new(whole, part.clone()).unwrap()),
            None => whole,
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        match self.kind {
            BackendKind::PosixShm => PosixShmMmap::open(&self.path).is_ok(),
            BackendKind::File | _ => PathBuf::from(&self.path).exists(),
        }
    }

    fn destroy(&self) -> Result<(), BackendError> {
        match self.kind {
            BackendKind::PosixShm => PosixShmMmap::unlink(&self.path),
            BackendKind::File => FileMmap::unlink(self.path.as_ref()),
            BackendKind::Memfd | _ => Ok(()),
        }
    }

    pub(crate) fn to_words(&self) -> String {
        let part = self.part.clone().unwrap_or(0..0);
        format!("{} {} {} {} {}", self.kind, self.capacity, part.start, part.end, self.path)
    }

    pub(crate) fn from_words(words: &str) -> Self {
        let mut words = words.splitn(5, ' ');
        let mut next = || words.next().unwrap();
        let (kind, capacity) = (next().parse().unwrap(), next().parse().unwrap());
        let part: Range<u64> = next().parse().unwrap()..next().parse().unwrap();
        let part = (!part.is_empty()).then_some(part);
        Self { kind, path: next().to_owned(), capacity, part }
    }
}
