//! Named shared memory that devices use in place: POSIX shared memory, registered with a driver by each
//! process that attaches it.

use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use super::{Backend, BackendError, BackendKind, BackendOptions, PosixShmMmap};
use crate::gpu::{DeviceMemory, DevicePiece, GpuVendor, Registration, RegistrationInfo};
use crate::manager::InitBackend;

/// A vendor, as a type.
pub trait Vendor: Send + Sync + std::fmt::Debug + sealed::Sealed + 'static {
    /// Which one.
    const VENDOR: GpuVendor;
    /// What the backend is called.
    const KIND: BackendKind;
}

mod sealed {
    #[expect(unnameable_types, reason = "so that nobody adds vendors")]
    pub trait Sealed {}
}

/// NVIDIA.
#[derive(Debug)]
pub struct Cuda;
/// AMD.
#[derive(Debug)]
pub struct Rocm;

impl sealed::Sealed for Cuda {}
impl sealed::Sealed for Rocm {}

impl Vendor for Cuda {
    const VENDOR: GpuVendor = GpuVendor::Cuda;
    const KIND: BackendKind = BackendKind::CudaShm;
}

impl Vendor for Rocm {
    const VENDOR: GpuVendor = GpuVendor::Rocm;
    const KIND: BackendKind = BackendKind::RocmShm;
}

/// POSIX shared memory for NVIDIA's devices.
pub type CudaShmMmap = DeviceShmMmap<Cuda>;
/// POSIX shared memory for AMD's devices.
pub type RocmShmMmap = DeviceShmMmap<Rocm>;

/// A named POSIX shared-memory object that can be registered with a vendor's driver.
///
/// Not registered it is shared memory like any other, so that processes without a device take part.
/// [`DeviceMemory::register`] registers it for this process, and dropping it ends that.
///
/// Memory that was given back to the kernel would be one page for the processors and another for the
/// devices that have the old one pinned. So [`Backend::punch`] writes zeros instead, whether this process
/// registered the memory or not: another may have.
///
/// # Examples
/// ```
/// use hshm_memory::backend::CudaShmMmap;
/// use hshm_memory::gpu::DeviceMemory;
///
/// # let name = format!("hshm-doc-device.{}", std::process::id());
/// # let name = name.as_str();
/// let memory = CudaShmMmap::create(name, 1 << 20, 16 << 20, 0o600)?;
/// match memory.register(0) {
///     Ok(()) => println!("device 0 has it at {:#x}", memory.device_address(0, 0, 4096)?),
///     Err(error) => println!("going on without a device: {error}"),
/// }
/// # CudaShmMmap::unlink(name)?;
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Debug)]
pub struct DeviceShmMmap<V: Vendor> {
    registration: Registration,
    memory: PosixShmMmap,
    vendor: PhantomData<V>,
}

impl<V: Vendor> DeviceShmMmap<V> {
    /// Creates the object, as [`PosixShmMmap::create`]. It is not registered yet.
    ///
    /// # Errors
    /// As [`PosixShmMmap::create`].
    pub fn create(name: &str, size: u64, capacity: u64, mode: u32) -> Result<Self, BackendError> {
        Self::create_with(name, size, capacity, mode, &BackendOptions::default())
    }

    /// The same, with options.
    ///
    /// # Errors
    /// As [`PosixShmMmap::create_with`].
    pub fn create_with(
        name: &str,
        size: u64,
        capacity: u64,
        mode: u32,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        Ok(Self::over(PosixShmMmap::create_with(name, size, capacity, mode, options)?))
    }

    /// Opens the object `name`, for [`DeviceShmMmap::from_fd`].
    ///
    /// # Errors
    /// As [`PosixShmMmap::open`].
    pub fn open(name: &str) -> Result<OwnedFd, BackendError> {
        PosixShmMmap::open(name)
    }

    /// Maps an object that is open already. It is not registered yet.
    ///
    /// # Errors
    /// As [`PosixShmMmap::from_fd`].
    pub fn from_fd(file: OwnedFd, capacity: u64) -> Result<Self, BackendError> {
        Self::from_fd_with(file, capacity, &BackendOptions::default())
    }

