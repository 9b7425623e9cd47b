//! Processes whose device code works in an arena, killed at any moment.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::gpu::arena::{ArenaError, ArenaOptions, DeviceArena};
use hshm_memory::{AllocatorId, BackendKind, PosixShmMmap, ThreadLocalAllocator};

use crate::device::{Device, Language, words};
use crate::exchange::{Counts, device_thread, host_thread, received};
use crate::{Pair, options};

const OBJECT: &str = "HSHM_TEST_OBJECT";
const DEVICE_THREADS: u64 = 3;
const ROUNDS: u64 = 12;

/// Takes the name away in the end.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = PosixShmMmap::unlink(&self.0);
    }
}

fn victim_process(object: &Named) -> Child {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["deaths::victim", "--exact", "--ignored", "--nocapture"]);
    command.env(OBJECT, &object.0).stdout(Stdio::piped()).spawn().unwrap()
}

/// Waits until it says that its device code works.
fn wait_for(child: &mut Child) {
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut lines = lines.map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("victim: at work")), "it ended before");
}

#[test]
fn whoever_claims_the_arena_of_a_killed_process_finds_it_whole() {
    let object = Named(format!("hshm-test-arena.{}", std::process::id()));
    let backend = Arc::new(PosixShmMmap::create(&object.0, 32 << 20, 32 << 20, 0o600).unwrap());
    let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options()).unwrap();
    let (cell, _) = heap.custom_header();
    let small = ArenaOptions { bytes: 2 << 20, ring_entries: 32 };
    let arena = DeviceArena::create_into(&heap, cell, small).unwrap();
    let pair = Pair { heap, elsewhere: arena.clone(), arena };
    let mut kept = 0;
    for round in 0..ROUNDS {
        let mut child = victim_process(&object);
        wait_for(&mut child);
        assert!(matches!(pair.arena.claim(), Err(ArenaError::Owned { .. })), "it lives");
        let until = Instant::now() + Duration::from_millis(3 * round);
        while Instant::now() < until {
            if let Some(block) = received(&pair.heap, &pair.arena) {
                // SAFETY: [owned] the device handed it over. If the ring is full, it stays.
                kept += u64::from(unsafe { pair.arena.free(block) }.is_err());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let _ = pair.heap.recover_dead();
        // Every second one is claimed by the next victim.
        if round % 2 == 0 {
            pair.arena.claim().unwrap();
            pair.assert_sound();
            pair.arena.release().unwrap();
        }
    }
    pair.arena.claim().unwrap();
    pair.assert_sound();
    empty(&pair);
    pair.assert_sound();
    let report = pair.arena.report().unwrap();
    let waiting = [report.frees_to_device, report.blocks_to_device, report.frees_to_host];
    assert_eq!((waiting, report.blocks_to_host), ([0; 3], 0), "{report:?}");
    assert_eq!(report.refused_frees, 0);
    // Lost is what a thread had in hand: one that it was to send, and one that it was to free.
    let lost = ROUNDS * (2 * DEVICE_THREADS + 1) + kept;
    assert!(report.allocated_blocks <= lost, "{} of {lost}", report.allocated_blocks);
    let heap = pair.heap.report().allocated_blocks - 1;
    assert!(heap <= ROUNDS * (DEVICE_THREADS + 1), "{heap}");
}

/// Takes all that waits, as the device and as the host.
fn empty(pair: &Pair) {
    let view = words(&pair.arena.host_view().unwrap());
    let device = Device::load(Language::C).attach(&view).unwrap();
    while let Some(block) = device.receive() {
        assert!(device.free(block));
        pair.arena.drain().unwrap();
    }
    pair.arena.drain().unwrap();
    while let Some(block) = received(&pair.heap, &pair.arena) {
        device.drain(u64::MAX);
        // SAFETY: [owned] the device handed it over.
        unsafe { pair.arena.free(block) }.unwrap();
    }
    device.drain(u64::MAX);
}

#[test]
#[ignore = "another test runs it, in a process of its own"]
#[allow(clippy::print_stdout, reason = "the process that runs this one reads it")]
fn victim() {
    let Some(object) = env::var_os(OBJECT) else { return };
    let file = PosixShmMmap::open(object.to_str().unwrap()).unwrap();
    let heap = ThreadLocalAllocator::open_fd(BackendKind::PosixShm, file).unwrap();
    let offset = heap.read_cell(heap.custom_header().0).unwrap();
    let arena = DeviceArena::open(&heap, offset).unwrap();
    arena.claim().unwrap();
    let view = words(&arena.host_view().unwrap());
    let device = Device::load(Language::C);
    let counts = Counts::default();
    // A minute at most, should nobody be there to kill it.
    let end = Instant::now() + Duration::from_secs(60);
    let is_over = || Instant::now() > end;
    thread::scope(|scope| {
        for _ in 0..DEVICE_THREADS {
            scope.spawn(|| {
                device_thread(&device.attach(&view).unwrap(), &counts, u64::MAX, is_over);
            });
        }
        scope.spawn(|| host_thread(&heap, &arena, &counts, u64::MAX, is_over));
        println!("victim: at work");
    });
}
