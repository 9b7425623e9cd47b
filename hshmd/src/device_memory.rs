//! Memory of devices' own that belongs to segments.
//!
//! A descriptor keeps such memory, so the daemon holds it without a driver: a child of its own takes the memory,
//! passes the descriptor, and ends. Which part of it is whose, a pool in the segment says. The service manager, if there
//! is one, keeps the descriptor across restarts of the daemon; without one the memory goes with the daemon, but for those
//! who have it mapped.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use hshm_memory::gpu::GpuVendor;
use hshm_memory::gpu::pool::{DevicePool, PoolError, PoolOptions, PoolReport};
use hshm_memory::{AnyAllocator, CheckReport, OffsetPointer, ThreadLocalAllocator};
use hshm_proto::{DeviceMemoryInfo, ErrorCode, ErrorReply};
use tracing::{info, warn};

use crate::access::Peer;
use crate::error::internal_reply;
use crate::gpu;
use crate::manager::{KeptName, Manager};
use crate::quota::{Demand, Usage};
use crate::registry::{Registry, lock};
use crate::segment::Segment;

/// What the names of kept descriptors begin with.
pub(crate) const KEPT: &str = "device.";

/// A segment's.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    pub(crate) info: DeviceMemoryInfo,
    pub(crate) file: OwnedFd,
    /// Whose segment.
    uid: u32,
}

/// All segments'.
#[derive(Debug, Default)]
pub(crate) struct DeviceMemories {
    /// By segment, and when that was created: one of the same name that comes later is another.
    held: Mutex<BTreeMap<KeptName, Arc<DeviceMemory>>>,
    /// Held by whoever adds some, which may take a driver's time.
    adding: Mutex<()>,
}

/// Under which name the service manager keeps a descriptor: all that is known of it.
struct Kept<'a>(&'a KeptName, &'a DeviceMemoryInfo);

impl fmt::Display for Kept<'_> {
    /// At most 255 ASCII characters without a colon, as `sd_pid_notify_with_fds(3)` asks for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, info) = self;
        let vendor = info.vendor.to_string().to_lowercase();
        let (segment, created) = (&name.segment, name.created_unix_ms);
        let (device, bytes, pool) = (info.device, info.bytes, info.pool.offset_bytes());
        write!(f, "{KEPT}{segment}@{created}@{vendor}.{device}.{bytes}.{pool}")
    }
}

/// What such a name says.
fn parse(name: &str) -> Option<(KeptName, DeviceMemoryInfo)> {
    let (rest, info) = name.strip_prefix(KEPT)?.rsplit_once('@')?;
    let (segment, created) = rest.rsplit_once('@')?;
    hshm_proto::validate_segment_name(segment).ok()?;
    let mut words = info.split('.');
    let vendor: GpuVendor = words.next()?.parse().ok()?;
    let device = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    let pool = OffsetPointer::new(words.next()?.parse().ok()?);
    let name = KeptName { segment: segment.to_owned(), created_unix_ms: created.parse().ok()? };
    words.next().is_none().then_some((name, DeviceMemoryInfo { vendor, device, bytes, pool }))
}

impl DeviceMemories {
    /// Takes back what the service manager kept for a daemon before this one.
    pub(crate) fn adopt(
        &self,
        kept: impl IntoIterator<Item = (String, OwnedFd)>,
        registry: &Registry,
    ) {
        for (text, file) in kept {
            let found = parse(&text).and_then(|(name, info)| {
                let segment = registry.get(&name.segment).ok()?;
                let uid = segment.record.uid;
                (KeptName::from(&segment.record) == name).then_some((name, info, uid))
            });
            let Some((name, info, uid)) = found else {
                registry.manager.forget_named(&text);
                continue;
            };
            info!(segment = name.segment, bytes = info.bytes, "adopted a device's memory");
            lock(&self.held).insert(name, Arc::new(DeviceMemory { info, file, uid }));
        }
    }

    /// That of a segment.
    pub(crate) fn of(&self, segment: &Segment) -> Option<Arc<DeviceMemory>> {
        lock(&self.held).get(&KeptName::from(&segment.record)).cloned()
    }

