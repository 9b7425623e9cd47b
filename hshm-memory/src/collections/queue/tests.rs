//! The queue within one process.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::doc_heap;
use crate::sync::{AtomicU64, Ordering};

/// Odd in length, so that words are not filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Odd([u8; 13]);

// SAFETY: all bytes are valid, and there is no padding.
unsafe impl bytemuck::Zeroable for Odd {}
// SAFETY: as above.
unsafe impl Pod for Odd {}

#[test]
fn it_does_what_a_deque_does() {
    let heap = doc_heap();
    for capacity in [1, 2, 3, 8, 100] {
        let queue = ShmQueue::<Odd>::create_in(&heap, capacity).unwrap();
        let mut model = VecDeque::new();
        let mut seed = 1_u64;
        for step in 0..5000_u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // In turns more often in and more often out.
            let threshold = if step / 500 % 2 == 0 { 11 } else { 5 };
            if seed >> 60 < threshold {
                let mut odd = Odd([0; 13]);
                odd.0[..8].copy_from_slice(&seed.to_le_bytes());
                odd.0[12] = 1;
                let is_full = model.len() == queue.capacity();
                match queue.try_push(odd) {
                    Ok(()) => model.push_back(odd),
                    Err(CollectionError::Full) => assert!(is_full),
                    Err(error) => panic!("{error}"),
                }
            } else {
                match queue.try_pop() {
                    Ok(odd) => assert_eq!(Some(odd), model.pop_front()),
                    Err(CollectionError::Empty) => assert!(model.is_empty()),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(queue.len(), model.len());
            assert_eq!(queue.is_empty(), model.is_empty());
        }
        let nodes = u32::try_from(queue.capacity()).unwrap() + PUSHERS;
        assert_eq!(queue.parts.ring.all_nodes(), (0..nodes).collect::<Vec<_>>());
        // SAFETY: it is used no more.
        unsafe { queue.destroy() }.unwrap();
    }
    assert_eq!(heap.report().allocated_bytes, 0);
}

#[test]
fn values_without_bytes_and_of_many_are_carried() {
    let heap = doc_heap();
    let empty = ShmQueue::<()>::create_in(&heap, 4).unwrap();
    empty.try_push(()).unwrap();
    empty.try_pop().unwrap();
    assert!(matches!(empty.try_pop(), Err(CollectionError::Empty)));
    let large = ShmQueue::<[u64; 1024]>::create_in(&heap, 4).unwrap();
    large.try_push(std::array::from_fn(|index| index as u64)).unwrap();
    assert_eq!(large.try_pop().unwrap()[1023], 1023);
}

#[test]
fn threads_that_wait_for_one_another_lose_nothing() {
    const THREADS: u64 = 4;
    const EACH: u64 = 20_000;
    let heap = doc_heap();
    for capacity in [1, 64] {
        let queue = ShmQueue::<[u64; 3]>::create_in(&heap, capacity).unwrap();
        let sum = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let queue = &queue;
                scope.spawn(move || {
                    for number in 0..EACH {
                        let value = thread * EACH + number;
                        queue.push([value, !value, value ^ 77], Duration::MAX).unwrap();
                    }
                });
                let sum = &sum;
                scope.spawn(move || {
                    let mut last = [0; 4];
                    for _ in 0..EACH {
                        let [value, inverse, other] = queue.pop(Duration::MAX).unwrap();
                        assert_eq!((inverse, other), (!value, value ^ 77), "torn");
                        let pusher = usize::try_from(value / EACH).unwrap();
                        assert!(last[pusher] <= value, "out of order");
                        last[pusher] = value;
                        sum.fetch_add(value, Ordering::Relaxed);
                    }
                });
            }
        });
        let count = THREADS * EACH;
        assert_eq!(sum.into_inner(), count * (count - 1) / 2);
        assert!(queue.is_empty());
    }
}

#[test]
fn waiting_ends_in_time() {
    let heap = doc_heap();
    let queue = ShmQueue::<u64>::create_in(&heap, 1).unwrap();
    let short = Duration::from_millis(5);
    for timeout in [Duration::ZERO, short] {
        let popped = queue.pop(timeout);
        assert!(matches!(popped, Err(CollectionError::TimedOut { waited }) if waited == timeout));
    }
    queue.push(1, Duration::ZERO).unwrap();
    let begun = std::time::Instant::now();
    assert!(matches!(queue.push(2, short), Err(CollectionError::TimedOut { .. })));
    assert!(begun.elapsed() >= short);
}

#[test]
fn capacities_that_cannot_be_are_refused() {
    let heap = doc_heap();
    for capacity in [0, (1 << 20) + 1, usize::MAX] {
        let made = ShmQueue::<u64>::create_in(&heap, capacity);
        assert!(matches!(made, Err(CollectionError::Capacity { .. })));
    }
    let made = ShmQueue::<u64>::create_in(&heap, 1 << 20);
    assert!(matches!(made, Err(CollectionError::Alloc(_))), "it is larger than the segment");
    assert_eq!(heap.report().allocated_bytes, 0);
}

