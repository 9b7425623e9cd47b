//! Surviving a segment whose file was cut short.
//!
//! A named shared-memory object can be truncated by whoever may write it, and touching what is gone
//! then raises SIGBUS. A process that must not die of that, such as a daemon that looks into other
//! people's segments, asks for [`survive_truncation`]: the missing page is replaced by a private
//! one of zeros, which validation and checks refuse as they refuse any other nonsense.

use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::BackendError;

/// Mappings that can be watched at a time; those beyond are not protected.
const WATCHED: usize = 4096;

/// An address range that a mapping of ours has, and whether a page of it was replaced. Read by the
/// signal handler, hence fixed and made of atomics.
struct Range {
    start: AtomicUsize,
    len: AtomicUsize,
    /// The size of its pages, or less than the machine's own.
    page: AtomicUsize,
    damaged: AtomicBool,
}

static RANGES: [Range; WATCHED] = [const {
    Range {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        damaged: AtomicBool::new(false),
    }
}; WATCHED];

/// A mapping's entry among those that are watched.
#[derive(Debug)]
pub(super) struct Watch(Option<usize>);

impl Watch {
    /// Watches `[start, start + len)`, in pages of `page` bytes or the machine's own if those are
    /// larger, which stays mapped until the value is dropped.
    pub(super) fn new(start: usize, len: usize, page: usize) -> Self {
        let free = RANGES.iter().position(|range| {
            // ORDER: AcqRel: one mapping takes an entry. The length, which says that it is ready, is
            // stored last with Release.
            range.start.compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        if let Some(range) = free.and_then(|index| RANGES.get(index)) {
            range.damaged.store(false, Ordering::Relaxed);
            range.page.store(page, Ordering::Relaxed);
            range.len.store(len, Ordering::Release);
        }
        Self(free)
    }

    /// Whether a page of the mapping was found missing and replaced.
    pub(super) fn is_damaged(&self) -> bool {
        let range = self.0.and_then(|index| RANGES.get(index));
        range.is_some_and(|range| range.damaged.load(Ordering::Relaxed))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(range) = self.0.and_then(|index| RANGES.get(index)) {
            range.len.store(0, Ordering::Release);
            range.start.store(0, Ordering::Release);
        }
    }
}

/// Makes this process survive the truncation of segments that it has mapped: what is missing reads
/// as zeros from then on, and [`Backend::is_damaged`](super::Backend::is_damaged) says so.
///
/// This sets the process's handler for SIGBUS; faults elsewhere end the process as before. Calls
/// after the first do nothing.
///
/// # Errors
/// [`BackendError::System`] if the handler cannot be set.
///
/// # Examples
/// ```
/// use hshm_memory::backend::survive_truncation;
/// use hshm_memory::{Backend, FileMmap};
///
/// survive_truncation()?;
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("segment");
/// let backend = FileMmap::create(&path, 1 << 20, 1 << 20, 0o600)?;
/// // Somebody cuts it short.
/// std::fs::File::options().write(true).open(&path)?.set_len(0)?;
/// // SAFETY: the byte is mapped; what was there reads as zero.
/// assert_eq!(unsafe { backend.base().read_volatile() }, 0);
/// assert!(backend.is_damaged());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn survive_truncation() -> Result<(), BackendError> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| result = install());
    result.map_err(|source| BackendError::System { what: "cannot handle SIGBUS", source })
}

fn install() -> io::Result<()> {
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: [init] all-zero bytes are a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: [ffi] the action is initialised, the old one is not asked for, and the handler only
    // does what a signal handler may.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: [ffi] the kernel passes a valid record to a handler set with SA_SIGINFO.
    let info = unsafe { &*info };
    // SAFETY: [ffi] SIGBUS comes with an address.
    let address = unsafe { info.si_addr() }.addr();
    let range = RANGES.iter().find(|range| {
        let len = range.len.load(Ordering::Acquire);
        address.wrapping_sub(range.start.load(Ordering::Acquire)) < len
    });
    let replaced = range.is_some_and(|range| {
        range.damaged.store(true, Ordering::Relaxed);
        replace_page(address, range.page.load(Ordering::Relaxed))
    });
    if !replaced {
        // Not ours: let it happen again, and end the process as if nobody had asked.
        // SAFETY: [ffi] SIG_DFL is a valid action; `signal` may be called in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Puts a page of zeros where one is missing.
fn replace_page(address: usize, page: usize) -> bool {
    // SAFETY: [ffi] no pointer is passed; it may be called in a handler.
    let own = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Ok(own) = usize::try_from(own) else { return false };
    // Of a huge page, a part cannot be replaced.
    let page = page.max(own);
    let start = address & !(page - 1);
    // SAFETY: [owned] the page lies in a mapping of this library's that has no memory there: nothing
    // is lost by mapping over it. mmap is a bare system call, which a handler may make.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(start),
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::*;
    use crate::backend::{Backend, PosixShmMmap};
    use crate::{AllocatorId, InitOptions, ThreadLocalAllocator};

    #[test]
    fn a_truncated_segment_is_damaged_and_ends_nobody() {
        survive_truncation().unwrap();
        let name = format!("hshm-test-fault.{}", std::process::id());
        let backend = PosixShmMmap::create(&name, 8 << 20, 8 << 20, 0o600).unwrap();
        PosixShmMmap::unlink(&name).unwrap();
        let backend = Arc::new(backend);
        let id = AllocatorId::new(0, 0);
        let heap =
            ThreadLocalAllocator::shm_init(id, backend.clone(), &InitOptions::default()).unwrap();
        for _ in 0..100 {
            heap.allocate(100).unwrap();
        }
        nix::unistd::ftruncate(backend.fd().unwrap().as_fd(), 4096).unwrap();
        let _ = heap.check();
        let _ = heap.report();
        let _ = heap.holders();
        assert!(backend.is_damaged());
    }
}
