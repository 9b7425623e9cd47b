//! `recover`: a worker with 1 GiB of live blocks is killed; how long until its pages are anybody's,
//! and the longest that another worker, which never stops, waited meanwhile.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::make;
use super::mixed::{MAX_BYTES, SLOTS, replace};
use crate::allocator::Heap;
use crate::board::{Board, spin_until};
use crate::case::Measurement;
use crate::random::{Random, SIZES, log_uniform_sizes};
use crate::team::{Helper, Job};

/// What the worker that is killed holds.
const LIVE_BYTES: usize = 1 << 30;
const VICTIM: usize = 1;
const SURVIVOR: usize = 2;

// What `Board::flag` says.
const HOLDING: u64 = 1;
const STOP: u64 = 2;

pub(super) fn measure<H: Heap>(heap: &H, job: &Job) -> Result<Measurement, String> {
    heap.begin_thread();
    crate::system::pin(0);
    let (board, file) = Board::create();
    let victim = Helper::spawn(job, VICTIM, &file)?;
    spin_until(|| {
        std::thread::sleep(Duration::from_millis(1));
        board.flag.load(Ordering::Acquire) == HOLDING
    });
    let survivor = Helper::spawn(job, SURVIVOR, &file)?;
    // The survivor's longest pause without anybody dying: the machine's own.
    spin_until(|| board.second.load(Ordering::Acquire) > 0);
    board.first.store(0, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(job.settings.run_ms));
    let quiet_pause = board.first.swap(0, Ordering::Relaxed);
    let begin = Instant::now();
    victim.kill()?;
    let died = begin.elapsed();
    let recovered = heap.recover()?;
    let taken = begin.elapsed();
    std::thread::sleep(Duration::from_millis(job.settings.run_ms).saturating_sub(taken));
    let pause = board.first.load(Ordering::Relaxed);
    board.flag.store(STOP, Ordering::Release);
    survivor.wait()?;
    if recovered == 0 {
        return Err("nobody was found dead".to_owned());
    }
    Ok(Measurement::of(taken.as_nanos() as f64)
        .with("exit_ms", died.as_secs_f64() * 1e3)
        .with("recover_ms", (taken - died).as_secs_f64() * 1e3)
        .with("survivor_pause_us", pause as f64 / 1e3)
        .with("quiet_pause_us", quiet_pause as f64 / 1e3))
}

pub(super) fn help<H: Heap>(heap: &H, job: &Job, board: &Board) {
    heap.begin_thread();
    // The survivor has a processor to itself, if there are two: the victim's and whoever recovers share
    // the other, of which only one ever runs.
    crate::system::pin(job.process - VICTIM);
    let sizes = log_uniform_sizes(16, MAX_BYTES);
    let mut random = Random::new(job.process);
    if job.process == VICTIM {
        let mut live = 0;
        let mut table = Vec::new();
        while live < LIVE_BYTES {
            let bytes = usize::from(sizes[table.len() % SIZES]);
            table.push(make(heap, bytes));
            live += bytes;
        }
        board.flag.store(HOLDING, Ordering::Release);
        loop {
            replace(heap, &mut table, &sizes, &mut random, 1000);
        }
    }
    let mut table: Vec<_> = (0..SLOTS).map(|at| make(heap, sizes[at % SIZES].into())).collect();
    let mut last = Instant::now();
    while board.flag.load(Ordering::Relaxed) != STOP {
        replace(heap, &mut table, &sizes, &mut random, 1);
        let now = Instant::now();
        let pause = u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX);
        if pause > board.first.load(Ordering::Relaxed) {
            board.first.store(pause, Ordering::Relaxed);
        }
        board.second.store(1, Ordering::Release);
        last = now;
    }
    super::free_all(heap, &table);
}
