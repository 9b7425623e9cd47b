//! NVIDIA's driver, found by cudarc.
//!
//! cudarc's own functions end the process where the library or one function is missing, and make a Rust
//! enumeration of whatever code comes back, which is undefined for one that it does not know. So
//! functions are looked up here, as ones that return an integer; that everything else about them is as
//! cudarc declares it, the compiler checks below.

use std::ffi::{OsString, c_char, c_int, c_uint, c_void};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUdeviceptr, CUresult};

use super::driver::Driver;
use super::error::code;
use super::library::{DriverLibrary, Found, Status, done, text};
use super::vmm::Vmm;
use super::{DeviceInfo, GpuError, GpuVendor};

const VENDOR: GpuVendor = GpuVendor::Cuda;
/// Names the driver's library, if it is not to be looked for.
const VARIABLE: &str = "HSHM_LIBCUDA";

/// Usable by all contexts, and with an address on the device.
const REGISTER_FLAGS: c_uint = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
const HOST_NATIVE_ATOMICS: c_int =
    sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HOST_NATIVE_ATOMIC_SUPPORTED as c_int;

macro_rules! functions {
    ($($field:ident = $symbol:ident($($argument:ty),*);)*) => {
        /// The driver's functions.
        #[derive(Debug)]
        struct Api {
            $($field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Api {
            fn of(library: &DriverLibrary) -> Result<Self, GpuError> {
                Ok(Self {
                    // SAFETY: [ffi] the type is that of the function of this name, but for a result
                    // that the compiler sees to be as long.
                    $($field: unsafe { library.symbol(stringify!($symbol)) }?,)*
                })
            }
        }

        const _: () = assert!(size_of::<CUresult>() == size_of::<Status>());
        $(const _: unsafe fn($($argument),*) -> CUresult = sys::$symbol;)*
    };
}

functions! {
    init = cuInit(c_uint);
    driver_get_version = cuDriverGetVersion(*mut c_int);
    device_get_count = cuDeviceGetCount(*mut c_int);
    device_get = cuDeviceGet(*mut CUdevice, c_int);
    device_get_name = cuDeviceGetName(*mut c_char, c_int, CUdevice);
    device_total_mem = cuDeviceTotalMem_v2(*mut usize, CUdevice);
    primary_ctx_retain = cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    primary_ctx_release = cuDevicePrimaryCtxRelease_v2(CUdevice);
    ctx_push_current = cuCtxPushCurrent_v2(CUcontext);
    ctx_pop_current = cuCtxPopCurrent_v2(*mut CUcontext);
    mem_host_register = cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    mem_host_unregister = cuMemHostUnregister(*mut c_void);
    mem_host_get_device_pointer = cuMemHostGetDevicePointer_v2(*mut CUdeviceptr, *mut c_void, c_uint);
}

/// Its attribute parameter is an enumeration in cudarc, and an integer here.
type DeviceGetAttribute = unsafe extern "C" fn(*mut c_int, c_int, CUdevice) -> Status;
const _: unsafe fn(*mut c_int, sys::CUdevice_attribute, CUdevice) -> CUresult =
    sys::cuDeviceGetAttribute;
const _: () = assert!(size_of::<sys::CUdevice_attribute>() == size_of::<c_int>());

#[derive(Debug)]
struct CudaDriver {
    library: DriverLibrary,
    api: Api,
    device_get_attribute: DeviceGetAttribute,
    /// Looked up when first needed: an older driver serves without.
    vmm: OnceLock<Vmm>,
}

/// The driver.
pub(super) fn driver() -> Result<&'static dyn Driver, GpuError> {
    static FOUND: Found<CudaDriver> = Found::new();
    let driver = FOUND.get(VENDOR, look)?;
    Ok(driver)
}

fn look() -> Result<CudaDriver, GpuError> {
    let library = match DriverLibrary::named(VENDOR, VARIABLE) {
        Some(named) => named?,
        None => usual()?,
    };
    let api = Api::of(&library)?;
    // SAFETY: [ffi] the type is that of the function of this name in cuda.h.
    let device_get_attribute = unsafe { library.symbol("cuDeviceGetAttribute") }?;
    // SAFETY: [ffi] may be called at any time; 0 is the only flag.
    done(VENDOR, "cuInit", unsafe { (api.init)(0) })?;
    Ok(CudaDriver { library, api, device_get_attribute, vmm: OnceLock::new() })
}

/// The library by its usual names.
fn usual() -> Result<DriverLibrary, GpuError> {
    // SAFETY: [ffi] the initialisers of NVIDIA's library run, which may at any time.
    if !unsafe { sys::is_culib_present() } {
        return Err(GpuError::NoDriver {
            vendor: VENDOR,
            tried: String::from("libcuda.so"),
            why: loader_says(),
            variable: VARIABLE,
        });
    }
    // SAFETY: [ffi] as above; it was there just now. Were it gone, this would panic: nobody takes a
    // library away from under the loader between two calls.
    let library = unsafe { sys::culib() };
    Ok(DriverLibrary::new(VENDOR, library, String::from("libcuda.so")))
}

fn loader_says() -> String {
    match super::library::open(&OsString::from("libcuda.so.1")) {
        Ok(_) => String::new(),
        Err(why) => format!(" ({why})"),
    }
}

impl CudaDriver {
    fn handle(&self, device: u32) -> Result<CUdevice, GpuError> {
        let count = self.device_count()?;
        let none = GpuError::NoSuchDevice { vendor: VENDOR, device, count };
        let ordinal = c_int::try_from(device).ok().filter(|_| device < count).ok_or(none)?;
        let mut handle = 0;
        // SAFETY: [ffi] initialised; the answer is stored in a local.
        let status = unsafe { (self.api.device_get)(&raw mut handle, ordinal) };
        done(VENDOR, "cuDeviceGet", status)?;
        Ok(handle)
    }

    /// Does `work` with the device's context as the thread's current one, and puts back what was.
    fn within<T>(
        &self,
        device: u32,
        work: impl FnOnce() -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        let handle = self.handle(device)?;
        let mut context = ptr::null_mut();
        // SAFETY: [ffi] the device is one; the answer is stored in a local.
        let status = unsafe { (self.api.primary_ctx_retain)(&raw mut context, handle) };
        done(VENDOR, "cuDevicePrimaryCtxRetain", status)?;
        // SAFETY: [ffi] the context was just retained.
        let status = unsafe { (self.api.ctx_push_current)(context) };
        let result = done(VENDOR, "cuCtxPushCurrent", status).and_then(|()| {
            let result = work();
            let mut popped = ptr::null_mut();
            // SAFETY: [ffi] takes off what was put on above; the answer is stored in a local.
            let status = unsafe { (self.api.ctx_pop_current)(&raw mut popped) };
            let popped = done(VENDOR, "cuCtxPopCurrent", status);
            result.and_then(|found| popped.map(|()| found))
        });
        self.leave_handle(handle);
        result
    }

    /// Does `work` with the functions for the device's own memory, and its handle.
    fn with_vmm<T>(
        &self,
        device: u32,
        work: impl FnOnce(&Vmm, c_int) -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        let vmm = match self.vmm.get() {
            Some(vmm) => vmm,
            None => {
                // Of two that come at once, one finds its functions dropped: they are the same.
                let found = Vmm::of(&self.library, true)?;
                self.vmm.get_or_init(|| found)
            }
        };
        let handle = self.handle(device)?;
        self.within(device, || work(vmm, handle))
    }

    fn leave_handle(&self, handle: CUdevice) {
        // SAFETY: [ffi] gives back one retaining of this process's. What it answers changes nothing.
        let _ = unsafe { (self.api.primary_ctx_release)(handle) };
    }
}

impl Driver for CudaDriver {
    fn version(&self) -> Result<String, GpuError> {
        let mut version = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.api.driver_get_version)(&raw mut version) };
        done(VENDOR, "cuDriverGetVersion", status)?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    fn device_count(&self) -> Result<u32, GpuError> {
        let mut count = 0;
        // SAFETY: [ffi] initialised; the answer is stored in a local.
        let status = unsafe { (self.api.device_get_count)(&raw mut count) };
        done(VENDOR, "cuDeviceGetCount", status)?;
        let none = GpuError::NoDevice { vendor: VENDOR, code: code::SUCCESS };
        u32::try_from(count).ok().filter(|count| *count > 0).ok_or(none)
    }

    fn device(&self, device: u32) -> Result<DeviceInfo, GpuError> {
        let handle = self.handle(device)?;
        let mut name = [0_u8; 256];
        // SAFETY: [ffi] the buffer is as long as is said.
        let status = unsafe { (self.api.device_get_name)(name.as_mut_ptr().cast(), 256, handle) };
        done(VENDOR, "cuDeviceGetName", status)?;
        let mut bytes = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.api.device_total_mem)(&raw mut bytes, handle) };
        done(VENDOR, "cuDeviceTotalMem", status)?;
        let mut atomics = 0;
        // SAFETY: [ffi] the attribute is one of cuda.h; the answer is stored in a local.
        let status =
            unsafe { (self.device_get_attribute)(&raw mut atomics, HOST_NATIVE_ATOMICS, handle) };
        done(VENDOR, "cuDeviceGetAttribute", status)?;
        Ok(DeviceInfo {
            name: text(&name),
            memory_bytes: bytes as u64,
            host_native_atomics: Some(atomics != 0),
        })
    }

    fn enter(&self, device: u32) -> Result<(), GpuError> {
        let handle = self.handle(device)?;
        let mut context = ptr::null_mut();
        // SAFETY: [ffi] the device is one; the answer is stored in a local. Kept retained, the context is
        // made once rather than for each call.
        let status = unsafe { (self.api.primary_ctx_retain)(&raw mut context, handle) };
        done(VENDOR, "cuDevicePrimaryCtxRetain", status)
    }

    fn leave(&self, device: u32) {
        if let Ok(handle) = self.handle(device) {
            self.leave_handle(handle);
        }
    }

    unsafe fn register(
        &self,
        device: u32,
        address: NonNull<u8>,
        bytes: usize,
    ) -> Result<(), GpuError> {
        self.within(device, || {
            let start = address.as_ptr().cast();
            // SAFETY: [mapped] the caller's promise.
            let status = unsafe { (self.api.mem_host_register)(start, bytes, REGISTER_FLAGS) };
            done(VENDOR, "cuMemHostRegister", status)
        })
    }

    fn unregister(&self, device: u32, address: NonNull<u8>) -> Result<(), GpuError> {
        self.within(device, || {
            // SAFETY: [ffi] an address that is not registered is refused.
            let status = unsafe { (self.api.mem_host_unregister)(address.as_ptr().cast()) };
            done(VENDOR, "cuMemHostUnregister", status)
        })
    }

    fn device_address(&self, device: u32, address: NonNull<u8>) -> Result<u64, GpuError> {
        let mut found: CUdeviceptr = 0;
        self.within(device, || {
            let start = address.as_ptr().cast();
            let found = &raw mut found;
            // SAFETY: [ffi] an address that is not registered is refused; 0 is the only flag; the answer is stored in a
            // local.
            let status = unsafe { (self.api.mem_host_get_device_pointer)(found, start, 0) };
            done(VENDOR, "cuMemHostGetDevicePointer", status)
        })?;
        Ok(found)
    }

    fn create_memory(&self, device: u32, bytes: usize) -> Result<(OwnedFd, usize), GpuError> {
        self.with_vmm(device, |vmm, ordinal| vmm.create(ordinal, bytes))
    }

    fn open_memory(
        &self,
        device: u32,
        file: BorrowedFd<'_>,
        bytes: usize,
    ) -> Result<u64, GpuError> {
        self.with_vmm(device, |vmm, ordinal| vmm.open(ordinal, file, bytes))
    }

    fn close_memory(&self, device: u32, address: u64, bytes: usize) -> Result<(), GpuError> {
        self.with_vmm(device, |vmm, _| vmm.close(address, bytes))
    }
}
