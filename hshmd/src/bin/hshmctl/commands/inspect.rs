use anyhow::Result;
use hshm_client::gpu::pool::PoolReport;
use hshm_client::{
    ClassReport, Client, DeviceMemoryInfo, HeapReport, Inspection, Obtained, OperationCounts,
    SegmentDevice, SegmentInfo, WorkerReport, WorkerState,
};
use hshmd::size::format_size;
use serde::Serialize;

use super::{ago, permissions};
use crate::table::{Side, grid, sheet};
use crate::text::{self, count, counted, percent};
use crate::ui::Ui;

#[derive(Serialize)]
struct Inspected<'a> {
    segment: &'a SegmentInfo,
    memory: &'a Obtained,
    heap: &'a HeapReport,
    external_fragmentation: f64,
    held_bytes: u64,
    /// Of a segment for devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<&'a Device>,
}

#[derive(Serialize)]
struct Device {
    #[serde(flatten)]
    found: SegmentDevice,
    /// Whether it and the processors may both modify a word of the segment atomically, as the driver says.
    host_native_atomics: Option<bool>,
    /// Of its own that the segment has.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<DeviceMemory>,
}

#[derive(Serialize)]
struct DeviceMemory {
    #[serde(flatten)]
    info: DeviceMemoryInfo,
    #[serde(flatten)]
    pool: PoolReport,
}

impl Device {
    fn ask(client: &Client, name: &str) -> Result<Self> {
        let found = client.device(name)?;
        let drivers = client.drivers()?;
        let driver = drivers.into_iter().find(|driver| driver.vendor == found.vendor);
        let devices = driver.and_then(|status| status.driver).map(|driver| driver.devices);
        let number = usize::try_from(found.device)?;
        let device = devices.and_then(|devices| devices.into_iter().nth(number));
        let host_native_atomics = device.and_then(|one| one.host_native_atomics);
        let memory = client.device_pool(name)?.map(|(info, pool)| DeviceMemory { info, pool });
        Ok(Self { found, host_native_atomics, memory })
    }
}

pub(super) fn run(client: &Client, name: &str, ui: &mut Ui) -> Result<()> {
    let Inspection { segment, heap } = client.inspect(name)?;
    let obtained = client.memory(name)?;
    let is_for_devices = segment.backend.vendor().is_some();
    let device = is_for_devices.then(|| Device::ask(client, name)).transpose()?;
    let json = Inspected {
        segment: &segment,
        memory: &obtained,
        heap: &heap,
        external_fragmentation: heap.external_fragmentation(),
        held_bytes: heap.held_bytes(),
        device: device.as_ref(),
    };
    ui.show(&json, |ui| {
        ui.heading(&format!("segment {}", segment.name))?;
        ui.line(sheet(ui.form(), geometry(&segment, &heap)))?;
        if let Some(device) = &device {
            ui.line("")?;
            ui.heading("device")?;
            ui.line(sheet(ui.form(), device_rows(device)))?;
        }
        ui.line("")?;
        ui.heading("memory")?;
        ui.line(sheet(ui.form(), [pages(&obtained), memory(&heap)].concat()))?;
        ui.line("")?;
        ui.heading("size classes")?;
        classes(ui, &heap)?;
        ui.line("")?;
        ui.heading("workers")?;
        workers(ui, &heap)
    })
}

fn geometry(segment: &SegmentInfo, heap: &HeapReport) -> Vec<(&'static str, String)> {
    let object = segment.object.as_ref().map(|object| format!(" /dev/shm/{object}"));
    let mut rows = vec![
        ("made of", format!("{}{}", segment.backend, object.unwrap_or_default())),
        ("allocator", format!("{} {}", segment.allocator, heap.id)),
        ("layout", format!("version {}", heap.layout_version)),
        ("size", format_size(heap.committed_bytes)),
        ("capacity", format_size(heap.capacity_bytes)),
        ("custom header", format_size(heap.custom_header_bytes)),
        ("blocks of the dead", heap.on_exit.to_string()),
        (
            "owner",
            format!(
                "{}, group {}, {}",
                text::user(segment.uid),
                text::group(segment.gid),
                permissions(segment.mode)
            ),
        ),
        ("created", format!("{} ago", ago(segment.created_unix_ms))),
        ("sessions", segment.sessions.to_string()),
    ];
    if let Some(problem) = &segment.problem {
        rows.push(("unusable", problem.clone()));
    }
    rows
}

/// How the memory was had, as far as the daemon's own use of it shows.
fn pages(obtained: &Obtained) -> Vec<(&'static str, String)> {
    let resident = format_size(obtained.resident_bytes);
    vec![
        ("pages", format!("of {}", format_size(obtained.page_bytes))),
        (
            "huge pages",
            format!("{} of the {resident} that the daemon uses", format_size(obtained.huge_bytes)),
        ),
        ("locked", format_size(obtained.locked_bytes)),
        ("NUMA policy", obtained.numa.to_string()),
    ]
}

