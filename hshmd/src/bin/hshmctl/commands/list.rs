use anyhow::Result;
use hshm_client::{Client, SegmentInfo};
use hshmd::size::format_size;

use super::{ago, permissions};
use crate::table::{Side, grid};
use crate::text;
use crate::ui::Ui;

const COLUMNS: [(&str, Side); 9] = [
    ("NAME", Side::Left),
    ("SIZE", Side::Right),
    ("CAPACITY", Side::Right),
    ("BACKEND", Side::Left),
    ("ON EXIT", Side::Left),
    ("OWNER", Side::Left),
    ("MODE", Side::Left),
    ("IN USE BY", Side::Right),
    ("AGE", Side::Right),
];

pub(super) fn run(client: &Client, ui: &mut Ui) -> Result<()> {
    let segments = client.list()?;
    ui.show(&segments, |ui| {
        if segments.is_empty() {
            return ui.line("no segments; make one with: hshmctl create NAME --size 1G");
        }
        ui.line(grid(ui.form(), &COLUMNS, segments.iter().map(row).collect()))?;
        for segment in &segments {
            if let Some(problem) = &segment.problem {
                ui.line(format_args!(
                    "{} is unusable: {}",
                    segment.name,
                    text::printable(problem)
                ))?;
            }
        }
        Ok(())
    })
}

fn row(segment: &SegmentInfo) -> Vec<String> {
    vec![
        segment.name.clone(),
        format_size(segment.committed_bytes),
        format_size(segment.capacity_bytes),
        segment.backend.to_string(),
        segment.on_exit.to_string(),
        text::user(segment.uid),
        permissions(segment.mode),
        segment.holders.max(segment.sessions).to_string(),
        ago(segment.created_unix_ms),
    ]
}