    /// That of a segment, which has some.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub(crate) fn require(&self, segment: &Segment) -> Result<Arc<DeviceMemory>, ErrorReply> {
        self.of(segment).ok_or_else(|| {
            ErrorReply::new(
                ErrorCode::NotFound,
                format_args!("segment {:?} has no device memory", segment.record.name),
                "have it added when the segment is created (hshmctl create --device-memory); that of a daemon which ended without a service manager to keep it is gone",
            )
        })
    }

    /// Lets go of what belongs to a segment that is destroyed, whoever has it mapped.
    pub(crate) fn forget(&self, name: &str, manager: &Manager) {
        lock(&self.held).retain(|key, memory| {
            let stays = key.segment != name;
            if !stays {
                manager.forget_named(&Kept(key, &memory.info).to_string());
            }
            stays
        });
    }

    /// Takes memory of a device's for a segment, and makes the pool that divides it.
    pub(crate) fn add(
        &self,
        registry: &Registry,
        segment: &Segment,
        by: &Peer,
        device: u32,
        bytes: u64,
    ) -> Result<Arc<DeviceMemory>, ErrorReply> {
        let name = &segment.record.name;
        if !by.may_manage(&segment.record) {
            return Err(by.refusal("add device memory to", &segment.record));
        }
        let refused = |code, why: &dyn fmt::Display, advice: &str| {
            let what = format_args!("cannot add device memory to segment {name:?}: {why}");
            ErrorReply::new(code, what, advice)
        };
        let (vendor, heap) = suitable(segment, &refused)?;
        let _adding = lock(&self.adding);
        if self.of(segment).is_some() {
            return Err(refused(ErrorCode::Exists, &"it has some already", ""));
        }
        let owner = segment.record.uid;
        let backend = segment.record.backend;
        // Counted by itself: it is not the machine's memory.
        let verb = "add device memory to";
        let demand = Demand { verb, name, backend, size_bytes: bytes, present_bytes: 0 };
        demand.check_limits(&registry.limits(), self.usage(|_| true))?;
        demand.check_user_limits(&registry.limits(), owner, self.usage(|uid| uid == owner))?;
        let (file, bytes) = gpu::take_memory(vendor, device, bytes).map_err(|why| {
            let advice = "ask hshmctl status what the daemon finds; a service that may not open devices needs PrivateDevices=no and DeviceAllow=";
            refused(ErrorCode::BadArgument, &why, advice)
        })?;
        let pool = DevicePool::create(&heap, PoolOptions::new(bytes));
        // The daemon holds worker slots only while it needs them.
        heap.detach_thread();
        let pool = pool.map_err(|error| {
            let is_full = matches!(error, PoolError::Alloc(_));
            let code = if is_full { ErrorCode::NoMemory } else { ErrorCode::BadArgument };
            refused(code, &error, "make the segment larger, or the device memory smaller")
        })?;
        let info = DeviceMemoryInfo { vendor, device, bytes, pool: pool.offset() };
        let memory = Arc::new(DeviceMemory { info, file, uid: owner });
        let key = KeptName::from(&segment.record);
        registry.manager.keep_named(&Kept(&key, &info).to_string(), memory.file.as_fd());
        lock(&self.held).insert(key.clone(), Arc::clone(&memory));
        // It may have been destroyed meanwhile.
        let stands = registry.get(name).is_ok_and(|found| KeptName::from(&found.record) == key);
        if !stands {
            self.forget(name, &registry.manager);
            return Err(refused(ErrorCode::NotFound, &"it was destroyed meanwhile", ""));
        }
        Ok(memory)
    }

    /// How much there is of some users'.
    fn usage(&self, is_counted: impl Fn(u32) -> bool) -> Usage {
        let held = lock(&self.held);
        let counted = held.values().filter(|memory| is_counted(memory.uid));
        Usage { segments: 0, bytes: counted.map(|memory| memory.info.bytes).sum() }
    }

    /// What is in the pool of a segment's.
    pub(crate) fn pool(
        &self,
        segment: &Segment,
    ) -> Result<Option<(DeviceMemoryInfo, PoolReport)>, ErrorReply> {
        let Some((memory, pool)) = self.pool_of(segment)? else { return Ok(None) };
        Ok(Some((memory.info, pool.report().map_err(internal_reply)?)))
    }

    /// Walks the pool too, if there is one.
    pub(crate) fn check(
        &self,
        segment: &Segment,
        report: &mut CheckReport,
    ) -> Result<(), ErrorReply> {
        let Some((_, pool)) = self.pool_of(segment)? else { return Ok(()) };
        let found = pool.check().map_err(internal_reply)?;
        report.violations_total += found.violations_total;
        report.violations.extend(found.violations);
        Ok(())
    }

    fn pool_of(
        &self,
        segment: &Segment,
    ) -> Result<Option<(Arc<DeviceMemory>, DevicePool)>, ErrorReply> {
        let Some(memory) = self.of(segment) else { return Ok(None) };
        let AnyAllocator::ThreadLocal(heap) = segment.allocator("inspect")? else {
            return Ok(None);
        };
        match DevicePool::open(heap, memory.info.pool) {
            Ok(pool) => Ok(Some((memory, pool))),
            Err(why) => {
                warn!(segment = segment.record.name, %why, "a pool of device memory is gone");
                Ok(None)
            }
        }
    }
}

/// The vendor and the heap of a segment that can have device memory.
fn suitable(
    segment: &Segment,
    refused: &dyn Fn(ErrorCode, &dyn fmt::Display, &str) -> ErrorReply,
) -> Result<(GpuVendor, ThreadLocalAllocator), ErrorReply> {
    let backend = segment.record.backend;
    let Some(vendor) = backend.vendor() else {
        let why = format_args!("it is of {backend}, which is not for devices");
        let advice = "create one with the backend cuda-shm or rocm-shm";
        return Err(refused(ErrorCode::BadArgument, &why, advice));
    };
    let AnyAllocator::ThreadLocal(heap) = segment.allocator("add device memory to")? else {
        let why = "its allocator cannot keep the tables";
        let advice = "create one with the thread-local allocator";
        return Err(refused(ErrorCode::BadArgument, &why, advice));
    };
    Ok((vendor, heap.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kept_descriptor_tells_all_that_is_known_of_it() {
        let longest = "n".repeat(hshm_proto::limits::MAX_SEGMENT_NAME_BYTES);
        for (segment, number) in [("jobs", 0), ("a.b_c-d", 17), (&*longest, u64::MAX)] {
            let key = KeptName { segment: segment.to_owned(), created_unix_ms: number };
            let info = DeviceMemoryInfo {
                vendor: GpuVendor::Rocm,
                device: u32::MAX,
                bytes: number,
                pool: OffsetPointer::new(number),
            };
            let text = Kept(&key, &info).to_string();
            assert!(text.len() <= 255 && !text.contains(':'), "{text}");
            assert_eq!(parse(&text), Some((key, info)));
        }
        for other in ["device.", "segment.jobs@1", "device.jobs@1", "device.jobs@1@cuda.0.1"] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