fn device_rows(device: &Device) -> Vec<(&'static str, String)> {
    let found = &device.found;
    let name = found.device_name.as_deref().unwrap_or("not found");
    let mut rows =
        vec![("device", format!("{} {}, {}", found.vendor, found.device, text::printable(name)))];
    if let Some(bytes) = found.registered_bytes {
        rows.push(("registration", format!("{} taken by the driver", format_size(bytes))));
    }
    if found.device_name.is_some() {
        let atomics = match device.host_native_atomics {
            Some(true) => "the device and the processors may modify the same words",
            Some(false) => "none: the device and the processors each modify words of their own",
            None => "not known: the driver has no dependable way to ask",
        };
        rows.push(("native host atomics", atomics.to_owned()));
    }
    if let Some(DeviceMemory { info, pool }) = &device.memory {
        rows.push((
            "own memory",
            format!(
                "{} of device {}, {} allocated in {}, largest free run {}",
                format_size(info.bytes),
                info.device,
                format_size(pool.allocated_bytes),
                counted(pool.allocated_blocks, "block"),
                format_size(pool.largest_free_bytes),
            ),
        ));
    }
    if let Some(problem) = &found.problem {
        rows.push(("registration", format!("refused: {}", text::printable(problem))));
    }
    rows
}

fn memory(heap: &HeapReport) -> Vec<(&'static str, String)> {
    let usable = heap.units_total.saturating_mul(heap.unit_bytes);
    let free = heap.units_free.saturating_mul(heap.unit_bytes);
    let held = heap.held_bytes();
    let part = |bytes| format!("{} ({})", format_size(bytes), percent(bytes, usable));
    let OperationCounts { allocations, local_frees, remote_frees, adoptions } = heap.operations;
    vec![
        (
            "allocated",
            format!(
                "{} in {}",
                part(heap.allocated_bytes),
                counted(heap.allocated_blocks, "block")
            ),
        ),
        ("held by pages", part(held)),
        ("free", part(free)),
        ("largest free run", format_size(heap.largest_free_run_bytes)),
        (
            "fragmentation",
            format!(
                "{} of the free memory is outside the largest run; {} of the held is not allocated",
                percent(free.saturating_sub(heap.largest_free_run_bytes), free),
                percent(held.saturating_sub(heap.allocated_bytes), held),
            ),
        ),
        (
            "cached",
            format!("{} blocks, {}", count(heap.cached_blocks), format_size(heap.cached_bytes)),
        ),
        ("abandoned pages", count(heap.abandoned_pages)),
        ("allocations", count(allocations)),
        (
            "frees",
            format!("{} by the owner, {} by others", count(local_frees), count(remote_frees)),
        ),
        ("adopted pages", count(adoptions)),
    ]
}

const CLASS_COLUMNS: [(&str, Side); 6] = [
    ("  BLOCK", Side::Right),
    ("PAGES", Side::Right),
    ("BLOCKS", Side::Right),
    ("ALLOCATED", Side::Right),
    ("BYTES", Side::Right),
    ("OCCUPANCY", Side::Right),
];

fn classes(ui: &mut Ui, heap: &HeapReport) -> Result<()> {
    let row = |class: &ClassReport| {
        vec![
            format!("  {}", format_size(class.block_bytes)),
            count(class.pages),
            count(class.blocks),
            count(class.allocated_blocks),
            format_size(class.allocated_blocks.saturating_mul(class.block_bytes)),
            percent(class.allocated_blocks, class.blocks),
        ]
    };
    let mut rows: Vec<_> = heap.classes.iter().map(row).collect();
    if heap.large_blocks > 0 {
        rows.push(vec![
            "  larger".into(),
            count(heap.large_blocks),
            count(heap.large_blocks),
            count(heap.large_blocks),
            format_size(heap.large_bytes),
            percent(1, 1),
        ]);
    }
    if rows.is_empty() {
        return ui.line("  none has a page yet");
    }
    ui.line(grid(ui.form(), &CLASS_COLUMNS, rows))
}

const WORKER_COLUMNS: [(&str, Side); 8] = [
    ("  SLOT", Side::Right),
    ("PID", Side::Right),
    ("THREAD", Side::Right),
    ("STATE", Side::Left),
    ("PAGES", Side::Right),
    ("ALLOCATIONS", Side::Right),
    ("OWN FREES", Side::Right),
    ("FREES FOR OTHERS", Side::Right),
];

fn workers(ui: &mut Ui, heap: &HeapReport) -> Result<()> {
    let row = |worker: &WorkerReport| {
        let state = match worker.state {
            WorkerState::Live => "live",
            WorkerState::Parked => "parked",
            WorkerState::Recovering => "recovering",
        };
        vec![
            format!("  {}", worker.slot),
            worker.process.to_string(),
            worker.thread.to_string(),
            state.into(),
            count(worker.pages),
            count(worker.operations.allocations),
            count(worker.operations.local_frees),
            count(worker.operations.remote_frees),
        ]
    };
    if heap.workers.is_empty() {
        return ui.line(format_args!("  none; {} slots are free", count(heap.worker_slots.into())));
    }
    let in_use = u64::try_from(heap.workers.len()).unwrap_or(u64::MAX);
    ui.line(grid(ui.form(), &WORKER_COLUMNS, heap.workers.iter().map(row).collect()))?;
    ui.line(format_args!("  {} of {} slots in use", count(in_use), count(heap.worker_slots.into())))
}
