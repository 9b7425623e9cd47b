//! What the daemon says, twice, and what changed between.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use hshm_client::{Client, OperationCounts, SegmentInfo, StatusInfo};
use serde::Serialize;

/// What there was at one moment.
pub(super) struct Sample {
    at: Instant,
    status: StatusInfo,
    segments: Vec<(SegmentInfo, Option<Heap>)>,
}

/// What counts of a heap.
#[derive(Clone, Copy)]
struct Heap {
    usable_bytes: u64,
    allocated_bytes: u64,
    held_bytes: u64,
    workers: u64,
    operations: OperationCounts,
}

/// What is shown: the newer sample, and rates since the one before.
#[derive(Serialize)]
pub(super) struct Frame {
    pub(super) daemon: StatusInfo,
    /// How long the rates were measured, in seconds; 0 if they were not.
    pub(super) measured_seconds: f64,
    pub(super) segments: Vec<Row>,
}

/// A segment as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) committed_bytes: u64,
    /// Room for blocks; none of these where the heap may not be looked at.
    pub(super) usable_bytes: Option<u64>,
    pub(super) allocated_bytes: Option<u64>,
    /// In pages that have blocks, allocated or not.
    pub(super) held_bytes: Option<u64>,
    /// Worker slots in use.
    pub(super) workers: Option<u64>,
    pub(super) sessions: u32,
    /// Living processes that hold worker slots.
    pub(super) holders: u32,
    pub(super) rates: Option<Rates>,
    pub(super) problem: Option<String>,
}

/// Operations a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Rates {
    pub(super) allocations: f64,
    pub(super) local_frees: f64,
    pub(super) remote_frees: f64,
}

impl Sample {
    pub(super) fn take(client: &Client) -> Result<Self> {
        let status = client.status()?;
        let listed = client.list()?;
        let at = Instant::now();
        // One that goes meanwhile, is unusable or belongs to others has no heap to show.
        let look = |segment: SegmentInfo| {
            let heap = client.inspect(&segment.name).ok().map(|found| Heap {
                usable_bytes: found.heap.units_total.saturating_mul(found.heap.unit_bytes),
                allocated_bytes: found.heap.allocated_bytes,
                held_bytes: found.heap.held_bytes(),
                workers: u64::try_from(found.heap.workers.len()).unwrap_or(u64::MAX),
                operations: found.heap.operations,
            });
            (segment, heap)
        };
        Ok(Self { at, status, segments: listed.into_iter().map(look).collect() })
    }

    /// This one, with rates since `before`.
    pub(super) fn since(&self, before: Option<&Self>) -> Frame {
        let seconds = before.map_or(0.0, |before| (self.at - before.at).as_secs_f64());
        let earlier: BTreeMap<_, _> = before
            .iter()
            .flat_map(|before| &before.segments)
            // A segment of the same name may be another by now.
            .map(|(info, heap)| ((&info.name, info.created_unix_ms), heap))
            .collect();
        let row = |(info, heap): &(SegmentInfo, Option<Heap>)| {
            let then = earlier.get(&(&info.name, info.created_unix_ms)).copied().copied().flatten();
            let rates = heap.zip(then).filter(|_| seconds > 0.0);
            Row {
                name: info.name.clone(),
                committed_bytes: info.committed_bytes,
                usable_bytes: heap.map(|heap| heap.usable_bytes),
                allocated_bytes: heap.map(|heap| heap.allocated_bytes),
                held_bytes: heap.map(|heap| heap.held_bytes),
                workers: heap.map(|heap| heap.workers),
                sessions: info.sessions,
                holders: info.holders,
                rates: rates.map(|(now, then)| Rates::of(then.operations, now.operations, seconds)),
                problem: info.problem.clone(),
            }
        };
        Frame {
            daemon: self.status.clone(),
            measured_seconds: seconds,
            segments: self.segments.iter().map(row).collect(),
        }
    }
}

impl Rates {
    fn of(then: OperationCounts, now: OperationCounts, seconds: f64) -> Self {
        // The counts are read one after the other, and may go back a little.
        #[allow(clippy::cast_precision_loss, reason = "shown to three digits")]
        let rate = |then: u64, now: u64| now.saturating_sub(then) as f64 / seconds;
        Self {
            allocations: rate(then.allocations, now.allocations),
            local_frees: rate(then.local_frees, now.local_frees),
            remote_frees: rate(then.remote_frees, now.remote_frees),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_by_the_second_and_never_negative() {
        let counts = |allocations, local_frees| OperationCounts {
            allocations,
            local_frees,
            ..OperationCounts::default()
        };
        let rates = Rates::of(counts(100, 50), counts(300, 49), 0.5);
        assert_eq!((rates.allocations, rates.local_frees, rates.remote_frees), (400.0, 0.0, 0.0));
    }
}
