//! `pair`: a block is allocated, written to and freed at once.

use super::{Seat, make};
use crate::allocator::Heap;

/// Sizes are read from memory, all the same: a compiler must not compute with the one size before
/// the loop, as no user's would.
const SIZES: usize = 64;

pub(super) fn run<H: Heap>(seat: &Seat<'_, H>) {
    let sizes = std::hint::black_box([seat.case().size; SIZES]);
    let heap = seat.heap;
    seat.time(1, |operations| {
        for number in 0..operations {
            let block = make(heap, sizes[number % SIZES]);
            // SAFETY: [owned] just allocated.
            unsafe { heap.free(block) };
        }
    });
}
