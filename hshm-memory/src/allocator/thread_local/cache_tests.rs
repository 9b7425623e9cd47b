//! The cache of a worker, by what its user sees.

use std::sync::Arc;

use super::tests::free;
use super::*;
use crate::backend::scratch;
use crate::{AllocatorId, InitOptions, OffsetPointer};

/// A heap whose calling thread has a cache.
fn cached() -> ThreadLocalAllocator {
    let backend = scratch("cached", 32 << 20, 32 << 20).unwrap();
    let (id, options) = (AllocatorId::new(0, 0), InitOptions::default());
    let heap = ThreadLocalAllocator::shm_init(id, Arc::new(backend), &options).unwrap();
    claim_cache(&heap);
    heap
}

fn claim_cache(heap: &ThreadLocalAllocator) {
    for bytes in (16..=160).step_by(16) {
        free(heap, heap.allocate(bytes).unwrap());
    }
    assert!(heap.report().cached_blocks > 0);
}

#[test]
fn the_block_freed_last_is_the_next_to_be_had() {
    let heap = cached();
    let blocks = [(); 5].map(|()| heap.allocate(100).unwrap());
    blocks.into_iter().for_each(|block| free(&heap, block));
    let again = [(); 5].map(|()| heap.allocate(100).unwrap());
    assert!(again.iter().rev().eq(&blocks));
}

#[test]
fn cached_blocks_are_free_and_operations_are_counted() {
    let heap = cached();
    let before = heap.report();
    let blocks = [(); 7].map(|()| heap.allocate(200).unwrap());
    let held = heap.report();
    assert_eq!(held.allocated_blocks, before.allocated_blocks + 7);
    blocks.into_iter().for_each(|block| free(&heap, block));
    let after = heap.report();
    assert_eq!(after.allocated_bytes, before.allocated_bytes);
    assert!(after.cached_blocks >= before.cached_blocks + 7);
    assert_eq!(after.operations.allocations - before.operations.allocations, 7);
    assert_eq!(after.operations.local_frees - before.operations.local_frees, 7);
    assert!(heap.check().is_clean());
    heap.detach_thread();
    let left = heap.report();
    assert_eq!((left.cached_blocks, left.allocated_blocks), (0, 0));
    assert_eq!(left.operations, after.operations);
    assert_eq!(left.units_free, left.units_total);
}

#[test]
fn blocks_that_were_freed_in_disorder_come_in_order_again() {
    const BLOCKS: usize = 20_000;
    let heap = cached();
    let fill = || -> Vec<_> { (0..BLOCKS).map(|_| heap.allocate(64).unwrap()).collect() };
    let ascents =
        |blocks: &[OffsetPointer]| blocks.windows(2).filter(|pair| pair[0] < pair[1]).count();
    let blocks = fill();
    assert!(ascents(&blocks) > BLOCKS * 8 / 10, "fresh blocks are taken as they lie");
    // 12 347 and 20 000 have no common divisor.
    let disorder: Vec<_> = (0..BLOCKS).map(|number| blocks[number * 12_347 % BLOCKS]).collect();
    assert!(ascents(&disorder) < BLOCKS * 7 / 10);
    disorder.into_iter().for_each(|block| free(&heap, block));
    assert!(heap.check().is_clean());
    let counts = heap.report();
    assert_eq!(counts.operations.allocations, counts.operations.local_frees);
    let again = fill();
    assert!(ascents(&again) > BLOCKS * 8 / 10, "and so they are when all were freed");
    assert!(heap.check().is_clean());
}

#[test]
fn a_thread_hands_out_what_others_allocated() {
    let heap = cached();
    let theirs = std::thread::scope(|scope| {
        let other = scope.spawn(|| [(); 3].map(|()| heap.allocate(300).unwrap()));
        other.join().unwrap()
    });
    theirs.into_iter().for_each(|block| free(&heap, block));
    let again = [(); 3].map(|()| heap.allocate(300).unwrap());
    assert!(again.iter().rev().eq(&theirs));
    assert!(heap.check().is_clean());
}

#[test]
fn what_is_no_offset_is_refused_however_full_the_row_is() {
    let heap = cached();
    let blocks = [(); 200].map(|()| heap.allocate(64).unwrap().offset_bytes());
    let held = heap.allocate(64).unwrap().offset_bytes();
    let give_back = || {
        claim_cache(&heap);
        for block in blocks {
            for wrong in [held | 1 << 48, held | 1 << 63, held + 8] {
                // SAFETY: nobody has a block there: it is refused.
                let refused = unsafe { heap.free(OffsetPointer::new(wrong)) };
                assert!(refused.is_err(), "{wrong:#x}");
            }
            free(&heap, OffsetPointer::new(block));
        }
    };
    std::thread::scope(|scope| scope.spawn(give_back).join().unwrap());
    assert!(heap.check().is_clean());
}

#[test]
fn blocks_that_another_freed_together_are_all_to_be_had_again() {
    for bytes in [16, 48, 112, 1024] {
        let heap = cached();
        // All of a few pages, and one more, so that these stay ours.
        let take = || -> Vec<_> { (0..5000).map(|_| heap.allocate(bytes).unwrap()).collect() };
        let mut blocks = take();
        let before = heap.report();
        let kept = blocks.pop().unwrap();
        std::thread::scope(|scope| {
            let blocks = &blocks;
            let other = scope.spawn(|| {
                claim_cache(&heap);
                blocks.iter().for_each(|&block| free(&heap, block));
                assert!(heap.check().is_clean());
                heap.detach_thread();
            });
            other.join().unwrap();
        });
        assert!(heap.check().is_clean());
        let mut again = take();
        assert_eq!(heap.report().allocated_blocks, before.allocated_blocks + 1);
        again.push(kept);
        again.sort_unstable();
        again.dedup();
        assert_eq!(again.len(), 5001, "each block of {bytes} bytes is one");
        again.into_iter().for_each(|block| free(&heap, block));
        assert!(heap.check().is_clean());
        heap.detach_thread();
        let left = heap.report();
        assert_eq!((left.allocated_blocks, left.units_free), (0, left.units_total));
    }
}

#[test]
fn a_cache_is_given_up_where_its_memory_is_needed() {
    let heap = cached();
    let report = heap.report();
    let most = usize::try_from(report.units_total * report.unit_bytes).unwrap();
    let all = heap.allocate(most).unwrap();
    let full = heap.report();
    assert_eq!((full.cached_blocks, full.units_free), (0, 0));
    assert!(heap.allocate(16).is_err());
    free(&heap, all);
    assert!(heap.check().is_clean());
}

#[test]
fn a_block_freed_twice_is_named_by_the_check() {
    let heap = cached();
    let block = heap.allocate(400).unwrap();
    free(&heap, block);
    free(&heap, block);
    let violations = heap.check().violations;
    assert!(violations.iter().any(|violation| violation.offset == block.offset_bytes() & !0xffff));
}
