//! What graphics processors' drivers there are, and whether they take a segment.
//!
//! A driver is a large foreign library with threads of its own, and may take seconds, hang or crash. The daemon
//! never loads one: it starts itself anew as a child that does, says what it found on its standard
//! output, and ends, and every registration that it made with it.

use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::gpu::{self, DeviceBuffer, DriverInfo, GpuVendor};
use hshm_memory::{AnyAllocator, BackendError, BackendKind, PosixShmMmap};
use hshm_proto::limits::{DEVICES_SHOWN, MAX_TEXT_BYTES, truncated};
use hshm_proto::{DriverStatus, SegmentDevice};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
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
    /// Of the memory whose descriptor was passed.
    memory_bytes: Option<u64>,
    problem: Option<String>,
}

/// What else a child is to do than to say what it finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Nothing.
    None,
    /// Try whether the driver takes the segment in this shared-memory object.
    Register(String),
    /// Take memory of a device's own, and pass its descriptor to the socket that is the standard input.
    Take {
        /// The device.
        device: u32,
        /// How much, in bytes.
        bytes: u64,
    },
}

/// What this process, which is to end then, finds of a vendor's driver, as one line of JSON; and what came of its
/// errand.
///
/// # Errors
/// If the answer cannot be written down.
pub fn answer(vendor: GpuVendor, errand: &Errand) -> serde_json::Result<String> {
    // A driver may hang, and the daemon that would end this process may be killed.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    let mut answer = Answer::default();
    match gpu::probe(vendor) {
        Ok(driver) => answer.driver = Some(driver),
        Err(error) => answer.problem = Some(error.to_string()),
    }
    let done = match errand {
        _ if answer.driver.is_none() => Ok(()),
        Errand::None => Ok(()),
        Errand::Register(object) => {
            register(vendor, object).map(|bytes| answer.registered_bytes = Some(bytes))
        }
        Errand::Take { device, bytes } => {
            pass_memory(vendor, *device, *bytes).map(|bytes| answer.memory_bytes = Some(bytes))
        }
    };
    if let Err(why) = done {
        answer.problem = Some(why);
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

/// Takes memory of a device's, passes its descriptor, and says how long it is.
fn pass_memory(vendor: GpuVendor, device: u32, bytes: u64) -> Result<u64, String> {
    let memory = DeviceBuffer::create(vendor, device, bytes).map_err(|error| error.to_string())?;
    let descriptor = [memory.fd().as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptor)];
    let socket = std::io::stdin().as_raw_fd();
    sendmsg::<()>(socket, &[IoSlice::new(&[0])], &control, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(|errno| format!("its descriptor cannot be passed: {errno}"))?;
    Ok(memory.bytes())
}

/// Has a child take memory of a device's own: the descriptor that keeps it, and how long it is. May take a while.
///
/// # Errors
/// Why there is none.
pub(crate) fn take_memory(
    vendor: GpuVendor,
    device: u32,
    bytes: u64,
) -> Result<(OwnedFd, u64), String> {
    let (here, there) = UnixStream::pair().map_err(|error| error.to_string())?;
    let mut command = child(vendor);
    command.args(["--gpu-take", &bytes.to_string(), "--gpu-device", &device.to_string()]);
    command.stdin(OwnedFd::from(there));
    let Answer { memory_bytes, problem, .. } =
        ask_child(command).map_err(|why| format!("the {vendor} driver cannot be asked: {why}"))?;
    if let Some(problem) = problem {
        return Err(problem);
    }
    let nothing = || String::from("the process that asked passed nothing");
    let bytes = memory_bytes.ok_or_else(nothing)?;
    here.set_nonblocking(true).map_err(|error| error.to_string())?;
    let mut byte = [0];
    let mut control = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(here.as_raw_fd(), &mut parts, Some(&mut control), flags)
        .map_err(|errno| errno.to_string())?;
    let mut messages = received.cmsgs().map_err(|errno| errno.to_string())?;
    let Some(ControlMessageOwned::ScmRights(passed)) = messages.next() else {
        return Err(nothing());
    };
    let raw = *passed.first().ok_or_else(nothing)?;
    // SAFETY: [owned] the kernel just made the descriptor for this process, and there was room for one.
    #[allow(unsafe_code, reason = "a number is all that comes out of a message")]
    let file = unsafe { OwnedFd::from_raw_fd(raw) };
    Ok((file, bytes))
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
    let Answer { driver, registered_bytes, problem, .. } = ask(vendor, Some(object));
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
    let mut command = child(vendor);
    if let Some(object) = object {
        command.args(["--gpu-object", object]);
    }
    command.stdin(Stdio::null());
    ask_child(command).unwrap_or_else(|why| Answer {
        problem: Some(format!("the {vendor} driver cannot be asked: {why}")),
        ..Answer::default()
    })
}

fn child(vendor: GpuVendor) -> Command {
    // Itself, even where the file was replaced by a newer release since it was started.
    let mut command = Command::new("/proc/self/exe");
    command.args(["--gpu-probe", &vendor.to_string().to_lowercase()]);
    command
}

fn ask_child(mut command: Command) -> Result<Answer, String> {
    if cfg!(fuzzing) {
        // The process itself is no daemon then.
        return Err("there are no devices while fuzzing".into());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::null());
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
