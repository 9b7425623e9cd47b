//! Contents that only one block has, so that what overwrites it shows.

use std::ptr::NonNull;

use hshm_memory::{OffsetPointer, ThreadLocalAllocator};

use crate::random::mix;

/// Blocks up to this size are filled whole; larger ones at both ends and once in each 4 KiB between.
const WHOLE_BYTES: usize = 16 << 10;
const END_BYTES: usize = 4096;
const WORD: usize = size_of::<u64>();

/// Where the words of a block stand that carry its stamp.
fn places(len: usize) -> impl Iterator<Item = usize> {
    let words = len / WORD * WORD;
    let (head, tail) =
        if len <= WHOLE_BYTES { (words, words) } else { (END_BYTES, words - END_BYTES) };
    let ends = (0..head).step_by(WORD).chain((tail..words).step_by(WORD));
    ends.chain((head..tail).step_by(END_BYTES))
}

/// The bytes that stand at `place`.
fn word(stamp: u64, place: usize) -> [u8; WORD] {
    mix(stamp ^ (place as u64).rotate_left(40)).to_le_bytes()
}

fn address(heap: &ThreadLocalAllocator, block: OffsetPointer, len: usize) -> NonNull<u8> {
    match heap.resolve(block, len) {
        Ok(address) => address,
        Err(error) => panic!("the block at {block} of {len} bytes cannot be resolved: {error}"),
    }
}

/// Writes the stamp over the `len` bytes at `block`.
///
/// # Panics
/// If they do not lie in the segment.
///
/// # Safety
/// They are the caller's alone.
pub unsafe fn fill(heap: &ThreadLocalAllocator, block: OffsetPointer, len: usize, stamp: u64) {
    let start = address(heap, block, len).as_ptr();
    for place in places(len) {
        let at = start.wrapping_add(place).cast::<[u8; WORD]>();
        // SAFETY: [mapped] resolve checked the whole block; [owned] the caller's promise.
        unsafe { at.write(word(stamp, place)) };
    }
    for place in len / WORD * WORD..len {
        // SAFETY: as above.
        unsafe { start.wrapping_add(place).write(word(stamp, place)[0]) };
    }
}

/// Asserts that the first `kept` bytes of what was filled as `len` bytes still carry the stamp.
///
/// # Panics
/// If they do not.
///
/// # Safety
/// Nobody writes to them meanwhile.
pub unsafe fn verify(
    heap: &ThreadLocalAllocator,
    block: OffsetPointer,
    len: usize,
    kept: usize,
    stamp: u64,
) {
    let start = address(heap, block, kept).as_ptr();
    let check = |place: usize, matches: bool| {
        assert!(matches, "the block at {block} of {len} bytes was overwritten at byte {place}");
    };
    for place in places(len).filter(|place| place + WORD <= kept) {
        let at = start.wrapping_add(place).cast::<[u8; WORD]>();
        // SAFETY: [mapped] resolve checked `kept` bytes; the caller promises that they keep still.
        check(place, unsafe { at.read() } == word(stamp, place));
    }
    for place in (len / WORD * WORD..len).filter(|place| *place < kept) {
        // SAFETY: as above.
        check(place, unsafe { start.wrapping_add(place).read() } == word(stamp, place)[0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::{Kind, TestSegment};

    #[test]
    fn one_changed_byte_shows() {
        let segment = TestSegment::new(Kind::Memfd, 8 << 20, Default::default());
        let heap = &segment.heap;
        for len in [1, 7, 8, 100, 4096, 20_000] {
            let block = heap.allocate(len).unwrap();
            // SAFETY: the block is ours.
            unsafe { fill(heap, block, len, 9) };
            // SAFETY: the block is ours.
            unsafe { verify(heap, block, len, len, 9) };
            let last = heap.resolve(block, len).unwrap().as_ptr().wrapping_add(len - 1);
            // SAFETY: the block is ours.
            let byte = unsafe { last.read() };
            // SAFETY: the block is ours.
            unsafe { last.write(!byte) };
            let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // SAFETY: the block is ours.
                unsafe { verify(heap, block, len, len, 9) };
            }));
            assert!(seen.is_err(), "{len}");
        }
    }
}
