//! A device's own memory, shared among processes by a file descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Driver, GpuError, GpuVendor, driver};

/// Memory of a device's own. The host's processors cannot reach it: what is known here is where the device
/// finds it, in this process.
///
/// It lives as long as somebody has a descriptor of it or has it mapped, whatever becomes of the process that made
/// it. Another process maps the same bytes, mostly at another address, from a descriptor that it was passed. What is
/// where in it is for its users to agree on: a [`DevicePool`](super::pool::DevicePool) is a way.
///
/// # Examples
/// ```
/// use hshm_memory::gpu::{DeviceBuffer, GpuVendor};
///
/// match DeviceBuffer::create(GpuVendor::Cuda, 0, 1 << 20) {
///     Ok(buffer) => {
///         let same = DeviceBuffer::from_fd(GpuVendor::Cuda, 0, buffer.fd().try_clone_to_owned()?, 1 << 20)?;
///         println!("at {:#x} and at {:#x}", buffer.address(), same.address());
///     }
///     Err(error) => println!("going on without a device: {error}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DeviceBuffer {
    driver: &'static dyn Driver,
    vendor: GpuVendor,
    device: u32,
    address: u64,
    bytes: usize,
    file: OwnedFd,
    /// The process whose driver has it mapped: none of its forked children's business.
    process: u32,
}

impl DeviceBuffer {
    /// Takes at least `bytes` bytes of the device's memory, in the driver's own units, and maps them.
    ///
    /// # Errors
    /// [`GpuError`]: no driver or device, no room, or a device that cannot share memory so.
    pub fn create(vendor: GpuVendor, device: u32, bytes: u64) -> Result<Self, GpuError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let driver = driver::of(vendor)?;
        let (file, bytes) = driver.create_memory(device, bytes)?;
        Self::map(driver, vendor, device, file, bytes)
    }

    /// Maps the `bytes` bytes that `file` is a descriptor of, as their maker says.
    ///
    /// # Errors
    /// As [`DeviceBuffer::create`]; what the driver answers if it is no descriptor of such memory, or the memory is
    /// shorter.
    pub fn from_fd(
        vendor: GpuVendor,
        device: u32,
        file: OwnedFd,
        bytes: u64,
    ) -> Result<Self, GpuError> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        Self::map(driver::of(vendor)?, vendor, device, file, bytes)
    }

    fn map(
        driver: &'static dyn Driver,
        vendor: GpuVendor,
        device: u32,
        file: OwnedFd,
        bytes: usize,
    ) -> Result<Self, GpuError> {
        driver.enter(device)?;
        let address = match driver.open_memory(device, file.as_fd(), bytes) {
            Ok(address) => address,
            Err(error) => {
                driver.leave(device);
                return Err(error);
            }
        };
        let process = std::process::id();
        Ok(Self { driver, vendor, device, address, bytes, file, process })
    }

    /// Where the device finds it, by this process's addresses.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Where the device finds the `len` bytes at `offset`; `None` if they are not all inside.
    #[must_use]
    pub fn device_address(&self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.checked_add(len)?;
        (end <= self.bytes()).then(|| self.address.wrapping_add(offset))
    }

    /// How long it is, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Whose device it is of.
    #[must_use]
    pub fn vendor(&self) -> GpuVendor {
        self.vendor
    }

    /// The device that it was mapped for.
    #[must_use]
    pub fn device(&self) -> u32 {
        self.device
    }

    /// What to pass to another process, with the length.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        // A driver that is shutting down with the process ends the mapping by itself.
        let _ = self.driver.close_memory(self.device, self.address, self.bytes);
        self.driver.leave(self.device);
    }
}
