//! What every allocator does when it is used as it is meant.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hshm_memory::backend::MIN_ALIGN;
use hshm_memory::{
    AllocError, Allocator, AllocatorId, AllocatorKind, MemContext, OffsetPointer, SegmentError,
};

use crate::cases::{ALLOCATORS, AllocatorCase, BackendCase, HEADER_BYTES, SIZE, World};
use crate::{Verdict, random, wrong};

pub(crate) struct Property {
    pub(crate) name: &'static str,
    pub(crate) holds: fn(&AllocatorCase, &BackendCase) -> Verdict,
}

pub(crate) const PROPERTIES: &[Property] = &[
    Property { name: "identity", holds: identity },
    Property { name: "blocks of all sizes", holds: sizes },
    Property { name: "no bytes are a block too", holds: zero_size },
    Property { name: "alignments", holds: alignments },
    Property { name: "contents are kept", holds: contents },
    Property { name: "custom header", holds: custom_header },
    Property { name: "addresses and offsets", holds: addresses },
    Property { name: "contexts", holds: contexts },
    Property { name: "full memory recovers", holds: full },
    Property { name: "blocks of full memory shrink", holds: full_shrinks },
    Property { name: "attached again", holds: attached_again },
    Property { name: "strangers are refused", holds: strangers },
    Property { name: "too large a block", holds: wrong::too_large },
    Property { name: "bad alignments", holds: wrong::bad_alignments },
    Property { name: "free of null", holds: wrong::free_of_null },
    Property { name: "free of what lies elsewhere", holds: wrong::free_elsewhere },
    Property { name: "second free", holds: wrong::second_free },
    Property { name: "free inside a block", holds: wrong::free_inside },
    Property { name: "foreign contexts", holds: wrong::foreign_contexts },
    Property { name: "random operations beside a model", holds: random::beside_a_model },
    Property { name: "threads", holds: random::threads },
];

pub(crate) const CTX: MemContext = MemContext::DEFAULT;

pub(crate) fn allocate(heap: &dyn Allocator, bytes: usize) -> OffsetPointer {
    heap.allocate_offset(CTX, bytes).unwrap()
}

pub(crate) fn free(heap: &dyn Allocator, block: OffsetPointer) {
    try_free(heap, CTX, block).unwrap();
}

pub(crate) fn try_free(
    heap: &dyn Allocator,
    context: MemContext,
    block: OffsetPointer,
) -> Result<(), AllocError> {
    // SAFETY: [owned] the tests free what they allocated; what else they try is to be refused.
    unsafe { heap.free_offset_no_null_check(context, block) }
}

pub(crate) fn resize(
    heap: &dyn Allocator,
    context: MemContext,
    block: OffsetPointer,
    bytes: usize,
) -> Result<OffsetPointer, AllocError> {
    // SAFETY: [owned] as above.
    unsafe { heap.reallocate_offset_no_null_check(context, block, bytes) }
}

/// Fills a block with a pattern that begins with `seed`.
pub(crate) fn fill(heap: &dyn Allocator, block: OffsetPointer, len: usize, seed: u8) {
    let address = heap.resolve(block, len).unwrap();
    // SAFETY: [owned] the block is the test's and so long.
    let bytes = unsafe { std::slice::from_raw_parts_mut(address.as_ptr(), len) };
    let pattern = (0..=250_u8).cycle().map(|byte| byte.wrapping_add(seed));
    bytes.iter_mut().zip(pattern).for_each(|(byte, value)| *byte = value);
}

/// Whether it stands there still.
pub(crate) fn is_filled(heap: &dyn Allocator, block: OffsetPointer, len: usize, seed: u8) -> bool {
    let address = heap.resolve(block, len).unwrap();
    // SAFETY: [owned] the block is the test's and so long.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
    let pattern = (0..=250_u8).cycle().map(|byte| byte.wrapping_add(seed));
    bytes.iter().zip(pattern).all(|(&byte, value)| byte == value)
}

