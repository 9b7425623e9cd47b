//! A segment of its own for one death, with a table of what is allocated in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::{
    AllocatorId, InitOptions, MemfdMmap, OffsetPointer, OnExit, ThreadLocalAllocator,
};

use super::process;

/// Cells for journalled operations.
pub const CELLS: u64 = 16;
/// The word that says that the operation is over.
const FINISHED: u64 = HEADER_BYTES / 8 - 1;
/// Where the table of other blocks has its length, counted in words of the header.
const LENGTH: u64 = CELLS;
/// Where it begins.
const TABLE: u64 = CELLS + 1;
/// The application's header, in bytes.
const HEADER_BYTES: u64 = 16 << 10;

/// A segment, and in its application header the offsets of all blocks that are allocated there:
/// those of journalled operations in cells, the others in a table that is written when nobody dies.
#[derive(Debug)]
pub struct World {
    /// The allocator; a forked process uses it as if it had attached.
    pub heap: ThreadLocalAllocator,
    arm: Arm,
}

/// Makes this process die at a crash point after passing it so many times. False if there is no such
/// point.
pub type Arm = fn(point: &str, passes: u32) -> bool;

impl World {
    /// Lays out a segment of `bytes`, which can grow to `capacity`.
    ///
    /// # Panics
    /// If there is no memory: then nothing can be tested.
    #[must_use]
    pub fn new(bytes: u64, capacity: u64, on_exit: OnExit, arm: Arm) -> Self {
        let backend = MemfdMmap::create("crash", bytes, capacity).expect("memory for a segment");
        let options = InitOptions { custom_header_bytes: HEADER_BYTES, on_exit, worker_slots: 8 };
        let id = AllocatorId::new(0, 0);
        let heap = ThreadLocalAllocator::shm_init(id, Arc::new(backend), &options);
        Self { heap: heap.expect("a new segment"), arm }
    }

    /// Lets this process die at `point` after passing it `passes` times.
    ///
    /// # Panics
    /// If there is no such point.
    pub fn arm(&self, point: &str, passes: u32) {
        assert!((self.arm)(point, passes), "there is no crash point {point}");
    }

    /// Lets another process die at `point` of `work`.
    ///
    /// # Panics
    /// If it does not come by there.
    pub fn lose_another(&self, point: &str, work: impl FnOnce(&Self)) {
        let dying = process::spawn(|| {
            self.arm(point, 0);
            work(self);
        });
        let status = dying.and_then(process::wait);
        assert_eq!(status.and_then(process::was_killed), Ok(true), "it dies at {point}");
    }

    /// Cell `number`, for the journalled operations.
    #[must_use]
    pub fn cell(&self, number: u64) -> OffsetPointer {
        let start = self.heap.custom_header().0.offset_bytes();
        OffsetPointer::new(start + number * 8)
    }

    fn word(&self, number: u64) -> &AtomicU64 {
        assert!(number < HEADER_BYTES / 8, "the table is full");
        let address = self.heap.resolve(self.cell(number), 8).expect("a word of the header");
        // SAFETY: [mapped] it lies in the header, aligned, for as long as the heap is there;
        // [atomic] it is only used as an atomic.
        unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
    }

    /// Blocks in the table.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.word(LENGTH).load(Ordering::SeqCst)
    }

    /// The block at `index` of the table.
    #[must_use]
    pub fn block(&self, index: u64) -> OffsetPointer {
        OffsetPointer::new(self.word(TABLE + index).load(Ordering::SeqCst))
    }

    /// Makes the table forget its blocks from `index` on.
    pub fn forget_from(&self, index: u64) {
        self.word(LENGTH).store(index, Ordering::SeqCst);
    }

    /// Takes the block at `index` out of the table, where the last one takes its place.
    pub fn forget(&self, index: u64) {
        let last = self.known() - 1;
        let moved = self.block(last).offset_bytes();
        self.word(TABLE + index).store(moved, Ordering::SeqCst);
        self.forget_from(last);
    }

    /// Allocates `count` blocks of `bytes` and enters them in the table.
    ///
    /// # Panics
    /// If one cannot be had.
    pub fn hold(&self, count: u64, bytes: usize) {
        for _ in 0..count {
            self.enter(self.heap.allocate(bytes).expect("a block"));
        }
    }

    /// Enters a block in the table.
    pub fn enter(&self, block: OffsetPointer) {
        let index = self.known();
        self.word(TABLE + index).store(block.offset_bytes(), Ordering::SeqCst);
        self.forget_from(index + 1);
        self.stamp(block);
    }

    /// Frees the block at `index` of the table, and leaves the table as it is.
    ///
    /// # Panics
    /// If the block is not one.
    pub fn free(&self, index: u64) {
        // SAFETY: [owned] the table's blocks are freed by the one process that is told to.
        unsafe { self.heap.free(self.block(index)) }.expect("a block that is allocated");
    }

    /// Frees the blocks at `range` of the table, from its end, and takes them out.
    pub fn drop_blocks(&self, range: std::ops::Range<u64>) {
        for index in range.rev() {
            self.free(index);
            self.forget(index);
        }
    }

    /// Writes a block's own offset into its first and last word.
    fn stamp(&self, block: OffsetPointer) {
        for word in self.ends(block) {
            word.store(block.offset_bytes(), Ordering::Relaxed);
        }
    }

    /// Whether it stands there still.
    #[must_use]
    pub fn is_stamped(&self, block: OffsetPointer) -> bool {
        self.ends(block).iter().all(|word| word.load(Ordering::Relaxed) == block.offset_bytes())
    }

    fn ends(&self, block: OffsetPointer) -> [&AtomicU64; 2] {
        let len = self.heap.usable_bytes(block).unwrap_or(16);
        let end = OffsetPointer::new(block.offset_bytes() + len as u64 - 8);
        [block, end].map(|at| {
            let address = self.heap.resolve(at, 8).expect("a word of a block");
            // SAFETY: [mapped] it was resolved, and blocks are aligned; [atomic] as above.
            unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
        })
    }

    /// The whole segment after its own header, to be looked at while nobody writes to it.
    ///
    /// # Panics
    /// If the segment became shorter.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let start = self.heap.custom_header().0;
        let len = usize::try_from(self.heap.committed_bytes() - start.offset_bytes());
        let len = len.unwrap_or(0);
        let address = self.heap.resolve(start, len).expect("the segment");
        // SAFETY: [mapped] it was resolved; [owned] the caller sees to it that nobody writes.
        unsafe { std::slice::from_raw_parts(address.as_ptr(), len) }
    }

    /// Notes that the operation is over.
    pub fn finish(&self) {
        self.word(FINISHED).store(1, Ordering::SeqCst);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.word(FINISHED).load(Ordering::SeqCst) == 1
    }

    /// Bytes in the blocks that the cells name.
    ///
    /// # Errors
    /// If a cell names no block, or holds the mark of an operation under way.
    pub fn cell_bytes(&self) -> Result<i64, String> {
        let mut total = 0;
        for number in 0..CELLS {
            let value = self.word(number).load(Ordering::SeqCst);
            if value != 0 {
                let bytes = self.heap.usable_bytes(OffsetPointer::new(value));
                let bytes = bytes.map_err(|error| format!("cell {number}: {error}"))?;
                total += i64::try_from(bytes).unwrap_or(i64::MAX);
            }
        }
        Ok(total)
    }
}
