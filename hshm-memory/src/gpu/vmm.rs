//! Memory of a device's own that processes share by a file descriptor: the drivers' functions for managing
//! address ranges by hand, which both vendors have under names that differ in their beginning.
//!
//! The descriptor itself keeps the memory: whoever made it may end.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::library::{DriverLibrary, Status, done};
use super::{GpuError, GpuVendor};

/// Not moved by the driver.
const PINNED: c_int = 1;
const POSIX_DESCRIPTOR: c_int = 1;
const ON_DEVICE: c_int = 1;
const READ_AND_WRITE: c_int = 3;
/// The granularity that is allowed, not the one that is recommended.
const MINIMUM: c_int = 0;

/// `CUmemAllocationProp`, and `hipMemAllocationProp` from HIP 6 on.
#[repr(C)]
struct Properties {
    kind: c_int,
    handle_types: c_int,
    location_kind: c_int,
    location: c_int,
    win32: *mut c_void,
    flags: [u8; 8],
}

impl Properties {
    fn on(ordinal: c_int) -> Self {
        let (kind, handle_types, location_kind) = (PINNED, POSIX_DESCRIPTOR, ON_DEVICE);
        let (location, win32, flags) = (ordinal, ptr::null_mut(), [0; 8]);
        Self { kind, handle_types, location_kind, location, win32, flags }
    }
}

/// `CUmemAccessDesc` and `hipMemAccessDesc`.
#[repr(C)]
struct Access {
    location_kind: c_int,
    location: c_int,
    flags: c_int,
}

#[cfg(feature = "cuda")]
const _: () = {
    use std::mem::offset_of;

    use cudarc::driver::sys;
    type Theirs = sys::CUmemAllocationProp_st;
    assert!(size_of::<Properties>() == size_of::<Theirs>());
    assert!(offset_of!(Properties, kind) == offset_of!(Theirs, type_));
    assert!(offset_of!(Properties, handle_types) == offset_of!(Theirs, requestedHandleTypes));
    assert!(offset_of!(Properties, location_kind) == offset_of!(Theirs, location));
    assert!(offset_of!(Properties, win32) == offset_of!(Theirs, win32HandleMetaData));
    assert!(offset_of!(Properties, flags) == offset_of!(Theirs, allocFlags));
    assert!(size_of::<Access>() == size_of::<sys::CUmemAccessDesc_st>());
    assert!(offset_of!(Access, flags) == offset_of!(sys::CUmemAccessDesc_st, flags));
    // Handles and addresses are as long as a word, which HIP has as pointers.
    assert!(size_of::<sys::CUmemGenericAllocationHandle>() == size_of::<u64>());
    assert!(size_of::<sys::CUdeviceptr>() == size_of::<u64>());
};

macro_rules! functions {
    ($($field:ident = $name:literal($($argument:ty),*);)*) => {
        /// The functions of a driver.
        #[derive(Debug)]
        pub(super) struct Vmm {
            vendor: GpuVendor,
            /// Whether a descriptor is passed as the pointer's value, and not by its address.
            by_value: bool,
            $($field: unsafe extern "C" fn($($argument),*) -> Status,)*
        }

        impl Vmm {
            /// Those of a library.
            pub(super) fn of(library: &DriverLibrary, by_value: bool) -> Result<Self, GpuError> {
                let vendor = library.vendor();
                Ok(Self {
                    vendor,
                    by_value,
                    // SAFETY: [ffi] the type is that of the function of this name in cuda.h, and in
                    // hip_runtime_api.h with pointers for handles and addresses.
                    $($field: unsafe { library.symbol(names(vendor, concat!("cu", $name), concat!("hip", $name))) }?,)*
                })
            }
        }
    };
}

functions! {
    granularity = "MemGetAllocationGranularity"(*mut usize, *const Properties, c_int);
    create = "MemCreate"(*mut u64, usize, *const Properties, u64);
    release = "MemRelease"(u64);
    export = "MemExportToShareableHandle"(*mut c_void, u64, c_int, u64);
    import = "MemImportFromShareableHandle"(*mut u64, *mut c_void, c_int);
    reserve = "MemAddressReserve"(*mut u64, usize, usize, u64, u64);
    unreserve = "MemAddressFree"(u64, usize);
    map = "MemMap"(u64, usize, usize, u64, u64);
    unmap = "MemUnmap"(u64, usize);
    set_access = "MemSetAccess"(u64, usize, *const Access, usize);
}

fn names(vendor: GpuVendor, cuda: &'static str, hip: &'static str) -> &'static str {
    match vendor {
        GpuVendor::Cuda => cuda,
        GpuVendor::Rocm => hip,
    }
}

