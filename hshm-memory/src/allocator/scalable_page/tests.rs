//! The heap alone, and under bytes that another process wrote over it.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::backend::scratch;

const MIB: u64 = 1 << 20;

fn heap(bytes: u64, capacity: u64) -> ScalablePageAllocator {
    let backend = Arc::new(scratch("scalable", bytes, capacity).unwrap());
    let id = AllocatorId::new(3, 4);
    ScalablePageAllocator::shm_init(id, backend, &HeapOptions::default()).unwrap()
}

fn allocate(heap: &ScalablePageAllocator, bytes: usize) -> OffsetPointer {
    heap.allocate_offset(MemContext::DEFAULT, bytes).unwrap()
}

fn free(heap: &ScalablePageAllocator, block: OffsetPointer) -> Result<(), AllocError> {
    // SAFETY: [owned] the tests free what they allocated; what else they try is to be refused.
    unsafe { heap.free_offset_no_null_check(MemContext::DEFAULT, block) }
}

fn resize(heap: &ScalablePageAllocator, block: OffsetPointer, bytes: usize) -> OffsetPointer {
    // SAFETY: [owned] as above.
    unsafe { heap.reallocate_offset_no_null_check(MemContext::DEFAULT, block, bytes) }.unwrap()
}

fn assert_clean(heap: &ScalablePageAllocator) {
    let report = heap.check();
    assert!(report.is_clean(), "{:?}", report.violations);
}

/// Nothing is allocated, and all is one free page.
fn assert_empty(heap: &ScalablePageAllocator) {
    let report = heap.check();
    assert!(report.is_clean(), "{:?}", report.violations);
    assert_eq!((report.pages, report.free_blocks, report.allocated_bytes), (1, 1, 0));
    assert_eq!(heap.allocated_bytes(), 0);
}

#[test]
fn free_pages_are_joined_in_any_order() {
    let heap = heap(MIB, MIB);
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [1, 3, 0, 2]] {
        let blocks = [100, 2000, 16, 40_000].map(|bytes| allocate(&heap, bytes));
        for index in order {
            free(&heap, blocks[index]).unwrap();
            assert_clean(&heap);
        }
        assert_empty(&heap);
    }
}

#[test]
fn a_block_grows_into_a_free_neighbour_and_shrinks_where_it_stands() {
    let heap = heap(MIB, MIB);
    let block = allocate(&heap, 100);
    let wall = allocate(&heap, 100);
    let end = allocate(&heap, 100);
    free(&heap, wall).unwrap();
    assert_eq!(resize(&heap, block, 200), block);
    assert_clean(&heap);
    assert_eq!(heap.usable_bytes(block).unwrap(), 208);
    assert_eq!(resize(&heap, block, 20), block);
    assert_clean(&heap);
    let moved = resize(&heap, block, 1000);
    assert!(moved != block);
    free(&heap, end).unwrap();
    free(&heap, moved).unwrap();
    assert_empty(&heap);
}

#[test]
fn a_freed_page_is_the_first_to_be_taken_for_a_block_of_its_size() {
    let heap = heap(MIB, MIB);
    let blocks: Vec<_> = (0..40).map(|_| allocate(&heap, 3000)).collect();
    for &block in blocks.iter().step_by(2) {
        free(&heap, block).unwrap();
    }
    for _ in 0..20 {
        let block = allocate(&heap, 3000);
        assert!(blocks.contains(&block));
    }
    assert_clean(&heap);
}

#[test]
fn the_whole_segment_is_one_block_if_asked_for() {
    let heap = heap(MIB, MIB);
    let most = MIB - heap.segment().first_block() - 16;
    let most = usize::try_from(most).unwrap();
    let block = allocate(&heap, most);
    assert!(matches!(
        heap.allocate_offset(MemContext::DEFAULT, 1),
        Err(AllocError::OutOfMemory { .. })
    ));
    assert!(matches!(
        heap.allocate_offset(MemContext::DEFAULT, most + 1),
        Err(AllocError::TooLarge { .. })
    ));
    free(&heap, block).unwrap();
    assert_empty(&heap);
}

#[test]
fn what_the_segment_grows_by_joins_the_last_free_page() {
    let heap = heap(MIB, 8 * MIB);
    let block = allocate(&heap, 1 << 19);
    assert_eq!(heap.grow(2 * MIB).unwrap(), 2 * MIB);
    assert_clean(&heap);
    let large = allocate(&heap, 1 << 20);
    // Somebody else lets the file grow, and dies before he says so.
    heap.segment().backend().grow(4 * MIB).unwrap();
    let larger = allocate(&heap, 1 << 21);
    for block in [block, large, larger] {
        free(&heap, block).unwrap();
    }
    assert_empty(&heap);
    assert!(heap.grow(9 * MIB).is_err());
}

