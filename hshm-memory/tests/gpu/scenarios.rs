//! What happens with a driver, each in a process of its own.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use hshm_memory::backend::{Cuda, DeviceShmMmap, Rocm, Vendor};
use hshm_memory::gpu::{self, DeviceBuffer, DeviceMemory, DevicePiece, GpuError, GpuVendor};
use hshm_memory::{
    AllocatorId, Backend, BackendError, BackendKind, InitBackend, InitOptions, ThreadLocalAllocator,
};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

const MIB: u64 = 1 << 20;
/// Where the double's addresses on the device are, from the host's.
const SHIFT: u64 = 1 << 52;

pub(crate) fn run(name: &str, vendor: GpuVendor) {
    match vendor {
        GpuVendor::Cuda => run_on::<Cuda>(name),
        GpuVendor::Rocm => run_on::<Rocm>(name),
    }
}

fn run_on<V: Vendor>(name: &str) {
    match name {
        "probe" => probe::<V>(),
        "register" => register::<V>(),
        "grow" => grow::<V>(),
        "scattered" => scattered::<V>(),
        "devices" => devices::<V>(),
        "no_such_device" => no_such_device::<V>(),
        "no_device" => no_device::<V>(),
        "no_driver" => no_driver::<V>(),
        "no_driver_or_device" => no_driver_or_device::<V>(),
        "missing_symbol" => missing_symbol::<V>(),
        "another_library" => another_library::<V>(),
        "out_of_memory" => refused::<V>(2, "out of memory"),
        "registered_already" => refused::<V>(712, "registered already"),
        "not_supported" => refused::<V>(801, "attach without a device"),
        "unknown_code" => refused::<V>(4242, "a code that this release does not know"),
        "own_memory" => own_memory(V::VENDOR),
        "own_memory_refused" => own_memory_refused(V::VENDOR),
        "own_memory_too_old" => own_memory_too_old(V::VENDOR),
        "fails_on_the_way" => fails_on_the_way::<V>(),
        "address_refused" => address_refused::<V>(),
        "end_refused" => end_refused::<V>(),
        "growth_refused" => growth_refused::<V>(),
        "mapped_twice" => mapped_twice::<V>(),
        "initialise_803" => initialise_803::<V>(),
        "drop" => drop_ends_it::<V>(),
        "fork" => fork::<V>(),
        "killed" => killed::<V>(),
        "punch" => punch::<V>(),
        "manager" => manager::<V>(),
        "manager_without_driver" => manager_without_driver::<V>(),
        other => panic!("no scenario {other}"),
    }
}

/// A name that no other scenario has.
fn name() -> String {
    format!("hshm-test-gpu.{}", std::process::id())
}

/// Memory whose name is gone already.
fn memory<V: Vendor>() -> DeviceShmMmap<V> {
    let memory = DeviceShmMmap::<V>::create(&name(), MIB, 8 * MIB, 0o600).unwrap();
    DeviceShmMmap::<V>::unlink(&name()).unwrap();
    memory
}

fn gpu_error(error: BackendError) -> GpuError {
    let BackendError::Gpu(error) = error else { panic!("{error}") };
    error
}

/// What registering fails with, in one line.
fn register_error<V: Vendor>() -> GpuError {
    let memory = memory::<V>();
    let error = gpu_error(memory.register(0).unwrap_err());
    assert_eq!(memory.registration(), None);
    assert!(matches!(
        gpu_error(memory.device_address(0, 0, 8).unwrap_err()),
        GpuError::NotRegistered { .. }
    ));
    let said = error.to_string();
    assert!(!said.contains('\n') && said.contains(&V::VENDOR.to_string()), "{said}");
    error
}

fn host<V: Vendor>(memory: &DeviceShmMmap<V>) -> u64 {
    memory.base().addr().get() as u64
}

fn probe<V: Vendor>() {
    let found = gpu::probe(V::VENDOR).unwrap();
    assert_eq!(found.vendor, V::VENDOR);
    let names: Vec<_> = found.devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, ["Double 0", "Double 1"]);
    assert!(found.devices.iter().all(|device| device.memory_bytes == 1 << 34));
    let atomics: Vec<_> = found.devices.iter().map(|device| device.host_native_atomics).collect();
    assert_eq!(atomics, [Some(false), Some(true)]);
    let version = if V::VENDOR == GpuVendor::Cuda { "12.4" } else { "6.3" };
    assert_eq!(found.version, version);
}