    /// The same, with options that hold for this process's mapping.
    ///
    /// # Errors
    /// As [`PosixShmMmap::from_fd_with`].
    pub fn from_fd_with(
        file: OwnedFd,
        capacity: u64,
        options: &BackendOptions,
    ) -> Result<Self, BackendError> {
        Ok(Self::over(PosixShmMmap::from_fd_with(file, capacity, options)?))
    }

    /// Takes the name away, as [`PosixShmMmap::unlink`].
    ///
    /// # Errors
    /// As [`PosixShmMmap::unlink`].
    pub fn unlink(name: &str) -> Result<(), BackendError> {
        PosixShmMmap::unlink(name)
    }

    fn over(memory: PosixShmMmap) -> Self {
        Self { registration: Registration::new(V::VENDOR), memory, vendor: PhantomData }
    }
}

impl<V: Vendor> Drop for DeviceShmMmap<V> {
    fn drop(&mut self) {
        // A driver that is shutting down with the process ends the registration by itself.
        let _ = self.registration.unregister(&self.memory);
    }
}

impl<V: Vendor> DeviceMemory for DeviceShmMmap<V> {
    fn vendor(&self) -> GpuVendor {
        self.registration.vendor()
    }

    fn register(&self, device: u32) -> Result<(), BackendError> {
        self.registration.register(&self.memory, device)
    }

    fn unregister(&self) -> Result<(), BackendError> {
        Ok(self.registration.unregister(&self.memory)?)
    }

    fn registration(&self) -> Option<RegistrationInfo> {
        self.registration.info()
    }

    fn device_address(&self, device: u32, offset: u64, len: u64) -> Result<u64, BackendError> {
        self.registration.device_address(&self.memory, device, offset, len)
    }

    fn pieces(&self, device: u32) -> Result<Vec<DevicePiece>, BackendError> {
        self.registration.pieces(&self.memory, device)
    }
}

// SAFETY: [mapped] all is as PosixShmMmap promises; what is registered is mapped until after the
// registration was ended.
unsafe impl<V: Vendor> Backend for DeviceShmMmap<V> {
    fn kind(&self) -> BackendKind {
        V::KIND
    }

    fn base(&self) -> NonNull<u8> {
        self.memory.base()
    }

    fn alignment(&self) -> usize {
        self.memory.alignment()
    }

    fn capacity_bytes(&self) -> u64 {
        self.memory.capacity_bytes()
    }

    fn committed_bytes(&self) -> u64 {
        self.memory.committed_bytes()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.memory.fd()
    }

    fn populate(&self, range: Range<u64>) -> Result<(), BackendError> {
        self.memory.populate(range)
    }

    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        let end = range.end.min(self.committed_bytes());
        if range.start >= end {
            return Ok(());
        }
        self.populate(range.start..end)?;
        let (Ok(start), Ok(len)) =
            (usize::try_from(range.start), usize::try_from(end - range.start))
        else {
            return Ok(());
        };
        let address = self.base().as_ptr().wrapping_add(start);
        // SAFETY: [mapped] below the committed length, and populated; [owned] whoever gives memory back
        // owns it.
        unsafe { address.write_bytes(0, len) };
        Ok(())
    }

    fn is_damaged(&self) -> bool {
        self.memory.is_damaged()
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        self.memory.grow(bytes)
    }

    fn device(&self) -> Option<&dyn DeviceMemory> {
        Some(self)
    }
}

impl<V: Vendor> InitBackend for DeviceShmMmap<V> {
    /// Makes it, and registers it for the first device.
    fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError> {
        let made = Self::over(PosixShmMmap::shm_init(name, size_bytes)?);
        if let Err(error) = made.register(0) {
            // The error at hand says more than one from cleaning up would.
            let _ = Self::unlink(name);
            return Err(error);
        }
        Ok(made)
    }

    /// Opens it, and registers it for the first device.
    fn shm_attach(name: &str) -> Result<Self, BackendError> {
        let found = Self::over(PosixShmMmap::shm_attach(name)?);
        found.register(0)?;
        Ok(found)
    }

    fn shm_destroy(name: &str) -> Result<(), BackendError> {
        Self::unlink(name)
    }
}
