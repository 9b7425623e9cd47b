//! Graphics processors: their drivers, found at run time, and what is registered with them.
//!
//! One binary serves machines with NVIDIA's driver, AMD's, both or none. A driver's library is looked
//! for when something first needs it, each function of it is looked up before anything is called, and what it
//! returns is taken as a number: a newer driver may have codes that nobody here has heard of.
//!
//! | vendor | library | variable that names another file | cargo feature |
//! |---|---|---|---|
//! | NVIDIA | `libcuda.so`, as cudarc finds it | `HSHM_LIBCUDA` | `cuda` |
//! | AMD | `libamdhip64.so.7`, `.so.6`, `.so.5`, `.so` | `HSHM_LIBAMDHIP64` | `rocm` |
//!
//! # Forks
//! A driver is not inherited: it serves the process that first asked for it here, and its forked children
//! get [`GpuError::Forked`] until they execute a program. They go on using what is shared as memory.

#[cfg(not(hshm_loom))]
pub mod arena;
#[cfg(unix)]
mod buffer;
#[cfg(all(unix, feature = "cuda"))]
mod cuda;
mod driver;
mod error;
#[cfg(all(unix, any(feature = "cuda", feature = "rocm")))]
mod library;
#[cfg(not(hshm_loom))]
pub mod pool;
#[cfg(unix)]
mod registration;
#[cfg(all(unix, feature = "rocm"))]
mod rocm;
#[cfg(all(unix, any(feature = "cuda", feature = "rocm")))]
mod vmm;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

#[cfg(unix)]
pub use self::buffer::DeviceBuffer;
#[cfg(unix)]
pub(crate) use self::driver::Driver;
pub use self::error::GpuError;
#[cfg(unix)]
pub(crate) use self::registration::Registration;
use crate::options::UnknownName;

/// Whose devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GpuVendor {
    /// NVIDIA's, by CUDA's driver.
    Cuda,
    /// AMD's, by ROCm's HIP.
    Rocm,
}

impl GpuVendor {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Cuda, Self::Rocm];
}

impl fmt::Display for GpuVendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cuda => "CUDA",
            Self::Rocm => "ROCm",
        })
    }
}

impl FromStr for GpuVendor {
    type Err = UnknownName;

    /// `cuda` or `rocm`.
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "cuda" => Ok(Self::Cuda),
            "rocm" => Ok(Self::Rocm),
            other => Err(UnknownName {
                what: "vendor of graphics processors",
                found: other.to_owned(),
                expected: "cuda or rocm",
            }),
        }
    }
}

/// A driver, as it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverInfo {
    /// Whose devices it drives.
    pub vendor: GpuVendor,
    /// The newest version of the vendor's interface that it has, such as `12.4`.
    pub version: String,
    /// The devices that it shows this process, by their numbers from 0.
    pub devices: Vec<DeviceInfo>,
}

/// A device, as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// What it is called.
    pub name: String,
    /// Its own memory, in bytes.
    pub memory_bytes: u64,
    /// Whether it and the processors may both do atomic read-modify-write on a word of the host's
    /// memory, as the driver says: as over NVLink, and not over PCIe. AMD's says so too where PCIe passes on the few
    /// such operations that it has: compare-and-swap, swap and addition. `None` if the driver does not tell.
    pub host_native_atomics: Option<bool>,
}

/// A piece of the segment, as a device sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DevicePiece {
    /// Where it begins in the segment.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// Where it begins for the device.
    pub address: u64,
}

/// What of a memory is registered with a driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationInfo {
    /// Whose driver.
    pub vendor: GpuVendor,
    /// The devices that use it, in the order in which they were named.
    pub devices: Vec<u32>,
    /// How much is registered, in bytes from the beginning.
    pub registered_bytes: u64,
    /// In how many pieces: one, and one more for each time it was found longer.
    pub pieces: u32,
}

/// Memory that can be registered with a driver, so that devices read and write it in place.
///
/// Registering is each process's own affair, and ends with it at the latest.
pub trait DeviceMemory: Send + Sync + fmt::Debug {
    /// Whose devices it is for.
    fn vendor(&self) -> GpuVendor;

    /// Registers what is committed, for the device number `device`. The memory stays in place, unswapped,
    /// until it is unregistered. Called again it registers what was committed since; with
    /// another number it gives one more device access.
    ///
    /// # Errors
    /// [`GpuError`], by what the driver answers; [`BackendError::Full`] if the memory cannot be had.
    ///
    /// [`BackendError::Full`]: crate::BackendError::Full
    fn register(&self, device: u32) -> Result<(), crate::BackendError>;

    /// Ends the registration. Nothing happens if there is none, or if it was the parent's of this process.
    ///
    /// # Errors
    /// What the driver answers.
    fn unregister(&self) -> Result<(), crate::BackendError>;

    /// What is registered by this process.
    fn registration(&self) -> Option<RegistrationInfo>;

    /// The address by which the device number `device` knows the `len` bytes at `offset`. What was committed
    /// since the last registration is registered first.
    ///
    /// # Errors
    /// [`GpuError::NotRegistered`] if the bytes or the device are not, [`GpuError::Divided`] if they lie in
    /// pieces that are not one behind the other for the device; and what the driver answers.
    fn device_address(
        &self,
        device: u32,
        offset: u64,
        len: u64,
    ) -> Result<u64, crate::BackendError>;

    /// All that is committed, as the pieces in which the device sees it, in ascending order. What was committed since
    /// the last registration is registered first.
    ///
    /// # Errors
    /// As [`DeviceMemory::device_address`].
    fn pieces(&self, device: u32) -> Result<Vec<DevicePiece>, crate::BackendError>;
}

/// Asks a vendor's driver what there is. A driver is a large foreign library: a process that does not need
/// it otherwise had better ask in a child.
///
/// # Errors
/// [`GpuError`]: why there is none, or what it answered.
pub fn probe(vendor: GpuVendor) -> Result<DriverInfo, GpuError> {
    let driver = driver::of(vendor)?;
    let version = driver.version()?;
    let count = driver.device_count()?;
    let devices = (0..count).map(|device| driver.device(device)).collect::<Result<_, _>>()?;
    Ok(DriverInfo { vendor, version, devices })
}
