//! Loading kernels and running them, by either vendor's driver.

use std::ffi::{CString, OsString, c_char, c_int, c_uint, c_void};
use std::{env, ptr};

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
            assert_eq!(unsafe { select(0) }, 0);
            return;
        }
        type Retain = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
        type Push = unsafe extern "C" fn(*mut c_void) -> c_int;
        let mut context = ptr::null_mut();
        let retain = self.symbol::<Retain>("cuDevicePrimaryCtxRetain", "");
        // SAFETY: [foreign] the handle of the first device is 0; the answer is stored in a local.
        assert_eq!(unsafe { retain(&raw mut context, 0) }, 0);
        // SAFETY: [foreign] the context was just retained.
        assert_eq!(unsafe { self.symbol::<Push>("cuCtxPushCurrent_v2", "")(context) }, 0);
    }

    /// An attribute of an NVIDIA device.
    fn attribute(&self, which: c_int) -> c_int {
        type Get = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        let mut value = 0;
        let get = self.symbol::<Get>("cuDeviceGetAttribute", "");
        // SAFETY: [foreign] the answer is stored in a local.
        assert_eq!(unsafe { get(&raw mut value, which, 0) }, 0);
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

    /// The kernels as one of two compilers makes them.
    fn image(&self, by_clang: bool) -> Result<Vec<u8>, String> {
        if self.is_double {
            return Ok(compiler::for_double());
        }
        let (vendor, architecture) = (self.vendor, self.architecture());
        match (vendor, by_clang) {
            (GpuVendor::Cuda, false) => {
                RuntimeCompiler::find(vendor)?.compile(&format!("compute_{architecture}"))
            }
            (GpuVendor::Rocm, false) => RuntimeCompiler::find(vendor)?.compile(&architecture),
            // The oldest that the header is for: the driver makes what it needs of it.
            (GpuVendor::Cuda, true) => compiler::by_clang(vendor, "sm_70"),
            (GpuVendor::Rocm, true) => compiler::by_clang(vendor, &architecture),
        }
    }

    /// Loads the kernels as the first compiler makes them whose product the driver takes.
    fn load_kernels(&mut self) {
        let load = self.symbol::<Load>("cuModuleLoadData", "hipModuleLoadData");
        let mut why = Vec::new();
        for by_clang in [false, true] {
            let image = match self.image(by_clang) {
                Ok(image) => image,
                Err(error) => {
                    why.push(error);
                    continue;
                }
            };
            // SAFETY: [foreign] an image ends with a zero, or says how long it is.
            match unsafe { load(&raw mut self.module, image.as_ptr().cast()) } {
                0 => return,
                code => {
                    let first = compiler::first_line(&image);
                    why.push(format!("the driver refuses {first:?} with code {code}"));
                }
            }
        }
        panic!("the kernels cannot be had: {}", why.join("; "));
    }

    /// Starts a kernel on `groups` times `threads` threads. Returns at once.
    pub(crate) fn start(&self, name: &str, groups: u32, threads: u32, kit: &Kit) {
        let get = self.symbol::<Function>("cuModuleGetFunction", "hipModuleGetFunction");
        let launch = self.symbol::<Launch>("cuLaunchKernel", "hipModuleLaunchKernel");
        let (mut function, text) = (ptr::null_mut(), CString::new(name).unwrap());
        // SAFETY: [foreign] the module was loaded; the answer is stored in a local.
        let status = unsafe { get(&raw mut function, self.module, text.as_ptr()) };
        assert_eq!(status, 0, "{name}");
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
        assert_eq!(status, 0, "{name}");
    }

    /// Waits until the kernels that were started are over.
    pub(crate) fn wait(&self) {
        type Wait = unsafe extern "C" fn() -> c_int;
        let wait = self.symbol::<Wait>("cuCtxSynchronize", "hipDeviceSynchronize");
        // SAFETY: [foreign] it takes nothing.
        assert_eq!(unsafe { wait() }, 0, "a kernel failed");
    }
}
