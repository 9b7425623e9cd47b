//! Finding a driver's library, and its functions.

use std::env;
use std::error::Error as _;
use std::ffi::{OsString, c_int};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use libloading::Library;

use super::error::code;
use super::{GpuError, GpuVendor};

/// What a function of a driver returns. An integer: the vendors' enumerations grow with each release.
pub(super) type Status = c_int;

/// A library that stays loaded: drivers have threads that outlive what uses them.
#[derive(Debug)]
pub(super) struct DriverLibrary {
    vendor: GpuVendor,
    library: &'static Library,
    file: String,
}

impl DriverLibrary {
    pub(super) fn new(vendor: GpuVendor, library: &'static Library, file: String) -> Self {
        Self { vendor, library, file }
    }

    pub(super) fn vendor(&self) -> GpuVendor {
        self.vendor
    }

    /// The library that `variable` names, if it names one.
    pub(super) fn named(
        vendor: GpuVendor,
        variable: &'static str,
    ) -> Option<Result<Self, GpuError>> {
        let name = env::var_os(variable).filter(|name| !name.is_empty())?;
        Some(match open(&name) {
            Ok(library) => Ok(Self::new(vendor, library, name.display().to_string())),
            Err(why) => Err(GpuError::NoDriver {
                vendor,
                tried: format!("{variable}={}", name.display()),
                why: format!(" ({why})"),
                variable,
            }),
        })
    }

    /// The address of a function, as a value of its type.
    ///
    /// # Safety
    /// `F` is the type of a function pointer, and that of the function.
    pub(super) unsafe fn symbol<F: Copy>(&self, name: &'static str) -> Result<F, GpuError> {
        // SAFETY: [ffi] the caller's promise.
        let found = unsafe { self.library.get::<F>(name) };
        found.map(|symbol| *symbol).map_err(|_| GpuError::MissingSymbol {
            vendor: self.vendor,
            library: self.file.clone(),
            symbol: name,
        })
    }
}

/// Opens a library for good.
pub(super) fn open(name: &OsString) -> Result<&'static Library, String> {
    // SAFETY: [ffi] the library's initialisers run: those of a driver, or of what the user names as one.
    let library = unsafe { Library::new(name) }.map_err(|error| {
        // The error itself says no more than that it failed.
        error.source().map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    Ok(Box::leak(Box::new(library)))
}

/// What `status` says about a call.
pub(super) fn done(vendor: GpuVendor, call: &'static str, status: Status) -> Result<(), GpuError> {
    match status {
        code::SUCCESS => Ok(()),
        code if code::is_no_device(call, code) => Err(GpuError::NoDevice { vendor, code }),
        code => Err(GpuError::Refused { vendor, call, code }),
    }
}

/// A driver that was looked for once, successfully, by the process that may use it.
#[derive(Debug)]
pub(super) struct Found<D> {
    driver: OnceLock<D>,
    /// The process that first asked.
    by: AtomicU32,
}

impl<D> Found<D> {
    pub(super) const fn new() -> Self {
        Self { driver: OnceLock::new(), by: AtomicU32::new(0) }
    }

    /// The driver, or what stands in the way. A failure is no reason not to look again.
    pub(super) fn get(
        &self,
        vendor: GpuVendor,
        look: impl FnOnce() -> Result<D, GpuError>,
    ) -> Result<&D, GpuError> {
        let own = std::process::id();
        // ORDER: Relaxed: the number stands for itself. A child finds its parent's, and touches nothing
        // that a thread of the parent may have been about when it was forked.
        let by = self.by.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed);
        if by.is_err_and(|by| by != own) {
            return Err(GpuError::Forked { vendor });
        }
        if let Some(driver) = self.driver.get() {
            return Ok(driver);
        }
        let driver = look()?;
        // Of two that came at once, one finds its driver dropped, which undoes nothing: both are the
        // same library.
        Ok(self.driver.get_or_init(|| driver))
    }
}

/// Text that a driver wrote into `buffer`, up to its first zero.
pub(super) fn text(buffer: &[u8]) -> String {
    let text = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.chars().filter(|c| !c.is_control()).take(120).collect()
}
