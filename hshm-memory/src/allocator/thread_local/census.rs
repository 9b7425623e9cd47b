//! Counting: what is allocated, held and free, from the words that say so, without following a list.

use super::cache::Rows;
use super::layout::{Counters, MEDIUM_UNITS, UNIT_BYTES};
use super::page::Page;
use super::size_class::{CLASSES, SMALL_CLASSES, block_bytes};
use super::units;
use super::view::View;
use super::words::{Kind, SlotState, Tag, unit_start};
use crate::report::{
    ClassReport, Content, HeapReport, OperationCounts, Stretch, WorkerReport, WorkerState,
};
use crate::sync::Ordering;

pub(super) fn report(view: &View) -> HeapReport {
    view.refresh_limit();
    let mut report = empty_report(view);
    let mut pages_of = vec![0_u64; view.geometry.worker_slots as usize + 1];
    let mut classes = [(0_u64, 0_u64, 0_u64); CLASSES];
    let mut uncounted_frees = 0;
    let mut free_run = 0;
    for (unit, units, tag) in parts(view) {
        let mut is_free = false;
        match tag.kind() {
            Kind::Free => {
                is_free = true;
                report.units_free += 1;
            }
            Kind::Small | Kind::Medium => {
                let page = Page::new(view, unit, tag);
                let allocated = u64::from(allocated_blocks(&page));
                uncounted_frees += u64::from(page.local().count());
                if let Some((pages, blocks, used)) = classes.get_mut(tag.class()) {
                    *pages += 1;
                    *blocks += u64::from(page.blocks());
                    *used += allocated;
                }
                report.allocated_blocks += allocated;
                report.allocated_bytes += allocated * u64::from(page.block_bytes());
                if tag.owner() == 0 {
                    report.abandoned_pages += 1;
                } else if let Some(pages) = pages_of.get_mut(tag.owner() as usize) {
                    *pages += 1;
                }
            }
            Kind::Large => {
                report.large_blocks += 1;
                report.large_bytes += u64::from(units) * UNIT_BYTES;
            }
            Kind::MediumBody
            | Kind::RunBody
            | Kind::Claimed
            | Kind::Transit
            | Kind::Cache
            | Kind::Unknown => {}
        }
        free_run = if is_free { free_run + UNIT_BYTES } else { 0 };
        report.largest_free_run_bytes = report.largest_free_run_bytes.max(free_run);
    }
    count_cached(view, &mut classes, &mut report);
    report.allocated_blocks += report.large_blocks;
    report.allocated_bytes += report.large_bytes;
    report.classes = classes
        .iter()
        .enumerate()
        .filter(|(_, (pages, _, _))| *pages > 0)
        .map(|(class, &(pages, blocks, allocated_blocks))| ClassReport {
            block_bytes: block_bytes(class).into(),
            pages,
            blocks,
            allocated_blocks,
        })
        .collect();
    count_workers(view, &pages_of, &mut report);
    let sum = report.operations.local_frees.wrapping_add(uncounted_frees);
    report.operations.local_frees = sum;
    report.operations = at_rest(report.operations);
    report
}

/// The pages, large blocks and other units of a segment, one behind the other: where each begins, how
/// many units it has, and its tag.
fn parts(view: &View) -> impl Iterator<Item = (u32, u32, Tag)> + '_ {
    let mut next = view.geometry.first_unit;
    std::iter::from_fn(move || {
        let unit = next;
        let tag = view.tag(unit)?;
        let units = match tag.kind() {
            Kind::Medium => MEDIUM_UNITS,
            Kind::Large | Kind::Transit => {
                let run = units::run_of(view, unit);
                run.end - run.start
            }
            Kind::Free
            | Kind::Small
            | Kind::MediumBody
            | Kind::RunBody
            | Kind::Claimed
            | Kind::Cache
            | Kind::Unknown => 1,
        };
        next = unit.saturating_add(units);
        Some((unit, units, tag))
    })
}

/// What the segment is divided into. Neighbours that are alike in all but blocks are one stretch.
pub(super) fn stretches(view: &View) -> Vec<Stretch> {
    view.refresh_limit();
    let mut stretches: Vec<Stretch> = Vec::new();
    for (unit, units, tag) in parts(view) {
        let content = match tag.kind() {
            Kind::Free => Content::Free,
            Kind::Small | Kind::Medium => {
                let page = Page::new(view, unit, tag);
                Content::Page {
                    block_bytes: page.block_bytes().into(),
                    blocks: page.blocks().into(),
                    allocated_blocks: allocated_blocks(&page).into(),
                }
            }
            Kind::Large => Content::Large,
            Kind::Cache => Content::Cache,
            Kind::Claimed | Kind::Transit => Content::Changing,
            // Without the first unit of what they belong to.
            Kind::MediumBody | Kind::RunBody | Kind::Unknown => Content::Unknown,
        };
        let (offset, bytes) = (unit_start(unit), u64::from(units) * UNIT_BYTES);
        let stretch = Stretch { offset, bytes, owner: tag.owner(), content };
        let is_more = matches!(content, Content::Free | Content::Changing | Content::Unknown);
        match stretches.last_mut() {
            Some(last) if is_more && last.content == content && last.owner == stretch.owner => {
                last.bytes += bytes;
            }
            _ => stretches.push(stretch),
        }
    }
    stretches
}

