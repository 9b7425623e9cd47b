use anyhow::Result;
use hshm_client::Client;
use hshmd::size::format_size;
use serde::Serialize;

use crate::ui::Ui;

#[derive(Serialize)]
struct Grown<'a> {
    name: &'a str,
    committed_bytes: u64,
}

pub(super) fn run(client: &Client, name: &str, size_bytes: u64, ui: &mut Ui) -> Result<()> {
    let committed_bytes = client.grow(name, size_bytes)?;
    ui.show(&Grown { name, committed_bytes }, |ui| {
        ui.line(format_args!("segment {name} is {} long now", format_size(committed_bytes)))
    })
}
