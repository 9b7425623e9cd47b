//! A heap at work whose bytes change under its hands: clients get errors or wrong contents, `check` and
//! recovery come to an end, and nobody leaves the mapping.
#![no_main]

use std::sync::Arc;

use hshm_memory::{
    AllocatorId, InitOptions, MemfdMmap, OffsetPointer, OnExit, ProcessId, ThreadLocalAllocator,
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 2 << 20;
/// Large enough for workers to have caches.
const ROOMY: u64 = 18 << 20;
/// What a segment may grow by.
const ROOM: u64 = 6 << 20;
const CELLS: u64 = 8;
const UNIT: u64 = 64 << 10;

/// The input, as the numbers that it is read as.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        let (head, rest) = self.0.split_at(len);
        bytes[..len].copy_from_slice(head);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    /// Of each order of magnitude up to 2 MiB.
    fn size(&mut self) -> usize {
        let [low, high] = self.bytes();
        usize::from(low) << (high % 14)
    }
}

struct Client {
    heap: ThreadLocalAllocator,
    blocks: Vec<OffsetPointer>,
    /// Where blocks can begin.
    first_unit: u64,
}

impl Client {
    fn new(on_exit: OnExit, size: u64) -> Self {
        let backend = Arc::new(MemfdMmap::create("fuzz", size, size + ROOM).unwrap());
        let options = InitOptions { custom_header_bytes: CELLS * 8, on_exit, worker_slots: 6 };
        let heap =
            ThreadLocalAllocator::shm_init(AllocatorId::new(1, 2), backend, &options).unwrap();
        let block = heap.allocate(16).unwrap();
        let first_unit = block.offset_bytes() & !(UNIT - 1);
        Self { heap, blocks: vec![block], first_unit }
    }

    fn block(&mut self, input: &mut Input<'_>) -> OffsetPointer {
        let which = input.byte();
        if self.blocks.is_empty() || which == 0xff {
            return OffsetPointer::new(input.word() % (2 * (ROOMY + ROOM)));
        }
        self.blocks.swap_remove(usize::from(which) % self.blocks.len())
    }

    fn cell(&self, input: &mut Input<'_>) -> OffsetPointer {
        let start = self.heap.custom_header().0.offset_bytes();
        OffsetPointer::new(start + u64::from(input.byte()) % CELLS * 8)
    }

    fn got(&mut self, block: Result<OffsetPointer, impl std::error::Error>, bytes: usize) {
        let Ok(block) = block else { return };
        if let Ok(address) = self.heap.resolve(block, bytes.min(64)) {
            // SAFETY: [mapped] it was resolved; nobody has a reference to what stands there.
            unsafe { address.write_bytes(0x5a, bytes.min(64)) };
        }
        self.blocks.push(block);
    }

    /// Changes eight bytes of the segment, mostly of its tables.
    fn scribble(&self, input: &mut Input<'_>) {
        let (place, way, word) = (input.word(), input.byte(), input.word());
        let end = self.heap.committed_bytes() - 8;
        let most = if way & 7 == 0 { end } else { self.first_unit - 8 };
        let at = usize::try_from(place % most).unwrap() & if way & 8 == 0 { !7 } else { !3 };
        let address = self.heap.backend().base().as_ptr().wrapping_add(at).cast::<u64>();
        // SAFETY: [mapped] below the segment's length; [owned] no other thread runs.
        let old = unsafe { address.read_unaligned() };
        let new = match way >> 4 & 3 {
            0 => word,
            1 => old ^ 1 << (word & 63),
            2 => old.wrapping_add(word & 0x1f).wrapping_sub(16),
            _ => old & !0xffff_ffff | word & 0xffff_ffff,
        };
        // SAFETY: as above.
        unsafe { address.write_unaligned(new) };
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 25 {
            0..6 => {
                let bytes = input.size();
                self.got(self.heap.allocate(bytes), bytes);
            }
            6 => {
                let bytes = input.size();
                let align = 1 << (input.byte() % 24);
                self.got(self.heap.aligned_allocate(bytes, align), bytes);
            }
            7..10 => {
                let block = self.block(input);
                // SAFETY: [owned] nobody uses what stands in the blocks here.
                let _ = unsafe { self.heap.free(block) };
            }
            10 => {
                let (block, bytes) = (self.block(input), input.size());
                // SAFETY: as above.
                self.got(unsafe { self.heap.reallocate(block, bytes) }, bytes);
            }
            11 | 12 => {
                let (cell, bytes) = (self.cell(input), input.size());
                let _ = self.heap.allocate_into(cell, bytes);
            }
            13 => {
                let cell = self.cell(input);
                // SAFETY: as above.
                let _ = unsafe { self.heap.free_from(cell) };
            }
            14 => {
                let _ = (self.heap.check(), self.heap.report());
            }
            15 => {
                let dead = ProcessId { pid: u32::from(input.byte()), start_ticks: 1 };
                let _ = (self.heap.recover(dead), self.heap.recover_dead());
            }
            16 => self.heap.detach_thread(),
            17 => {
                let more = u64::from(input.byte()) << 14;
                let _ = self.heap.grow(self.heap.committed_bytes() + more);
            }
            18 => {
                let heap = self.heap.clone();
                let (bytes, block) = (input.size(), self.block(input));
                let _ = std::thread::spawn(move || {
                    let _ = heap.allocate(bytes);
                    // SAFETY: as above.
                    let _ = unsafe { heap.free(block) };
                })
                .join();
            }
            19 => drop(self.heap.trim()),
            _ => self.scribble(input),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let kind = input.byte();
    let on_exit = if kind & 1 == 0 { OnExit::Keep } else { OnExit::Reclaim };
    let mut client = Client::new(on_exit, if kind & 2 == 0 { SIZE } else { ROOMY });
    while !input.0.is_empty() {
        client.step(&mut input);
    }
    let _ = (client.heap.recover_dead(), client.heap.check(), client.heap.report());
    client.heap.detach_thread();
    let _ = client.heap.repair();
});
