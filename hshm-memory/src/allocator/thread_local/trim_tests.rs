//! Memory that goes back to the kernel, and comes again.

use std::sync::Arc;

use super::page::Page;
use super::tests::{Random, free};
use super::words::List;
use super::*;
use crate::backend::{Backend, scratch};
use crate::sync::Ordering as SharedOrdering;
use crate::{AllocatorId, InitOptions, OffsetPointer, OnExit};

fn heap(size: u64, on_exit: OnExit) -> ThreadLocalAllocator {
    let backend = scratch("trim", size, size).unwrap();
    let options = InitOptions { on_exit, ..InitOptions::default() };
    ThreadLocalAllocator::shm_init(AllocatorId::new(1, 3), Arc::new(backend), &options).unwrap()
}

/// What stands in a block.
fn stamp(heap: &ThreadLocalAllocator, block: OffsetPointer, bytes: usize) {
    let byte = (block.offset_bytes() / 16).to_le_bytes()[0] | 1;
    // SAFETY: the block is ours and so long.
    unsafe { heap.resolve(block, bytes).unwrap().write_bytes(byte, bytes) };
}

fn verify(heap: &ThreadLocalAllocator, block: OffsetPointer, bytes: usize) {
    let byte = (block.offset_bytes() / 16).to_le_bytes()[0] | 1;
    let address = heap.resolve(block, bytes).unwrap();
    // SAFETY: as above, and nobody writes it meanwhile.
    let found = unsafe { std::slice::from_raw_parts(address.as_ptr(), bytes) };
    assert!(found.iter().all(|&found| found == byte), "{block:?} was overwritten");
}

/// Memory behind the segment's file, whoever has it mapped.
fn resident(heap: &ThreadLocalAllocator) -> u64 {
    let file = heap.backend().fd().unwrap().try_clone_to_owned().unwrap();
    let metadata = std::fs::File::from(file).metadata().unwrap();
    std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
}

fn assert_clean(heap: &ThreadLocalAllocator, blocks: usize) {
    let check = heap.check();
    assert!(check.is_clean(), "{check:#?}");
    assert_eq!(check.allocated_blocks, blocks as u64);
    assert_eq!(heap.report().allocated_blocks, blocks as u64);
}

/// Fills the segment's start with blocks and frees all but every `nth` of each row of 64 KiB.
fn sparse(heap: &ThreadLocalAllocator, bytes: usize, nth: u64) -> Vec<OffsetPointer> {
    let blocks: Vec<_> = (0..(4 << 20) / bytes).map(|_| heap.allocate(bytes).unwrap()).collect();
    let (kept, freed): (Vec<_>, Vec<_>) = blocks
        .into_iter()
        .partition(|block| (block.offset_bytes() / bytes as u64).is_multiple_of(nth));
    kept.iter().for_each(|&block| stamp(heap, block, bytes));
    freed.into_iter().for_each(|block| free(heap, block));
    kept
}

#[test]
fn memory_between_blocks_is_given_back_and_had_again() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        for bytes in [256, 1024, 4096, 7000, 20_000, 65_536] {
            let heap = heap(16 << 20, on_exit);
            let kept = sparse(&heap, bytes, 40);
            assert_clean(&heap, kept.len());
            let before = resident(&heap);
            let given = heap.trim().unwrap();
            assert!(given > 2 << 20, "{bytes}: {given} bytes");
            assert_eq!(resident(&heap), before - given, "{bytes}");
            assert_clean(&heap, kept.len());
            assert_eq!(heap.trim().unwrap(), 0, "{bytes}: there is no more");
            // All blocks can be had again, and hold what is written.
            let again: Vec<_> = (kept.len()..(4 << 20) / bytes)
                .map(|_| heap.allocate(bytes).unwrap())
                .inspect(|&block| stamp(&heap, block, bytes))
                .collect();
            assert!(resident(&heap) <= before + (1 << 20), "{bytes}: elsewhere, more than before");
            assert_clean(&heap, kept.len() + again.len());
            for block in kept.into_iter().chain(again) {
                verify(&heap, block, bytes);
                free(&heap, block);
            }
            assert_clean(&heap, 0);
        }
    }
}

#[test]
fn who_takes_more_gives_back_elsewhere() {
    let heap = heap(64 << 20, OnExit::Keep);
    let kept = sparse(&heap, 1024, 40);
    let before = resident(&heap);
    let large: Vec<_> = (0..3).map(|_| heap.allocate(1 << 20).unwrap()).collect();
    assert!(resident(&heap) < before + (1 << 20), "{} {}", resident(&heap), before);
    kept.iter().for_each(|&block| verify(&heap, block, 1024));
    assert_clean(&heap, kept.len() + large.len());
}