fn register<V: Vendor>() {
    let memory = memory::<V>();
    assert_eq!(memory.kind(), V::KIND);
    assert_eq!(memory.registration(), None);
    memory.register(0).unwrap();
    // Again does no harm.
    memory.register(0).unwrap();
    let info = memory.registration().unwrap();
    assert_eq!((info.vendor, info.devices, info.registered_bytes), (V::VENDOR, vec![0], MIB));
    for (offset, len) in [(0, 8), (0, MIB), (4096 + 16, 100), (MIB - 1, 1)] {
        let found = memory.device_address(0, offset, len).unwrap();
        assert_eq!(found, host(&memory) + offset + SHIFT);
    }
    for (offset, len) in [(MIB, 1), (0, MIB + 1), (u64::MAX, 2), (8 * MIB, 0)] {
        let error = gpu_error(memory.device_address(0, offset, len).unwrap_err());
        assert!(matches!(error, GpuError::NotRegistered { .. }), "{error}");
    }
    memory.unregister().unwrap();
    memory.unregister().unwrap();
    assert_eq!(memory.registration(), None);
    // And anew, by way of the trait that allocators' users have.
    let memory: Arc<dyn Backend> = Arc::new(memory);
    memory.device().unwrap().register(1).unwrap();
    assert_eq!(memory.device().unwrap().registration().unwrap().devices, [1]);
    assert!(hshm_memory::MemfdMmap::create("x", 1, 1).unwrap().device().is_none());
}

fn grow<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(0).unwrap();
    // Another process grows it: this one is not told.
    nix::unistd::ftruncate(memory.fd().unwrap().as_fd(), 3 << 20).unwrap();
    assert_eq!(memory.registration().unwrap().registered_bytes, MIB);
    let found = memory.device_address(0, 2 * MIB, 64).unwrap();
    assert_eq!(found, host(&memory) + 2 * MIB + SHIFT);
    assert_eq!(memory.registration().unwrap().registered_bytes, 3 * MIB);
    assert_eq!(memory.registration().unwrap().pieces, 2);
    let whole = DevicePiece { offset: 0, bytes: 3 * MIB, address: host(&memory) + SHIFT };
    assert_eq!(memory.pieces(0).unwrap(), [whole]);
    gpu_error(memory.pieces(1).unwrap_err());
    // The double's pieces follow one another, so bytes across their boundary have an address.
    memory.device_address(0, MIB - 8, 16).unwrap();
    memory.grow(8 * MIB).unwrap();
    memory.register(0).unwrap();
    assert_eq!(memory.registration().unwrap().registered_bytes, 8 * MIB);
}

fn scattered<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(0).unwrap();
    memory.grow(2 * MIB).unwrap();
    assert_eq!(memory.device_address(0, MIB, 16).unwrap(), host(&memory) + MIB + 2 * SHIFT);
    assert_eq!(memory.device_address(0, MIB - 16, 16).unwrap(), host(&memory) + MIB - 16 + SHIFT);
    let error = gpu_error(memory.device_address(0, MIB - 8, 16).unwrap_err());
    assert!(matches!(error, GpuError::Divided { boundary: MIB, .. }), "{error}");
    let piece = |offset, address| DevicePiece { offset, bytes: MIB, address };
    let second = host(&memory) + MIB + 2 * SHIFT;
    assert_eq!(memory.pieces(0).unwrap(), [piece(0, host(&memory) + SHIFT), piece(MIB, second)]);
}

fn devices<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(1).unwrap();
    let error = gpu_error(memory.device_address(0, 0, 8).unwrap_err());
    assert!(matches!(error, GpuError::NotRegistered { device: 0, .. }), "{error}");
    memory.register(0).unwrap();
    assert_eq!(memory.registration().unwrap().devices, [1, 0]);
    assert_eq!(memory.registration().unwrap().pieces, 1);
    for device in [0, 1] {
        assert_eq!(memory.device_address(device, 64, 8).unwrap(), host(&memory) + 64 + SHIFT);
    }
    // From a thread that has never used a device.
    std::thread::scope(|scope| {
        scope.spawn(|| memory.device_address(1, 64, 8).unwrap());
    });
}

fn no_such_device<V: Vendor>() {
    let memory = memory::<V>();
    for device in [2, u32::MAX] {
        let error = gpu_error(memory.register(device).unwrap_err());
        assert!(matches!(error, GpuError::NoSuchDevice { count: 2, .. }), "{error}");
    }
    memory.register(0).unwrap();
    memory.register(7).unwrap_err();
    assert_eq!(memory.registration().unwrap().devices, [0]);
}

