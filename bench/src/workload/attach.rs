//! `attach`: a fresh process opens a segment, maps it and allocates its first block.

use std::time::Instant;

use super::make;
use crate::allocator::Heap;
use crate::board::Board;
use crate::case::{Measurement, Order};
use crate::team::{Helper, Job};

/// Processes that attach, one after the other. The median is reported.
const PROCESSES: usize = 25;
/// The size of the first block, in bytes.
const BYTES: usize = 64;

pub(super) fn measure<H: Heap>(heap: &H, job: &Job) -> Result<Measurement, String> {
    if job.case.order == Order::Daemon {
        return Err("there is no daemon yet".to_owned());
    }
    heap.begin_thread();
    // Somebody is attached already, as in a system at work.
    let block = make(heap, BYTES);
    let (board, file) = Board::create();
    let mut samples = Vec::new();
    for _ in 0..PROCESSES {
        Helper::spawn(job, 1, &file)?.wait()?;
        samples.push(board.mean());
    }
    // SAFETY: [owned] allocated above.
    unsafe { heap.free(block) };
    samples.sort_by(f64::total_cmp);
    Ok(Measurement::of(samples[samples.len() / 2]))
}

pub(super) fn help<H: Heap>(job: &Job, board: &Board) -> Result<(), String> {
    crate::system::pin(0);
    let begin = Instant::now();
    let heap = H::attach(&job.setup())?;
    let block = make(&heap, BYTES);
    let taken = begin.elapsed();
    board.set_result(0, taken.as_nanos(), 1);
    // SAFETY: [owned] allocated above.
    unsafe { heap.free(block) };
    Ok(())
}
