//! Damage of each kind, and what a repair makes of it.

use std::sync::Arc;

use super::tests::free;
use super::words::{Kind, List, SlotState, SlotWord, Tag, unit_of};
use super::*;
use crate::backend::MemfdMmap;
use crate::sync::Ordering as SharedOrdering;
use crate::{AllocatorId, InitOptions, OffsetPointer};

const SMALL: usize = 1 << 10;
const MEDIUM: usize = 32 << 10;
const LARGE: usize = 256 << 10;

fn segment() -> ThreadLocalAllocator {
    let backend = MemfdMmap::create("repair", 8 << 20, 8 << 20).unwrap();
    let options = InitOptions { worker_slots: 8, ..InitOptions::default() };
    ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), Arc::new(backend), &options).unwrap()
}

/// A segment that nobody uses, with ten blocks of each kind, of which every other one is free.
fn at_rest() -> (ThreadLocalAllocator, Vec<OffsetPointer>) {
    let heap = segment();
    let mut blocks = Vec::new();
    for bytes in [SMALL, MEDIUM, LARGE] {
        blocks.extend((0..10).map(|_| heap.allocate(bytes).unwrap()));
    }
    let (kept, freed): (Vec<_>, Vec<_>) =
        blocks.into_iter().enumerate().partition(|(index, _)| index % 2 == 0);
    freed.into_iter().for_each(|(_, block)| free(&heap, block));
    heap.detach_thread();
    assert!(heap.holders().is_empty() && heap.check().is_clean());
    (heap, kept.into_iter().map(|(_, block)| block).collect())
}

fn set_tag(heap: &ThreadLocalAllocator, unit: u32, tag: Tag) {
    heap.inner.view.tag_word(unit).store(tag.0, SharedOrdering::SeqCst);
}

fn tag_of(heap: &ThreadLocalAllocator, block: OffsetPointer) -> (u32, Tag) {
    let unit = unit_of(block.offset_bytes());
    (unit, heap.inner.view.tag(unit).unwrap())
}

/// Repairs, and asserts that there is nothing left to be done and that all blocks are as they were.
fn made_whole(heap: &ThreadLocalAllocator, blocks: &[OffsetPointer]) -> crate::RepairReport {
    assert!(!heap.check().is_clean(), "there is damage");
    let report = heap.repair().unwrap();
    assert!(report.remaining.is_clean(), "{report:#?}");
    assert!(!heap.repair().unwrap().is_changed(), "a second repair finds nothing");
    assert!(heap.holders().is_empty(), "all slots are free again");
    blocks.iter().for_each(|&block| free(heap, block));
    assert!(heap.check().is_clean());
    report
}

#[test]
fn a_sound_segment_is_left_as_it_is() {
    let (heap, blocks) = at_rest();
    let before = heap.report();
    let report = heap.repair().unwrap();
    assert!(!report.is_changed() && report.remaining.is_clean(), "{report:#?}");
    assert_eq!(heap.report(), before);
    blocks.iter().for_each(|&block| free(&heap, block));
    assert_eq!(heap.report().allocated_bytes, 0);
}

#[test]
fn a_segment_in_use_is_refused() {
    let heap = segment();
    let block = heap.allocate(SMALL).unwrap();
    let words = || heap.inner.view.slots_in_use().collect::<Vec<_>>();
    let before = words();
    let refused = heap.repair();
    assert!(matches!(refused, Err(AllocError::InUse { slot: 1, .. })), "{refused:?}");
    assert_eq!(words(), before);
    free(&heap, block);
}

#[test]
fn what_the_dead_held_is_recovered_and_what_nobody_can_hold_is_free_again() {
    let (heap, blocks) = at_rest();
    let view = &heap.inner.view;
    let dead = ProcessId { pid: 4_194_303, start_ticks: 1 };
    view.slot_word(3).store(SlotWord::live(dead).0, SharedOrdering::SeqCst);
    view.slot_word(5).store(9 << 60 | 77, SharedOrdering::SeqCst);
    assert_eq!(SlotWord(9 << 60 | 77).state(), SlotState::Unknown);
    let report = made_whole(&heap, &blocks);
    assert_eq!((report.recovered.slots, report.slots_freed), (1, 1));
}

#[test]
fn units_of_a_slot_that_nobody_holds_pass_to_nobody() {
    for slot in [6, 4000] {
        let (heap, blocks) = at_rest();
        for &block in [0, 5, 10].map(|index| &blocks[index]) {
            let (mut unit, mut tag) = tag_of(&heap, block);
            if tag.kind() == Kind::MediumBody {
                unit -= tag.place();
                tag = heap.inner.view.tag(unit).unwrap();
            }
            set_tag(&heap, unit, tag.with_owner(slot));
        }
        assert_eq!(made_whole(&heap, &blocks).owners_cleared, 3);
    }
}

#[test]
fn a_list_that_cannot_be_followed_is_dropped() {
    let (heap, blocks) = at_rest();
    let (unit, _) = tag_of(&heap, blocks[0]);
    let descriptor = heap.inner.view.descriptor(unit);
    // The last block of another page.
    let list = List::new(blocks[5].offset_bytes(), 3);
    descriptor.local.store(list.0, SharedOrdering::SeqCst);
    assert_eq!(made_whole(&heap, &blocks).lists_dropped, 1);
}

#[test]
fn units_that_a_page_or_run_has_lost_belong_to_it_again() {
    for tag in [Tag::FREE, Tag(0x3f12)] {
        let (heap, blocks) = at_rest();
        let (medium, found) = tag_of(&heap, blocks[5]);
        assert_eq!(found.kind(), Kind::Medium);
        let (run, found) = tag_of(&heap, blocks[10]);
        assert_eq!(found.kind(), Kind::Large);
        set_tag(&heap, medium + 3, tag);
        set_tag(&heap, run + 2, tag);
        assert_eq!(made_whole(&heap, &blocks).units_bound, 2);
    }
}

#[test]
fn a_run_is_as_long_as_its_tags_say() {
    let (heap, blocks) = at_rest();
    let (run, _) = tag_of(&heap, blocks[10]);
    heap.inner.view.descriptor(run).run_units.store(1_000_000, SharedOrdering::SeqCst);
    assert_eq!(made_whole(&heap, &blocks).counts_corrected, 1);
}

#[test]
fn what_cannot_be_told_is_named_and_left() {
    let (heap, blocks) = at_rest();
    let (unit, _) = tag_of(&heap, blocks[0]);
    set_tag(&heap, unit, Tag(0x3f12));
    let report = heap.repair().unwrap();
    assert_eq!(report.remaining.violations_total, 1, "{report:#?}");
    assert!(report.remaining.violations[0].what.contains("unknown tag"));
    // The others are as they were, and there is work to be done in what is left.
    blocks.iter().skip(5).for_each(|&block| free(&heap, block));
    free(&heap, heap.allocate(LARGE).unwrap());
}

#[test]
fn a_repair_that_was_cut_short_is_recovered_from() {
    let (heap, blocks) = at_rest();
    let view = &heap.inner.view;
    let dead = ProcessId { pid: 4_194_303, start_ticks: 1 };
    for id in view.slot_ids() {
        view.slot_word(id).store(SlotWord::recovering(dead).0, SharedOrdering::SeqCst);
    }
    assert!(matches!(heap.allocate(1), Err(AllocError::NoWorkerSlot { .. })));
    assert_eq!(heap.recover_dead().slots, 8);
    assert!(heap.check().is_clean());
    blocks.iter().for_each(|&block| free(&heap, block));
}
