//! I7: whatever stands in a segment and however it changes, whoever works with it neither faults,
//! nor panics, nor loops for ever. Results may be wrong, and blocks lost: that cannot be helped.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::geometry::HEADER_BYTES;
use super::layout::{DESCRIPTOR_BYTES, Descriptor, SLOT_BYTES, UNIT_BYTES};
use super::tests::Random;
use super::words::{List, Remote, Tag, unit_start};
use super::*;
use crate::backend::scratch;
use crate::sync::AtomicU64 as SharedU64;
use crate::{Allocator, AllocatorId, InitOptions, MemContext, OffsetPointer, OnExit};

const SLOTS: u32 = 6;
const CELLS: u64 = 16;
/// After this long without a step the test counts as hanging; a step takes microseconds.
const PATIENCE: Duration = Duration::from_secs(120);

fn segment(on_exit: OnExit) -> ThreadLocalAllocator {
    let options = InitOptions { custom_header_bytes: CELLS * 8, on_exit, worker_slots: SLOTS };
    let backend = scratch("hostile", 24 << 20, 32 << 20).unwrap();
    ThreadLocalAllocator::shm_init(AllocatorId::new(6, 6), Arc::new(backend), &options).unwrap()
}

/// Writes nonsense into a segment.
struct Scribbler<'h> {
    heap: &'h ThreadLocalAllocator,
    random: Random,
}

impl Scribbler<'_> {
    fn word(&self, offset: u64) -> &SharedU64 {
        let address = self.heap.resolve_any(offset & !7);
        // SAFETY: [mapped] `resolve_any` keeps it inside the segment; [atomic] all of a segment may
        // be accessed as atomics.
        unsafe { SharedU64::from_ptr(address.cast().as_ptr()) }
    }

    fn below_u32(&mut self, bound: u32) -> u32 {
        u32::try_from(self.random.below(bound.into())).unwrap()
    }

    fn tag(&mut self) -> Tag {
        let owner = self.below_u32(SLOTS + 2);
        let class = usize::try_from(self.random.below(160)).unwrap();
        match self.random.below(8) {
            0 => Tag::FREE,
            1 => Tag::claimed(owner),
            2 => Tag::medium_body(self.below_u32(8)),
            3 => Tag::large(owner),
            4 => Tag::RUN_BODY,
            5 => Tag::transit(owner),
            6 => Tag(self.below_u32(u32::MAX)),
            // Also with a class that the kind does not go with.
            _ => {
                let page = Tag::page(owner, class);
                Tag(page.0 ^ if self.random.below(3) == 0 { 1 << 8 } else { 0 })
            }
        }
    }

    /// A word that could nearly stand somewhere.
    fn plausible(&mut self, old: u64) -> u64 {
        let view = &self.heap.inner.view;
        let units = view.geometry.units;
        let unit = self.below_u32(units + 8);
        let offset = unit_start(unit) + self.random.below(UNIT_BYTES);
        let count = self.below_u32(5000);
        match self.random.below(9) {
            0 => 0,
            1 => old ^ 1 << self.random.below(64),
            2 => old.wrapping_add(self.random.below(33)).wrapping_sub(16),
            3 => List::new(offset & !15, count).0,
            4 => {
                let slot = self.below_u32(SLOTS + 2);
                let word = Remote::empty(0).with_first(offset % (1 << 19), slot, count);
                word.0 | u64::from(count & 0x1fff) << 15
            }
            5 => self.random.below(u64::MAX),
            6 => offset,
            7 => u64::from(unit) << 32 | u64::from(self.below_u32(units)),
            _ => u64::MAX << self.random.below(64),
        }
    }

    fn scribble(&mut self) {
        let geometry = self.heap.inner.view.geometry;
        let limit = self.heap.inner.view.limit();
        let unit = self.random.below(limit / UNIT_BYTES);
        let slot = self.random.below(u64::from(SLOTS) + 1);
        let at = match self.random.below(13) {
            0 => self.random.below(HEADER_BYTES),
            1 => geometry.custom_header + self.random.below(CELLS * 8),
            2 => geometry.slot_words + slot * 8,
            3 | 4 => geometry.slots + slot * SLOT_BYTES + self.random.below(SLOT_BYTES),
            5 => geometry.free_summary,
            6 => geometry.free_bits + unit / 64 * 8,
            7 => geometry.adoptable_bits + unit / 64 * 8,
            8 => {
                let at = geometry.tags + unit * 4;
                let shift = at % 8 * 8;
                let word = self.word(at);
                let old = word.load(crate::sync::Ordering::Relaxed);
                let tag = u64::from(self.tag().0);
                let new = old & !(0xffff_ffff << shift) | tag << shift;
                self.word(at).store(new, crate::sync::Ordering::Relaxed);
                return;
            }
            9 | 10 => {
                geometry.descriptors + unit * DESCRIPTOR_BYTES + self.random.below(DESCRIPTOR_BYTES)
            }
            11 => {
                let unit = u32::try_from(unit).unwrap_or(0);
                let descriptor = self.heap.inner.view.descriptor(unit);
                descriptor.purged.store(1, crate::sync::Ordering::Relaxed);
                geometry.descriptors
                    + u64::from(unit) * DESCRIPTOR_BYTES
                    + std::mem::offset_of!(Descriptor, purged_blocks) as u64
            }
            _ => self.random.below(limit - 8),
        };
        let old = self.word(at).load(crate::sync::Ordering::Relaxed);
        let mut new = self.plausible(old);
        // Most slots stay free, or there would be nobody to do anything.
        if (geometry.slot_words..geometry.free_summary).contains(&at) && self.random.below(3) > 0 {
            new = 0;
        }
        self.word(at).store(new, crate::sync::Ordering::Relaxed);
    }
}

