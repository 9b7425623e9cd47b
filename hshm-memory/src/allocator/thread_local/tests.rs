//! The allocator as a whole, within one process and with forked children.

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

use super::*;
use crate::backend::scratch;
use crate::report::WorkerState;
use crate::typed::TypedAllocator;
use crate::{Allocator, AllocatorId, InitOptions, OffsetPointer, OnExit, SegmentError};

fn heap(size: u64, options: InitOptions) -> ThreadLocalAllocator {
    let backend = scratch("test", size, size * 2).unwrap();
    ThreadLocalAllocator::shm_init(AllocatorId::new(1, 2), Arc::new(backend), &options).unwrap()
}

pub(super) fn free(heap: &ThreadLocalAllocator, block: OffsetPointer) {
    // SAFETY: the tests free what they allocated, once.
    unsafe { heap.free(block) }.unwrap();
}

fn assert_empty(heap: &ThreadLocalAllocator) {
    // The end of a scope does not wait for its threads' destructors, and what is counted while they
    // give their slots back may be off. This thread has a slot for certain, so that none is left but
    // its own when all are back.
    free(heap, heap.allocate(1).unwrap());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let live = || {
        let workers = heap.report().workers;
        workers.iter().filter(|worker| worker.state == WorkerState::Live).count()
    };
    while live() > 1 && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let check = heap.check();
    assert!(check.is_clean(), "{check:#?}");
    let report = heap.report();
    assert_eq!((report.allocated_bytes, report.allocated_blocks), (0, 0), "{report:#?}");
    assert_eq!((check.allocated_bytes, check.allocated_blocks), (0, 0));
}

/// A small generator, so that a failure can be had again.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// Sizes of every order of magnitude alike.
    pub(super) fn size(&mut self, bits: u64) -> usize {
        let magnitude = self.below(bits);
        (1 << magnitude) + usize::try_from(self.below(1 << magnitude)).unwrap()
    }
}

#[test]
fn a_block_of_each_size_is_allocated_and_freed() {
    let heap = heap(64 << 20, InitOptions::default());
    let mut blocks = Vec::new();
    for bytes in (0..9000).chain((9000..200_000).step_by(997)) {
        let block = heap.allocate(bytes).unwrap();
        assert!(heap.usable_bytes(block).unwrap() >= bytes);
        assert_eq!(block.offset_bytes() % 16, 0);
        blocks.push(block);
        if blocks.len() > 50 {
            blocks.drain(..).for_each(|block| free(&heap, block));
        }
    }
    blocks.into_iter().for_each(|block| free(&heap, block));
    assert_empty(&heap);
}

/// Allocates, checks, resizes and frees at random beside a map of what is allocated.
fn run_beside_a_model(heap: &ThreadLocalAllocator, seed: u64, steps: u32) {
    let mut random = Random(seed);
    let mut model: BTreeMap<u64, (usize, u8)> = BTreeMap::new();
    let fill = |block: OffsetPointer, len: usize, byte: u8| {
        // SAFETY: the block is ours and `len` bytes long.
        unsafe { heap.resolve(block, len).unwrap().write_bytes(byte, len) };
    };
    let verify = |offset: u64, len: usize, byte: u8| {
        let address = heap.resolve(OffsetPointer::new(offset), len).unwrap();
        // SAFETY: as above, and nobody writes it meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
        assert!(bytes.iter().all(|&b| b == byte), "block {offset:#x} was overwritten");
    };
    for step in 0..steps {
        let byte = step.to_le_bytes()[0];
        match random.below(10) {
            0 if random.below(100) == 0 => {
                heap.trim().unwrap();
            }
            0..=4 => {
                let len = random.size(19);
                let align = 1 << random.below(17);
                let Ok(block) = heap.aligned_allocate(len, align) else { continue };
                let offset = block.offset_bytes();
                assert_eq!(offset % align as u64, 0);
                let before = model.range(..=offset).next_back();
                assert!(before.is_none_or(|(&at, &(l, _))| at + l as u64 <= offset), "overlap");
                let after = model.range(offset..).next();
                assert!(after.is_none_or(|(&at, _)| offset + len as u64 <= at), "overlap");
                fill(block, len, byte);
                model.insert(offset, (len, byte));
            }
            5 => {
                let Some((&offset, &(len, old))) = model.iter().next() else { continue };
                let new_len = random.size(18);
                // SAFETY: the block is ours.
                let moved = unsafe { heap.reallocate(OffsetPointer::new(offset), new_len) };
                let Ok(moved) = moved else { continue };
                verify(moved.offset_bytes(), len.min(new_len), old);
                model.remove(&offset);
                fill(moved, new_len, byte);
                assert!(model.insert(moved.offset_bytes(), (new_len, byte)).is_none());
            }
            _ => {
                let at = random.below(1 << 30);
                let Some((&offset, _)) = model.range(at..).next() else { continue };
                let (len, byte) = model.remove(&offset).unwrap();
                verify(offset, len, byte);
                free(heap, OffsetPointer::new(offset));
            }
        }
        if step % 5000 == 0 {
            let check = heap.check();
            assert!(check.is_clean(), "{check:#?}");
        }
    }
    for (offset, (len, byte)) in model {
        verify(offset, len, byte);
        free(heap, OffsetPointer::new(offset));
    }
}

