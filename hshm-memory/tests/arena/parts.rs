//! The header's parts, one by one.

use std::collections::{BTreeMap, HashSet};
use std::ffi::c_void;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hshm_memory::gpu::arena::{ArenaError, ArenaOptions, DeviceArena, layout_constants};
use hshm_memory::{OffsetPointer, ThreadLocalAllocator};

use crate::device::{Device, Language, Storage, compile, words};
use crate::pair;

const SMALL: ArenaOptions = ArenaOptions { bytes: 1 << 20, ring_entries: 16 };

#[test]
fn the_header_and_the_library_agree_on_the_layout() {
    for language in Language::all() {
        let program = compile(language, "layout", &["-DTEST_PROGRAM"]);
        let output = Command::new(program).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let said: BTreeMap<_, u64> = said
            .lines()
            .map(|line| line.split_once('=').unwrap())
            .map(|(name, value)| (name, value.parse().unwrap()))
            .collect();
        let expected: BTreeMap<_, _> = layout_constants().into_iter().collect();
        assert_eq!(said, expected, "{language:?}");
    }
}

#[test]
fn attaching_refuses_what_is_not_as_the_view_says() {
    let pair = pair(SMALL);
    let good = words(&pair.elsewhere.host_view().unwrap());
    for language in Language::all() {
        let device = Device::load(language);
        assert!(device.attach(&good).is_ok());
        // Words 0 to 3: the segment's version, the arena's place and length, the number of pieces; then
        // offset, length and address of each piece.
        let cases = [
            (0, good[0] + 1, 1),
            (1, good[1] + (1 << 16), 2),
            (1, good[1] + 8, 4),
            (1, 0, 4),
            (1, u64::MAX - 63, 4),
            (2, good[2] - 64, 3),
            (2, u64::MAX, 4),
            (2, 64, 4),
            (3, 0, 4),
            (4, 4096, 4),
            (5, good[1] + good[2] - 1, 4),
            (5, 0, 4),
        ];
        for (at, value, status) in cases {
            let mut view = good;
            view[at] = value;
            let found = device.attach(&view).err();
            assert_eq!(found, Some(status), "{language:?}: word {at} is {value:#x}");
        }
        // In two pieces, with the arena in the second.
        let mut view = good;
        (view[3], view[5]) = (2, 8192);
        (view[7], view[8], view[9]) = (8192, good[5] - 8192, good[6] + 8192);
        let heap = device.attach(&view).unwrap();
        assert!(heap.resolve(8190, 4).is_null(), "across two pieces");
        assert!(heap.resolve(0, 16).is_null() && heap.resolve(good[5] - 8, 16).is_null());
        let expected = (good[6] + 8192 + 100) as *mut u8;
        assert_eq!(heap.resolve(8192 + 100, 8), expected);
    }
}

#[test]
fn blocks_of_all_sizes_are_apart_aligned_and_given_back() {
    for language in Language::all() {
        let pair = pair(SMALL);
        let heap =
            Device::load(language).attach(&words(&pair.elsewhere.host_view().unwrap())).unwrap();
        assert_eq!(heap.allocate(65537), 0);
        for bytes in [0_u64, 1, 16, 17, 100, 1024, 4097, 32768, 65536] {
            let size = bytes.next_power_of_two().max(16);
            let mut blocks = Vec::new();
            loop {
                let block = heap.allocate(bytes);
                if block == 0 {
                    break;
                }
                assert!(block.is_multiple_of(size) && !heap.resolve(block, size).is_null());
                blocks.push(block);
            }
            blocks.sort_unstable();
            let apart = blocks.windows(2).all(|two| two[0] + size <= two[1]);
            assert!(apart, "{bytes}");
            let report = pair.arena.report().unwrap();
            assert_eq!(report.allocated_bytes, report.chunks * 65536, "all was given out");
            assert_eq!(report.allocated_blocks, blocks.len() as u64);
            pair.assert_sound();
            assert!(!heap.free(blocks[0] + 1) && !heap.free(0));
            assert!(blocks.iter().all(|block| heap.free(*block)));
            assert!(!heap.free(blocks[0]), "it was freed");
            pair.assert_empty();
        }
    }
}

