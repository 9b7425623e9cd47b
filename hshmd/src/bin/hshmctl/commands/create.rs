use anyhow::Result;
use hshm_client::{BackendOptions, Client, CreateOptions};
use hshmd::size::format_size;

use crate::args::CreateArgs;
use crate::ui::Ui;

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
    ui.show(&segment, |ui| {
        ui.line(format_args!(
            "created segment {}: {}, can grow to {}, {}, {} allocator, blocks of the dead: {}",
            segment.name,
            format_size(segment.committed_bytes),
            format_size(segment.capacity_bytes),
            segment.backend,
            segment.allocator,
            segment.on_exit,
        ))
    })
}