/// Nothing is allocated, and nothing is broken. Threads that have ended may still be giving back
/// what they had.
pub(crate) fn assert_empty(heap: &dyn Allocator) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while heap.allocated_bytes() != 0 {
        assert!(Instant::now() < deadline, "{} bytes are left", heap.allocated_bytes());
        std::thread::sleep(Duration::from_millis(1));
    }
    let report = heap.check();
    assert!(report.is_clean(), "{:?}", report.violations);
}

fn identity(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, memory } = &World::new(allocator, backend);
    assert_eq!((heap.kind(), heap.id()), (allocator.kind, AllocatorId::new(7, 9)));
    match heap.backend() {
        Some(backend) => assert!(Arc::ptr_eq(backend, &memory.backend)),
        None => assert!(!allocator.is_shared),
    }
    let name = allocator.kind.to_string();
    assert_eq!(name.parse::<AllocatorKind>().unwrap(), allocator.kind);
    assert_empty(&**heap);
    Ok(())
}

fn sizes(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let steps = (1..=40).chain((6..20).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]));
    let mut blocks = Vec::new();
    let mut total = 0;
    for (index, bytes) in steps.enumerate() {
        let block = allocate(heap, bytes);
        let seed = u8::try_from(index % 251).unwrap();
        assert!(heap.resolve(block, bytes).unwrap().addr().get().is_multiple_of(16));
        fill(heap, block, bytes, seed);
        blocks.push((block, bytes, seed));
        total += bytes as u64;
    }
    assert!(heap.allocated_bytes() >= total, "{} of {total}", heap.allocated_bytes());
    for &(block, bytes, seed) in blocks.iter().rev() {
        assert!(is_filled(heap, block, bytes, seed), "{bytes} bytes at {block} were overwritten");
        free(heap, block);
    }
    assert_empty(heap);
    Ok(())
}

fn zero_size(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let blocks = [0; 5].map(|bytes| allocate(heap, bytes));
    for (index, &block) in blocks.iter().enumerate() {
        fill(heap, block, 1, u8::try_from(index).unwrap());
    }
    assert!(heap.allocated_bytes() >= 5);
    for (index, &block) in blocks.iter().enumerate() {
        assert!(is_filled(heap, block, 1, u8::try_from(index).unwrap()));
        let block = resize(heap, CTX, block, 0).unwrap();
        free(heap, block);
    }
    assert_empty(heap);
    Ok(())
}

/// The largest alignment that this allocator promises.
pub(crate) fn largest_alignment(heap: &dyn Allocator) -> usize {
    heap.backend().map_or(MIN_ALIGN, |backend| backend.alignment())
}

fn alignments(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let mut align = 1;
    while align <= largest_alignment(heap) {
        let mut blocks = Vec::new();
        for bytes in [1, 100, 5000, 100_000] {
            let block = heap.aligned_allocate_offset(CTX, bytes, align).unwrap();
            let address = heap.resolve(block, bytes).unwrap();
            assert!(address.addr().get().is_multiple_of(align), "{address:?} for {align}");
            fill(heap, block, bytes, 3);
            blocks.push((block, bytes));
            if align > 1 << 20 {
                // The memory has room for few of these.
                break;
            }
        }
        for &(block, bytes) in blocks.iter().rev() {
            assert!(is_filled(heap, block, bytes, 3));
            free(heap, block);
        }
        align *= 2;
    }
    assert_empty(heap);
    Ok(())
}

fn contents(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let mut block = allocate(heap, 10);
    let mut len: usize = 10;
    fill(heap, block, len, 9);
    let mut walls = Vec::new();
    for bytes in [11, 100, 90, 5000, 4000, 70_000, 600_000, 650_000, 300, 17, 1, 64] {
        block = resize(heap, CTX, block, bytes).unwrap();
        let kept = len.min(bytes);
        assert!(is_filled(heap, block, kept, 9), "{kept} bytes, made {bytes}");
        assert!(heap.allocated_bytes() >= bytes as u64);
        fill(heap, block, bytes, 9);
        len = bytes;
        walls.push(allocate(heap, 40));
    }
    // What cannot be had leaves the block as it was.
    assert!(resize(heap, CTX, block, usize::MAX / 4).is_err());
    assert!(is_filled(heap, block, len, 9));
    // One with nothing behind it grows, too.
    walls.drain(..).for_each(|wall| free(heap, wall));
    block = resize(heap, CTX, block, 2000).unwrap();
    assert!(is_filled(heap, block, len, 9));
    free(heap, block);
    assert_empty(heap);
    Ok(())
}

