//! What host and device do together.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::OffsetPointer;
use hshm_memory::gpu::arena::{ArenaError, ArenaOptions};

use crate::bench::{Bench, Named, Phase, Word, fill, verify};
use crate::gpu::Gpu;
use crate::say;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// For a segment. Where no other process opens it, it goes away at once: this one may be ended.
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
        self.0.tell(Phase::End);
    }
}

/// Waits until something is so.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A device's threads have numbers, storage and sleep.
pub(crate) fn threads(gpu: &Gpu) {
    const KEYS: u64 = 3;
    const SLEEP_US: u64 = 3000;
    let bench = Bench::create(gpu.vendor, &name("threads"), 16 * MIB, small());
    let (groups, threads) = grid(gpu);
    let all = u64::from(groups * threads);
    // The double's threads have numbers of all that the process ever started.
    let room = if gpu.is_double { 4096 } else { all };
    let ((numbers, found), (storage, _)) = (bench.block(all), bench.block(1 + KEYS * room));
    let len = usize::try_from(1 + KEYS * room).unwrap();
    let start = bench.heap.resolve(storage, len * 8).unwrap();
    // SAFETY: [owned] it was just allocated.
    unsafe { start.as_ptr().write_bytes(0, len * 8) };
    let words = [numbers.offset_bytes(), storage.offset_bytes(), all, room, KEYS, SLEEP_US];
    let started = Instant::now();
    bench.run(gpu, "threads", groups, threads, &words);
    assert!(started.elapsed() >= Duration::from_micros(SLEEP_US), "they slept too little");
    assert_eq!(bench.read(Word::Sent), KEYS, "each key is made once");
    let mut numbered: Vec<_> = (0..usize::try_from(all).unwrap())
        // SAFETY: [owned] the kernel is over, and the block is as long.
        .map(|at| unsafe { found.wrapping_add(at).read() })
        .collect();
    numbered.sort_unstable();
    // From one another by one, and on a device from 0.
    assert!(numbered.windows(2).all(|two| two[0] + 1 == two[1]), "{numbered:?}");
    assert!(numbered[0] == 1 || gpu.is_double && numbered[0] != 0, "{numbered:?}");
    for block in [numbers, storage] {
        // SAFETY: [owned] the kernel is over.
        unsafe { bench.heap.free(block) }.unwrap();
    }
    bench.assert_empty();
}

/// Kernels read blocks that the host filled, and change them in place.
pub(crate) fn host_blocks(gpu: &Gpu) {
    const BLOCKS: u64 = 3000;
    let bench = Bench::create(gpu.vendor, &name("blocks"), 16 * MIB, small());
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
    const HOST_THREADS: usize = 2;
    // So much at least, and for so long: how fast a device is at this, nobody knows before.
    const LEAST: u64 = 2000;
    let time = Duration::from_secs(if gpu.is_double { 1 } else { 3 });
    let bench = Bench::create(gpu.vendor, &name("heap"), 32 * MIB, small());
    let (groups, threads) = grid(gpu);
    gpu.start("exchange", groups, threads, &bench.kit(&[u64::MAX]));
    let (counts, started) = (Counts::default(), Instant::now());
    let mut seconds = 0.0;
    let unfreed: Vec<_> = thread::scope(|scope| {
        let _ending = Ending(&bench);
        let hosts: Vec<_> =
            (0..HOST_THREADS).map(|_| scope.spawn(|| host_thread(&bench, &counts))).collect();
        let is_stuck = || hosts.iter().any(thread::ScopedJoinHandle::is_finished);
        wait_until("enough blocks crossed", || {
            let least = [&counts.sent, &counts.received, &counts.returned].into_iter();
            let is_enough = least.map(read).all(|count| count >= LEAST);
            is_stuck() || is_enough && started.elapsed() >= time
        });
        seconds = started.elapsed().as_secs_f64();
        counts.phase.store(Phase::NothingNew as u64, Ordering::Relaxed);
        bench.tell(Phase::NothingNew);
        // Not by the board's words: what a kernel modifies there with its device's own scope, the host sees for certain
        // only when the kernel is over.
        wait_until("the device gave all of the host's blocks back", || {
            is_stuck() || read(&counts.returned) == read(&counts.sent) && read(&counts.unsent) == 0
        });
        bench.tell(Phase::End);
        wait_until("the kernel is over", || is_stuck() || gpu.is_over());
        counts.phase.store(Phase::End as u64, Ordering::Relaxed);
        hosts.into_iter().filter_map(|host| host.join().unwrap()).collect()
    });
    gpu.wait("exchange");
    assert_eq!(bench.read(Word::Left), u64::from(groups * threads));
    assert_eq!(bench.read(Word::Wrong), 0);
    assert_eq!(bench.read(Word::Freed), read(&counts.sent));
    let late = give_back(gpu, &bench, unfreed);
    assert_eq!(bench.read(Word::Sent), read(&counts.received) + late);
    bench.assert_empty();
    let blocks = read(&counts.sent) + read(&counts.received) + late;
    let rate = f64::from(u32::try_from(blocks).unwrap()) / seconds;
    say(gpu, &format!("{blocks} blocks crossed in {seconds:.1} s, {rate:.0} a second"));
}

