//! AMD's HIP, whose library is found at run time.
//!
//! hip-sys links the library, so that a program made with it does not start where there is none. It serves
//! to check the declarations here, with the feature `rocm-check`, where HIP's headers are installed.

use std::ffi::{OsString, c_char, c_int, c_uint, c_void};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use super::driver::Driver;
use super::error::code;
use super::library::{DriverLibrary, Found, Status, done, open, text};
use super::vmm::Vmm;
use super::{DeviceInfo, GpuError, GpuVendor};

const VENDOR: GpuVendor = GpuVendor::Rocm;
/// Names the library, if it is not to be looked for.
const VARIABLE: &str = "HSHM_LIBAMDHIP64";
/// Its usual names: ROCm 7, 6 and 5, which agree in what is used here.
const NAMES: [&str; 4] =
    ["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"];

/// `hipHostRegisterPortable` and `hipHostRegisterMapped`. Flag 8 means one thing in older releases and
/// another in newer ones, and is never passed.
const REGISTER_FLAGS: c_uint = 1 | 2;

/// `hipDeviceAttributeHostNativeAtomicSupported`: 15 in the headers of 5.2 as in those of 7.
const HOST_NATIVE_ATOMICS: c_int = 15;

/// The release from which on its structures for a device's own memory are CUDA's.
const HIP_6: c_int = 60_000_000;
/// And that from which on it takes a descriptor by its value, as CUDA does. Before, it takes the address of one:
/// PyTorch's `CUDASymmetricMemory.cu` tells the two apart so.
const HIP_7_1: c_int = 70_100_000;

macro_rules! functions {
    ($($field:ident = $symbol:ident($($argument:ty),*);)*) => {
        /// The library's functions.
        #[derive(Debug)]
        struct Api {
            $($field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Api {
            fn of(library: &DriverLibrary) -> Result<Self, GpuError> {
                Ok(Self {
                    // SAFETY: [ffi] the type is that of the function of this name in hip_runtime_api.h.
                    $($field: unsafe { library.symbol(stringify!($symbol)) }?,)*
                })
            }
        }

        #[cfg(feature = "rocm-check")]
        mod check {
            use super::*;
            use hip_sys::hiprt as sys;
            const _: () = assert!(size_of::<sys::hipError_t>() == size_of::<Status>());
            $(const _: unsafe extern "C" fn($($argument),*) -> sys::hipError_t = sys::$symbol;)*
            // Its attribute parameter is an enumeration there, and an integer here.
            type Attribute = sys::hipDeviceAttribute_t;
            const _: unsafe extern "C" fn(*mut c_int, Attribute, c_int) -> sys::hipError_t =
                sys::hipDeviceGetAttribute;
            const _: () = assert!(size_of::<Attribute>() == size_of::<c_int>());
            const _: () = assert!(
                Attribute::hipDeviceAttributeHostNativeAtomicSupported as c_int
                    == HOST_NATIVE_ATOMICS
            );
        }
    };
}

functions! {
    init = hipInit(c_uint);
    runtime_get_version = hipRuntimeGetVersion(*mut c_int);
    get_device_count = hipGetDeviceCount(*mut c_int);
    get_device = hipGetDevice(*mut c_int);
    set_device = hipSetDevice(c_int);
    device_get_name = hipDeviceGetName(*mut c_char, c_int, c_int);
    device_total_mem = hipDeviceTotalMem(*mut usize, c_int);
    host_register = hipHostRegister(*mut c_void, usize, c_uint);
    host_unregister = hipHostUnregister(*mut c_void);
    host_get_device_pointer = hipHostGetDevicePointer(*mut *mut c_void, *mut c_void, c_uint);
}

type DeviceGetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Status;

#[derive(Debug)]
struct RocmDriver {
    library: DriverLibrary,
    api: Api,
    device_get_attribute: DeviceGetAttribute,
    /// Looked up when first needed: an older driver serves without.
    vmm: OnceLock<Vmm>,
}

/// The driver.
pub(super) fn driver() -> Result<&'static dyn Driver, GpuError> {
    static FOUND: Found<RocmDriver> = Found::new();
    let driver = FOUND.get(VENDOR, look)?;
    Ok(driver)
}

fn look() -> Result<RocmDriver, GpuError> {
    let library = match DriverLibrary::named(VENDOR, VARIABLE) {
        Some(named) => named?,
        None => usual()?,
    };
    let api = Api::of(&library)?;
    // SAFETY: [ffi] the type is that of the function of this name in hip_runtime_api.h.
    let device_get_attribute = unsafe { library.symbol("hipDeviceGetAttribute") }?;
    // SAFETY: [ffi] may be called at any time; 0 is the only flag.
    done(VENDOR, "hipInit", unsafe { (api.init)(0) })?;
    Ok(RocmDriver { library, api, device_get_attribute, vmm: OnceLock::new() })
}

/// The library by the first of its usual names that there is.
fn usual() -> Result<DriverLibrary, GpuError> {
    let mut why = String::new();
    for name in NAMES {
        match open(&OsString::from(name)) {
            Ok(library) => return Ok(DriverLibrary::new(VENDOR, library, name.to_owned())),
            Err(reason) if why.is_empty() => why = format!(" ({reason})"),
            Err(_) => {}
        }
    }
    Err(GpuError::NoDriver { vendor: VENDOR, tried: NAMES.join(", "), why, variable: VARIABLE })
}

impl RocmDriver {
    /// Its version: the first number times ten million, the second times a hundred thousand, and builds.
    fn number(&self) -> Result<c_int, GpuError> {
        let mut version = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.api.runtime_get_version)(&raw mut version) };
        done(VENDOR, "hipRuntimeGetVersion", status)?;
        Ok(version)
    }

    fn vmm(&self) -> Result<&Vmm, GpuError> {
        if let Some(vmm) = self.vmm.get() {
            return Ok(vmm);
        }
        let version = self.number()?;
        if version < HIP_6 {
            // Its structures are laid out differently.
            let (call, code) = ("hipMemCreate", code::NOT_SUPPORTED);
            return Err(GpuError::Refused { vendor: VENDOR, call, code });
        }
        let found = Vmm::of(&self.library, version >= HIP_7_1)?;
        Ok(self.vmm.get_or_init(|| found))
    }

    fn ordinal(&self, device: u32) -> Result<c_int, GpuError> {
        let count = self.device_count()?;
        let none = GpuError::NoSuchDevice { vendor: VENDOR, device, count };
        c_int::try_from(device).ok().filter(|_| device < count).ok_or(none)
    }

    /// Does `work` with the device as the thread's current one, and puts back what was.
    fn within<T>(
        &self,
        device: u32,
        work: impl FnOnce() -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        let ordinal = self.ordinal(device)?;
        let mut before = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.api.get_device)(&raw mut before) };
        done(VENDOR, "hipGetDevice", status)?;
        self.select(ordinal)?;
        let result = work();
        if before == ordinal {
            return result;
        }
        let back = self.select(before);
        result.and_then(|found| back.map(|()| found))
    }

    /// Does `work` with the functions for the device's own memory, and its number.
    fn with_vmm<T>(
        &self,
        device: u32,
        work: impl FnOnce(&Vmm, c_int) -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        let (vmm, ordinal) = (self.vmm()?, self.ordinal(device)?);
        self.within(device, || work(vmm, ordinal))
    }

    fn select(&self, ordinal: c_int) -> Result<(), GpuError> {
        // SAFETY: [ffi] any number may be passed; what is no device is refused.
        done(VENDOR, "hipSetDevice", unsafe { (self.api.set_device)(ordinal) })
    }
}

