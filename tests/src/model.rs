//! A plain model of what is allocated: a map of intervals, with what each block holds.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hshm_memory::{AllocError, OffsetPointer, ThreadLocalAllocator};

use crate::random::Random;
use crate::stamp;

/// All blocks of a segment that its users hold, whichever thread. Asserts that no two overlap.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<BTreeMap<u64, u64>>);

impl Ledger {
    fn blocks(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a block that was just allocated.
    ///
    /// # Panics
    /// If it overlaps another.
    pub fn enter(&self, offset: u64, len: usize) {
        let end = offset + len as u64;
        let mut blocks = self.blocks();
        let before = blocks.range(..end).next_back().map(|(&at, &end)| (at, end));
        if let Some((other, other_end)) = before.filter(|&(_, other_end)| other_end > offset) {
            panic!("{offset:#x}..{end:#x} was given out while {other:#x}..{other_end:#x} is held");
        }
        blocks.insert(offset, end);
    }

    /// Strikes a block out that is about to be freed.
    ///
    /// # Panics
    /// If it is not held.
    pub fn strike(&self, offset: u64) {
        assert!(self.blocks().remove(&offset).is_some(), "{offset:#x} is freed but not held");
    }
}

/// One block of a [`Model`].
#[derive(Clone, Copy, Debug)]
struct Block {
    offset: OffsetPointer,
    len: usize,
    stamp: u64,
}

/// What one thread holds. Each operation is done on the heap, compared, and noted.
#[derive(Debug)]
pub struct Model<'a> {
    heap: &'a ThreadLocalAllocator,
    ledger: &'a Ledger,
    blocks: Vec<Block>,
    /// Bytes in them, as they were asked for.
    pub held_bytes: u64,
    stamps: Random,
    /// How many requests found no room.
    pub refused: u64,
}

impl<'a> Model<'a> {
    /// Holds nothing yet. `seed` tells its blocks from those of other models.
    #[must_use]
    pub fn new(heap: &'a ThreadLocalAllocator, ledger: &'a Ledger, seed: u64) -> Self {
        let stamps = Random::new(!seed);
        Self { heap, ledger, blocks: Vec::new(), held_bytes: 0, stamps, refused: 0 }
    }

    /// How many blocks it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Allocates. A full segment is no error.
    ///
    /// # Panics
    /// If what the heap gives is not what was asked for, or not free.
    pub fn allocate(&mut self, len: usize, align: usize) {
        let offset = match self.heap.aligned_allocate(len, align) {
            Ok(offset) => offset,
            Err(AllocError::OutOfMemory { bytes, .. }) => {
                assert!(bytes >= len as u64, "{bytes} were refused, {len} asked for");
                self.refused += 1;
                return;
            }
            Err(error) => panic!("{len} bytes aligned to {align}: {error}"),
        };
        assert_eq!(offset.offset_bytes() % align as u64, 0, "{offset} is not aligned to {align}");
        let block = Block { offset, len, stamp: self.stamps.next() };
        self.take(block);
    }

    fn take(&mut self, block: Block) {
        let usable = self.heap.usable_bytes(block.offset).expect("it was just allocated");
        assert!(usable >= block.len, "{usable} bytes where {} were asked for", block.len);
        self.ledger.enter(block.offset.offset_bytes(), usable);
        // SAFETY: the ledger says that nobody else holds any of it.
        unsafe { stamp::fill(self.heap, block.offset, block.len, block.stamp) };
        self.held_bytes += block.len as u64;
        self.blocks.push(block);
    }

    fn pick(&mut self, choice: usize) -> Option<Block> {
        if self.blocks.is_empty() {
            return None;
        }
        let block = self.blocks.swap_remove(choice % self.blocks.len());
        self.held_bytes -= block.len as u64;
        // SAFETY: the block is this model's.
        unsafe { stamp::verify(self.heap, block.offset, block.len, block.len, block.stamp) };
        Some(block)
    }

