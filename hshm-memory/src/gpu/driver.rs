//! What is asked of a driver, whosever it is.

use std::fmt;
#[cfg(unix)]
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use super::{DeviceInfo, GpuError, GpuVendor};

/// A driver that was found and initialised.
#[cfg_attr(windows, allow(dead_code, reason = "no backend there registers anything"))]
pub(crate) trait Driver: Send + Sync + fmt::Debug {
    /// The newest version of the vendor's interface that it has.
    fn version(&self) -> Result<String, GpuError>;

    /// How many devices it shows; at least one.
    fn device_count(&self) -> Result<u32, GpuError>;

    /// One of them.
    fn device(&self, device: u32) -> Result<DeviceInfo, GpuError>;

    /// Prepares the use of a device by this process, until [`Driver::leave`].
    fn enter(&self, device: u32) -> Result<(), GpuError>;

    /// Ends what [`Driver::enter`] began. What it answers changes nothing any more.
    fn leave(&self, device: u32);

    /// Registers `[address, address + bytes)` for all devices, by way of one that was entered.
    ///
    /// # Safety
    /// The range is mapped, readable and writable, and stays so until it is unregistered.
    unsafe fn register(
        &self,
        device: u32,
        address: NonNull<u8>,
        bytes: usize,
    ) -> Result<(), GpuError>;

    /// Ends the registration that begins at `address`, by way of the device that it was made by.
    fn unregister(&self, device: u32, address: NonNull<u8>) -> Result<(), GpuError>;

    /// Where a device that was entered finds the registered byte at `address`.
    fn device_address(&self, device: u32, address: NonNull<u8>) -> Result<u64, GpuError>;

    /// Takes memory of a device's own, at least `bytes` bytes: a descriptor that keeps it, and how long it is.
    #[cfg(unix)]
    fn create_memory(&self, device: u32, bytes: usize) -> Result<(OwnedFd, usize), GpuError>;

    /// Maps such memory for a device that was entered, and says where.
    #[cfg(unix)]
    fn open_memory(&self, device: u32, file: BorrowedFd<'_>, bytes: usize)
    -> Result<u64, GpuError>;

    /// Ends what [`Driver::open_memory`] began, which nobody uses any more.
    #[cfg(unix)]
    fn close_memory(&self, device: u32, address: u64, bytes: usize) -> Result<(), GpuError>;
}

/// The driver of `vendor`, looked for and initialised when first asked for.
pub(crate) fn of(vendor: GpuVendor) -> Result<&'static dyn Driver, GpuError> {
    match vendor {
        #[cfg(all(unix, feature = "cuda"))]
        GpuVendor::Cuda => super::cuda::driver(),
        #[cfg(all(unix, feature = "rocm"))]
        GpuVendor::Rocm => super::rocm::driver(),
        #[cfg(not(all(unix, feature = "cuda")))]
        GpuVendor::Cuda => Err(GpuError::NotBuilt { vendor, feature: "cuda" }),
        #[cfg(not(all(unix, feature = "rocm")))]
        GpuVendor::Rocm => Err(GpuError::NotBuilt { vendor, feature: "rocm" }),
    }
}