impl Driver for RocmDriver {
    fn version(&self) -> Result<String, GpuError> {
        let version = self.number()?;
        Ok(format!("{}.{}", version / 10_000_000, version / 100_000 % 100))
    }

    fn device_count(&self) -> Result<u32, GpuError> {
        let mut count = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.api.get_device_count)(&raw mut count) };
        done(VENDOR, "hipGetDeviceCount", status)?;
        let none = GpuError::NoDevice { vendor: VENDOR, code: code::SUCCESS };
        u32::try_from(count).ok().filter(|count| *count > 0).ok_or(none)
    }

    fn device(&self, device: u32) -> Result<DeviceInfo, GpuError> {
        let ordinal = self.ordinal(device)?;
        let mut name = [0_u8; 256];
        // SAFETY: [ffi] the buffer is as long as is said.
        let status = unsafe { (self.api.device_get_name)(name.as_mut_ptr().cast(), 256, ordinal) };
        done(VENDOR, "hipDeviceGetName", status)?;
        let mut bytes = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.api.device_total_mem)(&raw mut bytes, ordinal) };
        done(VENDOR, "hipDeviceTotalMem", status)?;
        let mut atomics = 0;
        // SAFETY: [ffi] any number may be asked for; the answer is stored in a local.
        let status =
            unsafe { (self.device_get_attribute)(&raw mut atomics, HOST_NATIVE_ATOMICS, ordinal) };
        // Releases before 6 know the attribute, and refuse to tell.
        let host_native_atomics = (status == code::SUCCESS).then_some(atomics != 0);
        Ok(DeviceInfo { name: text(&name), memory_bytes: bytes as u64, host_native_atomics })
    }

    /// HIP makes what a device needs when it is first selected, and keeps it.
    fn enter(&self, device: u32) -> Result<(), GpuError> {
        self.ordinal(device).map(|_| ())
    }

    fn leave(&self, _: u32) {}

    unsafe fn register(
        &self,
        device: u32,
        address: NonNull<u8>,
        bytes: usize,
    ) -> Result<(), GpuError> {
        self.within(device, || {
            let start = address.as_ptr().cast();
            // SAFETY: [mapped] the caller's promise.
            let status = unsafe { (self.api.host_register)(start, bytes, REGISTER_FLAGS) };
            done(VENDOR, "hipHostRegister", status)
        })
    }

    fn unregister(&self, device: u32, address: NonNull<u8>) -> Result<(), GpuError> {
        self.within(device, || {
            // SAFETY: [ffi] an address that is not registered is refused.
            let status = unsafe { (self.api.host_unregister)(address.as_ptr().cast()) };
            done(VENDOR, "hipHostUnregister", status)
        })
    }

    fn device_address(&self, device: u32, address: NonNull<u8>) -> Result<u64, GpuError> {
        let mut found = ptr::null_mut();
        self.within(device, || {
            let start = address.as_ptr().cast();
            let found = &raw mut found;
            // SAFETY: [ffi] an address that is not registered is refused; 0 is the only flag; the answer is stored in a
            // local.
            let status = unsafe { (self.api.host_get_device_pointer)(found, start, 0) };
            done(VENDOR, "hipHostGetDevicePointer", status)
        })?;
        Ok(found.addr() as u64)
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
