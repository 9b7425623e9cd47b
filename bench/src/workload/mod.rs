//! The workloads. Each is a loop over some [`Heap`]; the README says what it stands for.

pub(crate) mod attach;
pub(crate) mod batch;
mod control;
pub(crate) mod large;
pub(crate) mod larson;
pub(crate) mod mixed;
pub(crate) mod pages;
mod pair;
pub(crate) mod recover;
pub(crate) mod xmalloc;

use std::time::Duration;

use crate::allocator::Heap;
use crate::board::Board;
use crate::case::{Case, Measurement, Order, Workload};
use crate::random::Random;
use crate::team::{self, Job};

/// One of those at work together.
pub(crate) struct Seat<'a, H> {
    pub(crate) heap: &'a H,
    /// Its number, over all processes.
    pub(crate) number: usize,
    pub(crate) board: &'a Board,
    pub(crate) job: &'a Job,
}

/// Measures the job's case as its first process.
pub(crate) fn measure<H: Heap>(job: &Job) -> Result<Measurement, String> {
    if job.case.workload == Workload::Control {
        return control::measure(job);
    }
    if job.case.order == Order::Daemon {
        return attach::measure_through_daemon(job);
    }
    let heap = H::create(&job.setup())?;
    match job.case.workload {
        Workload::Pages => pages::measure(&heap, job),
        Workload::Attach => attach::measure(&heap, job),
        Workload::Recover => recover::measure(&heap, job),
        Workload::Pair
        | Workload::Batch
        | Workload::Mixed
        | Workload::Larson
        | Workload::Xmalloc
        | Workload::Large
        | Workload::Control
        | Workload::Scale => team::measure(&heap, job),
    }
}

/// Takes part in the job as another process.
pub(crate) fn help<H: Heap>(job: &Job, board: &Board) -> Result<(), String> {
    if job.case.workload == Workload::Attach {
        return attach::help::<H>(job, board);
    }
    let heap = H::attach(&job.setup())?;
    if job.case.workload == Workload::Recover {
        recover::help(&heap, job, board);
    } else {
        team::take_seats(&heap, job, board);
    }
    Ok(())
}

/// Does the part of one of those at work together.
pub(crate) fn take_part<H: Heap>(seat: &Seat<'_, H>) {
    match seat.job.case.workload {
        Workload::Pair => pair::run(seat),
        Workload::Batch => batch::run(seat),
        Workload::Mixed | Workload::Scale => mixed::run(seat),
        Workload::Larson => larson::run(seat),
        Workload::Xmalloc => xmalloc::run(seat),
        Workload::Large => large::run(seat),
        Workload::Pages | Workload::Attach | Workload::Control | Workload::Recover => {}
    }
}

impl<H: Heap> Seat<'_, H> {
    fn case(&self) -> &Case {
        &self.job.case
    }

    fn random(&self) -> Random {
        Random::new(self.number)
    }

    /// Measures `work`, which does as many rounds as it is told, of `per_round` operations each: as
    /// many as fill the time that a run is to take, after some that warm up.
    fn time(&self, per_round: usize, mut work: impl FnMut(usize)) {
        let rounds = self.calibrate(&mut work);
        self.time_rounds(rounds, per_round, work);
    }

    /// Measures `rounds` rounds of `work`, all seats at the same time.
    fn time_rounds(&self, rounds: usize, per_round: usize, mut work: impl FnMut(usize)) {
        self.board.wait(self.case().seats());
        let clock = self.job.settings.clock;
        let begin = clock.now();
        work(rounds);
        let taken = clock.now().saturating_sub(begin);
        self.board.set_result(self.number, taken.as_nanos(), rounds * per_round);
        // Nobody leaves while others are measured: leaving costs them time.
        self.board.wait(self.case().seats());
    }

    /// How many rounds fill the time that a run is to take.
    fn calibrate(&self, work: &mut impl FnMut(usize)) -> usize {
        if let Some(rounds) = self.job.settings.rounds {
            work(rounds);
            return rounds;
        }
        let target = Duration::from_millis(self.job.settings.run_ms);
        let clock = self.job.settings.clock;
        let begin = clock.now();
        let mut rounds = 1;
        let taken = loop {
            let last = clock.now();
            work(rounds);
            let now = clock.now();
            if now - begin >= target / 4 {
                break now - last;
            }
            rounds *= 2;
        };
        fitting(rounds, taken, target)
    }
}

/// How many rounds fit in `target` if `rounds` took `taken`.
fn fitting(rounds: usize, taken: Duration, target: Duration) -> usize {
    let fitting = target.as_secs_f64() / taken.as_secs_f64().max(1e-9) * rounds as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive")]
    let fitting = fitting as usize;
    fitting.max(1)
}

/// Writes the block's first word, as its user would.
#[inline(always)]
fn touch(block: u64, address: *mut u8) {
    #[allow(clippy::cast_ptr_alignment, reason = "blocks are aligned to 16")]
    let address = address.cast::<u64>();
    // SAFETY: [owned] the block is ours, at least 16 bytes long and aligned to 8; volatile, so that
    // the store is made and the block with it.
    unsafe { address.write_volatile(block) };
}

/// Allocates a block and writes its first word.
#[inline(always)]
fn make<H: Heap>(heap: &H, bytes: usize) -> u64 {
    let (block, address) = heap.allocate_mapped(bytes);
    touch(block, address);
    block
}

/// Frees all blocks of `table`.
fn free_all<H: Heap>(heap: &H, table: &[u64]) {
    for &block in table {
        // SAFETY: [owned] tables hold allocated blocks of ours, each once.
        unsafe { heap.free(block) };
    }
}

/// Writes every byte of the block.
fn fill<H: Heap>(heap: &H, block: u64, bytes: usize) {
    let address = heap.address(block, bytes);
    // SAFETY: [owned] the block is ours and `bytes` long.
    unsafe { address.write_bytes(1, bytes) };
}
