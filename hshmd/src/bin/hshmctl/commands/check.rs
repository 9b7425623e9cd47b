use anyhow::Result;
use hshm_client::{CheckReport, Client, RepairReport};
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
    ui.show(&Checked { name, clean, report: &report }, |ui| show(ui, name, &report))?;
    Ok(exit(&report))
}

#[derive(Serialize)]
struct Repaired<'a> {
    name: &'a str,
    /// Whether there was anything to be done.
    changed: bool,
    /// Whether nothing is broken any more.
    clean: bool,
    #[serde(flatten)]
    report: &'a RepairReport,
}

pub(super) fn repair(client: &Client, name: &str, ui: &mut Ui) -> Result<Exit> {
    let report = client.repair(name)?;
    let (changed, clean) = (report.is_changed(), report.remaining.is_clean());
    ui.show(&Repaired { name, changed, clean, report: &report }, |ui| {
        if !changed {
            ui.line(format_args!("segment {name}: nothing could be repaired, or had to be"))?;
        }
        for (number, what) in done(&report).into_iter().filter(|(number, _)| *number > 0) {
            ui.line(format_args!("{what}: {}", count(number)))?;
        }
        show(ui, name, &report.remaining)
    })?;
    Ok(exit(&report.remaining))
}

/// What was done, for people.
fn done(report: &RepairReport) -> [(u64, &'static str); 8] {
    let recovered = &report.recovered;
    [
        (recovered.slots.into(), "worker slots of the dead recovered"),
        (report.slots_freed.into(), "worker slots freed that no process can hold"),
        (recovered.pages_freed, "pages and large blocks freed"),
        (recovered.pages_abandoned, "pages left for others to adopt"),
        (report.owners_cleared, "units taken from slots that nobody held"),
        (report.units_bound, "units bound to their page or large block again"),
        (report.counts_corrected, "counts and links corrected"),
        (report.lists_dropped, "free lists dropped, whose blocks count as allocated now"),
    ]
}

fn exit(report: &CheckReport) -> Exit {
    if report.is_clean() { Exit::Success } else { Exit::Violations }
}

/// A check's outcome for people.
fn show(ui: &mut Ui, name: &str, report: &CheckReport) -> Result<()> {
    let walked = format!(
        "{} walked, {} allocated ({}), {} free",
        counted(report.pages, "page"),
        counted(report.allocated_blocks, "block"),
        format_size(report.allocated_bytes),
        count(report.free_blocks),
    );
    if report.is_clean() {
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
}