#[test]
fn headers_left_inside_blocks_are_not_taken_for_pages() {
    let heap = heap(MIB, MIB);
    let pieces: Vec<_> = (0..10).map(|_| allocate(&heap, 112)).collect();
    for &piece in &pieces {
        free(&heap, piece).unwrap();
    }
    let whole = allocate(&heap, 1200);
    assert_eq!(whole, pieces[0]);
    for &piece in &pieces[1..] {
        assert!(matches!(free(&heap, piece), Err(AllocError::NotAllocated { .. })));
    }
    free(&heap, whole).unwrap();
    assert_empty(&heap);
}

/// A forged header inside a block is betrayed by its neighbours.
#[test]
fn a_forged_header_is_refused() {
    let heap = heap(MIB, MIB);
    let block = allocate(&heap, 400);
    let inside = block.offset_bytes() + 64;
    let forged = layout::Word::new(inside - 16, 4, layout::State::Allocated);
    heap.segment().word(inside - 16).unwrap().store(forged.0, Ordering::Relaxed);
    assert!(free(&heap, OffsetPointer::new(inside)).is_err());
    assert_clean(&heap);
    free(&heap, block).unwrap();
    assert_empty(&heap);
}

#[test]
fn an_overwritten_cache_is_made_anew() {
    let heap = heap(MIB, MIB);
    let blocks: Vec<_> = (0..60).map(|index| allocate(&heap, 50 + 100 * index)).collect();
    for &block in blocks.iter().step_by(2) {
        free(&heap, block).unwrap();
    }
    for garbage in [u64::MAX, 1, 16, heap.segment().first_block(), MIB - 16] {
        for cache in 0..layout::CACHES {
            let word = &heap.table().caches[cache];
            if word.load(Ordering::Relaxed) != 0 {
                word.store(garbage, Ordering::Relaxed);
            }
        }
        for word in &heap.table().filled {
            word.store(u64::MAX, Ordering::Relaxed);
        }
        let block = allocate(&heap, 70);
        free(&heap, block).unwrap();
        heap.locked(|heap| heap.mend()).unwrap();
        assert_clean(&heap);
    }
}

#[test]
fn a_segment_cut_short_or_of_another_kind_is_refused() {
    let backend: Arc<dyn Backend> = Arc::new(scratch("scalable", MIB, MIB).unwrap());
    let id = AllocatorId::new(1, 1);
    let options = HeapOptions { custom_header_bytes: 100 };
    let attach = || ScalablePageAllocator::shm_deserialize(Arc::clone(&backend));
    assert!(matches!(attach(), Err(SegmentError::Foreign { found: 0 })));
    let heap = ScalablePageAllocator::shm_init(id, Arc::clone(&backend), &options).unwrap();
    let again = ScalablePageAllocator::shm_init(id, Arc::clone(&backend), &options);
    assert!(matches!(again, Err(SegmentError::Exists)));
    let end = heap.table().end.swap(u64::MAX, Ordering::Relaxed);
    assert!(matches!(attach(), Err(SegmentError::Corrupt { .. })));
    heap.table().end.store(end, Ordering::Relaxed);
    let other = attach().unwrap();
    assert_eq!((other.id(), other.custom_header().1), (id, 100));
    let stack = crate::StackAllocator::shm_deserialize(Arc::clone(&backend));
    assert!(matches!(stack, Err(SegmentError::OtherAllocator { .. })));
    // Any byte of the header changed is found.
    // SAFETY: [mapped] the header is a page long; [owned] nobody else uses it.
    let header = unsafe { std::slice::from_raw_parts_mut(backend.base().as_ptr(), 56) };
    for at in 0..header.len() {
        let flip = |header: &mut [u8]| header.iter_mut().skip(at).take(1).for_each(|b| *b ^= 0x40);
        flip(header);
        assert!(attach().is_err(), "byte {at}");
        flip(header);
    }
    attach().unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Allocate { bytes: usize, align: usize },
    Free { which: usize },
    Resize { which: usize, bytes: usize },
    Scribble { word: u64, value: u64 },
}