/// Frees blocks of the device's, and those that still come, when the kernel that made them is over. Says how many these
/// were.
fn give_back(gpu: &Gpu, bench: &Bench, mut unfreed: Vec<OffsetPointer>) -> u64 {
    let mut late = 0;
    loop {
        // What the host frees waits for device code.
        bench.run(gpu, "drain", 1, 1, &[]);
        bench.arena.drain().unwrap();
        if let Some(block) = receive(bench) {
            late += 1;
            unfreed.push(block);
        } else if unfreed.is_empty() {
            return late;
        }
        while let Some(block) = unfreed.pop() {
            // SAFETY: [owned] the device handed it over, and nobody else has it.
            match unsafe { bench.arena.free(block) } {
                Ok(()) => {}
                Err(ArenaError::Full { .. }) => {
                    unfreed.push(block);
                    break;
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// What the host's threads did together.
#[derive(Default)]
struct Counts {
    /// As [`Phase`].
    phase: AtomicU64,
    /// Blocks of the host's that were made for the device.
    sent: AtomicU64,
    /// And those among them that wait for room in the ring.
    unsent: AtomicU64,
    /// Blocks of the device's that came.
    received: AtomicU64,
    /// Blocks of the host's that the device gave back.
    returned: AtomicU64,
}

/// Sends blocks, and frees what it gets, until it is over. Returns what it could not free.
fn host_thread(bench: &Bench, counts: &Counts) -> Option<OffsetPointer> {
    let (mut unsent, mut unfreed) = (None, None);
    loop {
        let phase = read(&counts.phase);
        if phase == Phase::End as u64 {
            return unfreed;
        }
        if unsent.is_none() && phase == 0 {
            let count = 2 + counts.sent.load(Ordering::Relaxed) % 255;
            let (block, words) = bench.block(count);
            // SAFETY: [owned] it was just allocated.
            unsafe { fill(words, block, count) };
            counts.unsent.fetch_add(1, Ordering::Relaxed);
            counts.sent.fetch_add(1, Ordering::Relaxed);
            unsent = Some(block);
        }
        if let Some(block) = unsent {
            match bench.arena.send(block) {
                Ok(()) => {
                    unsent = None;
                    counts.unsent.fetch_sub(1, Ordering::Relaxed);
                }
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
    let options = ArenaOptions { bytes: 64 * MIB, ring_entries: 1024 };
    let bench = Bench::create(gpu.vendor, &name("rate"), 128 * MIB, options);
    let grids: &[_] = if gpu.is_double { &[(1, 4)] } else { &[(1, 1), (1, 32), (64, 128)] };
    let time = Duration::from_millis(if gpu.is_double { 200 } else { 1000 });
    for &(groups, threads) in grids {
        for bytes in [64, 1024] {
            bench.clear();
            let started = Instant::now();
            gpu.start("churn", groups, threads, &bench.kit(&[bytes]));
            thread::sleep(time);
            bench.tell(Phase::End);
            gpu.wait("churn");
            let seconds = started.elapsed().as_secs_f64();
            assert_eq!(bench.read(Word::Left), u64::from(groups * threads));
            assert_eq!((bench.read(Word::Refused), bench.read(Word::Wrong)), (0, 0));
            let pairs = u32::try_from(bench.read(Word::Sent)).unwrap();
            assert_ne!(pairs, 0);
            let rate = f64::from(pairs) / seconds / 1e6;
            say(
                gpu,
                &format!(
                    "{rate:.3} million allocations and frees of {bytes} B a second, {groups} x {threads} threads"
                ),
            );
            bench.assert_empty();
        }
    }
}

/// How fast a device reads and writes registered memory of the host's.
pub(crate) fn bandwidth(gpu: &Gpu) {
    // Half of what there is room for, which in a container may be little.
    let mib = if gpu.is_double { 32 } else { (room_bytes() / 2 / MIB).clamp(64, 512) };
    let bench = Bench::create(gpu.vendor, &name("bandwidth"), (mib + 32) * MIB, small());
    let count = mib * MIB / 8;
    let (block, words) = bench.block(count);
    let (groups, threads) = if gpu.is_double { (1, 2) } else { (256, 256) };
    let sweep = bench.sweep(gpu, groups, threads);
    let word = |at: u64| {
        // SAFETY: [owned] no kernel is at work, and the block is as long.
        unsafe { words.wrapping_add(usize::try_from(at).unwrap()).read() }
    };
    let sum = (0..count).fold(0_u64, |sum, at| sum.wrapping_add(at + 17));
    for (kernel, expected) in [("write_all", count), ("read_all", sum)] {
        let run = |count| sweep.run(kernel, block.offset_bytes(), count, 17);
        // The first is for whatever is made ready when it is first needed; and starting the threads takes its time too.
        assert_eq!(run(count).0, expected, "{kernel}");
        let (_, started) = run(0);
        let (said, seconds) = run(count);
        assert_eq!(said, expected, "{kernel}");
        assert_eq!([word(0), word(count - 1)], [17, count + 16]);
        let rate = f64::from(u32::try_from(mib).unwrap()) / 1024.0 / seconds;
        say(
            gpu,
            &format!(
                "{kernel}: {rate:.1} GiB/s of the host's memory: {mib} MiB in {:.2} ms, where a run over nothing takes {:.2}",
                seconds * 1e3,
                started * 1e3
            ),
        );
    }
    drop(sweep);
    // SAFETY: [owned] nobody uses it any more.
    unsafe { bench.heap.free(block) }.unwrap();
    bench.assert_empty();
}

/// How much shared memory there is to be had.
pub(crate) fn room_bytes() -> u64 {
    let found = nix::sys::statvfs::statvfs("/dev/shm");
    found.map_or(u64::MAX, |found| found.blocks_available() * found.fragment_size())
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
        assert_eq!(victim.wait().unwrap().signal(), Some(9));
        // That its kernels have ended with it is what claiming relies on.
        let report = bench.arena.report().unwrap();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(bench.arena.report().unwrap(), report, "kernels of a dead process go on");
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
    bench.tell(Phase::End);
    gpu.wait("exchange");
}