/// Takes the blocks in workers' caches, which their pages count as allocated, off again.
fn count_cached(view: &View, classes: &mut [(u64, u64, u64); CLASSES], report: &mut HeapReport) {
    for (id, _) in view.slots_in_use() {
        let Some(rows) = Rows::of(view, id) else { continue };
        for (class, (_, _, used)) in classes.iter_mut().enumerate().take(SMALL_CLASSES) {
            // More than are allocated only if somebody allocates or frees this moment.
            let blocks = (rows.blocks(class).count() as u64).min(*used);
            let bytes = blocks * u64::from(block_bytes(class));
            *used -= blocks;
            report.allocated_blocks -= blocks;
            report.allocated_bytes -= bytes;
            report.cached_blocks += blocks;
            report.cached_bytes += bytes;
        }
    }
}

fn empty_report(view: &View) -> HeapReport {
    let geometry = &view.geometry;
    let units = view.block_units();
    HeapReport {
        layout_version: super::layout::LAYOUT_VERSION,
        id: view.identity.id,
        on_exit: view.identity.on_exit,
        capacity_bytes: geometry.capacity,
        committed_bytes: view.limit(),
        unit_bytes: UNIT_BYTES,
        units_total: u64::from(units.end.saturating_sub(units.start)),
        units_free: 0,
        largest_free_run_bytes: 0,
        custom_header_bytes: geometry.custom_header_bytes,
        allocated_bytes: 0,
        allocated_blocks: 0,
        classes: Vec::new(),
        large_blocks: 0,
        large_bytes: 0,
        cached_blocks: 0,
        cached_bytes: 0,
        abandoned_pages: 0,
        workers: Vec::new(),
        worker_slots: geometry.worker_slots,
        operations: counts(&view.header().retired),
    }
}

/// Blocks of a page that are on none of its lists.
fn allocated_blocks(page: &Page<'_>) -> u32 {
    let owner = page.tag.owner();
    let in_bin = if owner == 0 || owner > page.view.geometry.worker_slots {
        0
    } else {
        let bin = page.view.bin_list(page.view.slot(owner), page.class());
        if !bin.is_empty() && page.contains(bin.first()) { bin.count() } else { 0 }
    };
    let allocated = page.carved().saturating_sub(page.listed() + in_bin);
    // Given up meanwhile, it was out of its bin before it was on no list: nothing is allocated.
    if page.still_stands() { allocated } else { 0 }
}

fn count_workers(view: &View, pages_of: &[u64], report: &mut HeapReport) {
    for (id, word) in view.slots_in_use() {
        let slot = view.slot(id);
        let mut operations = counts(&slot.counters);
        for class in 0..CLASSES {
            let waiting = u64::from(view.bin_list(slot, class).count());
            operations.allocations = operations.allocations.wrapping_sub(waiting);
        }
        if let Some(rows) = Rows::of(view, id) {
            let (cached, taken) = rows.totals();
            operations.allocations = operations.allocations.wrapping_add(taken);
            let freed = taken.wrapping_add(cached);
            operations.local_frees = operations.local_frees.wrapping_add(freed);
        }
        report.operations += operations;
        let operations = at_rest(operations);
        report.workers.push(WorkerReport {
            slot: id,
            process: word.process(),
            thread: slot.thread.load(Ordering::Relaxed),
            state: match word.state() {
                SlotState::Parked => WorkerState::Parked,
                SlotState::Recovering => WorkerState::Recovering,
                SlotState::Live | SlotState::Free | SlotState::Unknown => WorkerState::Live,
            },
            pages: pages_of.get(id as usize).copied().unwrap_or(0),
            operations,
        });
    }
}

/// Counts that were read while others changed them may be less than nothing.
fn at_rest(counts: OperationCounts) -> OperationCounts {
    let least = |count: u64| if count > u64::MAX / 2 { 0 } else { count };
    OperationCounts {
        allocations: least(counts.allocations),
        local_frees: least(counts.local_frees),
        ..counts
    }
}

fn counts(counters: &Counters) -> OperationCounts {
    OperationCounts {
        allocations: counters.loaded.load(Ordering::Relaxed),
        local_frees: counters.local_frees.load(Ordering::Relaxed),
        remote_frees: counters.remote_frees.load(Ordering::Relaxed),
        adoptions: counters.adoptions.load(Ordering::Relaxed),
    }
}
