//! A process that uses a segment which somebody scribbled over.

use hshm_memory::{AllocError, ThreadLocalAllocator};
use hshm_tests::random::Random;

/// Looks at everything, and goes on using it. That errors come is right; that this process ends by a
/// panic or a signal is not.
pub(crate) fn run(heap: &ThreadLocalAllocator, seed: u64) {
    let _ = heap.check();
    let _ = heap.report();
    let _ = heap.recover_dead();
    let mut random = Random::new(seed);
    let mut blocks = Vec::new();
    for _ in 0..2000 {
        if random.below(3) > 0 {
            let len = random.size(1, 300_000);
            // What is handed out lies in the segment, and may be written.
            if let Ok(block) = heap.allocate(len) {
                blocks.push((block, len));
            }
        } else if !blocks.is_empty() {
            let (block, len) = blocks.swap_remove(random.index(blocks.len()));
            // It may not be free to write to: the tables are not to be trusted, and the block could
            // lie over one.
            let _ = heap.resolve(block, len);
            // SAFETY: what is freed was allocated here. That its page is intact, nobody promises,
            // which is what this is about.
            match unsafe { heap.free(block) } {
                Ok(()) | Err(AllocError::NotAllocated { .. } | AllocError::Corrupt { .. }) => {}
                Err(error) => drop(error),
            }
        }
    }
    let _ = heap.check();
    let _ = heap.report();
    heap.detach_thread();
    let _ = heap.recover_dead();
}
