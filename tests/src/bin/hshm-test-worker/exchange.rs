//! Two processes that send each other blocks, each of which the receiver verifies and frees.

use hshm_memory::{OffsetPointer, ThreadLocalAllocator};
use hshm_tests::random::Random;
use hshm_tests::ring::{RING_BYTES, Ring};
use hshm_tests::stamp;

/// Sizes and contents of one direction's blocks, the same for sender and receiver.
struct Sequence(Random);

impl Sequence {
    fn of(direction: u64) -> Self {
        Self(Random::new(direction + 1))
    }

    fn next(&mut self) -> (usize, u64) {
        (self.0.size(16, 2048), self.0.next())
    }
}

/// Sends `blocks` blocks to the other side, and receives as many. `progress` is told how many it has
/// received.
pub(crate) fn run(
    heap: &ThreadLocalAllocator,
    side: u64,
    blocks: u64,
    mut progress: impl FnMut(u64),
) {
    let (header, _) = heap.custom_header();
    let ring = |direction| {
        Ring::at(heap, OffsetPointer::new(header.offset_bytes() + direction * RING_BYTES))
    };
    let (mut out, mut incoming) = (ring(side), ring(1 - side));
    let (mut to_send, mut to_receive) = (Sequence::of(side), Sequence::of(1 - side));
    let (mut sent, mut received) = (0, 0);
    let mut waiting = None;
    while sent < blocks || received < blocks {
        let before = sent + received;
        // In turns of up to a hundred, so that blocks pile up and free lists have a length.
        for _ in 0..100 {
            if sent == blocks {
                break;
            }
            let block = *waiting.get_or_insert_with(|| {
                let (len, content) = to_send.next();
                let block = heap.allocate(len).expect("there is room");
                // SAFETY: the block is ours until it is sent.
                unsafe { stamp::fill(heap, block, len, content) };
                block
            });
            if !out.push(block.offset_bytes()) {
                break;
            }
            waiting = None;
            sent += 1;
        }
        for _ in 0..100 {
            let Some(offset) = incoming.pop() else { break };
            let block = OffsetPointer::new(offset);
            let (len, content) = to_receive.next();
            // SAFETY: whoever sent the block gave it away.
            unsafe { stamp::verify(heap, block, len, len, content) };
            // SAFETY: as above.
            unsafe { heap.free(block) }.expect("the block is allocated");
            received += 1;
        }
        if sent + received == before {
            std::thread::yield_now();
        } else {
            progress(received);
        }
    }
    assert!(incoming.pop().is_none(), "more came than was sent");
}
