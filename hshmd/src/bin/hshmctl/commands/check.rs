use anyhow::Result;
use hshm_client::{CheckReport, Client};
use hshmd::size::format_size;
use serde::Serialize;

use crate::exit::Exit;
use crate::table::{Side, grid};
use crate::text::{count, counted};
use crate::ui::Ui;

#[derive(Serialize)]
struct Checked<'a> {
    name: &'a str,
    clean: bool,
    #[serde(flatten)]
    report: &'a CheckReport,
}

const COLUMNS: [(&str, Side); 3] =
    [("INVARIANT", Side::Left), ("OFFSET", Side::Right), ("FOUND", Side::Left)];

pub(super) fn run(client: &Client, name: &str, ui: &mut Ui) -> Result<Exit> {
    let report = client.check(name)?;
    let clean = report.is_clean();
    ui.show(&Checked { name, clean, report: &report }, |ui| {
        let walked = format!(
            "{} walked, {} allocated ({}), {} free",
            counted(report.pages, "page"),
            counted(report.allocated_blocks, "block"),
            format_size(report.allocated_bytes),
            count(report.free_blocks),
        );
        if clean {
            return ui.line(format_args!("segment {name} is sound: {walked}"));
        }
        let found = counted(report.violations_total, "violation");
        ui.line(format_args!("segment {name} has {found}: {walked}"))?;
        let rows = report.violations.iter().map(|violation| {
            vec![
                violation.invariant.clone(),
                format!("{:#x}", violation.offset),
                violation.what.clone(),
            ]
        });
        ui.line(grid(ui.form(), &COLUMNS, rows.collect()))?;
        let described = u64::try_from(report.violations.len()).unwrap_or(u64::MAX);
        if report.violations_total > described {
            ui.line(format_args!("and {} more", count(report.violations_total - described)))?;
        }
        Ok(())
    })?;
    Ok(if clean { Exit::Success } else { Exit::Violations })
}