#[test]
fn what_the_host_frees_makes_room_and_a_full_ring_says_so() {
    let pair = pair(SMALL);
    let heap =
        Device::load(Language::C).attach(&words(&pair.elsewhere.host_view().unwrap())).unwrap();
    let blocks: Vec<_> =
        std::iter::repeat_with(|| heap.allocate(65536)).take_while(|block| *block != 0).collect();
    let many: Vec<_> = blocks.iter().map(|block| OffsetPointer::new(*block)).collect();
    // SAFETY: [owned] nobody uses it.
    let refused = unsafe { pair.arena.free(OffsetPointer::new(blocks[0] + 16)) };
    assert!(matches!(refused, Err(ArenaError::NotAllocated { .. })));
    // SAFETY: [owned] nobody uses it.
    unsafe { pair.arena.free(many[0]) }.unwrap();
    assert_eq!(heap.allocate(65536), blocks[0], "room that the host gave back");
    assert!(heap.free(blocks[0]));
    // SAFETY: [owned] nobody uses it.
    let twice = unsafe { pair.arena.free(many[0]) };
    assert!(matches!(twice, Err(ArenaError::NotAllocated { .. })), "{twice:?}");
    for block in blocks.iter().skip(1) {
        assert!(heap.free(*block));
    }
    for _ in 0..SMALL.ring_entries {
        pair.arena.send(pair.heap.allocate(32).unwrap()).unwrap();
    }
    let last = pair.heap.allocate(32).unwrap();
    assert!(matches!(pair.arena.send(last), Err(ArenaError::Full { .. })));
    let mut seen = HashSet::from([last.offset_bytes()]);
    while let Some(block) = heap.receive() {
        assert!(seen.insert(block), "each comes once");
        assert!(heap.free(block));
    }
    assert_eq!(seen.len() as u64, SMALL.ring_entries + 1);
    assert!(!heap.free(last.offset_bytes()), "the ring to the host is full");
    assert_eq!(pair.arena.drain().unwrap().freed, SMALL.ring_entries);
    assert!(heap.free(last.offset_bytes()));
    // A device that frees nonsense is refused, and counted.
    for nonsense in [4096, 1 << 60, u64::MAX - 15, 1, u64::MAX] {
        assert!(heap.free(nonsense));
    }
    let drained = pair.arena.drain().unwrap();
    // The last one stands for a place that was never filled.
    assert_eq!((drained.freed, drained.refused), (1, 4));
    let report = pair.arena.report().unwrap();
    assert_eq!((report.refused_frees, report.frees_to_host), (4, 0));
    assert_eq!(pair.heap.report().allocated_blocks, 1);
    pair.assert_sound();
}

#[test]
fn any_counters_at_all_are_survived() {
    let pair = pair(SMALL);
    let start = pair.heap.resolve(pair.heap.read_cell(pair.heap.custom_header().0).unwrap(), 4096);
    let start = start.unwrap().cast::<u64>();
    for value in [u64::MAX, u64::MAX - 1, 1 << 63, 17, 1] {
        // From the owner's word on: the lock is left as it is, or the test waits for a minute.
        for at in (20..24).chain(48..176) {
            // SAFETY: [mapped] it lies in the arena's header, which resolve checked.
            let word = unsafe { start.add(at) };
            // SAFETY: [mapped] as above.
            let before = unsafe { word.read_volatile() };
            // SAFETY: [mapped] as above.
            unsafe { word.write_volatile(value) };
            let _ = (pair.arena.receive(), pair.arena.drain(), pair.arena.check());
            let _ = pair.arena.send(OffsetPointer::new(4096));
            // SAFETY: [mapped] as above.
            unsafe { word.write_volatile(before) };
        }
    }
}

/// A word of the arena's header or of its rings' places, as `device.h` lays them out.
fn word(pair: &crate::Pair, at: u64) -> &AtomicU64 {
    let arena = pair.heap.read_cell(pair.heap.custom_header().0).unwrap();
    let place = OffsetPointer::new(arena.offset_bytes() + at * 8);
    let place = pair.heap.resolve(place, 8).unwrap().cast();
    // SAFETY: [mapped] resolve checked it; [atomic] all use it so.
    unsafe { AtomicU64::from_ptr(place.as_ptr()) }
}