    /// Frees one of its blocks, after comparing its contents.
    ///
    /// # Panics
    /// If they changed, or the heap refuses.
    pub fn free(&mut self, choice: usize) {
        let Some(block) = self.pick(choice) else { return };
        self.ledger.strike(block.offset.offset_bytes());
        // SAFETY: the block is this model's, and forgotten now.
        unsafe { self.heap.free(block.offset) }.expect("the block is allocated");
    }

    /// Changes the size of one of its blocks, and compares what is kept. A full segment is no error,
    /// and leaves the block as it was.
    ///
    /// # Panics
    /// If the contents are not kept, or the new block is not free.
    pub fn reallocate(&mut self, choice: usize, len: usize) {
        let Some(block) = self.pick(choice) else { return };
        // Struck out first: another thread may be given the old place before this one knows.
        self.ledger.strike(block.offset.offset_bytes());
        // SAFETY: the block is this model's.
        let moved = unsafe { self.heap.reallocate(block.offset, len) };
        let stamp = self.stamps.next();
        match moved {
            Ok(offset) => {
                let kept = len.min(block.len);
                // SAFETY: the block is this model's, wherever it is now.
                unsafe { stamp::verify(self.heap, offset, block.len, kept, block.stamp) };
                self.take(Block { offset, len, stamp });
            }
            Err(AllocError::OutOfMemory { .. }) => {
                self.refused += 1;
                // SAFETY: it is still this model's.
                unsafe {
                    stamp::verify(self.heap, block.offset, block.len, block.len, block.stamp);
                }
                self.take(Block { stamp, ..block });
            }
            Err(error) => panic!("{} to {len} bytes: {error}", block.len),
        }
    }

    /// Frees everything it holds.
    ///
    /// # Panics
    /// As [`Model::free`].
    pub fn free_all(&mut self) {
        while !self.is_empty() {
            self.free(self.blocks.len() - 1);
        }
    }

    /// Does `steps` random operations on blocks of `least` to `most` bytes, and keeps to about
    /// `budget_bytes`.
    ///
    /// # Panics
    /// If the heap and the model disagree.
    pub fn run(
        &mut self,
        random: &mut Random,
        steps: u32,
        sizes: (usize, usize),
        budget_bytes: u64,
    ) {
        for _ in 0..steps {
            let is_full = self.held_bytes > budget_bytes;
            match random.below(16) {
                0..=6 if !is_full => {
                    let len = random.size(sizes.0, sizes.1);
                    // Mostly the least alignment; the others, to 2 MiB, one as often as the other.
                    let align = if random.below(4) == 0 { 16 << random.below(18) } else { 16 };
                    self.allocate(len, align);
                }
                7..=8 if !is_full => {
                    let choice = random.index(1 << 30);
                    self.reallocate(choice, random.size(sizes.0, sizes.1));
                }
                // What was large gets smaller, also when the budget is spent.
                9 => {
                    let choice = random.index(1 << 30);
                    self.reallocate(choice, random.size(sizes.0, (sizes.1 / 64).max(sizes.0)));
                }
                _ => self.free(random.index(1 << 30)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "was given out while")]
    fn an_overlap_is_seen() {
        let ledger = Ledger::default();
        ledger.enter(64, 16);
        ledger.enter(32, 33);
    }

    #[test]
    #[should_panic(expected = "was given out while")]
    fn a_block_inside_another_is_seen() {
        let ledger = Ledger::default();
        ledger.enter(64, 4096);
        ledger.enter(80, 16);
    }

    #[test]
    fn neighbours_are_no_overlap() {
        let ledger = Ledger::default();
        ledger.enter(64, 16);
        ledger.enter(96, 16);
        ledger.enter(80, 16);
        ledger.strike(80);
        ledger.enter(80, 1);
    }

    #[test]
    #[should_panic(expected = "freed but not held")]
    fn a_second_free_is_seen() {
        let ledger = Ledger::default();
        ledger.enter(64, 16);
        ledger.strike(64);
        ledger.strike(64);
    }
}