fn no_device<V: Vendor>() {
    let error = register_error::<V>();
    assert!(matches!(error, GpuError::NoDevice { .. }), "{error}");
    let error = gpu::probe(V::VENDOR).unwrap_err();
    assert!(matches!(error, GpuError::NoDevice { .. }), "{error}");
}

fn no_driver<V: Vendor>() {
    let error = register_error::<V>();
    assert!(matches!(error, GpuError::NoDriver { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("/nowhere/libdriver.so") && said.contains("No such file"), "{said}");
}

/// On a machine of any kind, without a double.
fn no_driver_or_device<V: Vendor>() {
    let memory = memory::<V>();
    let Err(error) = memory.register(0) else { return };
    let error = gpu_error(error);
    assert!(matches!(error, GpuError::NoDriver { .. } | GpuError::NoDevice { .. }), "{error}");
}

fn missing_symbol<V: Vendor>() {
    let error = register_error::<V>();
    let GpuError::MissingSymbol { symbol, .. } = &error else { panic!("{error}") };
    assert!(symbol.contains("HostUnregister"), "{error}");
}

fn another_library<V: Vendor>() {
    let error = register_error::<V>();
    assert!(matches!(error, GpuError::MissingSymbol { .. }), "{error}");
}

fn refused<V: Vendor>(expected: i32, words: &str) {
    let error = register_error::<V>();
    let GpuError::Refused { code, call, .. } = &error else { panic!("{error}") };
    assert_eq!(*code, expected);
    assert!(call.contains("HostRegister"), "{error}");
    let said = error.to_string();
    assert!(said.contains(&expected.to_string()) && said.contains(words), "{said}");
}

fn refused_with(error: &BackendError, expected: i32) {
    let BackendError::Gpu(GpuError::Refused { code, .. }) = error else { panic!("{error}") };
    assert_eq!(*code, expected, "{error}");
}

fn fails_on_the_way<V: Vendor>() {
    let error = register_error::<V>();
    assert!(matches!(error, GpuError::Refused { code: 999, .. }), "{error}");
    // And again, with nothing of the first time in the way.
    let error = register_error::<V>();
    assert!(error.to_string().contains("999 (unknown error)"), "{error}");
}

fn address_refused<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(0).unwrap();
    refused_with(&memory.device_address(0, 0, 8).unwrap_err(), 1);
    refused_with(&memory.pieces(0).unwrap_err(), 1);
    assert_eq!(memory.registration().unwrap().registered_bytes, MIB);
    memory.unregister().unwrap();
}

fn end_refused<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(0).unwrap();
    refused_with(&memory.unregister().unwrap_err(), 713);
    assert_eq!(memory.registration(), None);
    memory.unregister().unwrap();
}

fn growth_refused<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(0).unwrap();
    memory.grow(2 * MIB).unwrap();
    refused_with(&memory.register(0).unwrap_err(), 2);
    refused_with(&memory.device_address(0, MIB, 8).unwrap_err(), 2);
    // What was registered before goes on.
    assert_eq!(memory.registration().unwrap().registered_bytes, MIB);
    assert_eq!(memory.device_address(0, 0, 8).unwrap(), host(&memory) + SHIFT);
}