fn steps(scribble: u32) -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![8 => 0..400_usize, 4 => 400..9000_usize, 1 => 9000..300_000_usize];
    let align = prop_oneof![10 => Just(1_usize), 1 => Just(64), 1 => Just(4096), 1 => Just(32)];
    let value = prop_oneof![any::<u64>(), 0..MIB, Just(0), (0..MIB / 16).prop_map(|at| at * 16)];
    let step = prop_oneof![
        8 => (bytes.clone(), align).prop_map(|(bytes, align)| Step::Allocate { bytes, align }),
        6 => any::<usize>().prop_map(|which| Step::Free { which }),
        3 => (any::<usize>(), bytes).prop_map(|(which, bytes)| Step::Resize { which, bytes }),
        scribble => (any::<u64>(), value).prop_map(|(word, value)| Step::Scribble { word, value }),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    /// Whatever another process writes into the segment, nothing panics, hangs or leaves the mapping.
    #[test]
    fn a_scribbled_heap_fails_with_errors(steps in steps(4)) {
        let heap = heap(MIB, MIB);
        let mut blocks: Vec<OffsetPointer> = Vec::new();
        let words = MIB / 8;
        for step in steps {
            match step {
                Step::Allocate { bytes, align } => {
                    let block = heap.aligned_allocate_offset(MemContext::DEFAULT, bytes, align);
                    if let Ok(block) = block {
                        prop_assert!(heap.resolve(block, bytes.max(1)).is_ok());
                        blocks.push(block);
                    }
                }
                Step::Free { which } if !blocks.is_empty() => {
                    let _ = free(&heap, blocks.swap_remove(which % blocks.len()));
                }
                Step::Resize { which, bytes } if !blocks.is_empty() => {
                    let index = which % blocks.len();
                    // SAFETY: [owned] nobody else uses the block.
                    let moved = unsafe {
                        heap.reallocate_offset_no_null_check(MemContext::DEFAULT, blocks[index], bytes)
                    };
                    if let Ok(moved) = moved {
                        blocks[index] = moved;
                    }
                }
                Step::Scribble { word, value } => {
                    // Headers of pages more often than other words, and the table's.
                    let at = match word % 4 {
                        0 => 128 + word % (MIB - 128),
                        1 => 128 + 16 + word / 4 % 3000,
                        _ if blocks.is_empty() => 4096,
                        _ => {
                            let block = blocks[(word / 4 % blocks.len() as u64) as usize];
                            block.offset_bytes() - 16 + word % 3 * 8
                        }
                    };
                    let at = (at / 8).min(words - 1) * 8;
                    let address = heap.segment().backend().base().as_ptr();
                    let address = address.wrapping_add(usize::try_from(at).unwrap());
                    // SAFETY: [mapped] inside the segment, aligned; [atomic] written as an atomic.
                    let word = unsafe { crate::sync::AtomicU64::from_ptr(address.cast()) };
                    word.store(value, Ordering::Relaxed);
                }
                Step::Free { .. } | Step::Resize { .. } => {}
            }
            let _ = heap.check();
            let _ = heap.allocated_bytes();
        }
    }

    #[test]
    fn every_step_leaves_the_heap_in_order(steps in steps(0)) {
        let heap = heap(MIB, MIB);
        let mut blocks: Vec<(OffsetPointer, usize)> = Vec::new();
        for step in steps {
            match step {
                Step::Allocate { bytes, align } => {
                    if let Ok(block) =
                        heap.aligned_allocate_offset(MemContext::DEFAULT, bytes, align)
                    {
                        prop_assert!(block.offset_bytes().is_multiple_of(align as u64));
                        prop_assert!(heap.usable_bytes(block).unwrap() >= bytes);
                        blocks.push((block, bytes));
                    }
                }
                Step::Free { which } if !blocks.is_empty() => {
                    free(&heap, blocks.swap_remove(which % blocks.len()).0).unwrap();
                }
                Step::Resize { which, bytes } if !blocks.is_empty() => {
                    let index = which % blocks.len();
                    // SAFETY: [owned] nobody else uses the block.
                    let moved = unsafe {
                        heap.reallocate_offset_no_null_check(
                            MemContext::DEFAULT, blocks[index].0, bytes)
                    };
                    if let Ok(moved) = moved {
                        blocks[index] = (moved, bytes);
                    }
                }
                Step::Free { .. } | Step::Resize { .. } | Step::Scribble { .. } => {}
            }
            let report = heap.check();
            prop_assert!(report.is_clean(), "{:?}", report.violations);
            prop_assert_eq!(report.allocated_blocks, blocks.len() as u64);
        }
        for (block, _) in blocks {
            free(&heap, block).unwrap();
        }
        assert_empty(&heap);
    }
}

#[test]
fn a_repair_makes_anew_what_follows_from_the_headers_and_says_so() {
    let heap = heap(MIB, MIB);
    let blocks = [100, 2000, 300, 16].map(|bytes| allocate(&heap, bytes));
    free(&heap, blocks[1]).unwrap();
    let report = heap.repair().unwrap();
    assert!(!report.is_changed() && report.remaining.is_clean(), "{report:?}");
    let table = heap.table();
    let words = [&table.allocated_bytes, &table.last_granules, &table.filled[0]];
    // And what the third page knows of the one before.
    let told = heap.segment().word(blocks[2].offset_bytes() - 8).unwrap();
    for word in words.into_iter().chain(&table.caches).chain([told]) {
        let before = word.fetch_add(3, Ordering::Relaxed);
        assert!(!heap.check().is_clean());
        let report = heap.repair().unwrap();
        assert!(report.counts_corrected > 0 && report.remaining.is_clean(), "{report:?}");
        assert_eq!(word.load(Ordering::Relaxed), before);
    }
    // A header is not guessed.
    let header = heap.segment().word(blocks[2].offset_bytes() - 16).unwrap();
    let before = header.swap(0x5a5a, Ordering::Relaxed);
    table.allocated_bytes.fetch_add(3, Ordering::Relaxed);
    let report = heap.repair().unwrap();
    assert!(!report.is_changed());
    assert_eq!(report.remaining.violations[0].invariant, "P1");
    header.store(before, Ordering::Relaxed);
    assert!(heap.repair().unwrap().remaining.is_clean());
    [0, 2, 3].into_iter().for_each(|index| free(&heap, blocks[index]).unwrap());
    assert_empty(&heap);
}