fn custom_header(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let (header, len) = heap.custom_header();
    assert_eq!(len as u64, HEADER_BYTES);
    let address = heap.resolve(header, len).unwrap();
    // SAFETY: [owned] the header is the application's, which is this test.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
    assert!(bytes.iter().all(|&byte| byte == 0));
    fill(heap, header, len, 77);
    let blocks: Vec<_> = (0..200).map(|index| allocate(heap, index * 50)).collect();
    for (index, &block) in blocks.iter().enumerate() {
        fill(heap, block, index * 50, 1);
    }
    blocks.iter().rev().for_each(|&block| free(heap, block));
    assert!(is_filled(heap, header, len, 77), "the allocator wrote into the application's header");
    assert_empty(heap);
    Ok(())
}

fn addresses(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let block = allocate(heap, 1000);
    assert!(!block.is_null());
    let address = heap.resolve(block, 1000).unwrap();
    assert_eq!(heap.offset_of(address), Some(block));
    let inside = OffsetPointer::new(block.offset_bytes() + 999);
    let last = heap.resolve(inside, 1).unwrap();
    assert_eq!(last.addr().get() - address.addr().get(), 999);
    assert_eq!(heap.offset_of(last), Some(inside));
    let here = 5_u8;
    assert_eq!(heap.offset_of(NonNull::from(&here)), None, "that is on this thread's stack");
    for (pointer, len) in [
        (OffsetPointer::NULL, 1),
        (block, usize::MAX),
        (OffsetPointer::new(u64::MAX - 10), 100),
        (OffsetPointer::new(1 << 60), 1),
    ] {
        let found = heap.resolve(pointer, len);
        assert!(matches!(found, Err(AllocError::NotAllocated { .. })), "{pointer} {len}");
    }
    free(heap, block);
    assert_empty(heap);
    Ok(())
}

fn contexts(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    let (first, second) = (heap.create_tls().unwrap(), heap.create_tls().unwrap());
    assert!(first != second && first != CTX && second != CTX);
    for context in [first, second, CTX] {
        let block = heap.allocate_offset(context, 100).unwrap();
        fill(heap, block, 100, 5);
        let aligned = heap.aligned_allocate_offset(context, 100, 256).unwrap();
        let block = resize(heap, context, block, 3000).unwrap();
        assert!(is_filled(heap, block, 100, 5));
        try_free(heap, context, block).unwrap();
        // What one context allocated, another frees.
        try_free(heap, second, aligned).unwrap();
    }
    // Several threads use one context, one after the other.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let block = heap.allocate_offset(first, 50).unwrap();
                    try_free(heap, first, block).unwrap();
                }
            });
        }
    });
    heap.free_tls(first).unwrap();
    let refused = heap.allocate_offset(first, 1);
    assert!(matches!(refused, Err(AllocError::BadContext { .. })));
    assert!(matches!(heap.free_tls(first), Err(AllocError::BadContext { .. })));
    heap.free_tls(second).unwrap();
    assert_empty(heap);
    Ok(())
}

