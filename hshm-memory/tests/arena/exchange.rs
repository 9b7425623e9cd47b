//! Device code and the library at once, in one segment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::gpu::arena::{ArenaError, ArenaOptions, DeviceArena};
use hshm_memory::{OffsetPointer, ThreadLocalAllocator};

use crate::device::{Device, DeviceHeap, Language, words};
use crate::pair;

const PATIENCE: Duration = Duration::from_secs(120);

/// Sizes that vary, and the block's content with them.
pub(crate) fn size_of_round(round: u64) -> u64 {
    16 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 1500
}

/// Writes a block's size, and then what follows from it and from where the block is.
///
/// # Safety
/// The `size` bytes at `at`, eight or more, are the caller's.
pub(crate) unsafe fn fill(at: *mut u8, offset: u64, size: u64) {
    // SAFETY: the caller promises.
    unsafe { at.cast::<u64>().write_unaligned(size) };
    for index in 8..size {
        // SAFETY: the caller promises.
        unsafe { at.wrapping_add(usize::try_from(index).unwrap()).write(byte(offset, index)) };
    }
}

fn byte(offset: u64, index: u64) -> u8 {
    (offset >> 4).wrapping_add(index.wrapping_mul(31)).to_le_bytes()[0]
}

/// # Safety
/// `at` is where a block is that was filled, and that nobody writes.
pub(crate) unsafe fn verify(at: *const u8, offset: u64) {
    // SAFETY: the caller promises.
    let size = unsafe { at.cast::<u64>().read_unaligned() };
    assert!((16..1516).contains(&size), "{offset:#x} has size {size}");
    for index in 8..size {
        // SAFETY: the caller promises.
        let found = unsafe { at.wrapping_add(usize::try_from(index).unwrap()).read() };
        assert_eq!(found, byte(offset, index), "{offset:#x} + {index}");
    }
}

/// Blocks that arrived at their ends and were freed there.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) by_device: AtomicU64,
    pub(crate) by_host: AtomicU64,
    pub(crate) hosts_done: AtomicU64,
}

/// A device's thread: sends `sends` blocks, and frees what it gets, until `is_over`.
pub(crate) fn device_thread(
    heap: &DeviceHeap,
    counts: &Counts,
    sends: u64,
    mut is_over: impl FnMut() -> bool,
) {
    let (mut sent, mut unsent, mut unfreed) = (0, None, None);
    while !is_over() || unfreed.is_some() {
        if unsent.is_none() && sent < sends {
            let size = size_of_round(sent);
            let block = heap.allocate(size);
            if block != 0 {
                // SAFETY: [owned] it was just allocated.
                unsafe { fill(heap.resolve(block, size), block, size) };
                unsent = Some(block);
            }
        }
        if let Some(block) = unsent.take_if(|block| heap.send(*block)) {
            assert_ne!(block, 0);
            sent += 1;
        }
        if unfreed.is_none()
            && let Some(block) = heap.receive()
        {
            // SAFETY: [owned] the host handed it over.
            unsafe { verify(heap.resolve(block, 1516), block) };
            unfreed = Some(block);
        }
        if unfreed.take_if(|block| heap.free(*block)).is_some() {
            counts.by_device.fetch_add(1, Ordering::Relaxed);
        }
        heap.drain(4);
        thread::yield_now();
    }
}