fn own_memory(vendor: GpuVendor) {
    const UNIT: u64 = 2 * MIB;
    let first = DeviceBuffer::create(vendor, 1, UNIT + 1).unwrap();
    assert_eq!((first.vendor(), first.device(), first.bytes()), (vendor, 1, 2 * UNIT));
    assert!(first.address() > SHIFT);
    assert_eq!(first.device_address(8, 16), Some(first.address() + 8));
    assert_eq!(first.device_address(2 * UNIT, 0), Some(first.address() + 2 * UNIT));
    for (offset, len) in [(2 * UNIT, 1), (0, 2 * UNIT + 1), (u64::MAX, 2)] {
        assert_eq!(first.device_address(offset, len), None);
    }
    let flags = fcntl(first.fd(), FcntlArg::F_GETFD).unwrap();
    assert_eq!(flags, FdFlag::FD_CLOEXEC.bits(), "programs that are executed have it");
    let copy = || first.fd().try_clone_to_owned().unwrap();
    let second = DeviceBuffer::from_fd(vendor, 0, copy(), 2 * UNIT).unwrap();
    assert_ne!(first.address(), second.address());
    // Longer than it is, or no memory of a device's at all.
    let longer = DeviceBuffer::from_fd(vendor, 0, copy(), 4 * UNIT).unwrap_err();
    assert!(matches!(longer, GpuError::Refused { .. }), "{longer}");
    let other = std::fs::File::open("/dev/null").unwrap();
    let refused = DeviceBuffer::from_fd(vendor, 0, other.into(), UNIT).unwrap_err();
    assert!(matches!(refused, GpuError::Refused { .. }), "{refused}");
    let beyond = DeviceBuffer::create(vendor, 2, UNIT).unwrap_err();
    assert!(matches!(beyond, GpuError::NoSuchDevice { count: 2, .. }), "{beyond}");
    let huge = DeviceBuffer::create(vendor, 0, 1 << 40).unwrap_err();
    assert!(matches!(huge, GpuError::Refused { code: 2, .. }), "{huge}");
    in_child(false, || {
        let forked = DeviceBuffer::from_fd(vendor, 0, copy(), UNIT).unwrap_err();
        assert!(matches!(forked, GpuError::Forked { .. }), "{forked}");
        // The parent's is the parent's to end.
        drop(second);
    });
    let file = copy();
    drop(first);
    // The descriptor keeps it.
    DeviceBuffer::from_fd(vendor, 0, file, 2 * UNIT).unwrap();
}

fn own_memory_refused(vendor: GpuVendor) {
    let error = DeviceBuffer::create(vendor, 0, MIB).unwrap_err();
    assert!(matches!(error, GpuError::Refused { code: 2, .. }), "{error}");
    assert!(error.to_string().contains("out of memory"), "{error}");
}

fn own_memory_too_old(vendor: GpuVendor) {
    let error = DeviceBuffer::create(vendor, 0, MIB).unwrap_err();
    assert!(matches!(error, GpuError::Refused { code: 801, .. }), "{error}");
    // What is registered needs no newer one, which alone would tell of atomics.
    memory::<Rocm>().register(0).unwrap();
    assert_eq!(gpu::probe(vendor).unwrap().devices[1].host_native_atomics, None);
}

fn mapped_twice<V: Vendor>() {
    let first = memory::<V>();
    first.register(0).unwrap();
    // The same memory at another address is another registration.
    let file = first.fd().unwrap().try_clone_to_owned().unwrap();
    let second = DeviceShmMmap::<V>::from_fd(file, 8 * MIB).unwrap();
    second.register(0).unwrap();
    assert_ne!(first.device_address(0, 0, 1).unwrap(), second.device_address(0, 0, 1).unwrap());
}

fn initialise_803<V: Vendor>() {
    let error = register_error::<V>();
    assert!(matches!(error, GpuError::Refused { code: 803, .. }), "{error}");
    // A driver that could not start is asked again.
    let error = gpu::probe(V::VENDOR).unwrap_err();
    assert!(matches!(error, GpuError::Refused { code: 803, .. }), "{error}");
}

fn drop_ends_it<V: Vendor>() {
    let first = memory::<V>();
    first.register(0).unwrap();
    first.register(1).unwrap();
    first.grow(2 * MIB).unwrap();
    first.register(0).unwrap();
    drop(first);
    let second = memory::<V>();
    second.register(0).unwrap();
    second.unregister().unwrap();
}

fn heap<V: Vendor>() -> (ThreadLocalAllocator, Arc<DeviceShmMmap<V>>) {
    let backend = Arc::new(memory::<V>());
    let options = InitOptions { worker_slots: 16, ..InitOptions::default() };
    let heap =
        ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), backend.clone(), &options).unwrap();
    (heap, backend)
}

/// Runs `work` in a forked child, which then waits to be killed if it is to.
fn in_child(kill: bool, work: impl FnOnce()) {
    let mut ends = [0; 2];
    // SAFETY: [ffi] two descriptors are stored in an array of two.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: [ffi] the process has one thread besides the harness's, which holds nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let byte = [u8::from(done.is_ok())];
        // SAFETY: [ffi] one byte of a live array.
        unsafe { libc::write(ends[1], byte.as_ptr().cast(), 1) };
        // One that failed holds nobody up.
        if kill && done.is_ok() {
            std::thread::sleep(std::time::Duration::from_secs(3600));
        }
        // SAFETY: [ffi] ends the child at once.
        unsafe { libc::_exit(0) };
    }
    let mut byte = [0_u8];
    // SAFETY: [ffi] one byte into a live array; the child or its end answers.
    let read = unsafe { libc::read(ends[0], byte.as_mut_ptr().cast(), 1) };
    assert_eq!((read, byte), (1, [1]), "the child failed");
    if kill {
        // SAFETY: [ffi] the child is not reaped yet.
        assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
    }
    let mut status = 0;
    // SAFETY: [ffi] the answer is stored in a local.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL;
    assert_eq!(killed, kill, "{status:#x}");
}

