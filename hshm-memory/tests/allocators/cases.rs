//! The rows and columns of the matrix: to add one, add it here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use std::ptr::NonNull;

#[cfg(unix)]
use hshm_memory::FileMmap;
#[cfg(unix)]
use hshm_memory::backend::{Cuda, DeviceShmMmap, Rocm, Vendor};
use hshm_memory::{
    Allocator, AllocatorId, AllocatorKind, ArrayBackend, Backend, BackendSlice, HeapOptions,
    InitBackend, InitOptions, MallocAllocator, MallocBackend, MemfdMmap, PosixMmapBackend,
    PosixShmMmap, ScalablePageAllocator, SegmentError, ShmAllocator, StackAllocator,
    ThreadLocalAllocator,
};

/// The memory of each test.
pub(crate) const SIZE: u64 = 8 << 20;
/// The application's header.
pub(crate) const HEADER_BYTES: u64 = 1000;

/// A backend, and how to get at the same memory once more.
pub(crate) struct Memory {
    pub(crate) backend: Arc<dyn Backend>,
    /// What another process would map. Where the memory is one process's own, the same.
    again: Box<dyn Fn() -> Arc<dyn Backend>>,
    destroy: Box<dyn Fn()>,
}

impl Memory {
    pub(crate) fn again(&self) -> Arc<dyn Backend> {
        (self.again)()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        (self.destroy)();
    }
}

pub(crate) struct BackendCase {
    pub(crate) name: &'static str,
    pub(crate) create: fn() -> Memory,
}

/// What the library has on other systems alone.
pub(crate) const NOT_HERE: &[(&str, &str)] = &[
    #[cfg(windows)]
    ("file", "the library has it on systems of the Unix family alone"),
    #[cfg(windows)]
    ("cuda-shm", "Linux alone has it"),
    #[cfg(windows)]
    ("rocm-shm", "Linux alone has it"),
];

pub(crate) const BACKENDS: &[BackendCase] = &[
    BackendCase { name: "posix-shm", create: posix_shm },
    BackendCase { name: "memfd", create: memfd },
    #[cfg(unix)]
    BackendCase { name: "file", create: file },
    BackendCase { name: "posix-mmap", create: || private(posix_mmap()) },
    BackendCase { name: "malloc", create: || private(MallocBackend::create(SIZE).unwrap()) },
    BackendCase { name: "array", create: array },
    BackendCase { name: "slice", create: || private(slice()) },
    #[cfg(unix)]
    BackendCase { name: "cuda-shm", create: device_shm::<Cuda> },
    #[cfg(unix)]
    BackendCase { name: "rocm-shm", create: device_shm::<Rocm> },
];

fn posix_shm() -> Memory {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("hshm-test-allocators.{}.{number}", std::process::id());
    let backend = PosixShmMmap::create(&name, SIZE, 2 * SIZE, 0o600).unwrap();
    let open = name.clone();
    Memory {
        backend: Arc::new(backend),
        again: Box::new(move || Arc::new(open_again(&open))),
        destroy: Box::new(move || PosixShmMmap::shm_destroy(&name).unwrap()),
    }
}

#[cfg(unix)]
fn open_again(name: &str) -> PosixShmMmap {
    PosixShmMmap::from_fd(PosixShmMmap::open(name).unwrap(), 2 * SIZE).unwrap()
}

#[cfg(windows)]
fn open_again(name: &str) -> PosixShmMmap {
    PosixShmMmap::open(name).unwrap()
}

/// Memory of one process.
fn private(backend: impl Backend + 'static) -> Memory {
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let other = Arc::clone(&backend);
    let again = Box::new(move || Arc::clone(&other));
    Memory { backend, again, destroy: Box::new(|| ()) }
}

fn posix_mmap() -> PosixMmapBackend {
    PosixMmapBackend::create(SIZE, 2 * SIZE).unwrap()
}

fn array() -> Memory {
    let mut words = vec![0_u64; usize::try_from(SIZE / 8).unwrap()];
    let start = NonNull::from(words.as_mut_slice()).cast::<u8>();
    // SAFETY: [owned] nobody else uses the words, and they are kept until the backend is dropped.
    let backend = unsafe { ArrayBackend::create(start, size_of_val(words.as_slice())) }.unwrap();
    let destroy = Box::new(move || {
        // Dropped with this closure, after the backend.
        let _ = &words;
    });
    let mut memory = private(backend);
    memory.destroy = destroy;
    memory
}

/// The second half of another backend, but for its first pages: at no round address.
fn slice() -> BackendSlice {
    let whole = Arc::new(MallocBackend::create(2 * SIZE).unwrap());
    BackendSlice::new(whole, SIZE - 12_288..2 * SIZE - 12_288).unwrap()
}