#[test]
fn random_work_agrees_with_a_model() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let heap = heap(64 << 20, InitOptions { on_exit, ..InitOptions::default() });
        run_beside_a_model(&heap, 0x9e37_79b9, 60_000);
        assert_empty(&heap);
    }
}

#[test]
fn threads_with_models_do_not_disturb_one_another() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let heap = heap(128 << 20, InitOptions { on_exit, ..InitOptions::default() });
        std::thread::scope(|scope| {
            for seed in 1..=4 {
                let heap = &heap;
                scope.spawn(move || run_beside_a_model(heap, seed * 77, 20_000));
            }
        });
        assert_empty(&heap);
    }
}

#[test]
fn what_one_thread_allocates_others_free() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let heap = heap(64 << 20, InitOptions { on_exit, ..InitOptions::default() });
        std::thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) =
                (0..4).map(|_| mpsc::sync_channel::<(OffsetPointer, usize, u8)>(1000)).unzip();
            for (seed, receiver) in receivers.into_iter().enumerate() {
                let heap = &heap;
                let senders = senders.clone();
                scope.spawn(move || {
                    let mut random = Random(seed as u64 + 1);
                    for step in 0..30_000_u32 {
                        let len = random.size(12);
                        let byte = step.to_le_bytes()[0];
                        if let Ok(block) = heap.allocate(len) {
                            // SAFETY: the block is ours until it is sent.
                            unsafe { heap.resolve(block, len).unwrap().write_bytes(byte, len) };
                            let to = usize::try_from(random.below(4)).unwrap();
                            if let Err(error) = senders[to].try_send((block, len, byte)) {
                                let (mpsc::TrySendError::Full(it)
                                | mpsc::TrySendError::Disconnected(it)) = error;
                                free(heap, it.0);
                            }
                        }
                        for (block, len, byte) in receiver.try_iter().take(2) {
                            let address = heap.resolve(block, len).unwrap();
                            // SAFETY: the sender gave the block to us.
                            let bytes =
                                unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
                            assert!(bytes.iter().all(|&b| b == byte));
                            free(heap, block);
                        }
                    }
                    drop(senders);
                    receiver.iter().for_each(|(block, ..)| free(heap, block));
                });
            }
            drop(senders);
        });
        assert_empty(&heap);
    }
}

#[test]
fn all_memory_can_be_had_again_and_again() {
    let heap = heap(8 << 20, InitOptions { worker_slots: 4, ..InitOptions::default() });
    let mut first = None;
    for bytes in [16, 16, 700, 8192, 20_000, 65_536, 16, 1 << 20, 16] {
        let mut blocks = Vec::new();
        while let Ok(block) = heap.allocate(bytes) {
            blocks.push(block);
        }
        if bytes == 16 {
            assert_eq!(*first.get_or_insert(blocks.len()), blocks.len(), "memory was lost");
        }
        let unlike = |n: usize| (n * bytes) as u64 > (7 << 20);
        assert!(unlike(blocks.len()) || bytes > 8192, "{} of {bytes}", blocks.len());
        blocks.into_iter().rev().for_each(|block| free(&heap, block));
        assert_empty(&heap);
    }
    let huge = heap.allocate(7 << 20).unwrap();
    free(&heap, huge);
}