impl ThreadLocalAllocator {
    /// Where `offset` is in this process, wherever in the segment.
    fn resolve_any(&self, offset: u64) -> NonNull<u8> {
        let view = &self.inner.view;
        assert!(offset + 8 <= view.limit());
        let distance = usize::try_from(offset).unwrap();
        NonNull::new(view.base().as_ptr().wrapping_add(distance)).unwrap()
    }
}

/// Does everything that the library offers, at random.
struct Victim<'h> {
    heap: &'h ThreadLocalAllocator,
    random: Random,
    blocks: Vec<OffsetPointer>,
    context: MemContext,
}

impl<'h> Victim<'h> {
    fn new(heap: &'h ThreadLocalAllocator, seed: u64) -> Self {
        let context = MemContext::DEFAULT;
        Self { heap, random: Random(seed), blocks: Vec::new(), context }
    }

    /// One of our blocks, or nonsense.
    fn block(&mut self) -> OffsetPointer {
        let len = self.blocks.len() as u64;
        if len == 0 || self.random.below(20) == 0 {
            let bound = if self.random.below(4) == 0 { u64::MAX } else { 24 << 20 };
            return OffsetPointer::new(self.random.below(bound));
        }
        let at = usize::try_from(self.random.below(len)).unwrap();
        self.blocks.swap_remove(at)
    }

    fn cell(&mut self) -> OffsetPointer {
        let custom = self.heap.custom_header().0.offset_bytes();
        OffsetPointer::new(custom + self.random.below(CELLS) * 8)
    }

    fn write(&mut self, block: OffsetPointer, len: usize) {
        let byte = self.random.below(256).to_le_bytes()[0];
        if let Ok(address) = self.heap.resolve(block, len) {
            // SAFETY: [mapped] the bytes lie in the segment. Whose they are is another question,
            // in a hostile one; nobody has a reference to them.
            unsafe { address.write_bytes(byte, len) };
        }
    }

    fn step(&mut self) {
        let heap = self.heap;
        match self.random.below(41) {
            0..=11 => {
                let len = self.random.size(19);
                if let Ok(block) = heap.allocate_offset(self.context, len) {
                    self.write(block, len.min(4096));
                    self.blocks.push(block);
                }
            }
            12 => {
                let align = 1 << self.random.below(22);
                if let Ok(block) = heap.aligned_allocate(self.random.size(17), align) {
                    self.blocks.push(block);
                }
            }
            13..=22 => {
                let block = self.block();
                // SAFETY: nobody uses what stands in the blocks of this test.
                let _ = unsafe { heap.free(block) };
            }
            23..=25 => {
                let block = self.block();
                let len = self.random.size(19);
                // SAFETY: as above.
                if let Ok(block) = unsafe { heap.reallocate(block, len) } {
                    self.blocks.push(block);
                }
            }
            26..=28 => {
                let cell = self.cell();
                let _ = heap.allocate_into(cell, self.random.size(18));
            }
            29..=31 => {
                let cell = self.cell();
                let _ = heap.read_cell(cell);
                // SAFETY: as above.
                let _ = unsafe { heap.free_from(cell) };
            }
            32 => {
                let block = self.block();
                let _ = heap.usable_bytes(block);
                self.blocks.push(block);
            }
            33 => drop((heap.report(), heap.stretches())),
            34 => drop(heap.check()),
            35 => {
                let _ = heap.recover_dead();
                // Refused, unless nobody is left who holds a slot.
                heap.detach_thread();
                drop(heap.repair());
            }
            36 => {
                let _ = heap.grow(heap.committed_bytes() + self.random.below(3 * UNIT_BYTES));
            }
            37 => {
                if let Ok(other) = ThreadLocalAllocator::shm_deserialize(Arc::clone(heap.backend()))
                {
                    let block = self.block();
                    let _ = other.allocate(self.random.size(16));
                    // SAFETY: as above.
                    let _ = unsafe { other.free(block) };
                }
            }
            38 => heap.detach_thread(),
            39 => drop(heap.trim()),
            _ => {
                let _ = heap.free_tls(self.context);
                self.context = heap.create_tls().unwrap_or_default();
            }
        }
    }
}

