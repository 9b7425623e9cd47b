//! Loading kernels and running them, by either vendor's driver.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_uint, c_void};
use std::time::{Duration, Instant};
use std::{env, ptr, thread};

use hshm_memory::gpu::arena::DeviceView;
use hshm_memory::gpu::{self, DriverInfo, GpuVendor};
use libloading::Library;

use crate::compiler::{self, RuntimeCompiler};

/// What the kernels are given.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kit {
    pub(crate) view: DeviceView,
    pub(crate) board: u64,
    pub(crate) words: [u64; 7],
}

/// How long a kernel may take that ends by itself, or was told to, in seconds; and a variable that says otherwise.
const PATIENCE_S: u64 = 60;
pub(crate) const PATIENCE: &str = "HSHM_TEST_PATIENCE_S";
/// How often it is asked whether a kernel is over.
const GLANCE: Duration = Duration::from_micros(50);
/// `CUDA_ERROR_NOT_READY` and `hipErrorNotReady`.
const NOT_READY: c_int = 600;

/// Where the kernels that a driver is given come from, in the order in which they are tried.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The file that the user names.
    Ready,
    /// NVRTC or hiprtc, for the device that there is.
    Runtime,
    /// clang, for the device that there is.
    Clang,
    /// clang, for the oldest device that the header is for: a driver makes what it needs of that.
    ClangOldest,
}

