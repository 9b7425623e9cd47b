//! Segments of a test's own, which leave nothing behind.

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use hshm_memory::{
    AllocatorId, Backend, BackendKind, InitOptions, MemfdMmap, OnExit, PosixShmMmap,
    ThreadLocalAllocator,
};

/// What a segment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name in `/dev/shm`.
    PosixShm,
    /// A memory file.
    Memfd,
}

/// Each combination of backend and policy.
pub const VARIANTS: [(Kind, OnExit); 4] = [
    (Kind::PosixShm, OnExit::Keep),
    (Kind::PosixShm, OnExit::Reclaim),
    (Kind::Memfd, OnExit::Keep),
    (Kind::Memfd, OnExit::Reclaim),
];

/// A name for a shared-memory object that no other test uses, taken away with the value.
#[derive(Debug)]
pub struct TempName(String);

impl TempName {
    /// A name that nothing has.
    #[must_use]
    pub fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        Self(format!("hshm-test.{}.{count}", std::process::id()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TempName {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TempName {
    fn drop(&mut self) {
        // Gone already if the test took it away.
        let _ = PosixShmMmap::unlink(&self.0);
    }
}

/// A segment with an allocator, attached to this process.
#[derive(Debug)]
pub struct TestSegment {
    /// The allocator.
    pub heap: ThreadLocalAllocator,
    name: Option<TempName>,
}

impl TestSegment {
    /// Makes one with room for `size` bytes of blocks, which cannot grow.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(kind: Kind, size: u64, options: InitOptions) -> Self {
        // Room for the allocator's own tables beside it.
        Self::with_capacity(kind, size, size + size / 64 + (4 << 20), options)
    }

    /// Makes one with room for `size` bytes that can grow to `capacity`.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn with_capacity(kind: Kind, size: u64, capacity: u64, options: InitOptions) -> Self {
        let (backend, name): (Arc<dyn Backend>, _) = match kind {
            Kind::PosixShm => {
                let name = TempName::new();
                let made = PosixShmMmap::create(name.as_str(), size, capacity, 0o600);
                (Arc::new(made.expect("a segment")), Some(name))
            }
            Kind::Memfd => {
                let made = MemfdMmap::create("hshm-test", size, capacity);
                (Arc::new(made.expect("a segment")), None)
            }
        };
        let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(7, 1), backend, &options);
        Self { heap: heap.expect("an allocator"), name }
    }

    /// Another descriptor of the file behind it.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn fd(&self) -> OwnedFd {
        let fd = self.heap.backend().fd().expect("a file");
        fd.try_clone_to_owned().expect("a descriptor")
    }

    /// The command that runs `worker` in `role` on this segment, for [`attach_as_told`] to find.
    #[must_use]
    pub fn command(&self, worker: &str, role: &str) -> Command {
        let mut command = Command::new(worker);
        command.arg(role).stdout(Stdio::piped());
        match &self.name {
            Some(name) => command.arg(name.as_str()).stdin(Stdio::null()),
            None => command.arg("-").stdin(self.fd()),
        };
        command
    }

    /// Asserts that every block was freed and every invariant holds.
    ///
    /// # Panics
    /// If not.
    pub fn assert_empty(&self) {
        self.assert_sound();
        let (report, check) = (self.heap.report(), self.heap.check());
        assert_eq!((report.allocated_bytes, report.allocated_blocks), (0, 0), "{report:#?}");
        assert_eq!((check.allocated_bytes, check.allocated_blocks), (0, 0), "{check:#?}");
    }

    /// Asserts that every invariant holds.
    ///
    /// # Panics
    /// If not.
    pub fn assert_sound(&self) {
        let check = self.heap.check();
        assert!(check.is_clean(), "{check:#?}");
    }
}

/// Attaches what [`TestSegment::command`] named: an object, or `-` for the memory file that is
/// standard input.
///
/// # Panics
/// If it cannot be attached.
#[must_use]
pub fn attach_as_told(name: &str) -> ThreadLocalAllocator {
    let attached = if name == "-" {
        let file = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
        ThreadLocalAllocator::open_fd(BackendKind::Memfd, file)
    } else {
        ThreadLocalAllocator::attach(name)
    };
    attached.expect("the segment")
}
