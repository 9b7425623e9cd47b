//! Long work of one thread beside a plain model, and of several at once.

use std::collections::BTreeMap;
use std::sync::mpsc;

use hshm_memory::{Allocator, MemContext, OffsetPointer};

use crate::Verdict;
use crate::cases::{AllocatorCase, BackendCase, World};
use crate::properties::{CTX, assert_empty, fill, free, is_filled, resize, try_free};

/// Numbers that look random: xorshift64* (Vigna, "An experimental exploration of Marsaglia's
/// xorshift generators, scrambled", 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(drawn).unwrap() % bound
    }

    /// Of each order of magnitude as often.
    fn size(&mut self, most: usize) -> usize {
        let bits = self.below(usize::try_from(most.ilog2()).unwrap() + 1);
        self.below(1 << bits).min(most)
    }
}

/// A block as the model has it.
#[derive(Clone, Copy)]
struct Block {
    offset: u64,
    len: usize,
    seed: u8,
}

impl Block {
    fn pointer(self) -> OffsetPointer {
        OffsetPointer::new(self.offset)
    }
}

/// What is allocated: each block from its offset to its end.
#[derive(Default)]
struct Model {
    blocks: Vec<Block>,
    taken: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Model {
    fn insert(&mut self, block: Block) {
        let end = block.offset + block.len.max(1) as u64;
        let before = self.taken.range(..end).next_back();
        assert!(before.is_none_or(|(_, &taken)| taken <= block.offset), "two blocks overlap");
        self.taken.insert(block.offset, end);
        self.blocks.push(block);
        self.bytes += block.len as u64;
    }

    fn remove(&mut self, index: usize) -> Block {
        let block = self.blocks.swap_remove(index);
        self.taken.remove(&block.offset);
        self.bytes -= block.len as u64;
        block
    }
}

pub(crate) fn beside_a_model(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let named = heap.create_tls().unwrap();
    let mut random = Random(0x5eed);
    let mut model = Model::default();
    // An arena does not get back what is freed in the middle.
    let (most, budget) = if allocator.reuses { (100_000, 2 << 20) } else { (4000, 6 << 20) };
    let mut refused = 0;
    for step in 0..4000_u32 {
        let context = if random.below(3) == 0 { named } else { CTX };
        let (len, seed) = (random.size(most), u8::try_from(random.below(250)).unwrap());
        match random.below(10) {
            0..5 if model.bytes < budget => {
                let align = 1 << if random.below(4) == 0 { random.below(13) } else { 0 };
                match heap.aligned_allocate_offset(context, len, align) {
                    Ok(block) => {
                        assert!(block.offset_bytes().is_multiple_of(align as u64));
                        fill(heap, block, len, seed);
                        model.insert(Block { offset: block.offset_bytes(), len, seed });
                    }
                    Err(_) => refused += 1,
                }
            }
            _ if model.blocks.is_empty() => {}
            5..7 => {
                let old = model.remove(random.below(model.blocks.len()));
                let moved = resize(heap, context, old.pointer(), len);
                refused += u32::from(moved.is_err());
                let (block, len) = moved.map_or((old.pointer(), old.len), |block| (block, len));
                assert!(is_filled(heap, block, len.min(old.len), old.seed), "step {step}");
                fill(heap, block, len, seed);
                model.insert(Block { offset: block.offset_bytes(), len, seed });
            }
            _ => {
                let block = model.remove(random.below(model.blocks.len()));
                assert!(is_filled(heap, block.pointer(), block.len, block.seed), "step {step}");
                try_free(heap, context, block.pointer()).unwrap();
            }
        }
        assert!(heap.allocated_bytes() >= model.bytes || step % 16 != 0, "step {step}");
        if step % 500 == 0 {
            let report = heap.check();
            assert!(report.is_clean(), "step {step}: {:?}", report.violations);
        }
    }
    assert!(refused < 400 || !allocator.reuses, "{refused} requests were refused");
    for block in model.blocks {
        assert!(is_filled(heap, block.pointer(), block.len, block.seed));
        free(heap, block.pointer());
    }
    heap.free_tls(named).unwrap();
    assert_empty(heap);
    Ok(())
}

/// Each thread allocates, fills, and passes blocks on to the next, which frees them.
pub(crate) fn threads(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    const THREADS: usize = 4;
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel()).unzip();
    std::thread::scope(|scope| {
        for (number, receiver) in receivers.into_iter().enumerate() {
            let next = senders[(number + 1) % THREADS].clone();
            scope.spawn(move || work(heap, number, next, &receiver));
        }
        drop(senders);
    });
    assert_empty(heap);
    Ok(())
}

fn work(
    heap: &dyn Allocator,
    number: usize,
    next: mpsc::Sender<Block>,
    receiver: &mpsc::Receiver<Block>,
) {
    let release = |block: Block| {
        assert!(is_filled(heap, block.pointer(), block.len, block.seed), "block overwritten");
        free(heap, block.pointer());
    };
    let mut random = Random(number as u64 + 77);
    let seed = u8::try_from(number).unwrap();
    for _ in 0..1500 {
        let len = random.size(2000);
        if let Ok(block) = heap.allocate_offset(MemContext::DEFAULT, len) {
            fill(heap, block, len, seed);
            let block = Block { offset: block.offset_bytes(), len, seed };
            if random.below(2) == 0 {
                release(block);
            } else {
                next.send(block).unwrap();
            }
        }
        receiver.try_iter().for_each(release);
    }
    // Until the one before has no more to send.
    drop(next);
    receiver.iter().for_each(release);
}