fn fork<V: Vendor>() {
    let (heap, backend) = heap::<V>();
    backend.register(0).unwrap();
    let before = backend.registration();
    in_child(false, || {
        let forked = |error: BackendError| {
            let error = gpu_error(error);
            assert!(matches!(error, GpuError::Forked { .. }), "{error}");
        };
        assert_eq!(backend.registration(), None);
        forked(backend.register(0).unwrap_err());
        forked(backend.device_address(0, 0, 8).unwrap_err());
        forked(memory::<V>().register(0).unwrap_err());
        // Nothing of its own to end; the parent's stays.
        backend.unregister().unwrap();
        // As memory it serves.
        let block = heap.allocate(100).unwrap();
        // SAFETY: nobody uses the block any more.
        unsafe { heap.free(block) }.unwrap();
        heap.detach_thread();
        drop(heap.clone());
    });
    assert_eq!(backend.registration(), before);
    backend.device_address(0, 0, 8).unwrap();
    backend.unregister().unwrap();
}

fn killed<V: Vendor>() {
    let (heap, backend) = heap::<V>();
    in_child(true, || {
        backend.register(1).unwrap();
        let block = heap.allocate(100).unwrap();
        let found = backend.device_address(1, block.offset_bytes(), 100).unwrap();
        assert_eq!(found, host(&backend) + block.offset_bytes() + SHIFT);
    });
    // It asked for the driver, this process has not, so it can.
    assert_eq!(backend.registration(), None);
    backend.register(0).unwrap();
    assert_eq!(heap.recover_dead().slots, 1);
    assert_eq!(heap.report().allocated_blocks, 1);
    assert!(heap.check().is_clean());
}

fn punch<V: Vendor>() {
    let memory = memory::<V>();
    memory.register(0).unwrap();
    let byte = |at: usize| NonNull::new(memory.base().as_ptr().wrapping_add(at)).unwrap();
    // SAFETY: [mapped] [owned] nobody else has this memory.
    unsafe { byte(8192).write_bytes(7, 4096) };
    let occupied = || nix::sys::stat::fstat(memory.fd().unwrap()).unwrap().st_blocks;
    let before = occupied();
    memory.punch(4096..12288).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { byte(8192).read() }, 0);
    assert_eq!(occupied(), before, "the memory that devices have went out of the file");
    memory.punch(0..64 * MIB).unwrap();
    memory.punch(64 * MIB..65 * MIB).unwrap();
}

fn manager<V: Vendor>() {
    let made = DeviceShmMmap::<V>::shm_init(&name(), MIB).unwrap();
    assert_eq!(made.registration().unwrap().devices, [0]);
    let found = DeviceShmMmap::<V>::shm_attach(&name()).unwrap();
    assert_eq!(found.registration().unwrap().registered_bytes, MIB);
    DeviceShmMmap::<V>::shm_destroy(&name()).unwrap();
    assert!(matches!(DeviceShmMmap::<V>::open(&name()), Err(BackendError::NotFound { .. })));
    // As the descriptor of another process's, it is not registered until asked for.
    let file = made.fd().unwrap().try_clone_to_owned().unwrap();
    let opened = V::KIND.open_fd(file, 8 * MIB).unwrap();
    assert_eq!(opened.kind(), V::KIND);
    assert_eq!(opened.device().unwrap().registration(), None);
    assert_eq!(V::KIND.to_string().parse::<BackendKind>().unwrap(), V::KIND);
}

fn manager_without_driver<V: Vendor>() {
    if gpu::probe(V::VENDOR).is_err() {
        let error = gpu_error(DeviceShmMmap::<V>::shm_init(&name(), MIB).unwrap_err());
        assert!(matches!(error, GpuError::NoDriver { .. } | GpuError::NoDevice { .. }), "{error}");
        assert!(matches!(DeviceShmMmap::<V>::open(&name()), Err(BackendError::NotFound { .. })));
    }
}