#[test]
fn what_a_death_at_either_end_of_a_ring_to_the_device_leaves_is_mended() {
    const OWNER: u64 = 16;
    const TAKING: u64 = 20;
    const HEADS: u64 = 48;
    const CELLS: u64 = 176;
    // Of the frees and of the blocks.
    for ring in [0, 1] {
        let pair = pair(SMALL);
        let view = words(&pair.elsewhere.host_view().unwrap());
        let device = Device::load(Language::C).attach(&view).unwrap();
        let cell = |ticket: u64| word(&pair, CELLS + ring * SMALL.ring_entries + ticket);
        let head = word(&pair, HEADS + ring * 32);
        let send = || {
            let block = device.allocate(64);
            match ring {
                // SAFETY: [owned] it was just allocated, and nobody else knows of it.
                0 => unsafe { pair.arena.free(OffsetPointer::new(block)) },
                _ => pair.arena.send(OffsetPointer::new(block)),
            }
        };
        let take = || if ring == 0 { device.drain(1) == 1 } else { device.receive().is_some() };
        send().unwrap();
        // A process of the host's was killed with the entry made, and not counted.
        word(&pair, TAKING + ring).store(2, Ordering::Release);
        cell(1).store(4096, Ordering::Release);
        assert!(!pair.arena.check().unwrap().violations.is_empty());
        send().unwrap();
        assert_eq!(head.load(Ordering::Acquire), 2, "the ring is not taken for full");
        assert_ne!(cell(1).load(Ordering::Acquire), 4096, "what was not sent is not there");
        assert!(take() && take() && !take());
        // The device's owner was killed with the entry taken, and its place not emptied.
        cell(0).store(4096, Ordering::Release);
        for _ in 2..SMALL.ring_entries {
            send().unwrap();
        }
        assert!(matches!(send(), Err(ArenaError::Full { .. })), "somebody is reading it");
        assert!(!pair.arena.check().unwrap().violations.is_empty());
        // No process has this number and has run since the machine started.
        word(&pair, OWNER).store(0x3f_ffff << 34 | 1, Ordering::Release);
        pair.arena.claim().unwrap();
        pair.assert_sound();
        for _ in 0..2 {
            send().unwrap();
        }
        while take() {}
        let report = pair.arena.report().unwrap();
        assert_eq!((report.frees_to_device, report.blocks_to_device), (0, 0), "{report:?}");
        pair.assert_sound();
    }
}

#[test]
fn an_arena_is_opened_only_where_one_is() {
    let pair = pair(SMALL);
    let cell = pair.heap.custom_header().0;
    let offset = pair.heap.read_cell(cell).unwrap();
    let open = |heap: &ThreadLocalAllocator, at| DeviceArena::open(heap, at).map(|_| ());
    open(&pair.heap, offset).unwrap();
    let other = pair.heap.aligned_allocate(1 << 17, 1 << 16).unwrap();
    assert!(matches!(open(&pair.heap, other), Err(ArenaError::NotThere { .. })));
    let inside = OffsetPointer::new(offset.offset_bytes() + 64);
    assert!(open(&pair.heap, inside).is_err());
    pair.arena.release().unwrap();
    assert!(matches!(pair.arena.host_view(), Err(ArenaError::NotOwner)));
    assert!(matches!(pair.arena.view(0), Err(ArenaError::NotOwner)));
    // SAFETY: [owned] nobody uses it.
    unsafe { pair.arena.destroy(cell) }.unwrap();
    assert!(open(&pair.heap, offset).is_err());
}

#[test]
fn threads_of_a_device_have_numbers_sleep_and_storage() {
    for language in Language::all() {
        let device = Device::load(language);
        let mut words = vec![0_u64; 1 + 2 * 64];
        let storage = Storage { words: words.as_mut_ptr(), keys: 2, threads: 64 };
        let mut key = u64::MAX;
        let value = ptr::without_provenance_mut::<c_void>(7);
        for expected in [0, 1] {
            // SAFETY: [foreign] the storage has room for two keys of 64 threads.
            let made = unsafe { (device.storage_create)(&raw const storage, &raw mut key, value) };
            assert_eq!((made, key), (1, expected));
        }
        // SAFETY: [foreign] as above.
        assert_eq!(unsafe { (device.storage_create)(&raw const storage, &raw mut key, value) }, 0);
        // SAFETY: [foreign] as above.
        assert_eq!(unsafe { (device.storage_set)(&raw const storage, 2, value) }, 0);
        // SAFETY: [foreign] as above.
        assert_eq!(unsafe { (device.storage_get)(&raw const storage, 1) }.addr(), 7);
        // SAFETY: [foreign] it takes nothing.
        let own = unsafe { (device.thread)() };
        // SAFETY: [foreign] it takes nothing.
        let other = thread::spawn(move || unsafe { (device.thread)() }).join().unwrap();
        assert_ne!(own, other);
        let before = Instant::now();
        // SAFETY: [foreign] it waits.
        unsafe { (device.sleep)(3000) };
        assert!(before.elapsed() >= Duration::from_micros(3000));
    }
}
