use anyhow::Result;
use hshm_client::{BackendOptions, Client, CreateOptions, DeviceMemoryInfo, SegmentInfo};
use hshmd::size::format_size;
use serde::Serialize;

use crate::args::CreateArgs;
use crate::ui::Ui;

#[derive(Serialize)]
struct Created<'a> {
    #[serde(flatten)]
    segment: &'a SegmentInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_memory: Option<DeviceMemoryInfo>,
}

/// Has memory of a device's own beside the segment, which goes again if there is none.
fn with_memory(client: &Client, args: &CreateArgs, bytes: u64) -> Result<DeviceMemoryInfo> {
    client.add_device_memory(&args.name, args.device, bytes).or_else(|error| {
        // Forced: nobody can have come to use it for what it was to be.
        client.destroy(&args.name, true)?;
        Err(error.into())
    })
}

pub(super) fn run(client: &Client, args: &CreateArgs, ui: &mut Ui) -> Result<()> {
    let options = CreateOptions {
        capacity_bytes: args.capacity,
        backend: args.backend,
        allocator: args.allocator,
        custom_header_bytes: args.custom_header,
        on_exit: args.on_exit,
        worker_slots: args.worker_slots,
        mode: args.mode,
        ..CreateOptions::new(&args.name, args.size)
    };
    let memory = args.memory.options();
    // What asks for nothing special is understood by every release of the daemon.
    let segment = if memory == BackendOptions::default() {
        client.create(&options)?
    } else {
        client.create_with(&options, &memory)?
    };
    let device_memory = args.device_memory.map(|bytes| with_memory(client, args, bytes));
    let device_memory = device_memory.transpose()?;
    ui.show(&Created { segment: &segment, device_memory }, |ui| {
        ui.line(format_args!(
            "created segment {}: {}, can grow to {}, {}, {} allocator, blocks of the dead: {}",
            segment.name,
            format_size(segment.committed_bytes),
            format_size(segment.capacity_bytes),
            segment.backend,
            segment.allocator,
            segment.on_exit,
        ))?;
        let Some(memory) = device_memory else { return Ok(()) };
        ui.line(format_args!(
            "with {} of {} device {}",
            format_size(memory.bytes),
            memory.vendor,
            memory.device
        ))
    })
}
