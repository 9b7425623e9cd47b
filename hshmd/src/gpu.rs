//! What graphics processors' drivers there are, and whether they take a segment.
//!
//! A driver is a large foreign library with threads of its own, and may take seconds, hang or crash. The daemon
//! never loads one: it starts itself anew as a child that does, says what it found on its standard
//! output, and ends, and every registration that it made with it.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::gpu::{self, DriverInfo, GpuVendor};
use hshm_memory::{AnyAllocator, BackendError, BackendKind, PosixShmMmap};
use hshm_proto::limits::{DEVICES_SHOWN, MAX_TEXT_BYTES, truncated};
use hshm_proto::{DriverStatus, SegmentDevice};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// How long a driver may take: those of machines with many devices take seconds to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked for whether it answered.
const GLANCE: Duration = Duration::from_millis(5);
/// For how long an answer is repeated to those who ask again.
const FRESH: Duration = Duration::from_secs(10);

/// The device that a segment is tried on: which of them processes use later, each chooses.
const TRIED_DEVICE: u32 = 0;

/// What a child says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    driver: Option<DriverInfo>,
    registered_bytes: Option<u64>,
    problem: Option<String>,
}

/// What this process, which is to end then, finds of a vendor's driver, as one line of JSON; and whether it takes
/// the segment in the shared-memory object `object`.
///
/// # Errors
/// If the answer cannot be written down.
pub fn answer(vendor: GpuVendor, object: Option<&str>) -> serde_json::Result<String> {
    // A driver may hang, and the daemon that would end this process may be killed.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let mut answer = Answer::default();
    match gpu::probe(vendor) {
        Ok(driver) => answer.driver = Some(driver),
        Err(error) => answer.problem = Some(error.to_string()),
    }
    if let (Some(object), Some(_)) = (object, &answer.driver) {
        match register(vendor, object) {
            Ok(bytes) => answer.registered_bytes = Some(bytes),
            Err(why) => answer.problem = Some(why),
        }
    }
    serde_json::to_string(&answer)
}

/// Registers a segment, and says how many bytes it is.
fn register(vendor: GpuVendor, object: &str) -> Result<u64, String> {
    let file = PosixShmMmap::open(object).map_err(|error| error.to_string())?;
    let kind = BackendKind::of_vendor(vendor);
    let heap = AnyAllocator::open_fd(kind, file).map_err(|error| error.to_string())?;
    let said = |error: BackendError| error.to_string();
    let Some(memory) = heap.backend().device() else {
        return Err(format!("{kind} is no memory for devices"));
    };
    memory.register(TRIED_DEVICE).map_err(said)?;
    let bytes = memory.registration().map_or(0, |registration| registration.registered_bytes);
    memory.device_address(TRIED_DEVICE, 0, 1).map_err(said)?;
    Ok(bytes)
}

/// The drivers, as they were found last.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    last: Mutex<Option<(Instant, Vec<DriverStatus>)>>,
}

impl Drivers {
    /// All vendors' drivers. May take a while.
    pub(crate) fn all(&self) -> Vec<DriverStatus> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, found)) = &*last
            && when.elapsed() < FRESH
        {
            return found.clone();
        }
        let found: Vec<_> = GpuVendor::ALL.into_iter().map(status).collect();
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

fn status(vendor: GpuVendor) -> DriverStatus {
    let Answer { driver, problem, .. } = ask(vendor, None);
    let driver = driver.map(|mut driver| {
        driver.devices.truncate(DEVICES_SHOWN);
        driver
    });
    DriverStatus { vendor, driver, problem: problem.map(|text| truncated(&text, MAX_TEXT_BYTES)) }
}

/// Whether the vendor's driver takes the segment in `object`. May take a while.
pub(crate) fn try_segment(vendor: GpuVendor, object: &str) -> SegmentDevice {
    let Answer { driver, registered_bytes, problem } = ask(vendor, Some(object));
    let device_name = driver.and_then(|driver| Some(driver.devices.into_iter().next()?.name));
    SegmentDevice {
        vendor,
        device: TRIED_DEVICE,
        device_name,
        registered_bytes,
        problem: problem.map(|text| truncated(&text, MAX_TEXT_BYTES)),
    }
}

/// Has a child ask.
fn ask(vendor: GpuVendor, object: Option<&str>) -> Answer {
    ask_child(vendor, object).unwrap_or_else(|why| Answer {
        problem: Some(format!("the {vendor} driver cannot be asked: {why}")),
        ..Answer::default()
    })
}

fn ask_child(vendor: GpuVendor, object: Option<&str>) -> Result<Answer, String> {
    // Itself, even where the file was replaced by a newer release since it was started.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--gpu-probe", &vendor.to_string().to_lowercase()]);
    if let Some(object) = object {
        command.args(["--gpu-object", object]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child =
        command.spawn().map_err(|error| format!("no process can be started: {error}"))?;
    let deadline = Instant::now() + PATIENCE;
    let ended = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < deadline => thread::sleep(GLANCE),
            Ok(None) => {
                let _ = child.kill();
                // In the midst of a call into the kernel's part of the driver it ends only after that.
                thread::spawn(move || child.wait());
                return Err(format!("it did not answer within {} seconds", PATIENCE.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    let mut said = String::new();
    if let Some(mut output) = child.stdout.take() {
        output.read_to_string(&mut said).map_err(|error| error.to_string())?;
    }
    if !ended.success() {
        return Err(format!("the process that asked ended by itself ({ended})"));
    }
    serde_json::from_str(&said).map_err(|error| format!("it said nothing of use: {error}"))
}
