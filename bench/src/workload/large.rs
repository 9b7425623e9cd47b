//! `large`: blocks of 1 to 64 MiB. One at a time, of which the first word is written; or several of
//! random sizes, of which a word of every page is written.

use super::{Seat, free_all, make};
use crate::allocator::Heap;
use crate::random::Random;

/// Blocks that live at once, where sizes vary.
const SLOTS: usize = 8;
const PAGE_BYTES: usize = 4096;
/// Blocks that are replaced before anything is measured; of one size, one pair is enough. Until then
/// allocators come to use ever more memory, and what an operation takes on average depends on how many
/// of them a run has: so on how fast the first of them were, and on how long the run is to be.
const WARM_UP: usize = 400;

pub(super) fn run<H: Heap>(seat: &Seat<'_, H>) {
    let heap = seat.heap;
    let bytes = std::hint::black_box(seat.case().size);
    if bytes > 0 {
        let pairs = |operations| {
            for _ in 0..operations {
                let block = make(heap, bytes);
                // SAFETY: [owned] just allocated.
                unsafe { heap.free(block) };
            }
        };
        pairs(1);
        seat.time(1, pairs);
        return;
    }
    let mut random = seat.random();
    let mut table: Vec<_> = (0..SLOTS).map(|_| make_all(heap, &mut random)).collect();
    let mut replace = |blocks| {
        for _ in 0..blocks {
            let place = &mut table[random.below(SLOTS)];
            // SAFETY: [owned] the table holds allocated blocks, each once.
            unsafe { heap.free(*place) };
            *place = make_all(heap, &mut random);
        }
    };
    replace(WARM_UP);
    seat.time(1, replace);
    free_all(heap, &table);
}

/// Allocates a block and writes to every page of it.
fn make_all<H: Heap>(heap: &H, random: &mut Random) -> u64 {
    let bytes = random.log_uniform(1 << 20, 64 << 20);
    let block = make(heap, bytes);
    let address = heap.address(block, bytes);
    for page in 0..bytes / PAGE_BYTES {
        let first = address.wrapping_add(page * PAGE_BYTES);
        // SAFETY: [owned] within the block, which is ours.
        unsafe { first.write_volatile(1) };
    }
    block
}
