//! Recovery of operations that were interrupted long ago: the memory has been others' since.

use std::sync::Arc;

use super::layout::UNIT_BYTES;
use super::page::{Page, pusher};
use super::remote::{Mark, Place, push};
use super::tests::free;
use super::words::{Operation, SlotWord, Step, cell_being_freed, unit_of};
use super::*;
use crate::backend::scratch;
use crate::sync::Ordering as SharedOrdering;
use crate::{AllocatorId, InitOptions, OffsetPointer};

/// The slot of the dead.
const DEAD: u32 = 5;
const SEQUENCE: u32 = 9;

fn segment() -> ThreadLocalAllocator {
    let backend = scratch("interrupted", 8 << 20, 8 << 20).unwrap();
    let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
    ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), Arc::new(backend), &options).unwrap()
}

/// A process that there cannot be.
fn dead() -> ProcessId {
    ProcessId { pid: 4_194_300, start_ticks: 1 }
}

/// Somebody died who had marked the cell to free `block`. Returns the cell.
fn die_freeing(heap: &ThreadLocalAllocator, block: OffsetPointer) -> OffsetPointer {
    let view = &heap.inner.view;
    let cell = heap.custom_header().0;
    let offset = block.offset_bytes();
    let operation = Operation::new(Step::FreeFrom, unit_of(offset), SEQUENCE);
    journal::write(&view.slot(DEAD).journal, operation, cell.offset_bytes(), offset);
    let marked = cell_being_freed(DEAD, SEQUENCE);
    view.cell(cell.offset_bytes()).unwrap().store(marked, SharedOrdering::SeqCst);
    view.slot_word(DEAD).store(SlotWord::live(dead()).0, SharedOrdering::SeqCst);
    cell
}

/// What it did then before it died.
fn push_by_the_dead(heap: &ThreadLocalAllocator, block: OffsetPointer) {
    let view = &heap.inner.view;
    let offset = block.offset_bytes();
    let (unit, tag) = view.page_of(offset).unwrap();
    let page = Page::new(view, unit, tag);
    let place = Place { page: page.start(), offset_in_page: offset - page.start() };
    let mark = Mark { slot: DEAD, sequence: SEQUENCE };
    let (list, link) = (&page.descriptor().remote, view.word(offset).unwrap());
    let carved = || page.carved_while_it_stands();
    assert_eq!(push(list, link, place, mark, |slot| pusher(view, slot), carved), Ok(true));
}

fn collect(heap: &ThreadLocalAllocator) {
    tls::with_heap(&heap.inner, |heap| {
        heap.collect();
        Ok(())
    })
    .unwrap();
}

/// The page's owner finds it empty and gives it back without emptying its remote list.
#[test]
fn a_push_is_not_repeated_when_its_page_became_another() {
    let heap = segment();
    let block = heap.allocate(5000).unwrap();
    let cell = die_freeing(&heap, block);
    push_by_the_dead(&heap, block);
    collect(&heap);
    assert_eq!(heap.report().allocated_blocks, 0);
    let again: Vec<_> = (0..12).map(|_| heap.allocate(5000).unwrap()).collect();
    assert!(again.contains(&block), "the test is of use only where the memory is used again");
    assert_eq!(heap.recover(dead()).operations_completed, 1);
    assert!(heap.read_cell(cell).unwrap().is_null());
    assert_eq!(heap.report().allocated_blocks, 12);
    again.into_iter().for_each(|block| free(&heap, block));
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
}

/// The block stood at a unit's beginning, where a large block begins now.
#[test]
fn a_push_is_not_repeated_when_its_page_became_a_large_block() {
    let heap = segment();
    let block = heap.allocate(5000).unwrap();
    assert_eq!(block.offset_bytes() % UNIT_BYTES, 0);
    let cell = die_freeing(&heap, block);
    push_by_the_dead(&heap, block);
    collect(&heap);
    let large = heap.allocate(3 << 20).unwrap();
    assert_eq!(large, block, "the test is of use only where the memory is used again");
    assert_eq!(heap.recover(dead()).operations_completed, 1);
    assert!(heap.read_cell(cell).unwrap().is_null());
    assert!(heap.usable_bytes(large).unwrap() >= 3 << 20, "it was freed under its owner's hands");
    free(&heap, large);
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
}

/// The slot's numbers have come round, and an earlier push of its is the last one on the list of the page.
#[test]
fn a_push_that_did_not_happen_is_not_mistaken_for_one_with_the_number_before_the_last_turn() {
    let heap = segment();
    let view = &heap.inner.view;
    let (earlier, block) = (heap.allocate(5000).unwrap(), heap.allocate(5000).unwrap());
    assert_eq!(unit_of(earlier.offset_bytes()), unit_of(block.offset_bytes()));
    push_by_the_dead(&heap, earlier);
    let cell = heap.custom_header().0;
    let turn = u64::from(super::words::Remote::SEQUENCE_MASK) + 1;
    let before = u64::from(SEQUENCE) + turn - 1;
    view.slot(DEAD).sequence.store(before, SharedOrdering::SeqCst);
    let offset = block.offset_bytes();
    let operation = journal::begin(view, DEAD, Step::FreeFrom, cell.offset_bytes(), offset);
    let marked = cell_being_freed(DEAD, operation.sequence());
    view.cell(cell.offset_bytes()).unwrap().store(marked, SharedOrdering::SeqCst);
    view.slot_word(DEAD).store(SlotWord::live(dead()).0, SharedOrdering::SeqCst);
    assert_eq!(heap.recover(dead()).operations_completed, 1);
    assert!(heap.read_cell(cell).unwrap().is_null());
    assert_eq!(heap.report().allocated_blocks, 0, "the block is lost");
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
}

/// As above, where nothing was pushed: then it is freed.
#[test]
fn a_push_that_did_not_happen_is_made() {
    let heap = segment();
    let block = heap.allocate(5000).unwrap();
    let cell = die_freeing(&heap, block);
    assert_eq!(heap.recover(dead()).operations_completed, 1);
    assert!(heap.read_cell(cell).unwrap().is_null());
    assert_eq!(heap.report().allocated_blocks, 0);
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
}