#[test]
fn errors_say_what_was_asked() {
    let heap = heap(8 << 20, InitOptions::default());
    assert!(matches!(heap.allocate(usize::MAX), Err(AllocError::TooLarge { .. })));
    assert!(matches!(heap.allocate(12 << 20), Err(AllocError::OutOfMemory { .. })));
    for align in [0, 3, 4 << 20] {
        let refused = heap.aligned_allocate(8, align);
        assert!(matches!(refused, Err(AllocError::BadAlignment { .. })), "{align}");
    }
    let block = heap.allocate(100).unwrap();
    let run = heap.allocate(1 << 20).unwrap();
    let bad = [0, 8, 4096, u64::MAX, u64::MAX - 15, 1 << 40, run.offset_bytes() + 65_536];
    for offset in bad {
        // SAFETY: the allocator can tell these, and touches nothing.
        let freed = unsafe { heap.free(OffsetPointer::new(offset)) };
        assert!(matches!(freed, Err(AllocError::NotAllocated { .. })), "{offset:#x}");
    }
    free(&heap, block);
    free(&heap, run);
    assert_empty(&heap);
}

#[test]
fn nothing_at_a_great_alignment_is_a_block_too() {
    let heap = heap(16 << 20, InitOptions::default());
    let limit = heap.backend().alignment();
    for align in [32, 65_536, 1 << 17, 2 << 20].into_iter().filter(|&align| align <= limit) {
        let block = heap.aligned_allocate(0, align).unwrap();
        assert_eq!(block.offset_bytes() % align as u64, 0);
        free(&heap, block);
    }
    assert_empty(&heap);
}

#[test]
fn an_ended_thread_keeps_no_memory_without_blocks() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let heap = heap(64 << 20, InitOptions { on_exit, ..InitOptions::default() });
        std::thread::scope(|scope| {
            let work = || {
                for bytes in [100, 8000, 40_000, 1 << 20] {
                    free(&heap, heap.allocate(bytes).unwrap());
                }
            };
            scope.spawn(work).join().unwrap();
        });
        assert_eq!(heap.report().held_bytes(), 0, "{on_exit}");
    }
}

#[test]
fn a_medium_block_that_was_freed_last_is_the_next_of_its_class() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let heap = heap(8 << 20, InitOptions { on_exit, ..InitOptions::default() });
        let blocks: Vec<_> = (0..5).map(|_| heap.allocate(20_000).unwrap()).collect();
        blocks.iter().for_each(|&block| free(&heap, block));
        let again: Vec<_> = (0..5).map(|_| heap.allocate(20_000).unwrap()).collect();
        assert!(again.iter().eq(blocks.iter().rev()), "{blocks:?} {again:?}");
        let operations = heap.report().operations;
        assert_eq!((operations.allocations, operations.local_frees), (10, 5));
        again.into_iter().for_each(|block| free(&heap, block));
        assert_empty(&heap);
    }
}

#[test]
fn a_large_block_grows_and_shrinks_where_it_stands() {
    let heap = heap(32 << 20, InitOptions::default());
    let block = heap.allocate(1 << 20).unwrap();
    for len in [3 << 20, 2 << 20, 70_000, 4 << 20] {
        // SAFETY: the block is ours.
        assert_eq!(unsafe { heap.reallocate(block, len) }.unwrap(), block);
        assert!(heap.usable_bytes(block).unwrap() >= len);
        assert!(heap.check().is_clean());
    }
    free(&heap, block);
    assert_empty(&heap);
}

#[test]
fn a_large_block_of_a_full_segment_becomes_small_where_it_stands() {
    let heap = heap(8 << 20, InitOptions::default());
    let block = heap.allocate(256 << 10).unwrap();
    let rest: Vec<_> = std::iter::from_fn(|| heap.allocate(8 << 10).ok()).collect();
    // SAFETY: the block is ours.
    assert_eq!(unsafe { heap.reallocate(block, 100) }.unwrap(), block);
    // What it does not need any more serves others.
    assert_eq!(heap.usable_bytes(block).unwrap(), 64 << 10);
    let more: Vec<_> = std::iter::from_fn(|| heap.allocate(8 << 10).ok()).collect();
    assert_eq!(more.len(), 24);
    assert!(heap.check().is_clean());
    rest.into_iter().chain(more).chain([block]).for_each(|block| free(&heap, block));
    assert_empty(&heap);
}

