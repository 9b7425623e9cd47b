//! A picture of a heap: what each part of the segment is, and how full.

mod svg;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hshm_client::{Client, Content, HeapReport, Inspection, Stretch};
use hshmd::size::format_size;
use serde::Serialize;

use crate::table::{Side, grid, sheet};
use crate::text::{count, percent};
use crate::ui::{Form, Ui};

/// Cells of a line, where no terminal says how many fit.
const CELLS_PER_LINE: usize = 64;
/// Lines of the picture. Segments that need more have cells of several units.
const LINES: usize = 32;

#[derive(Serialize)]
struct Dumped<'a> {
    name: &'a str,
    stretches: &'a [Stretch],
    heap: &'a HeapReport,
}

pub(super) fn run(client: &Client, name: &str, svg: Option<&Path>, ui: &mut Ui) -> Result<()> {
    let Inspection { heap, .. } = client.inspect(name)?;
    let segment = client.attach(name).context("cannot look into the segment")?;
    let stretches = segment.allocator().stretches();
    if let Some(path) = svg {
        let drawn = svg::draw(name, &stretches);
        fs::write(path, drawn).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let json = Dumped { name, stretches: &stretches, heap: &heap };
    ui.show(&json, |ui| {
        ui.heading(&format!("segment {name}"))?;
        let cells = Cells::new(&stretches, heap.unit_bytes, ui.form());
        for line in &cells.lines {
            ui.line(line)?;
        }
        ui.line("")?;
        ui.line(format_args!(
            "a sign is {}: . free, \u{2581} to \u{2588} pages by how full they are, # large blocks, o caches and what is changing, ? unknown",
            format_size(cells.bytes)
        ))?;
        ui.line("")?;
        ui.line(sheet(ui.form(), summary(&heap)))?;
        ui.line("")?;
        ui.line(grid(ui.form(), &CLASSES, classes(&heap)))?;
        ui.line("")?;
        ui.line(grid(ui.form(), &OWNERS, owners(&heap, &stretches)))
    })
}

fn summary(heap: &HeapReport) -> Vec<(&'static str, String)> {
    let total = heap.units_total.saturating_mul(heap.unit_bytes);
    let free = heap.units_free.saturating_mul(heap.unit_bytes);
    vec![
        (
            "allocated",
            format!(
                "{} ({})",
                format_size(heap.allocated_bytes),
                percent(heap.allocated_bytes, total)
            ),
        ),
        ("free", format!("{} ({})", format_size(free), percent(free, total))),
        ("largest free run", format_size(heap.largest_free_run_bytes)),
        (
            "fragmentation",
            format!(
                "{:.0} % of what is free lies outside of it",
                heap.external_fragmentation() * 100.0
            ),
        ),
    ]
}

const CLASSES: [(&str, Side); 5] = [
    ("BLOCKS OF", Side::Right),
    ("PAGES", Side::Right),
    ("ROOM", Side::Right),
    ("ALLOCATED", Side::Right),
    ("FULL", Side::Right),
];

fn classes(heap: &HeapReport) -> Vec<Vec<String>> {
    let row = |class: &hshm_client::ClassReport| {
        vec![
            format_size(class.block_bytes),
            count(class.pages),
            count(class.blocks),
            count(class.allocated_blocks),
            percent(class.allocated_blocks, class.blocks),
        ]
    };
    heap.classes.iter().map(row).collect()
}

const OWNERS: [(&str, Side); 4] = [
    ("OWNER", Side::Left),
    ("PROCESS", Side::Right),
    ("PARTS", Side::Right),
    ("HELD", Side::Right),
];

/// Whose the parts are that are not free.
fn owners(heap: &HeapReport, stretches: &[Stretch]) -> Vec<Vec<String>> {
    let row = |owner: u32, name: String, process: String| {
        let of_owner =
            |stretch: &&Stretch| stretch.owner == owner && stretch.content != Content::Free;
        let held = stretches.iter().filter(of_owner);
        let bytes = held.clone().map(|stretch| stretch.bytes).sum();
        vec![name, process, count(held.count() as u64), format_size(bytes)]
    };
    let workers = heap.workers.iter().map(|worker| {
        row(worker.slot, format!("worker {}", worker.slot), worker.process.pid.to_string())
    });
    workers.chain([row(0, "nobody".to_owned(), "-".to_owned())]).collect()
}

/// The picture as text.
struct Cells {
    lines: Vec<String>,
    /// What a cell stands for.
    bytes: u64,
}

/// What lies in a cell.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    free: u64,
    large: u64,
    other: u64,
    unknown: u64,
    page: u64,
    /// Of the bytes in pages, those in allocated blocks.
    used: f64,
}