#[test]
fn what_is_no_queue_is_refused() {
    let heap = doc_heap();
    let queue = ShmQueue::<u64>::create_in(&heap, 4).unwrap();
    let place = queue.place();
    let at = |offset| ShmQueue::<u64>::attach(&heap, OffsetPointer::new(offset));
    for offset in [0, 1, 8, u64::MAX, u64::MAX - 127, 1 << 40] {
        assert!(matches!(at(offset), Err(CollectionError::Alloc(_))), "{offset:#x}");
    }
    for offset in [place.offset_bytes() + 128, heap.committed_bytes() - 640] {
        assert!(matches!(at(offset), Err(CollectionError::NotThere { .. })), "{offset:#x}");
    }
    assert!(matches!(at(heap.committed_bytes() - 64), Err(CollectionError::Alloc(_))));
    let other = ShmQueue::<u32>::attach(&heap, place);
    assert!(matches!(other, Err(CollectionError::ElementSize { found_bytes: 8, .. })));
    // SAFETY: only attached to once more, which finds nothing.
    unsafe { queue.destroy() }.unwrap();
    let gone = heap.allocate(16).unwrap();
    assert!(matches!(at(place.offset_bytes()), Err(CollectionError::NotThere { .. })));
    // SAFETY: it was just allocated.
    unsafe { heap.free(gone) }.unwrap();
    assert_eq!(heap.report().allocated_bytes, 0);
}

/// A pusher's holder is found dead, in each state that it may have left.
#[test]
fn the_pushers_of_the_dead_are_taken_over_when_all_are_in_use() {
    let heap = doc_heap();
    let queue = ShmQueue::<u64>::create_in(&heap, 4).unwrap();
    let ring = &queue.parts.ring;
    let me = identity::me().unwrap();
    // Each thread that starts a tick apart has a name of its own; none of these lives.
    let dead = |number: u64| me ^ (1 + number);
    for number in 0..u64::from(PUSHERS) {
        assert!(ring.claim_for_test(dead(number)).is_some());
    }
    assert!(ring.claim_for_test(me).is_none());
    for number in 0..4 {
        queue.try_push(number).unwrap();
    }
    assert_eq!((0..4).map(|_| queue.try_pop().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // And if they live, the caller is told.
    while ring.claim_for_test(me).is_some() {}
    for number in 0..u64::from(PUSHERS) {
        ring.release_for_test(dead(number));
    }
    while ring.claim_for_test(me).is_some() {}
    assert!(matches!(queue.try_push(1), Err(CollectionError::Busy { .. })));
    let waited = queue.push(1, Duration::from_millis(3));
    assert!(matches!(waited, Err(CollectionError::TimedOut { .. })));
}

/// Whatever bytes stand in a queue, its operations end, and stay in the segment.
#[test]
fn scribbled_bytes_make_errors_or_wrong_messages() {
    let heap = doc_heap();
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut refused, mut failed, mut passed) = (0, 0, 0);
    for round in 0..3000 {
        let queue = ShmQueue::<[u64; 2]>::create_in(&heap, 4).unwrap();
        for number in 0..next() % 5 {
            queue.try_push([number; 2]).unwrap();
        }
        let words = 80 + 4 + 12 + 64 * 8 + (64 + 4) * 3_u64;
        let offset = queue.place().offset_bytes().next_multiple_of(128);
        for _ in 0..1 + next() % 8 {
            // Mostly where it matters.
            let index = if next() % 2 == 0 { next() % 96 } else { next() % words };
            let word = heap.resolve(OffsetPointer::new(offset + index * 8), 8).unwrap();
            let value = match next() % 4 {
                0 => next(),
                1 => 0,
                2 => u64::MAX,
                _ => next() % 256,
            };
            // SAFETY: [mapped] it was resolved; [atomic] so are all of the queue's words.
            let word = unsafe { AtomicU64::from_ptr(word.cast().as_ptr()) };
            word.store(value, Ordering::Relaxed);
        }
        match ShmQueue::<[u64; 2]>::attach(&heap, queue.place()) {
            Err(_) => refused += 1,
            Ok(view) => {
                for _ in 0..10 {
                    match (view.try_push([round; 2]), view.try_pop()) {
                        (Ok(()), Ok(_)) => passed += 1,
                        _ => failed += 1,
                    }
                    let _ = view.len();
                }
                let _ = view.pop(Duration::from_micros(1));
            }
        }
        // SAFETY: it is used no more.
        unsafe { queue.destroy() }.unwrap();
    }
    assert!(refused > 100 && failed > 100 && passed > 100, "{refused} {failed} {passed}");
    assert!(heap.check().is_clean());
    assert_eq!(heap.report().allocated_bytes, 0);
}