#[test]
fn a_segment_grows_while_others_use_it() {
    let heap = heap(4 << 20, InitOptions { worker_slots: 8, ..InitOptions::default() });
    let mut blocks = Vec::new();
    let fill = |blocks: &mut Vec<_>| {
        while let Ok(block) = heap.allocate(60_000) {
            blocks.push(block);
        }
        blocks.len()
    };
    let before = fill(&mut blocks);
    let grown = heap.grow(heap.committed_bytes() + (2 << 20)).unwrap();
    assert_eq!(grown, heap.committed_bytes());
    assert!(fill(&mut blocks) > before);
    assert!(heap.grow(1 << 40).is_err());
    blocks.into_iter().for_each(|block| free(&heap, block));
    assert_empty(&heap);
}

#[test]
fn a_context_names_a_slot_that_threads_share() {
    let heap = heap(8 << 20, InitOptions::default());
    let context = heap.create_tls().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let block = heap.allocate_offset(context, 64).unwrap();
                    // SAFETY: the block is ours.
                    unsafe { heap.free_offset_no_null_check(context, block) }.unwrap();
                }
            });
        }
    });
    assert_eq!(heap.report().workers.len(), 1, "no thread claimed a slot of its own");
    heap.free_tls(context).unwrap();
    assert!(matches!(heap.allocate_offset(context, 1), Err(AllocError::BadContext { .. })));
    assert_empty(&heap);
}

#[test]
fn every_operation_honours_its_context() {
    let options = InitOptions { worker_slots: 1, custom_header_bytes: 64, ..Default::default() };
    let heap = heap(8 << 20, options);
    // The only slot there is: whatever went to the calling thread's would fail.
    let context = heap.create_tls().unwrap();
    assert!(matches!(heap.allocate(1), Err(AllocError::NoWorkerSlot { .. })));
    let block = heap.allocate_offset(context, 100).unwrap();
    let aligned = heap.aligned_allocate_offset(context, 100, 4096).unwrap();
    assert!(heap.usable_bytes_as(context, block).unwrap() >= 100);
    // SAFETY: the blocks are ours, here and below.
    let block = unsafe { heap.reallocate_offset_no_null_check(context, block, 104) }.unwrap();
    // SAFETY: as above.
    let block = unsafe { heap.reallocate_offset_no_null_check(context, block, 200_000) }.unwrap();
    let cell = heap.custom_header().0;
    let named = heap.allocate_into_as(context, cell, 100).unwrap();
    assert_eq!(heap.read_cell(cell).unwrap(), named);
    // SAFETY: as above.
    assert!(unsafe { heap.free_from_as(context, cell) }.unwrap());
    let named = heap.aligned_allocate_into_as(context, cell, 100, 4096).unwrap();
    assert!(named.offset_bytes().is_multiple_of(4096));
    // SAFETY: as above.
    assert!(unsafe { heap.free_from_as(context, cell) }.unwrap());
    let object = heap.new_object(context, 7_u64).unwrap();
    // SAFETY: as above.
    unsafe { heap.delete_object(context, object) }.unwrap();
    for block in [block, aligned] {
        // SAFETY: as above.
        unsafe { heap.free_offset_no_null_check(context, block) }.unwrap();
    }
    assert_eq!(heap.report().workers.len(), 1);
    heap.free_tls(context).unwrap();
    let refused = [
        heap.allocate_into_as(context, cell, 1).map(|_| ()),
        heap.usable_bytes_as(context, aligned).map(|_| ()),
        // SAFETY: it is refused.
        unsafe { heap.free_from_as(context, cell) }.map(|_| ()),
    ];
    let refused = refused.iter().all(|result| matches!(result, Err(AllocError::BadContext { .. })));
    assert!(refused);
    assert_empty(&heap);
}

