//! Processes that share a pool of a device's memory, killed at any moment.

#![cfg(all(unix, not(hshm_loom)))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hshm_memory::gpu::pool::{DevicePool, PoolError, PoolOptions};
use hshm_memory::{
    AllocatorId, BackendKind, InitOptions, OffsetPointer, PosixShmMmap, ThreadLocalAllocator,
};

const OBJECT: &str = "HSHM_TEST_OBJECT";
const NUMBER: &str = "HSHM_TEST_NUMBER";
const WORKERS: u64 = 3;
/// Each has so many cells for itself.
const CELLS: u64 = 40;
const ROUNDS: u64 = 15;
const GRANULE: u64 = 256;

/// Takes the name away in the end.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = PosixShmMmap::unlink(&self.0);
    }
}

/// The cells of all, behind one that names the pool's tables.
fn cell(heap: &ThreadLocalAllocator, at: u64) -> OffsetPointer {
    OffsetPointer::new(heap.custom_header().0.offset_bytes() + 8 + at * 8)
}

/// Has a worker going when it says so.
fn start(object: &Named, number: u64) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["worker", "--exact", "--ignored", "--nocapture"]);
    command.env(OBJECT, &object.0).env(NUMBER, number.to_string());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("worker: at work")), "it ended before");
    child
}

#[test]
fn what_was_under_way_when_processes_were_killed_happened_once_or_never() {
    let object = Named(format!("hshm-test-pool.{}", std::process::id()));
    let backend = Arc::new(PosixShmMmap::create(&object.0, 8 << 20, 8 << 20, 0o600).unwrap());
    let custom_header_bytes = 8 + WORKERS * CELLS * 8;
    let options = InitOptions { custom_header_bytes, ..InitOptions::default() };
    let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options).unwrap();
    // Small, so that it is full now and then.
    let options = PoolOptions { bytes: 400 * GRANULE, granule_bytes: GRANULE };
    let pool = DevicePool::create(&heap, options).unwrap();
    let place = heap.resolve(heap.custom_header().0, 8).unwrap().cast::<u64>();
    // SAFETY: [mapped] resolve checked it; [owned] no worker runs yet.
    unsafe { place.write(pool.offset().offset_bytes()) };
    let mut most = 0;
    for round in 0..ROUNDS {
        let mut workers: Vec<_> = (0..WORKERS).map(|number| start(&object, number)).collect();
        thread::sleep(Duration::from_millis(round * 2));
        for worker in &mut workers {
            worker.kill().unwrap();
        }
        for worker in &mut workers {
            assert!(!worker.wait().unwrap().success());
        }
        let check = pool.check().unwrap();
        assert!(check.is_clean(), "{check:?}");
        // Every block is in one cell, and every cell names a block.
        let named = (0..WORKERS * CELLS).map(|at| heap.read_cell(cell(&heap, at)).unwrap());
        let named: Vec<_> = named.filter(|block| !block.is_null()).collect();
        let bytes: u64 = named.iter().map(|block| pool.usable_bytes(*block).unwrap()).sum();
        let report = pool.report().unwrap();
        assert_eq!(report.allocated_blocks, named.len() as u64);
        assert_eq!(report.allocated_bytes, bytes);
        most = most.max(report.allocated_blocks);
    }
    assert_ne!(most, 0, "the workers did nothing");
    for at in 0..WORKERS * CELLS {
        // SAFETY: [owned] the workers are gone.
        unsafe { pool.free_from(cell(&heap, at)) }.unwrap();
    }
    assert_eq!(pool.report().unwrap().allocated_bytes, 0);
    assert!(pool.check().unwrap().is_clean());
    let _ = heap.recover_dead();
    assert!(heap.check().is_clean());
}

#[test]
#[ignore = "another test runs it, in a process of its own"]
#[allow(clippy::print_stdout, reason = "the process that runs this one reads it")]
fn worker() {
    let (Ok(object), Ok(number)) = (env::var(OBJECT), env::var(NUMBER)) else { return };
    let number: u64 = number.parse().unwrap();
    let file = PosixShmMmap::open(&object).unwrap();
    let heap = ThreadLocalAllocator::open_fd(BackendKind::PosixShm, file).unwrap();
    let tables = heap.read_cell(heap.custom_header().0).unwrap();
    let pool = DevicePool::open(&heap, tables).unwrap();
    let mut random = u64::from(std::process::id()) | 1;
    println!("worker: at work");
    // Half a minute or so at most, should nobody be there to kill it.
    for _ in 0..20_000_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let cell = cell(&heap, number * CELLS + (random >> 33) % CELLS);
        if heap.read_cell(cell).unwrap().is_null() {
            match pool.allocate_into(cell, (random >> 50) % (GRANULE * 20)) {
                Ok(_) | Err(PoolError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        } else {
            // SAFETY: [owned] the cell is this worker's.
            assert!(unsafe { pool.free_from(cell) }.unwrap());
        }
    }
}