fn full(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    if !allocator.is_shared {
        return Err("its memory is the machine's");
    }
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    for bytes in [100_000, 3000, 500] {
        let mut counts = Vec::new();
        for _ in 0..2 {
            let mut blocks = Vec::new();
            loop {
                match heap.allocate_offset(CTX, bytes) {
                    Ok(block) => blocks.push(block),
                    Err(AllocError::OutOfMemory { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let total = (blocks.len() * bytes) as u64;
            assert!(total >= SIZE / 2, "{} blocks of {bytes} bytes fill the memory", blocks.len());
            counts.push(blocks.len());
            for &block in blocks.iter().rev() {
                free(heap, block);
            }
            assert_empty(heap);
        }
        assert!(counts[1] * 100 >= counts[0] * 99, "{counts:?} blocks of {bytes} bytes");
    }
    Ok(())
}

/// Takes all memory, in blocks of `bytes` as long as there is room for one.
fn fill_up(heap: &dyn Allocator, bytes: usize) -> Vec<OffsetPointer> {
    std::iter::from_fn(|| heap.allocate_offset(CTX, bytes).ok()).collect()
}

fn full_shrinks(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    if !allocator.is_shared {
        return Err("its memory is the machine's");
    }
    let World { heap, .. } = &World::new(allocator, backend);
    let heap = &**heap;
    for (bytes, smaller) in [(300_000, 100), (300_000, 70_000), (30_000, 1), (3000, 20)] {
        let mut blocks = fill_up(heap, bytes);
        // Nothing smaller can be had either.
        let rest = fill_up(heap, smaller);
        for &block in &blocks {
            fill(heap, block, smaller, 5);
        }
        for block in &mut blocks {
            let resized = resize(heap, CTX, *block, smaller);
            *block = resized.unwrap_or_else(|error| panic!("{bytes} to {smaller}: {error}"));
            assert!(is_filled(heap, *block, smaller, 5), "{bytes} bytes, made {smaller}");
        }
        for &block in rest.iter().chain(&blocks).rev() {
            free(heap, block);
        }
        assert_empty(heap);
    }
    Ok(())
}

fn attached_again(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, memory } = &World::new(allocator, backend);
    let heap = &**heap;
    if !allocator.is_shared {
        let refused = (allocator.attach)(memory.again()).unwrap_err();
        assert!(matches!(refused, SegmentError::NotShared { .. }), "{refused}");
        return Err("it lives in one process; attaching is refused with an error");
    }
    let blocks = [10, 1000, 100_000].map(|bytes| {
        let block = allocate(heap, bytes);
        fill(heap, block, bytes, 6);
        (block, bytes)
    });
    fill(heap, heap.custom_header().0, 100, 7);
    let other = (allocator.attach)(memory.again()).unwrap();
    assert_eq!((other.kind(), other.id()), (heap.kind(), heap.id()));
    assert_eq!(other.custom_header(), heap.custom_header());
    assert_eq!(other.allocated_bytes(), heap.allocated_bytes());
    assert!(is_filled(&*other, other.custom_header().0, 100, 7));
    for (block, bytes) in blocks {
        assert!(is_filled(&*other, block, bytes, 6));
    }
    let new = allocate(&*other, 500);
    assert!(blocks.iter().all(|&(block, _)| block != new));
    fill(&*other, new, 500, 8);
    assert!(is_filled(heap, new, 500, 8));
    free(heap, new);
    for &(block, _) in blocks.iter().rev() {
        free(&*other, block);
    }
    assert_empty(heap);
    assert_empty(&*other);
    drop(other);
    // And once more, with nobody else there.
    assert_empty(&*(allocator.attach)(memory.again()).unwrap());
    Ok(())
}

/// What stands in the memory is not taken for something else.
fn strangers(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    if !allocator.is_shared {
        return Err("it leaves the backend alone");
    }
    let memory = (backend.create)();
    let fresh = (allocator.attach)(Arc::clone(&memory.backend)).unwrap_err();
    assert!(matches!(fresh, SegmentError::Foreign { found: 0 }), "{fresh}");
    let World { heap: _heap, memory } = &World::new(allocator, backend);
    let again = (allocator.create)(AllocatorId::new(1, 1), Arc::clone(&memory.backend));
    assert!(matches!(again.unwrap_err(), SegmentError::Exists));
    for other in ALLOCATORS.iter().filter(|other| other.kind != allocator.kind) {
        assert!((other.attach)(Arc::clone(&memory.backend)).is_err(), "{}", other.kind);
    }
    Ok(())
}