type Load = unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int;
type Function = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
type Launch = unsafe extern "C" fn(
    *mut c_void,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    *mut c_void,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

/// A vendor's first device with the kernels loaded. It serves the thread that made it.
pub(crate) struct Gpu {
    pub(crate) vendor: GpuVendor,
    pub(crate) driver: DriverInfo,
    pub(crate) is_double: bool,
    library: Library,
    module: *mut c_void,
}

impl Gpu {
    /// The device 0.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) fn open(vendor: GpuVendor) -> Result<Self, String> {
        let driver = gpu::probe(vendor).map_err(|error| error.to_string())?;
        let (variable, names): (_, &[&str]) = match vendor {
            GpuVendor::Cuda => ("HSHM_LIBCUDA", &["libcuda.so", "libcuda.so.1"]),
            GpuVendor::Rocm => (
                "HSHM_LIBAMDHIP64",
                &["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"],
            ),
        };
        let named = env::var_os(variable);
        let names = named.map_or(names.iter().map(OsString::from).collect(), |name| vec![name]);
        // SAFETY: [foreign] it is the library that the driver was just found in.
        let library = names.iter().find_map(|name| unsafe { Library::new(name) }.ok()).unwrap();
        let is_double = driver.devices[0].name.starts_with("Double");
        let mut found = Self { vendor, driver, is_double, library, module: ptr::null_mut() };
        found.make_current();
        found.load_kernels();
        Ok(found)
    }

    fn symbol<T: Copy>(&self, cuda: &str, hip: &str) -> T {
        let name = if self.vendor == GpuVendor::Cuda { cuda } else { hip };
        // SAFETY: [foreign] each is asked for as the type that the vendor's header gives it.
        *unsafe { self.library.get::<T>(name) }.unwrap()
    }

    /// Makes the device that of the calling thread.
    fn make_current(&self) {
        if self.vendor == GpuVendor::Rocm {
            let select = self.symbol::<unsafe extern "C" fn(c_int) -> c_int>("", "hipSetDevice");
            // SAFETY: [foreign] any number may be passed.
            self.done("hipSetDevice", unsafe { select(0) });
            return;
        }
        type Retain = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
        type Push = unsafe extern "C" fn(*mut c_void) -> c_int;
        let mut context = ptr::null_mut();
        let retain = self.symbol::<Retain>("cuDevicePrimaryCtxRetain", "");
        // SAFETY: [foreign] the handle of the first device is 0; the answer is stored in a local.
        self.done("cuDevicePrimaryCtxRetain", unsafe { retain(&raw mut context, 0) });
        let push = self.symbol::<Push>("cuCtxPushCurrent_v2", "");
        // SAFETY: [foreign] the context was just retained.
        self.done("cuCtxPushCurrent", unsafe { push(context) });
    }

    /// Asserts that a call succeeded.
    fn done(&self, call: &str, code: c_int) {
        assert_eq!(code, 0, "{call}: {}", self.meaning(code));
    }

    /// What the driver calls a code.
    fn meaning(&self, code: c_int) -> String {
        type Cuda = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        type Hip = unsafe extern "C" fn(c_int) -> *const c_char;
        let mut name = ptr::null();
        if self.vendor == GpuVendor::Cuda {
            // SAFETY: [foreign] the type is that of cuda.h.
            if let Ok(get) = unsafe { self.library.get::<Cuda>("cuGetErrorName") } {
                // SAFETY: [foreign] any number may be passed; the answer is stored in a local.
                let _ = unsafe { get(code, &raw mut name) };
            }
        // SAFETY: [foreign] the type is that of hip_runtime_api.h.
        } else if let Ok(get) = unsafe { self.library.get::<Hip>("hipGetErrorName") } {
            // SAFETY: [foreign] any number may be passed.
            name = unsafe { get(code) };
        }
        if name.is_null() {
            return format!("code {code}");
        }
        // SAFETY: [foreign] the driver's own text, which stays.
        let name = unsafe { CStr::from_ptr(name) };
        format!("code {code}, {}", name.to_string_lossy())
    }

    /// An attribute of an NVIDIA device.
    fn attribute(&self, which: c_int) -> c_int {
        type Get = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        let mut value = 0;
        let get = self.symbol::<Get>("cuDeviceGetAttribute", "");
        // SAFETY: [foreign] the answer is stored in a local.
        self.done("cuDeviceGetAttribute", unsafe { get(&raw mut value, which, 0) });
        value
    }

    /// What the kernels are compiled for.
    fn architecture(&self) -> String {
        match self.vendor {
            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and MINOR.
            GpuVendor::Cuda => format!("{}{}", self.attribute(75), self.attribute(76)),
            // Its number and its structure differ between releases: whoever runs this may say.
            GpuVendor::Rocm => env::var("HSHM_GFX").unwrap_or_else(|_| "native".into()),
        }
    }

    /// The kernels from one of the places that they can be had from.
    fn image(&self, source: Source) -> Result<Vec<u8>, String> {
        let (vendor, architecture) = (self.vendor, self.architecture());
        let is_cuda = vendor == GpuVendor::Cuda;
        match source {
            Source::Ready => compiler::ready(),
            Source::Runtime if is_cuda => {
                RuntimeCompiler::find(vendor)?.compile(&format!("compute_{architecture}"))
            }
            Source::Runtime => RuntimeCompiler::find(vendor)?.compile(&architecture),
            Source::Clang if is_cuda => compiler::by_clang(vendor, &format!("sm_{architecture}")),
            Source::Clang => compiler::by_clang(vendor, &architecture),
            Source::ClangOldest if is_cuda => compiler::by_clang(vendor, "sm_70"),
            Source::ClangOldest => Err("AMD's objects are each for one device".into()),
        }
    }

    /// Loads the kernels from the first place whose product the driver takes.
    fn load_kernels(&mut self) {
        if self.is_double {
            let image = compiler::for_double();
            return self.load(&image).unwrap();
        }
        let mut why = Vec::new();
        for source in [Source::Ready, Source::Runtime, Source::Clang, Source::ClangOldest] {
            let loaded = self.image(source).and_then(|image| self.load(&image));
            match loaded {
                Ok(()) => return crate::say(self, &format!("kernels from {source:?}")),
                Err(reason) => why.push(format!("{source:?}: {reason}")),
            }
        }
        panic!("the kernels cannot be had: {}", why.join("; "));
    }

    fn load(&mut self, image: &[u8]) -> Result<(), String> {
        if self.vendor == GpuVendor::Cuda {
            return self.load_with_log(image);
        }
        let load = self.symbol::<Load>("", "hipModuleLoadData");
        // SAFETY: [foreign] an image ends with a zero, or says how long it is.
        let code = unsafe { load(&raw mut self.module, image.as_ptr().cast()) };
        self.taken(image, code, "")
    }

    /// The same by CUDA, whose compiler of PTX says what it does not like.
    fn load_with_log(&mut self, image: &[u8]) -> Result<(), String> {
        type LoadWith = unsafe extern "C" fn(
            *mut *mut c_void,
            *const c_void,
            c_uint,
            *mut c_int,
            *mut *mut c_void,
        ) -> c_int;
        let mut log = vec![0_u8; 8192];
        // CU_JIT_ERROR_LOG_BUFFER, and CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, which is passed as the pointer's value.
        let mut options: [c_int; 2] = [5, 6];
        let room = ptr::without_provenance_mut(log.len() - 1);
        let mut values = [log.as_mut_ptr().cast::<c_void>(), room];
        let load = self.symbol::<LoadWith>("cuModuleLoadDataEx", "");
        // SAFETY: [foreign] an image ends with a zero, or says how long it is; two options and their values, and a
        // buffer as long as is said.
        let code = unsafe {
            load(
                &raw mut self.module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let log = CStr::from_bytes_until_nul(&log).map(CStr::to_string_lossy).unwrap_or_default();
        self.taken(image, code, &log)
    }

    /// Whether the driver took an image.
    fn taken(&self, image: &[u8], code: c_int, log: &str) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let (first, code) = (compiler::first_line(image), self.meaning(code));
        Err(format!("the driver refuses {first:?} with {code} {}", log.trim()))
    }

    /// Starts a kernel on `groups` times `threads` threads. Returns at once.
    pub(crate) fn start(&self, name: &str, groups: u32, threads: u32, kit: &Kit) {
        let get = self.symbol::<Function>("cuModuleGetFunction", "hipModuleGetFunction");
        let launch = self.symbol::<Launch>("cuLaunchKernel", "hipModuleLaunchKernel");
        let (mut function, text) = (ptr::null_mut(), CString::new(name).unwrap());
        // SAFETY: [foreign] the module was loaded; the answer is stored in a local.
        let status = unsafe { get(&raw mut function, self.module, text.as_ptr()) };
        self.done(&format!("getting {name}"), status);
        let mut parameters = [ptr::from_ref(kit).cast_mut().cast::<c_void>()];
        // SAFETY: [foreign] the kernel takes one structure, this one, which is copied.
        let status = unsafe {
            launch(
                function,
                groups,
                1,
                1,
                threads,
                1,
                1,
                0,
                ptr::null_mut(),
                parameters.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.done(&format!("starting {name}"), status);
    }

    /// Whether the kernels that were started are over.
    pub(crate) fn is_over(&self) -> bool {
        type Query = unsafe extern "C" fn(*mut c_void) -> c_int;
        let query = self.symbol::<Query>("cuStreamQuery", "hipStreamQuery");
        // SAFETY: [foreign] null is the stream that they were started in.
        let code = unsafe { query(ptr::null_mut()) };
        if code != NOT_READY {
            self.done("a kernel", code);
        }
        code == 0
    }

    /// Waits until the kernels that were started are over. One that hangs ends the process, and is ended with it: no
    /// call of the driver's that waits for the device would come back.
    #[allow(clippy::print_stderr, reason = "nobody else would tell")]
    pub(crate) fn wait(&self, what: &str) {
        let told = env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
        let patience = Duration::from_secs(told.unwrap_or(PATIENCE_S));
        let deadline = Instant::now() + patience;
        while !self.is_over() {
            if Instant::now() > deadline {
                eprintln!("{}: {what} did not end within {patience:?}", self.vendor);
                std::process::abort();
            }
            thread::sleep(GLANCE);
        }
        type Wait = unsafe extern "C" fn() -> c_int;
        let wait = self.symbol::<Wait>("cuCtxSynchronize", "hipDeviceSynchronize");
        // SAFETY: [foreign] it takes nothing.
        self.done(what, unsafe { wait() });
    }
}
