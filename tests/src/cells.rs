//! A table of cells in the segment's custom header, each null or naming one block.

use hshm_memory::{AllocError, OffsetPointer, ThreadLocalAllocator};

use crate::random::Random;

/// The cells of a segment: as many as its custom header holds.
#[derive(Clone, Copy, Debug)]
pub struct Cells<'a> {
    heap: &'a ThreadLocalAllocator,
    first: u64,
    count: u64,
}

impl<'a> Cells<'a> {
    /// The cells in the custom header of `heap`.
    #[must_use]
    pub fn of(heap: &'a ThreadLocalAllocator) -> Self {
        let (first, bytes) = heap.custom_header();
        Self { heap, first: first.offset_bytes(), count: bytes as u64 / 8 }
    }

    /// Where each of them is.
    pub fn places(self) -> impl Iterator<Item = OffsetPointer> {
        (0..self.count).map(move |index| OffsetPointer::new(self.first + index * 8))
    }

    /// Fills a random cell that is null, or empties one that is not.
    ///
    /// # Panics
    /// If the heap refuses for another reason than that the segment is full.
    pub fn change_one(self, random: &mut Random, most_bytes: usize) {
        let place = OffsetPointer::new(self.first + random.below(self.count) * 8);
        let named = self.heap.read_cell(place).expect("it is a cell");
        if named.is_null() {
            match self.heap.allocate_into(place, random.size(1, most_bytes)) {
                // Another filled it first, or the segment is full.
                Ok(_) | Err(AllocError::BadCell { .. } | AllocError::OutOfMemory { .. }) => {}
                Err(error) => panic!("allocate_into: {error}"),
            }
        } else {
            // SAFETY: blocks in cells are used by nobody.
            match unsafe { self.heap.free_from(place) } {
                // Another emptied it first.
                Ok(_) | Err(AllocError::NotAllocated { .. }) => {}
                Err(error) => panic!("free_from: {error}"),
            }
        }
    }

    /// Bytes in the blocks that the cells name.
    ///
    /// # Panics
    /// If a cell names something else, or two name one block.
    #[must_use]
    pub fn named_bytes(self) -> u64 {
        let read = |place| self.heap.read_cell(place).expect("it is a cell");
        let mut named: Vec<_> = self.places().map(read).filter(|block| !block.is_null()).collect();
        named.sort_unstable();
        let twice = named.windows(2).find(|pair| pair[0] == pair[1]);
        assert!(twice.is_none(), "two cells name one block: {twice:?}");
        let bytes = |&block| match self.heap.usable_bytes(block) {
            Ok(bytes) => bytes as u64,
            Err(error) => panic!("a cell names {block}: {error}"),
        };
        named.iter().map(bytes).sum()
    }

    /// Asserts that the blocks named are all that is allocated, to the byte.
    ///
    /// # Panics
    /// If not.
    pub fn assert_balance(self) {
        let (named, report) = (self.named_bytes(), self.heap.report());
        assert_eq!(named, report.allocated_bytes, "bytes named by cells, and allocated");
    }

    /// Empties all cells.
    ///
    /// # Panics
    /// If one cannot be.
    pub fn clear(self) {
        for place in self.places() {
            // SAFETY: blocks in cells are used by nobody.
            unsafe { self.heap.free_from(place) }.expect("it names a block, or none");
        }
    }
}
