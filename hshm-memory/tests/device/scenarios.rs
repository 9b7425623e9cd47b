//! What host and device do together.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::OffsetPointer;
use hshm_memory::gpu::arena::{ArenaError, ArenaOptions};

use crate::bench::{Bench, Named, Word, fill, verify};
use crate::gpu::Gpu;
use crate::say;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn name(what: &str) -> Named {
    Named(format!("hshm-test-device-{what}.{}", std::process::id()))
}

/// Groups and threads of a group: a device has room for many, the host's threads for few.
fn grid(gpu: &Gpu) -> (u32, u32) {
    if gpu.is_double { (2, 4) } else { (16, 64) }
}

/// Ends the kernels that wait for it, however this thread ends.
struct Ending<'a>(&'a Bench);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Kernels read blocks that the host filled, and change them in place.
pub(crate) fn host_blocks(gpu: &Gpu) {
    const BLOCKS: u64 = 3000;
    let name = name("blocks");
    let bench = Bench::create(gpu.vendor, &name, 16 * MIB, small());
    let (table, entries) = bench.block(BLOCKS);
    let blocks: Vec<_> = (0..BLOCKS)
        .map(|at| {
            let count = 2 + at % 255;
            let (block, words) = bench.block(count);
            // SAFETY: [owned] it was just allocated.
            unsafe { fill(words, block, count) };
            let entry = entries.wrapping_add(usize::try_from(at).unwrap());
            // SAFETY: [owned] the table is as long.
            unsafe { entry.write(block.offset_bytes()) };
            (block, words)
        })
        .collect();
    let (groups, threads) = grid(gpu);
    let words = [table.offset_bytes(), BLOCKS, u64::from(groups * threads)];
    bench.run(gpu, "turn_over", groups, threads, &words);
    assert_eq!(bench.read(Word::Freed), BLOCKS, "each was looked at once");
    for (block, words) in blocks {
        // SAFETY: [owned] the kernel is over.
        unsafe { verify(words, block, true) };
        // SAFETY: [owned] nobody uses it any more.
        unsafe { bench.heap.free(block) }.unwrap();
    }
    // SAFETY: [owned] as above.
    unsafe { bench.heap.free(table) }.unwrap();
    bench.assert_empty();
}

fn small() -> ArenaOptions {
    ArenaOptions { bytes: 3 * MIB, ring_entries: 64 }
}

/// Kernels allocate, free and send in the heap while the host's threads do, and each side frees what the other made.
pub(crate) fn shared_heap(gpu: &Gpu) {
    const HOST_THREADS: u64 = 2;
    let name = name("heap");
    let bench = Bench::create(gpu.vendor, &name, 32 * MIB, small());
    let (groups, threads) = grid(gpu);
    let sends = if gpu.is_double { 1500 } else { 200 };
    let (by_device, by_host) = (u64::from(groups * threads) * sends, 20_000);
    gpu.start("exchange", groups, threads, &bench.kit(&[sends]));
    let (counts, started) = (Counts::default(), Instant::now());
    thread::scope(|scope| {
        let _ending = Ending(&bench);
        let hosts: Vec<_> = (0..HOST_THREADS)
            .map(|_| {
                scope.spawn(|| {
                    host_thread(&bench, by_host, &counts, || {
                        // Not by the board's words: what a kernel modifies there with its device's own scope,
                        // the host sees for certain only when the kernel is over.
                        counts.received.load(Ordering::Relaxed) == by_device
                            && counts.returned.load(Ordering::Relaxed) == by_host
                    });
                })
            })
            .collect();
        for host in hosts {
            host.join().unwrap();
        }
    });
    gpu.wait();
    let seconds = started.elapsed().as_secs_f64();
    assert_eq!(bench.read(Word::Left), u64::from(groups * threads));
    assert_eq!((bench.read(Word::Sent), bench.read(Word::Wrong)), (by_device, 0));
    assert_eq!(bench.read(Word::Freed), by_host);
    bench.run(gpu, "drain", 1, 1, &[]);
    bench.arena.drain().unwrap();
    bench.assert_empty();
    let blocks = by_device + by_host;
    say(
        gpu,
        &format!(
            "{blocks} blocks crossed in {seconds:.3} s, {:.0} a second",
            f64::from(u32::try_from(blocks).unwrap()) / seconds
        ),
    );
}

