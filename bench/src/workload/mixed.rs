//! `mixed`: random places of a table of blocks get new blocks, of 16 bytes to 8 KiB.

use super::{Seat, free_all, make};
use crate::allocator::Heap;
use crate::random::{Random, SIZES, Sizes, log_uniform_sizes, scale};

/// Blocks of the table.
pub(crate) const SLOTS: usize = 10_000;
/// The largest of them.
pub(crate) const MAX_BYTES: usize = 8 << 10;

pub(super) fn run<H: Heap>(seat: &Seat<'_, H>) {
    let heap = seat.heap;
    let sizes = log_uniform_sizes(16, MAX_BYTES);
    let mut random = seat.random();
    let mut table: Vec<_> = (0..SLOTS).map(|at| make(heap, sizes[at % SIZES].into())).collect();
    seat.time(1, |operations| replace(heap, &mut table, &sizes, &mut random, operations));
    free_all(heap, &table);
}

/// Replaces random blocks of `table`, so many times.
#[inline(always)]
pub(super) fn replace<H: Heap>(
    heap: &H,
    table: &mut [u64],
    sizes: &Sizes,
    random: &mut Random,
    times: usize,
) {
    let slots = table.len();
    for _ in 0..times {
        let number = random.next();
        #[allow(clippy::cast_possible_truncation, reason = "below SIZES")]
        let bytes = usize::from(sizes[number as usize % SIZES]);
        let place = &mut table[scale(number, slots)];
        // SAFETY: [owned] tables hold allocated blocks of ours, each once.
        unsafe { heap.free(*place) };
        *place = make(heap, bytes);
    }
}
