//! What one process registered of one mapping.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{DevicePiece, Driver, GpuError, GpuVendor, RegistrationInfo, driver};
use crate::backend::{Backend, BackendError};

/// The registration of a mapping, if there is one.
#[derive(Debug)]
pub(crate) struct Registration {
    vendor: GpuVendor,
    /// The process that first registered it; 0 before. A forked child has nothing to do with it, nor with
    /// the lock, which a thread that was not forked along may hold.
    process: AtomicU32,
    state: Mutex<Option<Registered>>,
}

#[derive(Debug)]
struct Registered {
    driver: &'static dyn Driver,
    /// Those that were named. The first made the registrations.
    devices: Vec<u32>,
    /// Where the pieces end, each of which begins where the one before ends: as much as was committed when it
    /// was registered.
    ends: Vec<u64>,
}

impl Registration {
    pub(crate) const fn new(vendor: GpuVendor) -> Self {
        Self { vendor, process: AtomicU32::new(0), state: Mutex::new(None) }
    }

    pub(crate) const fn vendor(&self) -> GpuVendor {
        self.vendor
    }

    /// Whether this process has nothing registered because it was forked from the one that has.
    fn is_forked(&self) -> bool {
        // ORDER: Relaxed: the number stands for itself.
        let process = self.process.load(Ordering::Relaxed);
        process != 0 && process != std::process::id()
    }

    fn lock(&self) -> Result<MutexGuard<'_, Option<Registered>>, GpuError> {
        if self.is_forked() {
            return Err(GpuError::Forked { vendor: self.vendor });
        }
        // ORDER: Relaxed: as above.
        self.process.store(std::process::id(), Ordering::Relaxed);
        // What is under it is whole after each step.
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Registers what is committed of `memory`, which this registration is dropped before.
    pub(crate) fn register(&self, memory: &dyn Backend, device: u32) -> Result<(), BackendError> {
        let mut state = self.lock()?;
        if let Some(registered) = &mut *state {
            if !registered.devices.contains(&device) {
                registered.driver.enter(device)?;
                registered.devices.push(device);
            }
            return registered.extend(memory);
        }
        let driver = driver::of(self.vendor)?;
        driver.enter(device)?;
        let mut registered = Registered { driver, devices: vec![device], ends: Vec::new() };
        match registered.extend(memory) {
            Ok(()) => {
                *state = Some(registered);
                Ok(())
            }
            Err(error) => {
                driver.leave(device);
                Err(error)
            }
        }
    }

    /// Ends the registration of `memory`, if this process made one.
    pub(crate) fn unregister(&self, memory: &dyn Backend) -> Result<(), GpuError> {
        match self.lock() {
            Ok(mut state) => state.take().map_or(Ok(()), |registered| registered.end(memory)),
            Err(_) => Ok(()),
        }
    }

    pub(crate) fn info(&self) -> Option<RegistrationInfo> {
        let state = self.lock().ok()?;
        let registered = state.as_ref()?;
        Some(RegistrationInfo {
            vendor: self.vendor,
            devices: registered.devices.clone(),
            registered_bytes: registered.end_bytes(),
            pieces: u32::try_from(registered.ends.len()).unwrap_or(u32::MAX),
        })
    }

    pub(crate) fn device_address(
        &self,
        memory: &dyn Backend,
        device: u32,
        offset: u64,
        len: u64,
    ) -> Result<u64, BackendError> {
        let mut state = self.lock()?;
        let none = || GpuError::NotRegistered { vendor: self.vendor, device, offset, len };
        let registered = state.as_mut().ok_or_else(none)?;
        if !registered.devices.contains(&device) {
            return Err(none().into());
        }
        let end = offset.checked_add(len).ok_or_else(none)?;
        if end > registered.end_bytes() {
            registered.extend(memory)?;
        }
        if end > registered.end_bytes() {
            return Err(none().into());
        }
        registered.device_address(memory, device, offset, len).map_err(BackendError::from)
    }
}

impl Registration {
    pub(crate) fn pieces(
        &self,
        memory: &dyn Backend,
        device: u32,
    ) -> Result<Vec<DevicePiece>, BackendError> {
        let mut state = self.lock()?;
        let none = GpuError::NotRegistered { vendor: self.vendor, device, offset: 0, len: 0 };
        let Some(registered) = state.as_mut().filter(|found| found.devices.contains(&device))
        else {
            return Err(none.into());
        };
        registered.extend(memory)?;
        Ok(registered.pieces(memory, device)?)
    }
}

impl Registered {
    fn pieces(&self, memory: &dyn Backend, device: u32) -> Result<Vec<DevicePiece>, GpuError> {
        let mut pieces: Vec<DevicePiece> = Vec::new();
        let mut offset = 0;
        for &end in &self.ends {
            let address = self.driver.device_address(device, address_of(memory, offset))?;
            match pieces.last_mut() {
                Some(last) if last.address.wrapping_add(last.bytes) == address => {
                    last.bytes += end - offset;
                }
                _ => pieces.push(DevicePiece { offset, bytes: end - offset, address }),
            }
            offset = end;
        }
        Ok(pieces)
    }

    fn end_bytes(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Registers what was committed since the last time.
    fn extend(&mut self, memory: &dyn Backend) -> Result<(), BackendError> {
        let (start, end) = (self.end_bytes(), memory.committed_bytes());
        let Some(device) = self.devices.first().copied() else { return Ok(()) };
        if end <= start {
            return Ok(());
        }
        // The driver would populate it too, and have no word for a full /dev/shm.
        memory.populate(start..end)?;
        let bytes = usize::try_from(end - start).unwrap_or(usize::MAX);
        // SAFETY: [mapped] committed and populated bytes of a mapping, which stands until this
        // registration was ended.
        unsafe { self.driver.register(device, address_of(memory, start), bytes) }?;
        self.ends.push(end);
        Ok(())
    }

    /// Where the device finds bytes that are registered.
    fn device_address(
        &self,
        memory: &dyn Backend,
        device: u32,
        offset: u64,
        len: u64,
    ) -> Result<u64, GpuError> {
        let found = self.driver.device_address(device, address_of(memory, offset))?;
        let last = offset + len.saturating_sub(1);
        for &boundary in self.ends.iter().filter(|end| (offset + 1..=last).contains(end)) {
            let next = self.driver.device_address(device, address_of(memory, boundary))?;
            if next != found.wrapping_add(boundary - offset) {
                return Err(GpuError::Divided { offset, len, boundary });
            }
        }
        Ok(found)
    }

    /// Ends it all, and says what the driver first found wrong with that.
    fn end(self, memory: &dyn Backend) -> Result<(), GpuError> {
        let mut result = Ok(());
        let device = self.devices.first().copied().unwrap_or(0);
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        for start in starts.take(self.ends.len()) {
            result = result.and(self.driver.unregister(device, address_of(memory, start)));
        }
        for device in self.devices {
            self.driver.leave(device);
        }
        result
    }
}

/// The address of an offset below the committed length.
fn address_of(memory: &dyn Backend, offset: u64) -> NonNull<u8> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let address = memory.base().as_ptr().wrapping_add(offset);
    NonNull::new(address).unwrap_or(memory.base())
}