macro_rules! call {
    ($vmm:expr, $name:literal, $call:expr) => {
        done($vmm.vendor, names($vmm.vendor, concat!("cu", $name), concat!("hip", $name)), $call)
    };
}

// Each is called with the device, whose number is `ordinal`, as the thread's current one.
impl Vmm {
    /// Memory of at least `bytes` bytes: a descriptor of it, and how long it is.
    pub(super) fn create(
        &self,
        ordinal: c_int,
        bytes: usize,
    ) -> Result<(OwnedFd, usize), GpuError> {
        let properties = Properties::on(ordinal);
        let mut unit = 0;
        // SAFETY: [ffi] the answer is stored in a local.
        let status = unsafe { (self.granularity)(&raw mut unit, &raw const properties, MINIMUM) };
        call!(self, "MemGetAllocationGranularity", status)?;
        let whole = bytes.max(1).checked_next_multiple_of(unit.max(1)).unwrap_or(bytes);
        let mut handle = 0;
        // SAFETY: [ffi] as above; 0 is the only flag.
        let status = unsafe { (self.create)(&raw mut handle, whole, &raw const properties, 0) };
        call!(self, "MemCreate", status)?;
        let mut descriptor: RawFd = -1;
        let place = (&raw mut descriptor).cast();
        // SAFETY: [ffi] the handle is one; of this kind the answer is a descriptor, in a local.
        let status = unsafe { (self.export)(place, handle, POSIX_DESCRIPTOR, 0) };
        let exported = call!(self, "MemExportToShareableHandle", status);
        // SAFETY: [ffi] the handle is one, and not used any more: the descriptor keeps the memory.
        let status = unsafe { (self.release)(handle) };
        exported?;
        // SAFETY: [owned] the driver made the descriptor for its caller.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        // A program that is executed would keep the memory, were the driver to leave it open for those.
        let _ = fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
        call!(self, "MemRelease", status)?;
        Ok((descriptor, whole))
    }

    /// Maps memory that a descriptor is of, for the device, and says where.
    pub(super) fn open(
        &self,
        ordinal: c_int,
        file: BorrowedFd<'_>,
        bytes: usize,
    ) -> Result<u64, GpuError> {
        let mut descriptor = file.as_raw_fd();
        let passed = if self.by_value {
            ptr::without_provenance_mut(usize::try_from(descriptor).unwrap_or(usize::MAX))
        } else {
            (&raw mut descriptor).cast()
        };
        let mut handle = 0;
        // SAFETY: [ffi] an open descriptor, as this release takes it; the answer is stored in a local.
        let status = unsafe { (self.import)(&raw mut handle, passed, POSIX_DESCRIPTOR) };
        call!(self, "MemImportFromShareableHandle", status)?;
        let mapped = self.map(ordinal, handle, bytes);
        // SAFETY: [ffi] the handle is one, and not used any more: the mapping keeps the memory.
        let status = unsafe { (self.release)(handle) };
        let address = mapped?;
        call!(self, "MemRelease", status)?;
        Ok(address)
    }

    fn map(&self, ordinal: c_int, handle: u64, bytes: usize) -> Result<u64, GpuError> {
        let mut address = 0;
        // SAFETY: [ffi] no address or alignment is asked for; the answer is stored in a local.
        let status = unsafe { (self.reserve)(&raw mut address, bytes, 0, 0, 0) };
        call!(self, "MemAddressReserve", status)?;
        // SAFETY: [ffi] the range was just reserved. What is shorter than it is refused.
        let status = unsafe { (self.map)(address, bytes, 0, handle, 0) };
        if let Err(error) = call!(self, "MemMap", status) {
            // SAFETY: [ffi] nothing is mapped there.
            let _ = unsafe { (self.unreserve)(address, bytes) };
            return Err(error);
        }
        let access = Access { location_kind: ON_DEVICE, location: ordinal, flags: READ_AND_WRITE };
        // SAFETY: [ffi] the range was just mapped; one description.
        let status = unsafe { (self.set_access)(address, bytes, &raw const access, 1) };
        call!(self, "MemSetAccess", status).inspect_err(|_| {
            let _ = self.close(address, bytes);
        })?;
        Ok(address)
    }

    /// Ends what [`Vmm::open`] began.
    pub(super) fn close(&self, address: u64, bytes: usize) -> Result<(), GpuError> {
        // SAFETY: [ffi] the range was mapped by `open`, and its owner uses it no more.
        let status = unsafe { (self.unmap)(address, bytes) };
        call!(self, "MemUnmap", status)?;
        // SAFETY: [ffi] nothing is mapped there any more.
        let status = unsafe { (self.unreserve)(address, bytes) };
        call!(self, "MemAddressFree", status)
    }
}