#[test]
fn who_takes_a_long_run_leaves_free_ones_their_memory() {
    let heap = heap(64 << 20, OnExit::Keep);
    let first = heap.allocate(6 << 20).unwrap();
    let guard = heap.allocate(128 << 10).unwrap();
    free(&heap, first);
    let before = resident(&heap);
    let longer = heap.allocate(8 << 20).unwrap();
    assert!(longer.offset_bytes() > guard.offset_bytes());
    assert_eq!(resident(&heap), before + (8 << 20));
    // The next of them is there at once.
    assert_eq!(heap.allocate(6 << 20).unwrap(), first);
    assert_eq!(resident(&heap), before + (8 << 20));
    assert_clean(&heap, 3);
}

#[test]
fn what_a_worker_keeps_is_used_before_fresh_memory() {
    let heap = heap(256 << 20, OnExit::Keep);
    let blocks: Vec<_> = (0..3).map(|_| heap.allocate(3 << 20).unwrap()).collect();
    blocks.iter().for_each(|&block| free(&heap, block));
    let before = resident(&heap);
    let longer = heap.allocate(9 << 20).unwrap();
    assert_eq!((longer, resident(&heap)), (blocks[0], before));
    // What fits elsewhere, where there is memory, leaves what is kept alone.
    free(&heap, longer);
    let guard = heap.allocate(1 << 20).unwrap();
    let short = heap.allocate(2 << 20).unwrap();
    free(&heap, guard);
    let before = resident(&heap);
    heap.allocate(7 << 16).unwrap();
    assert_eq!((heap.allocate(1 << 20).unwrap(), resident(&heap)), (guard, before));
    stamp(&heap, short, 2 << 20);
    assert_clean(&heap, 3);
}

#[test]
fn memory_that_was_to_be_kept_is_not_given_back() {
    use crate::backend::{BackendOptions, MemfdMmap};
    let options = BackendOptions { populate: true, ..BackendOptions::default() };
    let backend = MemfdMmap::create_with("kept", 16 << 20, 16 << 20, &options).unwrap();
    assert!(!backend.gives_back());
    let id = AllocatorId::new(1, 4);
    let heap =
        ThreadLocalAllocator::shm_init(id, Arc::new(backend), &InitOptions::default()).unwrap();
    let before = resident(&heap);
    let kept = sparse(&heap, 1024, 40);
    assert_eq!(heap.trim().unwrap(), 0);
    assert_eq!((resident(&heap), kept.len() > 64), (before, true));
    // Others who attach know of it from the segment.
    let file = heap.backend().fd().unwrap().try_clone_to_owned().unwrap();
    let other = crate::BackendKind::Memfd.open_fd(file, 16 << 20).unwrap();
    assert!(other.gives_back());
    let other = ThreadLocalAllocator::shm_deserialize(other).unwrap();
    kept.into_iter().for_each(|block| free(&other, block));
    assert_eq!((other.trim().unwrap(), resident(&heap)), (0, before));
}

/// A page of ours of which every eighth block is allocated, and the memory of most others is not there.
fn purged_page(heap: &ThreadLocalAllocator) -> (Vec<OffsetPointer>, u32) {
    let kept = sparse(heap, 1024, 24);
    assert!(heap.trim().unwrap() > 0);
    let unit = super::words::unit_of(kept[kept.len() / 2].offset_bytes());
    let tag = heap.inner.view.tag(unit).unwrap();
    assert!(Page::new(&heap.inner.view, unit, tag).purged().is_some());
    (kept, unit)
}

#[test]
fn others_free_to_a_purged_page_and_adopt_it() {
    let heap = heap(16 << 20, OnExit::Keep);
    let (kept, _) = purged_page(&heap);
    let (ours, others) = kept.split_at(kept.len() / 2);
    std::thread::scope(|scope| {
        // Joined, because the end of a scope does not wait for a thread's destructors.
        scope.spawn(|| others.iter().for_each(|&block| free(&heap, block))).join().unwrap();
    });
    assert_clean(&heap, ours.len());
    heap.detach_thread();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let blocks: Vec<_> = (0..512).map(|_| heap.allocate(1024).unwrap()).collect();
            blocks.iter().for_each(|&block| stamp(&heap, block, 1024));
            ours.iter().for_each(|&block| verify(&heap, block, 1024));
            blocks.into_iter().for_each(|block| free(&heap, block));
        });
        worker.join().unwrap();
    });
    ours.iter().for_each(|&block| free(&heap, block));
    assert_clean(&heap, 0);
}

