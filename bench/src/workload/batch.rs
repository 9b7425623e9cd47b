//! `batch`: 10 000 blocks are allocated, then freed in some order.

use super::{Seat, make};
use crate::allocator::Heap;
use crate::case::Order;

/// Blocks of a batch.
pub(crate) const BLOCKS: usize = 10_000;

pub(super) fn run<H: Heap>(seat: &Seat<'_, H>) {
    let heap = seat.heap;
    let bytes = std::hint::black_box(seat.case().size);
    let order = order(seat);
    let mut table = vec![0_u64; BLOCKS];
    seat.time(BLOCKS, |batches| {
        for _ in 0..batches {
            for place in &mut table {
                *place = make(heap, bytes);
            }
            for &place in &order {
                // SAFETY: [owned] allocated above; each place is freed once.
                unsafe { heap.free(table[place as usize]) };
            }
        }
    });
}

/// The places of the table in the order in which they are freed.
fn order<H: Heap>(seat: &Seat<'_, H>) -> Vec<u32> {
    let places = (0..BLOCKS).filter_map(|place| u32::try_from(place).ok());
    let mut order: Vec<u32> = places.collect();
    match seat.case().order {
        Order::Lifo => order.reverse(),
        Order::Random => seat.random().shuffle(&mut order),
        Order::Plain | Order::Fifo | Order::Embedded | Order::Daemon => {}
    }
    order
}
