//! One who sends messages through a shared queue, and one who receives them.

use hshm_memory::ThreadLocalAllocator;
use hshm_tests::traffic::Traffic;

pub(crate) fn send(heap: &ThreadLocalAllocator, sender: u64, count: u64) {
    Traffic::attach(heap).send(sender, count);
}

pub(crate) fn receive(heap: &ThreadLocalAllocator) {
    Traffic::attach(heap).receive();
}