#[test]
fn a_map_that_contradicts_a_list_is_found_and_repaired() {
    let heap = heap(16 << 20, OnExit::Keep);
    let (kept, unit) = purged_page(&heap);
    let first = kept.iter().find(|block| super::words::unit_of(block.offset_bytes()) == unit);
    let index = (first.unwrap().offset_bytes() >> 10) & 63;
    // A list of its own, and then the same block in the map, though not as the list's first.
    let descriptor = heap.inner.view.descriptor(unit);
    let page = u64::from(unit) << 16;
    let others = (0..64).map(|at| page + at * 1024).filter(|offset| {
        kept.iter().any(|block| block.offset_bytes() == *offset) && *offset >> 10 & 63 != index
    });
    let other = others.max().unwrap();
    heap.inner.view.word(page + index * 1024).unwrap().store(0, SharedOrdering::SeqCst);
    let rest = List::new(page + index * 1024, 1);
    heap.inner.view.word(other).unwrap().store(rest.0, SharedOrdering::SeqCst);
    descriptor.local.store(List::new(other, 2).0, SharedOrdering::SeqCst);
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
    descriptor.purged_blocks[0].fetch_or(1 << index, SharedOrdering::SeqCst);
    assert_eq!(heap.check().violations[0].invariant, "I3");
    heap.detach_thread();
    assert!(heap.repair().unwrap().lists_dropped > 0);
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
}

#[test]
fn bits_beyond_the_blocks_are_no_blocks() {
    let heap = heap(16 << 20, OnExit::Keep);
    let (_, unit) = purged_page(&heap);
    heap.inner.view.descriptor(unit).purged_blocks[3].store(u64::MAX, SharedOrdering::SeqCst);
    assert_eq!(heap.check().violations[0].invariant, "I3");
    let mut random = Random(5);
    for _ in 0..10_000 {
        let _ = heap.allocate(random.size(12));
    }
    heap.trim().unwrap();
    heap.detach_thread();
    heap.repair().unwrap();
    assert!(heap.check().is_clean(), "{:#?}", heap.check());
}

/// Memory of which there is so much and no more.
#[derive(Debug)]
struct Limited {
    memory: crate::MemfdMmap,
    limit: u64,
}

// SAFETY: it is what the memory is, and populates no more than that does.
unsafe impl Backend for Limited {
    fn kind(&self) -> crate::BackendKind {
        self.memory.kind()
    }

    fn base(&self) -> std::ptr::NonNull<u8> {
        self.memory.base()
    }

    fn capacity_bytes(&self) -> u64 {
        self.memory.capacity_bytes()
    }

    fn committed_bytes(&self) -> u64 {
        self.memory.committed_bytes()
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.memory.fd()
    }

    fn populate(&self, range: std::ops::Range<u64>) -> Result<(), crate::BackendError> {
        let bytes = range.end - range.start;
        let stat = nix::sys::stat::fstat(self.memory.fd().unwrap()).unwrap();
        if stat.st_blocks.cast_unsigned() * 512 + bytes > self.limit {
            return Err(crate::BackendError::Full { bytes });
        }
        self.memory.populate(range)
    }

    fn punch(&self, range: std::ops::Range<u64>) -> Result<(), crate::BackendError> {
        self.memory.punch(range)
    }

    fn gives_back(&self) -> bool {
        true
    }

    fn grow(&self, bytes: u64) -> Result<(), crate::BackendError> {
        self.memory.grow(bytes)
    }
}

#[test]
fn where_memory_is_full_that_of_free_blocks_is_used_first() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let memory = scratch("limited", 64 << 20, 64 << 20).unwrap();
        let backend = Arc::new(Limited { memory, limit: 8 << 20 });
        let options = InitOptions { on_exit, ..InitOptions::default() };
        let id = AllocatorId::new(1, 5);
        let heap = ThreadLocalAllocator::shm_init(id, backend, &options).unwrap();
        let mut blocks = Vec::new();
        let refused = loop {
            match heap.allocate(2000) {
                Ok(block) => blocks.push(block),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, AllocError::Backend(crate::BackendError::Full { .. })));
        let full = heap.allocate(1 << 20);
        assert!(matches!(full, Err(AllocError::Backend(crate::BackendError::Full { .. }))));
        let (kept, freed): (Vec<_>, Vec<_>) =
            blocks.into_iter().enumerate().partition(|(at, _)| at.is_multiple_of(20));
        kept.iter().for_each(|&(_, block)| stamp(&heap, block, 2000));
        freed.iter().for_each(|&(_, block)| free(&heap, block));
        let large = heap.allocate(2 << 20).unwrap();
        stamp(&heap, large, 2 << 20);
        kept.iter().for_each(|&(_, block)| verify(&heap, block, 2000));
        assert_clean(&heap, kept.len() + 1);
    }
}