impl Cells {
    fn new(stretches: &[Stretch], unit_bytes: u64, form: Form) -> Self {
        let width = form.width.map_or(CELLS_PER_LINE, usize::from);
        let start = stretches.first().map_or(0, |stretch| stretch.offset);
        let end = stretches.last().map_or(0, |stretch| stretch.offset + stretch.bytes);
        let most = (width * LINES) as u64;
        let units = (end - start).div_ceil(unit_bytes.max(1));
        let bytes = unit_bytes.max(1) * units.div_ceil(most).max(1);
        let mut cells =
            vec![Cell::default(); usize::try_from((end - start).div_ceil(bytes)).unwrap_or(0)];
        for stretch in stretches {
            let mut from = stretch.offset - start;
            let to = from + stretch.bytes;
            while from < to {
                let upto = to.min((from / bytes + 1) * bytes);
                let cell = usize::try_from(from / bytes).ok().and_then(|at| cells.get_mut(at));
                if let Some(cell) = cell {
                    cell.add(&stretch.content, upto - from);
                }
                from = upto;
            }
        }
        let signs: Vec<_> = cells.iter().map(Cell::sign).collect();
        Self { lines: signs.chunks(width).map(|line| line.iter().collect()).collect(), bytes }
    }
}

impl Cell {
    fn add(&mut self, content: &Content, bytes: u64) {
        match content {
            Content::Free => self.free += bytes,
            Content::Large => self.large += bytes,
            Content::Cache | Content::Changing => self.other += bytes,
            Content::Unknown => self.unknown += bytes,
            Content::Page { blocks, allocated_blocks, .. } => {
                self.page += bytes;
                self.used += bytes as f64 * share(*allocated_blocks, *blocks);
            }
        }
    }

    /// The sign of what most of the cell is.
    fn sign(&self) -> char {
        const FULL: [char; 8] = [
            '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}',
            '\u{2588}',
        ];
        let most = self.free.max(self.large).max(self.other).max(self.page);
        if self.unknown > 0 {
            '?'
        } else if most == self.page && self.page > 0 {
            let eighths = self.used / self.page as f64 * 8.0;
            let at = (0..FULL.len()).take_while(|at| (*at as f64) < eighths).count();
            FULL.get(at.saturating_sub(1)).copied().unwrap_or('?')
        } else if most == self.large && self.large > 0 {
            '#'
        } else if most == self.other && self.other > 0 {
            'o'
        } else {
            '.'
        }
    }
}

/// A part of a whole, from 0 to 1.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 64 << 10;
    const NO_TERMINAL: Form = Form { colour: false, width: None };

    fn page(offset: u64, allocated_blocks: u64) -> Stretch {
        let content = Content::Page { block_bytes: 1024, blocks: 64, allocated_blocks };
        Stretch { offset, bytes: UNIT, owner: 1, content }
    }

    #[test]
    fn each_unit_of_a_small_segment_has_a_sign() {
        let large =
            Stretch { offset: 4 * UNIT, bytes: 2 * UNIT, owner: 2, content: Content::Large };
        let free = Stretch { offset: 6 * UNIT, bytes: 3 * UNIT, owner: 0, content: Content::Free };
        let all = [page(UNIT, 0), page(2 * UNIT, 32), page(3 * UNIT, 64), large, free];
        let cells = Cells::new(&all, UNIT, NO_TERMINAL);
        assert_eq!(cells.lines, ["\u{2581}\u{2584}\u{2588}##..."]);
        assert_eq!(cells.bytes, UNIT);
    }

    #[test]
    fn a_large_segment_fits_the_screen() {
        let content = Content::Free;
        let all = [Stretch { offset: UNIT, bytes: 1 << 40, owner: 0, content }];
        let form = Form { colour: false, width: Some(80) };
        let cells = Cells::new(&all, UNIT, form);
        assert!(cells.lines.len() <= LINES && cells.lines.iter().all(|line| line.len() <= 80));
        assert_eq!(Cells::new(&[], UNIT, form).lines.len(), 0);
    }
}
