//! What is looked up when somebody asks.

use std::fmt;

use hshm_memory::HeapReport;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::daemon::{Shared, VERSION};

/// The state of the daemon and its segments at one moment.
#[derive(Debug)]
pub(super) struct Segments {
    heaps: Vec<(String, HeapReport)>,
    unusable: u64,
    sessions: u64,
    watched_processes: u64,
    recovering_processes: u64,
    recovered_processes: u64,
    recovered_slots: u64,
    uptime_seconds: f64,
}

/// A number that each segment has.
struct PerSegment {
    name: &'static str,
    help: &'static str,
    bytes: bool,
    value: fn(&HeapReport) -> u64,
}

const GAUGES: [PerSegment; 6] = [
    PerSegment {
        name: "segment_capacity",
        help: "How far the segment can grow.",
        bytes: true,
        value: |heap| heap.capacity_bytes,
    },
    PerSegment {
        name: "segment_committed",
        help: "How long the segment is.",
        bytes: true,
        value: |heap| heap.committed_bytes,
    },
    PerSegment {
        name: "segment_allocated",
        help: "Bytes in blocks that are allocated.",
        bytes: true,
        value: |heap| heap.allocated_bytes,
    },
    PerSegment {
        name: "segment_held",
        help: "Bytes in pages and large blocks, whether their blocks are allocated or not.",
        bytes: true,
        value: HeapReport::held_bytes,
    },
    PerSegment {
        name: "segment_largest_free_run",
        help: "The largest block that could be had now.",
        bytes: true,
        value: |heap| heap.largest_free_run_bytes,
    },
    PerSegment {
        name: "segment_workers",
        help: "Worker slots in use.",
        bytes: false,
        value: |heap| heap.workers.len() as u64,
    },
];

impl Segments {
    pub(super) fn of(shared: &Shared) -> Self {
        let (mut heaps, mut unusable) = (Vec::new(), 0);
        for segment in shared.registry.all() {
            match segment.allocator("count") {
                Ok(allocator) => heaps.push((segment.record.name.clone(), allocator.report())),
                Err(_) => unusable += 1,
            }
        }
        let counts = shared.processes.counts();
        Self {
            heaps,
            unusable,
            sessions: counts.connections,
            watched_processes: counts.watched,
            recovering_processes: counts.recovering,
            recovered_processes: counts.recovered_processes,
            recovered_slots: counts.recovered_slots,
            uptime_seconds: shared.started.elapsed().as_secs_f64(),
        }
    }
}

// Help texts end with a full stop: the registry adds one to its own.
impl Collector for Segments {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let version = [("version", VERSION)];
        encoder
            .encode_descriptor("build", "The daemon's release.", None, MetricType::Info)?
            .encode_info(&version)?;
        let seconds = Some(&Unit::Seconds);
        ConstGauge::new(self.uptime_seconds).encode(encoder.encode_descriptor(
            "uptime",
            "How long the daemon has run.",
            seconds,
            MetricType::Gauge,
        )?)?;
        for (name, help, value) in [
            ("segments", "Segments there are.", self.heaps.len() as u64 + self.unusable),
            (
                "unusable_segments",
                "Segments that can only be repaired or destroyed.",
                self.unusable,
            ),
            ("sessions", "Connections of clients.", self.sessions),
            ("watched_processes", "Processes whose death is waited for.", self.watched_processes),
            (
                "recovering_processes",
                "Dead processes whose worker slots are being recovered.",
                self.recovering_processes,
            ),
        ] {
            gauge(value).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Gauge,
            )?)?;
        }
        for (name, help, value) in [
            (
                "recovered_processes",
                "Dead processes that were recovered.",
                self.recovered_processes,
            ),
            ("recovered_slots", "Worker slots of theirs.", self.recovered_slots),
        ] {
            ConstCounter::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Counter,
            )?)?;
        }
        for PerSegment { name, help, bytes, value } in &GAUGES {
            let unit = bytes.then_some(&Unit::Bytes);
            let mut metric = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for (segment, heap) in &self.heaps {
                let labels = [("segment", segment.as_str())];
                gauge(value(heap)).encode(metric.encode_family(&labels)?)?;
            }
        }
        let mut metric = encoder.encode_descriptor(
            "segment_operations",
            "What all workers did since the segment was created.",
            None,
            MetricType::Counter,
        )?;
        for (segment, heap) in &self.heaps {
            let counts = heap.operations;
            for (operation, value) in [
                ("allocate", counts.allocations),
                ("free", counts.local_frees),
                ("remote_free", counts.remote_frees),
                ("adopt", counts.adoptions),
            ] {
                let labels = [("segment", segment.as_str()), ("operation", operation)];
                ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Beyond what a gauge can hold, which no machine has, it stays there.
fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}
