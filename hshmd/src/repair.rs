//! Repairing a segment that nobody uses, at the request of whoever may manage it.

use std::time::Duration;

use hshm_memory::{AllocError, AnyAllocator, CheckReport, PosixShmMmap, ProcessId, RepairReport};
use hshm_proto::limits::{MAX_TEXT_BYTES, truncated};
use hshm_proto::{ErrorCode, ErrorReply};

use crate::access::Peer;
use crate::error::allocator_reply;
use crate::registry::{Registry, lock};
use crate::segment::{Heap, Segment};

/// How often a repair is begun again that meets this daemon's own recovery of a death.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

impl Registry {
    /// Repairs a segment. `attached` are processes that have it attached. If it was out of use and
    /// nothing is broken any more, it is in use again.
    pub(crate) fn repair(
        &self,
        name: &str,
        by: &Peer,
        attached: &[ProcessId],
    ) -> Result<RepairReport, ErrorReply> {
        let _changing = lock(&self.change);
        let segment = self.get(name)?;
        if !by.may_manage(&segment.record) {
            return Err(by.refusal("repair", &segment.record));
        }
        segment.require_unused(by, attached, "let them detach or end, and repair it then")?;
        let allocator = match &segment.heap {
            Heap::Usable(_) => segment.allocator("repair")?.clone(),
            Heap::Unusable { .. } => reopened(&segment)?,
        };
        let mut report = repaired(&allocator, name)?;
        if report.remaining.is_clean() && segment.usable().is_none() {
            let heap = Heap::Usable(allocator);
            let whole = Segment::new(segment.record.clone(), heap, segment.lock.clone());
            self.replace(&segment, whole);
            tracing::info!(segment = name, "a segment that was unusable is repaired");
        }
        report.remaining.violations.truncate(CheckReport::MAX_VIOLATIONS);
        for violation in &mut report.remaining.violations {
            violation.what = truncated(&violation.what, MAX_TEXT_BYTES);
        }
        Ok(report)
    }
}

fn repaired(allocator: &AnyAllocator, name: &str) -> Result<RepairReport, ErrorReply> {
    let mut tries = TRIES;
    loop {
        match allocator.repair() {
            // The reaper is at work on a slot.
            Err(AllocError::InUse { process, .. })
                if tries > 0 && process.pid == std::process::id() =>
            {
                tries -= 1;
                std::thread::sleep(PAUSE);
            }
            result => return result.map_err(|error| allocator_reply("repair", name, &error)),
        }
    }
}

/// The allocator of a segment that was found broken, if its header is whole.
fn reopened(segment: &Segment) -> Result<AnyAllocator, ErrorReply> {
    let record = &segment.record;
    let unusable = |why: &dyn std::fmt::Display| {
        ErrorReply::new(
            ErrorCode::Unusable,
            format_args!("cannot repair segment {:?}: {why}", record.name),
            "destroy it, and create it anew",
        )
    };
    let file = match (&record.object, &segment.lock, &segment.heap) {
        (Some(object), Some(_), _) => {
            PosixShmMmap::open(object).map_err(|error| unusable(&error))?
        }
        (None, _, Heap::Unusable { file: Some(file), .. }) => {
            file.try_clone().map_err(|error| unusable(&error))?
        }
        _ => return Err(unusable(&"this daemon has no hold of its memory")),
    };
    AnyAllocator::open_fd(record.backend, file).map_err(|error| unusable(&error))
}
