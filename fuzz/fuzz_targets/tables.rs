//! The allocators with one table, a page table and an arena, at work while their bytes change under
//! their hands: clients get errors or wrong contents, `check` and `repair` come to an end, and nobody
//! leaves the mapping.
#![no_main]

use std::sync::Arc;

use hshm_memory::{
    AllocatorId, AllocatorKind, AnyAllocator, InitOptions, MemContext, MemfdMmap, OffsetPointer,
};
use libfuzzer_sys::fuzz_target;

const SIZE: u64 = 256 << 10;
const CAPACITY: u64 = 1 << 20;
/// Where the lock of a page table stands, in 16 bytes.
const LOCK: u64 = 128;
const CTX: MemContext = MemContext::DEFAULT;

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

    /// Of each order of magnitude up to 512 KiB.
    fn size(&mut self) -> usize {
        let [low, high] = self.bytes();
        usize::from(low) << (high % 12)
    }
}

struct Client {
    heap: AnyAllocator,
    blocks: Vec<OffsetPointer>,
}

impl Client {
    fn new(kind: AllocatorKind) -> Self {
        let backend = Arc::new(MemfdMmap::create("fuzz", SIZE, CAPACITY).unwrap());
        let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
        let heap = AnyAllocator::shm_init(kind, AllocatorId::new(1, 2), backend, &options);
        Self { heap: heap.unwrap(), blocks: Vec::new() }
    }

    fn block(&mut self, input: &mut Input<'_>) -> OffsetPointer {
        let which = input.byte();
        if self.blocks.is_empty() || which == 0xff {
            return OffsetPointer::new(input.word() % (2 * CAPACITY));
        }
        self.blocks.swap_remove(usize::from(which) % self.blocks.len())
    }

    fn got(&mut self, block: Result<OffsetPointer, impl std::error::Error>, bytes: usize) {
        let Ok(block) = block else { return };
        if let Ok(address) = self.heap.resolve(block, bytes) {
            // SAFETY: [mapped] it was resolved; nobody has a reference to what stands there.
            unsafe { address.write_bytes(0x5a, bytes) };
        }
        self.blocks.push(block);
    }

    /// Changes eight bytes: of the header and the table, near a block, or anywhere.
    fn scribble(&self, input: &mut Input<'_>) {
        let (place, way, word) = (input.word(), input.byte(), input.word());
        let end = self.heap.committed_bytes() - 8;
        let block = self.blocks.last().map_or(0, |block| block.offset_bytes());
        let at = match way & 7 {
            0 => place % LOCK,
            // The lock's own words stay, or every operation would wait for a minute.
            1..4 => LOCK + 16 + place % (4096 - LOCK - 16),
            4..7 => block.saturating_sub(32) + place % 64,
            _ => 4096 + place % (end - 4096),
        };
        let at = usize::try_from(at.min(end)).unwrap() & if way & 8 == 0 { !7 } else { !3 };
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
        match input.byte() % 20 {
            0..5 => {
                let bytes = input.size();
                self.got(self.heap.allocate_offset(CTX, bytes), bytes);
            }
            5 => {
                let bytes = input.size();
                let align = 1 << (input.byte() % 20);
                self.got(self.heap.aligned_allocate_offset(CTX, bytes, align), bytes);
            }
            6..9 => {
                let block = self.block(input);
                // SAFETY: [owned] nobody uses what stands in the blocks here.
                let _ = unsafe { self.heap.free_offset_no_null_check(CTX, block) };
            }
            9 | 10 => {
                let (block, bytes) = (self.block(input), input.size());
                // SAFETY: as above.
                let moved = unsafe { self.heap.reallocate_offset_no_null_check(CTX, block, bytes) };
                self.got(moved, bytes);
            }
            11 => {
                let _ = (self.heap.check(), self.heap.report(), self.heap.allocated_bytes());
            }
            12 => {
                let more = u64::from(input.byte()) << 12;
                let _ = self.heap.grow(self.heap.committed_bytes() + more);
            }
            13 => {
                let _ = self.heap.repair();
            }
            14 => {
                // Whoever attaches now finds the header sound, or is refused.
                if let Ok(heap) = AnyAllocator::shm_deserialize(Arc::clone(self.heap.backend())) {
                    let _ = (heap.check(), heap.report());
                }
            }
            _ => self.scribble(input),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let page_table = input.byte() & 3 != 0;
    let kind = if page_table { AllocatorKind::ScalablePage } else { AllocatorKind::Stack };
    let mut client = Client::new(kind);
    while !input.0.is_empty() {
        client.step(&mut input);
    }
    let _ = (client.heap.check(), client.heap.report(), client.heap.repair());
});
