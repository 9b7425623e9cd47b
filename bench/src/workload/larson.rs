//! `larson`: threads replace random blocks of tables, and pass the tables on: each frees what
//! another allocated. After Larson and Krishnan, "Memory Allocation for Long-Running Server
//! Applications" (1998), with the usual parameters, but threads that stay.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::mixed::replace;
use super::{Seat, fitting, free_all, make};
use crate::allocator::Heap;
use crate::board::spin_until;
use crate::random::{SIZES, uniform_sizes};

/// The largest block.
pub(crate) const MAX_BYTES: usize = 1000;
/// Blocks that are live for each thread.
#[cfg(feature = "iceoryx2")]
pub(crate) const BLOCKS_PER_SEAT: usize = TABLES * SLOTS;

/// Blocks of a table.
const SLOTS: usize = 5000;
/// Tables for each thread, so that nobody waits for a table that another works on.
const TABLES: usize = 2;
/// Blocks replaced before a table is passed on.
const ROUND: usize = 10 * SLOTS;
/// Rounds before those that are measured.
const WARM_ROUNDS: usize = 10;

/// Tables on their way to a thread.
static INBOXES: [Mutex<VecDeque<Vec<u64>>>; 64] = [const { Mutex::new(VecDeque::new()) }; 64];

pub(super) fn run<H: Heap>(seat: &Seat<'_, H>) {
    let heap = seat.heap;
    let sizes = uniform_sizes(16, MAX_BYTES);
    let mut random = seat.random();
    let seats = seat.case().threads;
    let mine = &INBOXES[seat.number % 64];
    let next = &INBOXES[(seat.number + 1) % seats % 64];
    for _ in 0..TABLES {
        let table = (0..SLOTS).map(|at| make(heap, sizes[at % SIZES].into())).collect();
        put(mine, table);
    }
    let mut play = |rounds: usize| {
        for _ in 0..rounds {
            let mut table = take(mine);
            replace(heap, &mut table, &sizes, &mut random, ROUND);
            put(next, table);
        }
    };
    // All do the same number of rounds, or some would wait for tables for ever: the first says it.
    let begin = Instant::now();
    play(WARM_ROUNDS);
    if seat.number == 0 {
        let target = Duration::from_millis(seat.job.settings.run_ms);
        let rounds = fitting(WARM_ROUNDS, begin.elapsed(), target);
        seat.board.first.store(rounds as u64, Ordering::Relaxed);
    }
    seat.board.wait(seats);
    let rounds = usize::try_from(seat.board.first.load(Ordering::Relaxed)).unwrap_or(1);
    seat.time_rounds(rounds, ROUND, play);
    while let Some(table) = lock(mine).pop_front() {
        free_all(heap, &table);
    }
}

fn lock(inbox: &Mutex<VecDeque<Vec<u64>>>) -> std::sync::MutexGuard<'_, VecDeque<Vec<u64>>> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

fn put(inbox: &Mutex<VecDeque<Vec<u64>>>, table: Vec<u64>) {
    lock(inbox).push_back(table);
}

fn take(inbox: &Mutex<VecDeque<Vec<u64>>>) -> Vec<u64> {
    let mut taken = None;
    spin_until(|| {
        taken = lock(inbox).pop_front();
        taken.is_some()
    });
    taken.unwrap_or_default()
}
