//! Options, applied to memory that was just mapped.

use std::fs;
use std::ops::Range;

use nix::errno::Errno;

use super::advice::Mapped;
use super::obtained::look_up;
use super::{BackendError, BackendOptions, HugePages};
use crate::sync::{AtomicU64, Ordering};

/// What a mapping's pages are pages of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PagesOf {
    /// Nothing: private memory.
    Nothing,
    /// A file of tmpfs, or a memory file.
    Shmem,
    /// A file of another file system.
    File,
    /// Memory that comes in pages of its own size, in bytes.
    Huge(u64),
}

impl PagesOf {
    /// Where it is set whether this memory comes in huge pages.
    fn advice(self) -> &'static str {
        match self {
            Self::Nothing => {
                "did not come: they are off, or no memory is contiguous enough; see /sys/kernel/mm/transparent_hugepage/enabled, or only try to have them"
            }
            Self::Shmem => {
                "did not come: they are off for shared memory, or no memory is contiguous enough; mount its tmpfs with huge=advise, use a memfd, or only try to have them"
            }
            Self::File => {
                "did not come: the file system has none; use a file of a hugetlbfs mount, or only try to have them"
            }
            Self::Huge(_) => "cannot be had: the file has pages of another size",
        }
    }
}

/// How much of a mapping is locked: it follows what is committed.
#[derive(Debug)]
pub(super) struct Locks {
    wanted: bool,
    upto: AtomicU64,
}

impl Locks {
    /// Has what is committed now locked as well, if `end` says that it grew.
    pub(super) fn follow(
        &self,
        mapped: Mapped,
        end: u64,
        committed: impl FnOnce() -> u64,
    ) -> Result<(), BackendError> {
        // ORDER: Relaxed: who reads an old value locks what is locked already.
        let upto = self.upto.load(Ordering::Relaxed);
        if !self.wanted || end <= upto {
            return Ok(());
        }
        let committed = committed();
        mapped.lock(&(upto..committed))?;
        self.upto.fetch_max(committed, Ordering::Relaxed);
        Ok(())
    }
}

/// Does with a fresh mapping, of which `committed` bytes can be used, what the options say; all but
/// populating it, which the caller knows best how to do.
pub(super) fn apply(
    mapped: Mapped,
    committed: u64,
    pages_of: PagesOf,
    options: &BackendOptions,
) -> Result<Locks, BackendError> {
    mapped.bind(&options.numa)?;
    if let PagesOf::Huge(bytes) = pages_of {
        let wanted = options.huge_page_bytes.unwrap_or(bytes);
        let refused = match options.huge_pages {
            HugePages::Never => Some("cannot be refused: the file has no others"),
            HugePages::Require if wanted != bytes => Some(pages_of.advice()),
            HugePages::System | HugePages::Try | HugePages::Require => None,
        };
        if let Some(why) = refused {
            return Err(BackendError::HugePages { bytes: wanted, why: why.to_owned() });
        }
    } else {
        advise(mapped, options)?;
    }
    let locks = Locks { wanted: options.lock, upto: AtomicU64::new(0) };
    locks.follow(mapped, committed, || committed)?;
    if options.huge_pages == HugePages::Require && !matches!(pages_of, PagesOf::Huge(_)) {
        probe(mapped, committed, pages_of, options)?;
    }
    Ok(locks)
}

/// Tells the kernel about huge pages, of which it has those of one size for ordinary memory.
fn advise(mapped: Mapped, options: &BackendOptions) -> Result<(), BackendError> {
    let size_fits = options.huge_page_bytes.is_none_or(|bytes| bytes == transparent_bytes());
    match options.huge_pages {
        HugePages::System => Ok(()),
        // A kernel that refuses has none, which is what was wanted.
        HugePages::Never => {
            let _ = mapped.advise_huge(false);
            Ok(())
        }
        HugePages::Try => {
            if size_fits {
                let _ = mapped.advise_huge(true);
            }
            Ok(())
        }
        HugePages::Require => {
            let bytes = options.huge_page_bytes.unwrap_or_else(transparent_bytes);
            let refused = |why: String| Err(BackendError::HugePages { bytes, why });
            if !size_fits {
                return refused(format!(
                    "cannot be had: for such memory the kernel has those of {} bytes; use a memfd, or a file of a hugetlbfs mount, for others",
                    transparent_bytes()
                ));
            }
            match mapped.advise_huge(true) {
                Ok(()) => Ok(()),
                Err(Errno::EINVAL) => {
                    refused("cannot be had: the kernel was built without them".to_owned())
                }
                Err(errno) => Err(BackendError::system("cannot ask for huge pages", errno)),
            }
        }
    }
}

/// Uses the beginning of the memory and looks whether a huge page came.
fn probe(
    mapped: Mapped,
    committed: u64,
    pages_of: PagesOf,
    options: &BackendOptions,
) -> Result<(), BackendError> {
    let bytes = options.huge_page_bytes.unwrap_or_else(transparent_bytes);
    let refused = |why: &str| Err(BackendError::HugePages { bytes, why: why.to_owned() });
    if committed < bytes {
        return refused("cannot be had: the memory is shorter than one");
    }
    let first: Range<u64> = 0..bytes;
    mapped.populate(&first)?;
    if look_up(mapped.base(), bytes)?.huge_bytes < bytes {
        return refused(pages_of.advice());
    }
    Ok(())
}

/// The size of transparent huge pages, in bytes.
fn transparent_bytes() -> u64 {
    let said = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    said.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(2 << 20)
}
