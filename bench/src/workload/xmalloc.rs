//! `xmalloc`: one thread or process allocates blocks and hands them over in batches; another frees
//! them. The time is that from one batch to the next, for each block. After Lever and Boreham,
//! "malloc() Performance in a Multithreaded Linux Environment" (2000).

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Seat, fitting, make};
use crate::allocator::Heap;
use crate::board::{BATCH, Batch};
use crate::random::{SIZES, Sizes, uniform_sizes};

/// The largest block.
pub(crate) const MAX_BYTES: usize = 512;
/// Blocks that may be live at once, for each of the two.
#[cfg(feature = "iceoryx2")]
pub(crate) const BLOCKS_IN_FLIGHT: usize = 66 * BATCH;

/// Batches before those that are measured.
const WARM_BATCHES: usize = 1000;

pub(super) fn run<H: Heap>(seat: &Seat<'_, H>) {
    let sizes = uniform_sizes(16, MAX_BYTES);
    let work = |batches| match seat.number {
        0 => produce(seat, &sizes, batches),
        _ => consume(seat, batches),
    };
    // Both move as many batches: the first says how many.
    let begin = Instant::now();
    work(WARM_BATCHES);
    if seat.number == 0 {
        let target = Duration::from_millis(seat.job.settings.run_ms);
        let batches = fitting(WARM_BATCHES, begin.elapsed(), target);
        seat.board.first.store(batches as u64, Ordering::Relaxed);
    }
    seat.board.wait(seat.case().seats());
    let batches = usize::try_from(seat.board.first.load(Ordering::Relaxed)).unwrap_or(1);
    seat.time_rounds(batches, BATCH, work);
}

fn produce<H: Heap>(seat: &Seat<'_, H>, sizes: &Sizes, batches: usize) {
    let heap = seat.heap;
    let mut batch: Batch = [0; BATCH];
    let mut at = 0;
    for _ in 0..batches {
        for place in &mut batch {
            at = (at + 1) % SIZES;
            *place = heap.export(make(heap, sizes[at].into()));
        }
        seat.board.put(&batch);
    }
}

fn consume<H: Heap>(seat: &Seat<'_, H>, batches: usize) {
    let heap = seat.heap;
    for _ in 0..batches {
        let batch = seat.board.take();
        for block in batch {
            // SAFETY: [owned] handed over by whoever allocated it.
            unsafe { heap.free(heap.import(block)) };
        }
    }
}
