//! Why a driver could not be used.

use super::GpuVendor;

/// What a driver's codes mean that have an error of their own. Both vendors use the same numbers.
pub(super) mod code {
    use std::ffi::c_int;

    #[cfg(any(feature = "cuda", feature = "rocm"))]
    pub(crate) const SUCCESS: c_int = 0;
    const OUT_OF_MEMORY: c_int = 2;
    const DEINITIALIZED: c_int = 4;
    const NO_DEVICE: c_int = 100;
    const INVALID_DEVICE: c_int = 101;
    const ALREADY_REGISTERED: c_int = 712;
    const NOT_REGISTERED: c_int = 713;
    pub(crate) const NOT_SUPPORTED: c_int = 801;

    /// What went wrong, as far as the number says.
    pub(super) const fn meaning(code: c_int) -> &'static str {
        match code {
            1 => "invalid value",
            OUT_OF_MEMORY => "out of memory",
            3 => "not initialised",
            DEINITIALIZED => "shutting down",
            NO_DEVICE => "no device",
            INVALID_DEVICE => "invalid device",
            201 => "invalid context",
            ALREADY_REGISTERED => "memory registered already",
            NOT_REGISTERED => "memory not registered",
            719 => "launch failed",
            NOT_SUPPORTED => "not supported",
            802 => "system not ready",
            803 => "driver and library do not match",
            999 => "unknown error",
            _ => "a code that this release does not know",
        }
    }

    pub(super) const fn advice(code: c_int) -> &'static str {
        match code {
            OUT_OF_MEMORY => {
                "; registered memory stays in place: raise the limit for locked memory (ulimit -l), or make the segment smaller"
            }
            ALREADY_REGISTERED => {
                "; this process registered it through another mapping or library: unregister it there first"
            }
            NOT_SUPPORTED => {
                "; this device, system or release of the driver cannot do that: attach without a device"
            }
            803 => "; restart after the driver's update",
            _ => "",
        }
    }

    /// Whether it says that there is no device. ROCm's answers 101 to whoever initialises it without one.
    #[cfg(any(feature = "cuda", feature = "rocm"))]
    pub(crate) fn is_no_device(call: &str, code: c_int) -> bool {
        code == NO_DEVICE || (code == INVALID_DEVICE && call.ends_with("Init"))
    }
}

/// Why a device, its driver or a registration was not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// This program was built without support for the vendor's devices.
    #[error("this program was built without {vendor}: build it with the cargo feature {feature}")]
    NotBuilt {
        /// Whose devices.
        vendor: GpuVendor,
        /// What would have to be switched on.
        feature: &'static str,
    },
    /// The driver's library is not there.
    #[error(
        "there is no {vendor} driver: {tried} cannot be loaded{why}; install the vendor's driver, or name its library with {variable}"
    )]
    NoDriver {
        /// Whose driver.
        vendor: GpuVendor,
        /// What was looked for.
        tried: String,
        /// What the loader said, if it said something.
        why: String,
        /// The variable that can name the file.
        variable: &'static str,
    },
    /// The library has not all that is needed.
    #[error(
        "the {vendor} driver lacks the function {symbol}: it is too old, or {library} is another library"
    )]
    MissingSymbol {
        /// Whose driver.
        vendor: GpuVendor,
        /// Where it was looked for.
        library: String,
        /// What is missing.
        symbol: &'static str,
    },
    /// The driver is there, and no device.
    #[error(
        "the {vendor} driver finds no device (code {code}): none is built in, or this user or container may not open its device files"
    )]
    NoDevice {
        /// Whose driver.
        vendor: GpuVendor,
        /// What it answered; 0 if it counted none.
        code: i32,
    },
    /// There are devices, but not this one.
    #[error("there is no {vendor} device {device}: the driver shows {count}, numbered from 0")]
    NoSuchDevice {
        /// Whose driver.
        vendor: GpuVendor,
        /// The number asked for.
        device: u32,
        /// How many there are.
        count: u32,
    },
    /// A call failed.
    #[error("the {vendor} driver refuses {call} with code {code} ({}){}", code::meaning(*code), code::advice(*code))]
    Refused {
        /// Whose driver.
        vendor: GpuVendor,
        /// The function.
        call: &'static str,
        /// What it answered. Compare with the vendor's own list.
        code: i32,
    },
    /// The driver was first used by a process that this one was forked from.
    #[error(
        "the {vendor} driver belongs to the process that this one was forked from: execute a program, or fork before a device is first used"
    )]
    Forked {
        /// Whose driver.
        vendor: GpuVendor,
    },
    /// The bytes, or the device, are not registered.
    #[error(
        "the {len} bytes at {offset:#x} are not registered for {vendor} device {device}: register the segment for it first"
    )]
    NotRegistered {
        /// Whose driver.
        vendor: GpuVendor,
        /// The device.
        device: u32,
        /// Where they begin.
        offset: u64,
        /// How many they are.
        len: u64,
    },
    /// The bytes were registered in pieces that a device does not see as one.
    #[error(
        "the {len} bytes at {offset:#x} cross {boundary:#x}, where the segment was grown, and the device sees the parts at unrelated addresses: use them part by part, or attach the segment anew"
    )]
    Divided {
        /// Where they begin.
        offset: u64,
        /// How many they are.
        len: u64,
        /// Where the second piece begins.
        boundary: u64,
    },
}
