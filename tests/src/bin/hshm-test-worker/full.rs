//! What happens when /dev/shm is full. Runs where a small file system is mounted there.

use std::sync::Arc;

use hshm_memory::{
    AllocError, AllocatorId, BackendError, InitOptions, OffsetPointer, PosixShmMmap, SegmentError,
    ThreadLocalAllocator,
};
use hshm_tests::stamp;

/// More than the file system holds.
const SIZE: u64 = 1 << 30;
const BLOCK: usize = 100_000;

fn fill_up(heap: &ThreadLocalAllocator, bytes: usize) -> Vec<OffsetPointer> {
    let mut blocks = Vec::new();
    loop {
        match heap.allocate(bytes) {
            Ok(block) => {
                // SAFETY: the block is ours.
                unsafe { stamp::fill(heap, block, bytes, block.offset_bytes()) };
                blocks.push(block);
            }
            Err(AllocError::Backend(BackendError::Full { .. })) => return blocks,
            Err(error) => panic!("after {} blocks: {error}", blocks.len()),
        }
    }
}

fn free_all(heap: &ThreadLocalAllocator, blocks: Vec<OffsetPointer>, bytes: usize) {
    for block in blocks {
        // SAFETY: the block is ours.
        unsafe { stamp::verify(heap, block, bytes, bytes, block.offset_bytes()) };
        // SAFETY: as above.
        unsafe { heap.free(block) }.expect("the block is allocated");
    }
}

fn create(name: &str, size: u64) -> Result<ThreadLocalAllocator, SegmentError> {
    let backend = Arc::new(PosixShmMmap::create(name, size, size, 0o600)?);
    ThreadLocalAllocator::shm_init(AllocatorId::new(1, 1), backend, &InitOptions::default())
}

pub(crate) fn run(name: &str) {
    let heap = create(name, SIZE).expect("its length may exceed the file system");
    let mut most = None;
    for _ in 0..3 {
        let blocks = fill_up(&heap, BLOCK);
        assert!(blocks.len() > 20, "only {} blocks", blocks.len());
        // The last stretch goes to small blocks, in pages that have memory already and then in none.
        let small = fill_up(&heap, 48);
        assert!(heap.allocate(1).is_err() || heap.allocate(1).is_err());
        assert!(heap.check().is_clean());

        let other = format!("{name}.other");
        match create(&other, 64 << 20) {
            Err(SegmentError::Backend(BackendError::Full { .. })) => {}
            made => panic!("a second segment on a full file system: {made:?}"),
        }
        PosixShmMmap::unlink(&other).expect("the object was made before its tables");

        let count = *most.get_or_insert(blocks.len());
        // What a worker's cache once stood in has memory ever after.
        assert!(blocks.len() + 1 >= count, "{} blocks, {count} the first time", blocks.len());
        free_all(&heap, small, 48);
        free_all(&heap, blocks, BLOCK);
        assert!(heap.check().is_clean());
        assert_eq!(heap.report().allocated_bytes, 0);
    }
    drop(heap);
    PosixShmMmap::unlink(name).expect("it stands there");
}

/// Takes all the memory that this process may have, and goes on with what it has.
pub(crate) fn limited(heap: &ThreadLocalAllocator) {
    let blocks = fill_up(heap, BLOCK);
    assert!(blocks.len() > 20, "only {} blocks", blocks.len());
    for _ in 0..1000 {
        // SAFETY: the block is ours.
        unsafe { heap.free(blocks[0]) }.expect("the block is allocated");
        let block = heap.allocate(BLOCK).expect("there is memory behind what was just freed");
        assert_eq!(block, blocks[0], "it is used again");
        // SAFETY: the block is ours.
        unsafe { stamp::fill(heap, block, BLOCK, block.offset_bytes()) };
    }
    assert!(heap.check().is_clean());
    free_all(heap, blocks, BLOCK);
}