#[test]
fn slots_of_ended_threads_serve_others() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let heap = heap(8 << 20, InitOptions { worker_slots: 2, on_exit, ..Default::default() });
        // Joined, because the end of a scope does not wait for a thread's destructors.
        let in_thread = |work: &(dyn Fn() + Sync)| {
            std::thread::scope(|scope| scope.spawn(work).join().unwrap());
        };
        for _ in 0..200 {
            in_thread(&|| free(&heap, heap.allocate(100).unwrap()));
        }
        let held = heap.allocate(10).unwrap();
        in_thread(&|| {
            let second = heap.allocate(10).unwrap();
            in_thread(&|| {
                let third = heap.allocate(10);
                assert!(matches!(third, Err(AllocError::NoWorkerSlot { slots: 2 })));
            });
            free(&heap, second);
        });
        free(&heap, held);
        assert_empty(&heap);
    }
}

#[test]
fn cells_receive_and_give_up_blocks() {
    let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
    let heap = heap(32 << 20, options);
    let (header, len) = heap.custom_header();
    assert_eq!(len, 64);
    for bytes in [1, 100, 8192, 30_000, 1 << 20] {
        for place in 0..8 {
            let cell = OffsetPointer::new(header.offset_bytes() + place * 8);
            let block = heap.allocate_into(cell, bytes).unwrap();
            assert_eq!(heap.read_cell(cell).unwrap(), block);
            let again = heap.allocate_into(cell, bytes);
            assert!(matches!(again, Err(AllocError::BadCell { .. })));
        }
        for place in 0..8 {
            let cell = OffsetPointer::new(header.offset_bytes() + place * 8);
            // SAFETY: the block is ours.
            assert!(unsafe { heap.free_from(cell) }.unwrap());
            // SAFETY: the cell is null now.
            assert!(!unsafe { heap.free_from(cell) }.unwrap());
        }
    }
    for bad in [0, 8, header.offset_bytes() + 4, header.offset_bytes() + 64, u64::MAX - 7] {
        let refused = heap.allocate_into(OffsetPointer::new(bad), 8);
        assert!(matches!(refused, Err(AllocError::BadCell { .. })), "{bad:#x}");
    }
    assert_empty(&heap);
}

#[test]
fn a_segment_is_not_created_over_another() {
    let heap = heap(8 << 20, InitOptions::default());
    let again = ThreadLocalAllocator::shm_init(
        AllocatorId::new(0, 0),
        Arc::clone(heap.backend()),
        &InitOptions::default(),
    );
    assert!(matches!(again, Err(SegmentError::Exists)));
}

#[test]
fn others_empty_cells_too() {
    let options = InitOptions { custom_header_bytes: 4096, ..InitOptions::default() };
    let heap = heap(64 << 20, options);
    let cell = |place: u64| OffsetPointer::new(heap.custom_header().0.offset_bytes() + place * 8);
    std::thread::scope(|scope| {
        for seed in 1..=4 {
            let heap = &heap;
            scope.spawn(move || {
                let mut random = Random(seed);
                for _ in 0..30_000 {
                    let at = cell(random.below(64));
                    if random.below(2) == 0 {
                        match heap.allocate_into(at, random.size(15)) {
                            Ok(_) | Err(AllocError::BadCell { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    } else {
                        // SAFETY: blocks in cells are used by nobody.
                        match unsafe { heap.free_from(at) } {
                            // Another freed it, and its memory, between our look and our mark.
                            Ok(_) | Err(AllocError::NotAllocated { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            });
        }
    });
    for place in 0..64 {
        // SAFETY: as above.
        unsafe { heap.free_from(cell(place)) }.unwrap();
    }
    assert_empty(&heap);
}

#[test]
fn blocks_of_grown_memory_take_the_fast_paths() {
    let heap = heap(4 << 20, InitOptions::default());
    heap.allocate(16).unwrap();
    let before = heap.committed_bytes();
    heap.grow(heap.capacity_bytes()).unwrap();
    let block = loop {
        let block = heap.allocate(4096).unwrap();
        if block.offset_bytes() >= before {
            break block;
        }
    };
    let current = tls::current(heap.key).unwrap();
    // SAFETY: [owned] this thread's heap, which it has not given back.
    let current = unsafe { &*current };
    assert!(current.push_small(block.offset_bytes()), "freed the slow way");
    free(&heap, heap.allocate(4096).unwrap());
    let popped = (0..3).any(|_| current.pop_small(size_class::class_of(4096)).is_some());
    assert!(popped, "allocated the slow way");
}
