//! `pages`: how much memory stands behind 256 MiB of blocks of mixed sizes, all written; and how
//! much at most while larger blocks take the place of nine in ten of them.

use std::time::Instant;

use super::fill;
use crate::allocator::Heap;
use crate::case::Measurement;
use crate::random::Random;
use crate::system::{anonymous_bytes, shared_bytes};
use crate::team::Job;

/// Bytes that are live, before and after.
const LIVE_BYTES: usize = 256 << 20;
/// How often memory is looked at, in bytes allocated.
const LOOK_BYTES: usize = 1 << 20;

pub(super) fn measure<H: Heap>(heap: &H, job: &Job) -> Result<Measurement, String> {
    heap.begin_thread();
    crate::system::pin(0);
    let mut random = Random::new(0);
    // The harness's own tables are resident before the first look.
    let mut table = vec![(1_u64, 1_u32); LIVE_BYTES / 256];
    table.clear();
    let resident = || anonymous_bytes() + shared_bytes(&job.segment);
    let before = resident();
    let begin = Instant::now();
    let (mut live, mut operations) = (0, 0_usize);
    while live < LIVE_BYTES {
        let bytes = random.log_uniform(16, 8 << 10);
        live += allocate(heap, bytes, &mut table);
        operations += 1;
    }
    let faulted = resident().saturating_sub(before);
    let peak_live = live;
    let first_live = live;
    random.shuffle(&mut table);
    for (block, bytes) in table.drain(table.len() / 10..) {
        // SAFETY: [owned] the table holds allocated blocks, each once.
        unsafe { heap.free(block) };
        live -= bytes as usize;
    }
    let (mut peak, mut next_look) = (resident().saturating_sub(before).max(faulted), live);
    while live < LIVE_BYTES {
        let bytes = (8 << 10) + random.below(56 << 10);
        live += allocate(heap, bytes, &mut table);
        operations += 1;
        if live >= next_look {
            peak = peak.max(resident().saturating_sub(before));
            next_look = live + LOOK_BYTES;
        }
    }
    peak = peak.max(resident().saturating_sub(before));
    let nanoseconds = begin.elapsed().as_nanos() as f64;
    let peak_live = peak_live.max(live);
    let mut measurement = Measurement::of(nanoseconds / operations as f64)
        .with("faulted_per_live_byte", faulted as f64 / first_live as f64)
        .with("peak_per_peak_live_byte", peak as f64 / peak_live as f64);
    measurement.bytes_faulted = Some(faulted);
    for (block, _) in table {
        // SAFETY: [owned] the table holds allocated blocks, each once.
        unsafe { heap.free(block) };
    }
    Ok(measurement)
}

fn allocate<H: Heap>(heap: &H, bytes: usize, table: &mut Vec<(u64, u32)>) -> usize {
    let block = heap.allocate(bytes);
    fill(heap, block, bytes);
    table.push((block, u32::try_from(bytes).unwrap_or(u32::MAX)));
    bytes
}