/// Runs `work` and gives up when it makes no progress.
fn watched(name: &str, work: impl FnOnce(&AtomicBool) + Send) {
    let progress = AtomicBool::new(true);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            work(&progress);
            done.store(true, Ordering::SeqCst);
        });
        let mut deadline = Instant::now() + PATIENCE;
        while !worker.is_finished() && !done.load(Ordering::SeqCst) {
            if progress.swap(false, Ordering::SeqCst) {
                deadline = Instant::now() + PATIENCE;
            }
            if Instant::now() > deadline {
                // The thread cannot be stopped, and the scope would wait for it for ever.
                let _ = std::io::Write::write_all(
                    &mut std::io::stderr(),
                    format!("{name} hangs\n").as_bytes(),
                );
                std::process::abort();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        worker.join().unwrap_or_else(|_| panic!("{name} panicked"));
    });
}

/// Rounds of each test, more if `HSHM_HOSTILE_FACTOR` says so.
fn rounds(few: u64) -> std::ops::Range<u64> {
    let factor = std::env::var("HSHM_HOSTILE_FACTOR").ok().and_then(|text| text.parse().ok());
    0..few * factor.unwrap_or(1)
}

fn one_by_one(on_exit: OnExit) {
    for seed in rounds(150) {
        watched(&format!("seed {seed}, {on_exit}"), |progress| {
            let heap = segment(on_exit);
            let mut victim = Victim::new(&heap, seed * 2 + 1);
            let mut scribbler = Scribbler { heap: &heap, random: Random(seed * 77 + 5) };
            for step in 0..400 {
                victim.step();
                // At first all is well, so that there is something to be spoilt.
                if step > 60 && step % 2 == 0 {
                    scribbler.scribble();
                }
                progress.store(true, Ordering::SeqCst);
            }
        });
    }
}

#[test]
fn nonsense_between_operations_does_no_harm() {
    one_by_one(OnExit::Keep);
}

#[test]
fn nonsense_between_operations_does_no_harm_where_blocks_die_with_their_process() {
    one_by_one(OnExit::Reclaim);
}

#[test]
fn nonsense_during_operations_does_no_harm() {
    for seed in rounds(12) {
        let on_exit = if seed % 3 == 0 { OnExit::Reclaim } else { OnExit::Keep };
        watched(&format!("concurrent seed {seed}"), |progress| {
            let heap = segment(on_exit);
            let running = AtomicBool::new(true);
            std::thread::scope(|scope| {
                let scribbler = scope.spawn(|| {
                    let mut scribbler = Scribbler { heap: &heap, random: Random(seed * 3 + 1) };
                    while running.load(Ordering::SeqCst) {
                        scribbler.scribble();
                        std::hint::spin_loop();
                    }
                });
                let victims = [1, 2].map(|number| {
                    let heap = &heap;
                    scope.spawn(move || {
                        let mut victim = Victim::new(heap, seed * 31 + number);
                        for _ in 0..1500 {
                            victim.step();
                            progress.store(true, Ordering::SeqCst);
                        }
                    })
                });
                let results = victims.map(std::thread::ScopedJoinHandle::join);
                running.store(false, Ordering::SeqCst);
                scribbler.join().unwrap();
                for result in results {
                    result.unwrap();
                }
            });
        });
    }
}

#[test]
fn a_segment_of_nothing_but_lost_units_is_checked_in_one_walk() {
    for tag in [Tag::RUN_BODY, Tag::medium_body(3), Tag::claimed(1)] {
        let backend = scratch("hostile", 1 << 30, 1 << 30).unwrap();
        let id = AllocatorId::new(6, 6);
        let heap =
            ThreadLocalAllocator::shm_init(id, Arc::new(backend), &InitOptions::default()).unwrap();
        let view = &heap.inner.view;
        for unit in view.block_units() {
            let body = unit % 2 == 0 || tag != Tag::claimed(1);
            let tag = if body { tag } else { Tag::RUN_BODY };
            view.tag_word(unit).store(tag.0, crate::sync::Ordering::Relaxed);
        }
        // A claimed unit's owner is nobody; a body has no head.
        assert_eq!(
            heap.check().violations_total,
            u64::from(view.block_units().end - view.geometry.first_unit)
        );
        let _ = (heap.report(), heap.stretches(), heap.allocate(1 << 20), heap.recover_dead());
    }
}
