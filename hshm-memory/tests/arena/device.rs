//! The device's code: compiling it, and calling it.

use std::env::consts::DLL_SUFFIX;
use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::{fs, process, ptr};

use hshm_memory::gpu::arena::DeviceView;
use libloading::Library;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    C,
    Cxx,
}

impl Language {
    fn compiler(self) -> Command {
        let (variable, usual) = match self {
            Self::C => ("CC", "cc"),
            Self::Cxx => ("CXX", "c++"),
        };
        Command::new(std::env::var_os(variable).unwrap_or_else(|| usual.into()))
    }

    /// Those that can be compiled here. What compiles and links Rust has a compiler for C.
    pub(crate) fn all() -> Vec<Self> {
        let has_cxx = Self::Cxx.compiler().arg("--version").output().is_ok();
        if has_cxx { vec![Self::C, Self::Cxx] } else { vec![Self::C] }
    }
}

/// Compiles `device.c`, with `flags` in addition.
pub(crate) fn compile(language: Language, name: &str, flags: &[&str]) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("arena-{language:?}"));
    fs::create_dir_all(&folder).unwrap();
    let product = folder.join(name);
    let sources = [here.join("tests/arena/device.c"), here.join("include/hshm/device.h")];
    let age = |path: &Path| fs::metadata(path).and_then(|found| found.modified());
    if let Ok(built) = age(&product)
        && sources.iter().all(|source| built > age(source).unwrap())
    {
        return product;
    }
    let mut command = language.compiler();
    command.args(match language {
        Language::C => ["-x", "c", "-std=gnu11"],
        Language::Cxx => ["-x", "c++", "-std=gnu++17"],
    });
    // Another run of this program may use the product: it is replaced, not written over.
    let fresh = folder.join(format!("{name}.{}", process::id()));
    command.args(["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]).args(flags);
    command.arg("-I").arg(here.join("include")).arg("-o").arg(&fresh);
    let output = command.arg(&sources[0]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(fresh, &product).unwrap();
    product
}

type Heap = *mut c_void;

/// Storage of a grid's threads, as the header has it.
#[repr(C)]
pub(crate) struct Storage {
    pub(crate) words: *mut u64,
    pub(crate) keys: u64,
    pub(crate) threads: u64,
}

/// The functions of `device.c`.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    attach: unsafe extern "C" fn(*const u64, *mut c_int) -> Heap,
    detach: unsafe extern "C" fn(Heap),
    allocate: unsafe extern "C" fn(Heap, u64) -> u64,
    free: unsafe extern "C" fn(Heap, u64) -> c_int,
    send: unsafe extern "C" fn(Heap, u64) -> c_int,
    receive: unsafe extern "C" fn(Heap) -> u64,
    drain: unsafe extern "C" fn(Heap, u64) -> u64,
    resolve: unsafe extern "C" fn(Heap, u64, u64) -> *mut u8,
    pub(crate) thread: unsafe extern "C" fn() -> u64,
    pub(crate) sleep: unsafe extern "C" fn(u64),
    pub(crate) storage_create: unsafe extern "C" fn(*const Storage, *mut u64, *mut c_void) -> c_int,
    pub(crate) storage_set: unsafe extern "C" fn(*const Storage, u64, *mut c_void) -> c_int,
    pub(crate) storage_get: unsafe extern "C" fn(*const Storage, u64) -> *mut c_void,
}

fn symbol<T: Copy>(library: &Library, name: &str) -> T {
    // SAFETY: [foreign] each field's type is that of the function in device.c that it is filled with.
    *unsafe { library.get::<T>(name) }.unwrap()
}

/// A view's words, for tests that change some.
pub(crate) type Words = [u64; size_of::<DeviceView>() / 8];

pub(crate) fn words(view: &DeviceView) -> Words {
    // SAFETY: [own] a view is that many words, each of which may be anything.
    unsafe { ptr::from_ref(view).cast::<Words>().read() }
}

impl Device {
    pub(crate) fn load(language: Language) -> Self {
        let name = format!("libdevice{DLL_SUFFIX}");
        let path = compile(language, &name, &["-shared", "-fPIC"]);
        // SAFETY: [foreign] it has no initialisers. It is never unloaded.
        let library = Box::leak(Box::new(unsafe { Library::new(path) }.unwrap()));
        Self {
            attach: symbol(library, "test_attach"),
            detach: symbol(library, "test_detach"),
            allocate: symbol(library, "test_allocate"),
            free: symbol(library, "test_free"),
            send: symbol(library, "test_send"),
            receive: symbol(library, "test_receive"),
            drain: symbol(library, "test_drain"),
            resolve: symbol(library, "test_resolve"),
            thread: symbol(library, "test_thread"),
            sleep: symbol(library, "test_sleep"),
            storage_create: symbol(library, "test_storage_create"),
            storage_set: symbol(library, "test_storage_set"),
            storage_get: symbol(library, "test_storage_get"),
        }
    }

    /// A thread's heap, or the status that says why not.
    pub(crate) fn attach(self, view: &Words) -> Result<DeviceHeap, c_int> {
        let mut status = -1;
        // SAFETY: [foreign] what the view names is mapped for as long as the test that made it runs.
        let raw = unsafe { (self.attach)(view.as_ptr(), &raw mut status) };
        if raw.is_null() { Err(status) } else { Ok(DeviceHeap { device: self, raw }) }
    }
}

/// Of one thread.
pub(crate) struct DeviceHeap {
    device: Device,
    raw: Heap,
}

impl Drop for DeviceHeap {
    fn drop(&mut self) {
        // SAFETY: [foreign] it is attached, and nobody uses it after this.
        unsafe { (self.device.detach)(self.raw) };
    }
}

impl DeviceHeap {
    pub(crate) fn allocate(&self, bytes: u64) -> u64 {
        // SAFETY: [foreign] it is attached.
        unsafe { (self.device.allocate)(self.raw, bytes) }
    }

    pub(crate) fn free(&self, block: u64) -> bool {
        // SAFETY: [foreign] it is attached; whatever the block is, it is checked.
        unsafe { (self.device.free)(self.raw, block) != 0 }
    }

    pub(crate) fn send(&self, block: u64) -> bool {
        // SAFETY: [foreign] it is attached.
        unsafe { (self.device.send)(self.raw, block) != 0 }
    }

    pub(crate) fn receive(&self) -> Option<u64> {
        // SAFETY: [foreign] it is attached.
        Some(unsafe { (self.device.receive)(self.raw) }).filter(|block| *block != 0)
    }

    pub(crate) fn drain(&self, most: u64) -> u64 {
        // SAFETY: [foreign] it is attached.
        unsafe { (self.device.drain)(self.raw, most) }
    }

    /// Null where the device sees nothing.
    pub(crate) fn resolve(&self, offset: u64, len: u64) -> *mut u8 {
        // SAFETY: [foreign] it is attached.
        unsafe { (self.device.resolve)(self.raw, offset, len) }
    }
}
