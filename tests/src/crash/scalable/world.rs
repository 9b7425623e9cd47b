//! A table of pages of its own for one death, and the blocks that the survivor knows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::{
    Allocator, AllocatorId, HeapOptions, MemContext, MemfdMmap, OffsetPointer,
    ScalablePageAllocator, ShmAllocator,
};

/// Blocks of this many bytes have as many: 15 granules.
pub const SMALL: usize = 240;
/// A block of many pages of memory.
pub const LARGE: usize = 20_000;
/// The word that says that the operation is over.
const FINISHED: usize = 1;
const HEADER_WORDS: usize = 8;

/// A heap and the blocks that the survivor knows.
#[derive(Debug)]
pub struct World {
    /// The allocator; a forked process uses it as if it had attached.
    pub heap: ScalablePageAllocator,
    /// The survivor's blocks.
    pub blocks: Vec<OffsetPointer>,
}

impl World {
    /// Lays out a heap that can grow.
    ///
    /// # Panics
    /// If there is no memory: then nothing can be tested.
    #[must_use]
    pub fn new() -> Self {
        let backend = MemfdMmap::create("crash", 1 << 20, 4 << 20).expect("memory for a segment");
        let options = HeapOptions { custom_header_bytes: HEADER_WORDS as u64 * 8 };
        let id = AllocatorId::new(0, 1);
        let heap = ScalablePageAllocator::shm_init(id, Arc::new(backend), &options);
        Self { heap: heap.expect("a new segment"), blocks: Vec::new() }
    }

    /// Allocates `count` blocks that the survivor knows.
    pub fn hold(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            let block = self.allocate(bytes, 1);
            self.stamp(block);
            self.blocks.push(block);
        }
    }

    /// Allocates a block.
    ///
    /// # Panics
    /// If it cannot be had.
    #[must_use]
    pub fn allocate(&self, bytes: usize, align: usize) -> OffsetPointer {
        let block = self.heap.aligned_allocate_offset(MemContext::DEFAULT, bytes, align);
        block.expect("room for a block")
    }

    /// Allocates a block, for nobody to know.
    ///
    /// # Panics
    /// If it cannot be had.
    pub fn take(&self, align: usize) {
        assert!(!self.allocate(SMALL, align).is_null());
    }

    /// Frees a block.
    ///
    /// # Panics
    /// If it is none.
    pub fn free(&self, block: OffsetPointer) {
        // SAFETY: [owned] each block is freed by the one process that is told to.
        unsafe { self.heap.free_offset_no_null_check(MemContext::DEFAULT, block) }
            .expect("an allocated block");
    }

    /// Makes a block as long as that, and returns where it is then.
    ///
    /// # Panics
    /// If there is no room.
    #[must_use]
    pub fn resize(&self, block: OffsetPointer, bytes: usize) -> OffsetPointer {
        // SAFETY: [owned] as above.
        unsafe { self.heap.reallocate_offset_no_null_check(MemContext::DEFAULT, block, bytes) }
            .expect("room for a block")
    }

    /// Frees the blocks at these places of the list, and takes them out of it.
    pub fn punch(&mut self, places: &[usize]) {
        for &place in places.iter().rev() {
            let block = self.blocks.remove(place);
            self.free(block);
        }
    }

    /// The first `count` words of a block.
    ///
    /// # Panics
    /// If they do not lie in the segment.
    #[must_use]
    pub fn words(&self, block: OffsetPointer, count: usize) -> &[AtomicU64] {
        let address = self.heap.resolve(block, count * 8).expect("words of a block").cast();
        // SAFETY: [mapped] it was resolved, and blocks are aligned; [atomic] only used as atomics.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), count) }
    }

    /// Fills a block with its own offset.
    ///
    /// # Panics
    /// If it is none.
    pub fn stamp(&self, block: OffsetPointer) {
        let words = self.words(block, self.heap.usable_bytes(block).expect("a block") / 8);
        words.iter().for_each(|word| word.store(block.offset_bytes(), Ordering::Relaxed));
    }

    /// Whether its first `bytes` still are so.
    #[must_use]
    pub fn is_stamped(&self, block: OffsetPointer, bytes: usize) -> bool {
        let is_stamp = |word: &AtomicU64| word.load(Ordering::Relaxed) == block.offset_bytes();
        self.words(block, bytes / 8).iter().all(is_stamp)
    }

    /// What `check` found, which must be nothing.
    ///
    /// # Errors
    /// The first violation.
    pub fn clean(&self, when: &str) -> Result<(), String> {
        let report = self.heap.check();
        let violation = report.violations.first();
        violation
            .map_or(Ok(()), |found| Err(format!("{when}, {}: {}", found.invariant, found.what)))
    }

    /// Bytes that are allocated.
    #[must_use]
    pub fn allocated(&self) -> i64 {
        self.heap.allocated_bytes().cast_signed()
    }

    /// The application's header.
    #[must_use]
    pub fn header(&self) -> &[AtomicU64] {
        self.words(self.heap.custom_header().0, HEADER_WORDS)
    }

    /// Notes that the operation is over.
    pub fn finish(&self) {
        self.header()[FINISHED].store(1, Ordering::SeqCst);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.header()[FINISHED].load(Ordering::SeqCst) == 1
    }

    /// The whole segment, to be looked at while nobody writes to it.
    ///
    /// # Panics
    /// If it lies in no memory.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let backend = self.heap.backend().expect("a segment has memory behind it");
        let len = usize::try_from(backend.committed_bytes()).unwrap_or(0);
        // SAFETY: [mapped] it is committed, and stays so; [owned] the caller sees to it that nobody
        // writes.
        unsafe { std::slice::from_raw_parts(backend.base().as_ptr(), len) }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}