/// A host's thread: sends `sends` blocks, and frees what it gets, until `is_over`.
pub(crate) fn host_thread(
    heap: &ThreadLocalAllocator,
    arena: &DeviceArena,
    counts: &Counts,
    sends: u64,
    mut is_over: impl FnMut() -> bool,
) {
    let (mut sent, mut unsent, mut unfreed) = (0, None, None);
    while !is_over() || sent < sends || unfreed.is_some() {
        if unsent.is_none() && sent < sends {
            let size = size_of_round(sent);
            // So long that whoever reads all that a size may be stays inside.
            let block = heap.allocate(1516).unwrap();
            let at = heap.resolve(block, 1516).unwrap();
            // SAFETY: [owned] it was just allocated.
            unsafe { fill(at.as_ptr(), block.offset_bytes(), size) };
            unsent = Some(block);
        }
        if let Some(block) = unsent {
            match arena.send(block) {
                Ok(()) => (sent, unsent) = (sent + 1, None),
                Err(ArenaError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        if unfreed.is_none() {
            unfreed = received(heap, arena);
        }
        if let Some(block) = unfreed {
            // SAFETY: [owned] the device handed it over, and nobody else has it.
            match unsafe { arena.free(block) } {
                Ok(()) => {
                    unfreed = None;
                    counts.by_host.fetch_add(1, Ordering::Relaxed);
                }
                Err(ArenaError::Full { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(arena.drain().unwrap().refused, 0);
        thread::yield_now();
    }
}

/// Takes a block of the device's, if one is there, and looks whether all arrived.
pub(crate) fn received(heap: &ThreadLocalAllocator, arena: &DeviceArena) -> Option<OffsetPointer> {
    let block = arena.receive().unwrap()?;
    let at = heap.resolve(block, 16).unwrap();
    // SAFETY: [owned] the device handed it over.
    unsafe { verify(at.as_ptr(), block.offset_bytes()) };
    Some(block)
}

#[test]
fn blocks_cross_both_ways_and_each_side_frees_the_others() {
    const DEVICE_THREADS: u64 = 3;
    const HOST_THREADS: u64 = 2;
    const SENDS: u64 = 3000;
    for language in Language::all() {
        let device = Device::load(language);
        let pair = pair(ArenaOptions { bytes: 3 << 20, ring_entries: 64 });
        let view = words(&pair.elsewhere.host_view().unwrap());
        let counts = Counts::default();
        let deadline = Instant::now() + PATIENCE;
        let in_time = || assert!(Instant::now() < deadline, "waited in vain");
        thread::scope(|scope| {
            for _ in 0..DEVICE_THREADS {
                scope.spawn(|| {
                    device_thread(&device.attach(&view).unwrap(), &counts, SENDS, || {
                        in_time();
                        counts.hosts_done.load(Ordering::Relaxed) == HOST_THREADS
                    });
                });
            }
            for _ in 0..HOST_THREADS {
                scope.spawn(|| {
                    host_thread(&pair.heap, &pair.arena, &counts, SENDS, || {
                        in_time();
                        counts.by_host.load(Ordering::Relaxed) == DEVICE_THREADS * SENDS
                            && counts.by_device.load(Ordering::Relaxed) == HOST_THREADS * SENDS
                    });
                    counts.hosts_done.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        device.attach(&view).unwrap().drain(u64::MAX);
        pair.arena.drain().unwrap();
        pair.assert_empty();
    }
}

#[test]
fn no_block_is_given_to_two_threads() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 500_000;
    // Of this size a chunk has as many blocks as a word of its bitmap has bits, so all want the same word.
    const SIZE: u64 = 1024;
    let device = Device::load(Language::C);
    let pair = pair(ArenaOptions { bytes: 1 << 20, ring_entries: 16 });
    let view = words(&pair.elsewhere.host_view().unwrap());
    // Each is done in less time than it takes to start the others.
    let all = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for name in 1..=THREADS {
            let (view, all) = (&view, &all);
            scope.spawn(move || {
                let heap = device.attach(view).unwrap();
                all.wait();
                let mut kept = std::collections::VecDeque::new();
                for round in 0..ROUNDS {
                    let block = heap.allocate(SIZE);
                    assert_ne!(block, 0);
                    #[allow(clippy::cast_ptr_alignment, reason = "it is aligned to its size")]
                    // SAFETY: [mapped] it lies in the arena; all use it as this.
                    let word = unsafe { &*heap.resolve(block, SIZE).cast::<AtomicU64>() };
                    assert_eq!(word.swap(name, Ordering::Relaxed), 0, "another has {block:#x}");
                    kept.push_back((block, word));
                    if round % 3 == 0 {
                        continue;
                    }
                    while kept.len() > 4
                        && let Some((block, word)) = kept.pop_front()
                    {
                        assert_eq!(word.swap(0, Ordering::Relaxed), name);
                        assert!(heap.free(block));
                    }
                }
                for (block, word) in kept {
                    word.store(0, Ordering::Relaxed);
                    assert!(heap.free(block));
                }
            });
        }
    });
    pair.assert_empty();
}