/// What the host's threads did together.
#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    /// Blocks of the device's that came.
    received: AtomicU64,
    /// Blocks of the host's that the device gave back.
    returned: AtomicU64,
}

/// Sends its share of `sends` blocks, and frees what it gets, until `is_over`.
fn host_thread(bench: &Bench, sends: u64, counts: &Counts, is_over: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let (mut unsent, mut unfreed) = (None, None);
    while !is_over() || unfreed.is_some() || unsent.is_some() {
        assert!(Instant::now() < deadline, "waited in vain");
        if unsent.is_none() {
            let take = |sent: u64| (sent < sends).then_some(sent + 1);
            if let Ok(number) = counts.sent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            {
                let count = 2 + number % 255;
                let (block, words) = bench.block(count);
                // SAFETY: [owned] it was just allocated.
                unsafe { fill(words, block, count) };
                unsent = Some(block);
            }
        }
        if let Some(block) = unsent {
            match bench.arena.send(block) {
                Ok(()) => unsent = None,
                Err(ArenaError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        if unfreed.is_none() {
            unfreed = receive(bench);
            counts.received.fetch_add(u64::from(unfreed.is_some()), Ordering::Relaxed);
        }
        if let Some(block) = unfreed {
            // SAFETY: [owned] the device handed it over, and nobody else has it.
            match unsafe { bench.arena.free(block) } {
                Ok(()) => unfreed = None,
                Err(ArenaError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        let drained = bench.arena.drain().unwrap();
        assert_eq!(drained.refused, 0);
        counts.returned.fetch_add(drained.freed, Ordering::Relaxed);
        thread::yield_now();
    }
}

/// Takes a block of the device's, if one is there, and looks whether all arrived.
pub(crate) fn receive(bench: &Bench) -> Option<OffsetPointer> {
    let block = bench.arena.receive().unwrap()?;
    let words = bench.heap.resolve(block, 16).unwrap();
    // SAFETY: [owned] the device filled it, and handed it over.
    unsafe { verify(words.cast().as_ptr(), block, false) };
    Some(block)
}

/// How fast a device allocates and frees in the host's memory.
pub(crate) fn rate(gpu: &Gpu) {
    let name = name("rate");
    let options = ArenaOptions { bytes: 64 * MIB, ring_entries: 1024 };
    let bench = Bench::create(gpu.vendor, &name, 128 * MIB, options);
    let (groups, threads) = if gpu.is_double { (1, 4) } else { (64, 128) };
    let rounds = if gpu.is_double { 20_000 } else { 200 };
    for bytes in [64, 1024] {
        bench.clear();
        let started = Instant::now();
        bench.run(gpu, "churn", groups, threads, &[rounds, bytes]);
        let seconds = started.elapsed().as_secs_f64();
        assert_eq!(bench.read(Word::Refused), 0);
        let pairs = u32::try_from(u64::from(groups * threads) * rounds).unwrap();
        let rate = f64::from(pairs) / seconds / 1e6;
        say(
            gpu,
            &format!(
                "{rate:.2} million allocations and frees of {bytes} B a second, {groups} x {threads} threads"
            ),
        );
        bench.assert_empty();
    }
}

/// How fast a device reads and writes registered memory of the host's.
pub(crate) fn bandwidth(gpu: &Gpu) {
    let name = name("bandwidth");
    let mib = if gpu.is_double { 32 } else { 512 };
    let bench = Bench::create(gpu.vendor, &name, (mib + 32) * MIB, small());
    let count = mib * MIB / 8;
    let (block, words) = bench.block(count);
    let (groups, threads) = if gpu.is_double { (1, 2) } else { (256, 256) };
    let all = [block.offset_bytes(), count, u64::from(groups * threads), 17];
    let word = |at: u64| {
        // SAFETY: [owned] no kernel is at work, and the block is as long.
        unsafe { words.wrapping_add(usize::try_from(at).unwrap()).read() }
    };
    for kernel in ["write_all", "read_all"] {
        // The first is for whatever is made ready when it is first needed.
        for is_timed in [false, true] {
            bench.clear();
            let started = Instant::now();
            bench.run(gpu, kernel, groups, threads, &all);
            let seconds = started.elapsed().as_secs_f64();
            if is_timed {
                let gib = f64::from(u32::try_from(mib).unwrap()) / 1024.0 / seconds;
                say(gpu, &format!("{kernel}: {gib:.1} GiB/s of the host's memory, {mib} MiB"));
            }
        }
        assert_eq!([word(0), word(count - 1)], [17, count + 16]);
    }
    let sum = (0..count).fold(0_u64, |sum, at| sum.wrapping_add(at + 17));
    assert_eq!(bench.read(Word::Sent), sum);
    // SAFETY: [owned] nobody uses it any more.
    unsafe { bench.heap.free(block) }.unwrap();
    bench.assert_empty();
}

/// What a device is called, and whether it and the host may modify the same words.
pub(crate) fn attributes(gpu: &Gpu) {
    for (number, device) in gpu.driver.devices.iter().enumerate() {
        let atomics = match device.host_native_atomics {
            Some(true) => "native host atomics",
            Some(false) => "no native host atomics",
            None => "native host atomics: not told",
        };
        let version = &gpu.driver.version;
        say(gpu, &format!("device {number}: {}, driver for {version}, {atomics}", device.name));
    }
}

/// A process is killed whose kernels are at work, and the next owner finds the arena whole.
pub(crate) fn killed(gpu: &Gpu, start_victim: impl Fn(&str) -> std::process::Child) {
    let rounds = if gpu.is_double { 8 } else { 4 };
    let name = name("killed");
    let bench = Bench::create(gpu.vendor, &name, 32 * MIB, small());
    let (mut unfreed, mut lost) = (0_u64, 0_u64);
    for round in 0..rounds {
        bench.arena.release().unwrap();
        bench.clear();
        let mut victim = start_victim(&name.0);
        let until = Instant::now() + Duration::from_millis(20 * round);
        let mut seen = 0;
        let deadline = Instant::now() + PATIENCE;
        while seen == 0 || Instant::now() < until {
            assert!(Instant::now() < deadline, "the victim's kernels sent nothing");
            if let Some(block) = receive(&bench) {
                seen += 1;
                // SAFETY: [owned] the device handed it over. If the ring is full, it stays.
                unfreed += u64::from(unsafe { bench.arena.free(block) }.is_err());
            }
        }
        victim.kill().unwrap();
        assert!(!victim.wait().unwrap().success());
        let _ = bench.heap.recover_dead();
        bench.arena.claim().unwrap();
        bench.assert_sound();
        while receive(&bench).is_some() {
            unfreed += 1;
        }
        bench.clear();
        bench.run(gpu, "drain", 1, 1, &[]);
        let (groups, threads) = grid(gpu);
        // What each thread had in hand: one that it was to send, and one that it was to free.
        lost += u64::from(groups * threads) * 2;
    }
    let report = bench.arena.report().unwrap();
    assert!(report.allocated_blocks <= lost + unfreed, "{report:?}");
    bench.assert_sound();
}

/// The process that is to be killed: its kernels send for as long as it lives.
pub(crate) fn victim(gpu: &Gpu, name: &str) {
    let bench = Bench::open(gpu.vendor, name);
    let (groups, threads) = grid(gpu);
    gpu.start("exchange", groups, threads, &bench.kit(&[u64::MAX]));
    // Should nobody be there to kill it.
    thread::sleep(PATIENCE);
    bench.end();
    gpu.wait();
}
