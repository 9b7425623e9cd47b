//! Blocks that one process allocates and another frees.

use hshm_memory::{InitOptions, OnExit};
use hshm_tests::process::Worker;
use hshm_tests::ring::RING_BYTES;
use hshm_tests::segment::{Kind, TestSegment};

/// Two processes send each other `blocks` blocks each.
fn exchange(kind: Kind, on_exit: OnExit, blocks: u64) {
    let options =
        InitOptions { on_exit, custom_header_bytes: 2 * RING_BYTES, ..InitOptions::default() };
    let segment = TestSegment::new(kind, 128 << 20, options);
    let mut workers: Vec<Worker> = (0..2)
        .map(|side: u32| {
            let mut command = segment.command(crate::WORKER, "exchange");
            Worker::start(command.args([side.to_string(), blocks.to_string()]))
        })
        .collect();
    // Whoever looks while they are at work disturbs nobody.
    for _ in 0..10 {
        let _ = segment.heap.check();
        let _ = segment.heap.report();
    }
    workers.drain(..).for_each(Worker::finish);

    if on_exit == OnExit::Reclaim {
        // What their threads left parked goes with the processes.
        let _ = segment.heap.recover_dead();
    }
    segment.assert_empty();
    let operations = segment.heap.report().operations;
    assert_eq!(operations.allocations, 2 * blocks);
    assert_eq!(operations.local_frees + operations.remote_frees, 2 * blocks);
    // Most of what the other allocated is handed out again by who freed it.
    assert!(operations.remote_frees > 0, "{operations:?}");
}

#[test]
fn two_processes_exchange_ten_million_blocks() {
    exchange(Kind::PosixShm, OnExit::Keep, 5_000_000);
}

#[test]
fn two_processes_exchange_blocks_of_a_memory_file_that_go_with_their_owner() {
    exchange(Kind::Memfd, OnExit::Reclaim, 500_000);
}
