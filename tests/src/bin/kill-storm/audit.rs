//! Whether what the cells name is what is allocated, to the byte.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;

use hshm_client::{Segment, Violation};
use hshm_memory::OffsetPointer;

use crate::table::{CELLS, Table};
use crate::worker::verify;

/// What was found while nobody worked.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Found {
    /// Blocks that cells name.
    pub(crate) blocks: u64,
    /// Those of them whose contents were as they should be.
    pub(crate) verified: u64,
    /// Bytes in them.
    pub(crate) named_bytes: u64,
    /// Bytes by which what is allocated differs from that.
    pub(crate) unaccounted: u64,
}

/// Goes through all cells. Nobody works on them meanwhile, and all dead were recovered.
pub(crate) fn audit(segment: &Segment) -> Result<Found, String> {
    let table = Table::of(segment);
    let mut found = Found::default();
    let mut named = Vec::new();
    for cell in 0..CELLS {
        let value = table.cell_word(cell).load(Ordering::SeqCst);
        if value == 0 {
            continue;
        }
        let block = OffsetPointer::new(value);
        let bytes = segment.usable_bytes(block);
        let bytes = bytes.map_err(|error| format!("cell {cell} holds {value:#x}: {error}"))?;
        named.push((value, bytes as u64, cell));
        if let Some(content) = table.content(cell) {
            let seen = catch_unwind(AssertUnwindSafe(|| verify(segment, cell, block, content)));
            seen.map_err(|_| format!("cell {cell}: its block was overwritten"))?;
            found.verified += 1;
        }
    }
    named.sort_unstable();
    for pair in named.windows(2) {
        let (first, len, cell) = pair[0];
        if first + len > pair[1].0 {
            return Err(format!("the blocks in cells {cell} and {} overlap", pair[1].2));
        }
    }
    found.blocks = named.len() as u64;
    let bytes = named.iter().map(|(_, len, _)| len).sum::<u64>();
    found.named_bytes = bytes;
    let (report, check) = (segment.report(), segment.check());
    if let Some(violation) = check.violations.first() {
        let more = check.violations_total - 1;
        let Violation { invariant, what, .. } = violation;
        return Err(format!("the heap breaks {invariant}: {what}; and {more} more"));
    }
    found.unaccounted =
        report.allocated_bytes.abs_diff(bytes).max(check.allocated_bytes.abs_diff(bytes));
    Ok(found)
}