/// Not registered: no allocator sees the difference.
#[cfg(unix)]
fn device_shm<V: Vendor>() -> Memory {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("hshm-test-allocators-{}.{}.{number}", V::KIND, std::process::id());
    let backend = DeviceShmMmap::<V>::create(&name, SIZE, 2 * SIZE, 0o600).unwrap();
    DeviceShmMmap::<V>::unlink(&name).unwrap();
    let backend = Arc::new(backend);
    let other = Arc::clone(&backend);
    Memory {
        backend,
        again: Box::new(move || {
            let file = other.fd().unwrap().try_clone_to_owned().unwrap();
            Arc::new(DeviceShmMmap::<V>::from_fd(file, 2 * SIZE).unwrap())
        }),
        destroy: Box::new(|| ()),
    }
}

#[cfg(unix)]
fn file() -> Memory {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memory");
    let backend = FileMmap::create(&path, SIZE, 2 * SIZE, 0o600);
    Memory {
        backend: Arc::new(backend.unwrap()),
        again: Box::new(move || {
            let file = FileMmap::open(&path).unwrap();
            Arc::new(FileMmap::from_fd(file, 2 * SIZE).unwrap())
        }),
        destroy: Box::new(move || {
            // Dropped with this closure, and the file with it.
            let _ = directory.path();
        }),
    }
}

fn memfd() -> Memory {
    let backend = Arc::new(MemfdMmap::create("allocators", SIZE, 2 * SIZE).unwrap());
    let other = Arc::clone(&backend);
    Memory {
        backend,
        again: Box::new(move || Arc::new(hand_over(&other))),
        destroy: Box::new(|| ()),
    }
}

#[cfg(unix)]
fn hand_over(backend: &MemfdMmap) -> MemfdMmap {
    let file = backend.fd().unwrap().try_clone_to_owned().unwrap();
    MemfdMmap::from_fd(file, 2 * SIZE).unwrap()
}

#[cfg(windows)]
fn hand_over(backend: &MemfdMmap) -> MemfdMmap {
    use std::os::windows::io::AsHandle as _;

    MemfdMmap::from_handle(backend.as_handle().try_clone_to_owned().unwrap()).unwrap()
}

type Made = Result<Arc<dyn Allocator>, SegmentError>;

pub(crate) struct AllocatorCase {
    pub(crate) kind: AllocatorKind,
    pub(crate) create: fn(AllocatorId, Arc<dyn Backend>) -> Made,
    pub(crate) attach: fn(Arc<dyn Backend>) -> Made,
    /// Whether it has a second free of a small block reported, and a pointer into one.
    pub(crate) knows_blocks: bool,
    /// Whether memory is used again that was not freed in the order opposite to its allocation.
    pub(crate) reuses: bool,
    /// Whether it lives in the backend.
    pub(crate) is_shared: bool,
}

const OPTIONS: HeapOptions = HeapOptions { custom_header_bytes: HEADER_BYTES };

fn create<A: ShmAllocator<Options = HeapOptions> + 'static>(
    id: AllocatorId,
    backend: Arc<dyn Backend>,
) -> Made {
    Ok(Arc::new(A::shm_init(id, backend, &OPTIONS)?))
}

fn attach<A: ShmAllocator + 'static>(backend: Arc<dyn Backend>) -> Made {
    Ok(Arc::new(A::shm_deserialize(backend)?))
}

fn create_thread_local(id: AllocatorId, backend: Arc<dyn Backend>) -> Made {
    let options = InitOptions {
        custom_header_bytes: HEADER_BYTES,
        worker_slots: 64,
        ..InitOptions::default()
    };
    Ok(Arc::new(ThreadLocalAllocator::shm_init(id, backend, &options)?))
}

pub(crate) const ALLOCATORS: &[AllocatorCase] = &[
    AllocatorCase {
        kind: AllocatorKind::ThreadLocal,
        create: create_thread_local,
        attach: attach::<ThreadLocalAllocator>,
        knows_blocks: false,
        reuses: true,
        is_shared: true,
    },
    AllocatorCase {
        kind: AllocatorKind::ScalablePage,
        create: create::<ScalablePageAllocator>,
        attach: attach::<ScalablePageAllocator>,
        knows_blocks: true,
        reuses: true,
        is_shared: true,
    },
    AllocatorCase {
        kind: AllocatorKind::Stack,
        create: create::<StackAllocator>,
        attach: attach::<StackAllocator>,
        knows_blocks: true,
        reuses: false,
        is_shared: true,
    },
    AllocatorCase {
        kind: AllocatorKind::Malloc,
        create: create::<MallocAllocator>,
        attach: attach::<MallocAllocator>,
        knows_blocks: true,
        reuses: true,
        is_shared: false,
    },
];

/// An allocator over memory of its own.
pub(crate) struct World {
    pub(crate) heap: Arc<dyn Allocator>,
    /// After the allocator, which uses it.
    pub(crate) memory: Memory,
}

impl World {
    pub(crate) fn new(allocator: &AllocatorCase, backend: &BackendCase) -> Self {
        let memory = (backend.create)();
        let heap = (allocator.create)(AllocatorId::new(7, 9), Arc::clone(&memory.backend)).unwrap();
        Self { heap, memory }
    }
}
