//! `attach`: a fresh process opens a segment, maps it and allocates its first block; by the segment's
//! name, or by connecting to the daemon and asking for it.

use std::time::Instant;

use super::{make, touch};
use crate::allocator::Heap;
use crate::board::Board;
use crate::case::{Measurement, Order};
use crate::daemon::{Daemon, attach, connect, text};
use crate::team::{Helper, Job};

/// Processes that attach, one after the other. The median is reported.
const PROCESSES: usize = 25;
/// The size of the first block, in bytes.
const BYTES: usize = 64;

pub(super) fn measure<H: Heap>(heap: &H, job: &Job) -> Result<Measurement, String> {
    heap.begin_thread();
    // Somebody is attached already, as in a system at work.
    let block = make(heap, BYTES);
    let measured = measure_processes(job);
    // SAFETY: [owned] allocated above.
    unsafe { heap.free(block) };
    measured
}

pub(super) fn measure_through_daemon(job: &Job) -> Result<Measurement, String> {
    let _daemon = Daemon::start(&job.segment, job.setup().segment_bytes())?;
    let client = connect(&job.segment).map_err(text)?;
    let segment = client.attach(&job.segment).map_err(text)?;
    segment.allocator().allocate(BYTES).map_err(text)?;
    measure_processes(job)
}

/// Starts processes that attach, one after the other.
fn measure_processes(job: &Job) -> Result<Measurement, String> {
    let (board, file) = Board::create();
    let mut samples = Vec::new();
    for _ in 0..PROCESSES {
        Helper::spawn(job, 1, &file)?.wait()?;
        samples.push(board.mean());
    }
    samples.sort_by(f64::total_cmp);
    Ok(Measurement::of(samples[samples.len() / 2]))
}

pub(super) fn help<H: Heap>(job: &Job, board: &Board) -> Result<(), String> {
    crate::system::pin(0);
    if job.case.order == Order::Daemon {
        return help_through_daemon(job, board);
    }
    let begin = Instant::now();
    let heap = H::attach(&job.setup())?;
    let block = make(&heap, BYTES);
    let taken = begin.elapsed();
    board.set_result(0, taken.as_nanos(), 1);
    // SAFETY: [owned] allocated above.
    unsafe { heap.free(block) };
    Ok(())
}

fn help_through_daemon(job: &Job, board: &Board) -> Result<(), String> {
    let begin = Instant::now();
    let (_client, segment) = attach(&job.segment).map_err(text)?;
    let (block, address) = segment.allocator().allocate_mapped(BYTES).map_err(text)?;
    touch(block.offset_bytes(), address.as_ptr());
    board.set_result(0, begin.elapsed().as_nanos(), 1);
    // SAFETY: [owned] allocated above.
    unsafe { segment.allocator().free(block) }.map_err(text)
}
