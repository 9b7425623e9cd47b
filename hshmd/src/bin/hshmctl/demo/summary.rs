//! What the demo has to tell in the end.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use hshmd::size::format_size;
use serde::Serialize;

use super::coordinator::Shared;
use super::graves::Recovery;
use super::ledger::Ledger;
use super::verify::Comparison;
use super::walk::{Skipped, Tree};
use crate::table::sheet;
use crate::text::{count, counted, duration, percent, printable};
use crate::ui::Ui;

/// How many recoveries are told of one by one.
const EACH_TOLD: usize = 4;

/// All that is shown, and all that `--json` gives.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Summary {
    verified: bool,
    path: PathBuf,
    files: u64,
    directories: u64,
    skipped: Skipped,
    producers: u32,
    workers: u32,
    segment_bytes: u64,
    items: u64,
    shared_bytes: u64,
    words: u64,
    allocations: u64,
    local_frees: u64,
    remote_frees: u64,
    recoveries: Vec<Recovery>,
    heap_violations: u64,
    heap_pages: u64,
    allocated_blocks: u64,
    allocated_bytes: u64,
    comparison: Comparison,
    shared_ms: u64,
    plain_ms: u64,
}

impl Summary {
    pub(super) fn new(
        tree: &Tree,
        ledger: &Ledger,
        shared: Shared,
        comparison: Comparison,
        shared_time: Duration,
        plain_time: Duration,
    ) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let operations = shared.heap.operations;
        // The daemon's walk, and the counters in the segment, each by itself.
        let left_blocks = shared.check.allocated_blocks.max(shared.heap.allocated_blocks);
        let left_bytes = shared.check.allocated_bytes.max(shared.heap.allocated_bytes);
        let sound = shared.check.is_clean() && left_blocks == 0 && left_bytes == 0;
        Self {
            verified: sound && comparison.different == 0,
            path: tree.root.clone(),
            files: u64::try_from(tree.files.len()).unwrap_or(u64::MAX),
            directories: tree.directories,
            skipped: tree.skipped,
            producers: shared.producers,
            workers: shared.workers,
            segment_bytes: shared.segment_bytes,
            items: shared.items,
            shared_bytes: shared.bytes,
            words: ledger.outcomes().flatten().map(|counts| counts.words).sum(),
            allocations: operations.allocations,
            local_frees: operations.local_frees,
            remote_frees: operations.remote_frees,
            recoveries: shared.recoveries,
            heap_violations: shared.check.violations_total,
            heap_pages: shared.check.pages,
            allocated_blocks: left_blocks,
            allocated_bytes: left_bytes,
            comparison,
            shared_ms: ms(shared_time),
            plain_ms: ms(plain_time),
        }
    }

    /// Whether nothing differs, nothing is broken and nothing is left.
    pub(super) fn is_verified(&self) -> bool {
        self.verified
    }

    /// For people.
    pub(super) fn print(&self, ui: &mut Ui) -> Result<()> {
        let path = self.path.to_string_lossy();
        ui.heading(&format!("shared {} among processes", printable(&path)))?;
        ui.line(sheet(ui.form(), self.rows()))?;
        let Comparison { equal, changed, different, .. } = self.comparison;
        let but = match changed {
            0 => String::new(),
            changed => format!("; {} changed meanwhile", counted(changed, "file")),
        };
        if self.verified {
            return ui.line(format_args!(
                "verified: bytes, words and CRC-32 of {} equal those of a plain computation in one \
                 process{but}",
                counted(equal, "file"),
            ));
        }
        ui.line(format_args!(
            "NOT VERIFIED: {} of {} differ, {} in the heap, {} left allocated{but}",
            count(different),
            counted(self.files, "file"),
            counted(self.heap_violations, "violation"),
            counted(self.allocated_blocks, "block"),
        ))?;
        for example in &self.comparison.examples {
            ui.line(format_args!("  {}", printable(example)))?;
        }
        Ok(())
    }

    fn rows(&self) -> Vec<(&'static str, String)> {
        let frees = self.local_frees + self.remote_frees;
        let mut rows = vec![
            ("files", format!("{}{}", counted(self.files, "file"), self.passed_over())),
            (
                "shared",
                format!(
                    "{} in {}, through a segment of {}",
                    format_size(self.shared_bytes),
                    counted(self.items, "item"),
                    format_size(self.segment_bytes)
                ),
            ),
            (
                "processes",
                format!(
                    "1 daemon, 1 coordinator, {}, {}",
                    counted(self.producers.into(), "producer"),
                    counted(self.workers.into(), "worker")
                ),
            ),
            ("words", count(self.words)),
            ("allocations", count(self.allocations)),
            (
                "frees",
                format!(
                    "{}, of which {} ({}) remote: into a page that another worker owns",
                    count(frees),
                    count(self.remote_frees),
                    percent(self.remote_frees, frees)
                ),
            ),
        ];
        rows.extend(self.recovery_rows());
        let heap = format!(
            "{} in {}",
            counted(self.heap_violations, "violation"),
            counted(self.heap_pages, "page")
        );
        rows.push(("heap check", heap));
        rows.push(("still allocated", counted(self.allocated_bytes, "byte")));
        let (shared, plain) =
            (Duration::from_millis(self.shared_ms), Duration::from_millis(self.plain_ms));
        let time = format!("{} shared, {} plain afterwards", duration(shared), duration(plain));
        rows.push(("time", time));
        rows
    }

    /// The first recoveries, and the sum of the others.
    fn recovery_rows(&self) -> Vec<(&'static str, String)> {
        let (told_each, rest) = self.recoveries.split_at(self.recoveries.len().min(EACH_TOLD));
        let mut rows: Vec<_> = told_each.iter().map(|one| ("recovery", told(one))).collect();
        let sum = |of: fn(&Recovery) -> u64| count(rest.iter().map(of).sum());
        match rest.len() {
            0 if rows.is_empty() => rows.push(("recovery", "nobody was killed".into())),
            0 => {}
            more => rows.push((
                "",
                format!(
                    "and {more} more processes, {} items redone, {} finished in their place",
                    sum(|one| one.redone),
                    sum(|one| one.finished)
                ),
            )),
        }
        rows
    }

    /// What of the tree was not shared.
    fn passed_over(&self) -> String {
        let Skipped { links, special, too_large, unreadable, pseudo } = self.skipped;
        let unreadable = unreadable + self.comparison.unreadable;
        let kinds = [
            (links, "links"),
            (special, "special files"),
            (too_large, "too large"),
            (unreadable, "unreadable"),
            (pseudo, "pseudo file systems"),
        ];
        let kinds = kinds.iter().filter(|(number, _)| *number > 0);
        let kinds: Vec<_> =
            kinds.map(|(number, what)| format!("{} {what}", count(*number))).collect();
        let directories = match self.directories {
            0 => String::new(),
            1 => " in 1 directory".into(),
            many => format!(" in {} directories", count(many)),
        };
        match kinds.as_slice() {
            [] => directories,
            kinds => format!("{directories}; passed over: {}", kinds.join(", ")),
        }
    }
}

fn told(recovery: &Recovery) -> String {
    let time = duration(Duration::from_micros(recovery.recovery_us));
    let items = match (recovery.redone, recovery.finished) {
        (0, 0) => "it was between two items".into(),
        (redone, 0) => format!("{} redone by others", counted(redone, "item")),
        (0, finished) => format!("{} finished in its place", counted(finished, "item")),
        (redone, finished) => format!("{redone} items redone, {finished} finished in its place"),
    };
    format!("{} died of {} and was recovered within {time}; {items}", recovery.who, recovery.how)
}
