//! Vectors, strings and maps within one process, beside the standard library's.

use std::collections::HashMap;
use std::sync::Arc;

use super::*;
use crate::backend::scratch;
use crate::{
    AllocError, AllocatorId, HeapOptions, InitOptions, MallocAllocator, OffsetPointer, OnExit,
    ScalablePageAllocator, ShmAllocator as _, StackAllocator, ThreadLocalAllocator, doc_heap,
};

/// A small generator, so that a failure can be had again.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from((self.next() >> 11) % bound as u64).unwrap()
    }

    /// A value of any type, byte by byte.
    pub(super) fn value<T: Pod>(&mut self) -> T {
        let mut value = T::zeroed();
        bytemuck::bytes_of_mut(&mut value).fill_with(|| self.next().to_le_bytes()[3]);
        value
    }
}

fn assert_empty(heap: &ThreadLocalAllocator) {
    let check = heap.check();
    assert!(check.is_clean(), "{check:#?}");
    assert_eq!(heap.report().allocated_bytes, 0);
}

fn vector_beside_the_standard_one<T: Pod + PartialEq + std::fmt::Debug>() {
    let heap = doc_heap();
    let shared = ShmVec::<T>::create_in(&heap).unwrap();
    let mut model = Vec::new();
    let mut random = Random(88_172_645_463_325_252);
    for step in 0..3000 {
        let value: T = random.value();
        let (len, index) = (model.len(), random.below(model.len() + 1));
        // In turns more often growing and more often shrinking.
        let growing = step / 300 % 2 == 0;
        match (random.below(12), growing) {
            (0..3, _) | (10, true) => {
                shared.push(value).unwrap();
                model.push(value);
            }
            (3, true) => {
                let many: Vec<T> = (0..random.below(40)).map(|_| random.value()).collect();
                shared.extend_from_slice(&many).unwrap();
                model.extend_from_slice(&many);
            }
            (4, _) => {
                shared.insert(index, value).unwrap();
                model.insert(index, value);
            }
            (5, _) if index < len => assert_eq!(shared.remove(index).unwrap(), model.remove(index)),
            (6, _) if index < len => {
                assert_eq!(shared.swap_remove(index).unwrap(), model.swap_remove(index));
            }
            (7, _) if index < len => {
                assert_eq!(shared.set(index, value).unwrap(), model[index]);
                model[index] = value;
            }
            (8, false) if random.below(10) == 0 => {
                shared.truncate(index).unwrap();
                model.truncate(index);
            }
            (9, false) if random.below(20) == 0 => {
                let many: Vec<T> = (0..random.below(40)).map(|_| random.value()).collect();
                shared.assign(&many).unwrap();
                model = many;
            }
            (10, false) => shared.shrink_to_fit().unwrap(),
            (11, true) => shared.reserve(index).unwrap(),
            _ => assert_eq!(shared.pop().unwrap(), model.pop()),
        }
        assert_eq!(shared.len().unwrap(), model.len());
        assert!(shared.capacity().unwrap() >= model.len());
        assert_eq!(shared.get(index).unwrap(), model.get(index).copied());
        if step % 10 == 0 {
            assert_eq!(shared.to_vec().unwrap(), model);
        }
    }
    let outside = shared.set(model.len(), random.value());
    assert!(matches!(outside, Err(CollectionError::OutOfRange { .. })));
    assert!(shared.remove(model.len()).is_err() && shared.swap_remove(model.len()).is_err());
    assert!(shared.insert(model.len() + 1, random.value()).is_err());
    shared.clear().unwrap();
    assert!(shared.is_empty().unwrap());
    // SAFETY: it is used no more.
    unsafe { shared.destroy() }.unwrap();
    assert_empty(&heap);
}

#[test]
fn a_vector_does_what_the_standard_one_does() {
    vector_beside_the_standard_one::<u8>();
    vector_beside_the_standard_one::<[u8; 3]>();
    vector_beside_the_standard_one::<u64>();
    vector_beside_the_standard_one::<[u16; 19]>();
    vector_beside_the_standard_one::<[u8; 300]>();
}

#[test]
fn a_string_does_what_the_standard_one_does() {
    let heap = doc_heap();
    let shared = ShmString::create_in(&heap).unwrap();
    let mut model = String::new();
    let mut random = Random(7);
    for _ in 0..2000 {
        let text: String = (0..random.below(30))
            .filter_map(|_| "aä\u{20ac}\u{1d11e} ".chars().nth(random.below(5)))
            .collect();
        if random.below(20) == 0 {
            shared.set(&text).unwrap();
            model = text;
        } else {
            shared.push_str(&text).unwrap();
            model.push_str(&text);
        }
        assert_eq!(shared.get().unwrap(), model);
        assert_eq!(shared.len().unwrap(), model.len());
    }
    shared.clear().unwrap();
    assert!(shared.is_empty().unwrap() && shared.get().unwrap().is_empty());
    // SAFETY: it is used no more.
    unsafe { shared.destroy() }.unwrap();
    assert_empty(&heap);
}

fn map_beside_the_standard_one<K, V>(keys: usize)
where
    K: Pod + Eq + std::hash::Hash + std::fmt::Debug,
    V: Pod + PartialEq + std::fmt::Debug,
{
    let heap = doc_heap();
    let shared = ShmHashMap::<K, V>::create_in(&heap).unwrap();
    let mut model = HashMap::new();
    let mut random = Random(99);
    let keys: Vec<K> = (0..keys).map(|_| random.value()).collect();
    for step in 0..6000 {
        let (key, value): (K, V) = (keys[random.below(keys.len())], random.value());
        let growing = step / 1000 % 2 == 0;
        match (random.below(8), growing) {
            (0..3, true) | (0, false) => {
                assert_eq!(shared.insert(key, value).unwrap(), model.insert(key, value));
            }
            (3, _) => {
                let grown = shared.update(&key, |old| old.or(Some(value))).unwrap();
                assert_eq!(grown, Some(*model.entry(key).or_insert(value)));
            }
            (4, _) => {
                assert_eq!(shared.contains_key(&key).unwrap(), model.contains_key(&key));
                assert_eq!(shared.get(&key).unwrap(), model.get(&key).copied());
            }
            (5, false) if random.below(100) == 0 => {
                shared.clear().unwrap();
                model.clear();
            }
            (6, true) if random.below(100) == 0 => shared.reserve(random.below(1000)).unwrap(),
            _ => assert_eq!(shared.remove(&key).unwrap(), model.remove(&key)),
        }
        assert_eq!(shared.len().unwrap(), model.len());
        if step % 50 == 0 {
            let all: HashMap<K, V> = shared.to_vec().unwrap().into_iter().collect();
            assert_eq!(all, model);
            assert!(shared.capacity().unwrap() >= model.len());
        }
    }
    // SAFETY: it is used no more.
    unsafe { shared.destroy() }.unwrap();
    assert_empty(&heap);
}

#[test]
fn a_map_does_what_the_standard_one_does() {
    map_beside_the_standard_one::<u8, u64>(100);
    map_beside_the_standard_one::<u64, ()>(3000);
    map_beside_the_standard_one::<[u8; 5], [u8; 33]>(500);
    map_beside_the_standard_one::<[u64; 20], [u16; 3]>(50);
}

#[test]
fn threads_change_one_map_and_one_vector() {
    const THREADS: u64 = 4;
    const EACH: u64 = 3000;
    let heap = doc_heap();
    let map = ShmHashMap::<u64, u64>::create_in(&heap).unwrap();
    let vector = ShmVec::<[u64; 3]>::create_in(&heap).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (map, vector) = (&map, &vector);
            scope.spawn(move || {
                for number in 0..EACH {
                    map.update(&(number % 100), |count| Some(count.unwrap_or(0) + 1)).unwrap();
                    vector.push([thread, number, thread ^ number]).unwrap();
                    let index = usize::try_from(number).unwrap();
                    let [a, b, c] = vector.get(index).unwrap().unwrap();
                    assert_eq!(a ^ b, c, "torn");
                }
            });
        }
    });
    let pairs = map.to_vec().unwrap();
    assert!(pairs.len() == 100 && pairs.iter().all(|pair| pair.1 == THREADS * EACH / 100));
    let all = vector.to_vec().unwrap();
    for thread in 0..THREADS {
        let own = all.iter().filter(|value| value[0] == thread).map(|value| value[1]);
        assert!(own.eq(0..EACH));
    }
    // SAFETY: it is used no more.
    unsafe { map.destroy() }.unwrap();
    // SAFETY: it is used no more.
    unsafe { vector.destroy() }.unwrap();
}

#[test]
fn what_has_no_room_stays_as_it_was() {
    let heap = doc_heap();
    let vector = ShmVec::<[u64; 64]>::create_in(&heap).unwrap();
    let mut count = 0;
    let error = loop {
        match vector.push([count; 64]) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, CollectionError::Alloc(AllocError::OutOfMemory { .. })), "{error}");
    assert!(count > 5000);
    assert!(vector.to_vec().unwrap().iter().zip(0..count).all(|(value, n)| *value == [n; 64]));
    vector.truncate(10).unwrap();
    vector.shrink_to_fit().unwrap();
    let map = ShmHashMap::<u64, [u64; 63]>::create_in(&heap).unwrap();
    let mut count = 0;
    while map.insert(count, [count; 63]).is_ok() {
        count += 1;
    }
    assert_eq!(map.len().unwrap() as u64, count);
    assert!((0..count).all(|n| map.get(&n).unwrap() == Some([n; 63])));
    // SAFETY: it is used no more.
    unsafe { map.destroy() }.unwrap();
    // SAFETY: it is used no more.
    unsafe { vector.destroy() }.unwrap();
    assert_empty(&heap);
}

#[test]
fn a_panic_inside_an_update_leaves_the_map_in_use() {
    let heap = doc_heap();
    let map = ShmHashMap::<u64, u64>::create_in(&heap).unwrap();
    map.insert(1, 10).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        map.update(&1, |_| panic!("as planned"))
    }));
    assert!(panicked.is_err());
    let inside = map.update(&1, |value| {
        assert!(matches!(map.len(), Err(CollectionError::Lock(_))), "it is not reentrant");
        value
    });
    assert_eq!(inside.unwrap(), Some(10));
    assert_eq!(map.to_vec().unwrap(), [(1, 10)]);
}

#[test]
fn what_is_no_collection_is_refused() {
    let heap = doc_heap();
    let vector = ShmVec::<u64>::create_in(&heap).unwrap();
    let place = vector.place();
    assert!(matches!(
        ShmVec::<u32>::attach(&heap, place),
        Err(CollectionError::ElementSize { .. })
    ));
    assert!(matches!(ShmString::attach(&heap, place), Err(CollectionError::NotThere { .. })));
    let map = ShmHashMap::<u64, u64>::attach(&heap, place);
    assert!(matches!(map, Err(CollectionError::NotThere { .. })));
    for offset in [0, 1, 8, u64::MAX, 1 << 40, heap.committed_bytes() - 8] {
        let found = ShmVec::<u64>::attach(&heap, OffsetPointer::new(offset));
        assert!(matches!(found, Err(CollectionError::Alloc(_))), "{offset:#x}");
    }
    for offset in [place.offset_bytes() + 4, place.offset_bytes() + 8] {
        let found = ShmVec::<u64>::attach(&heap, OffsetPointer::new(offset));
        assert!(matches!(found, Err(CollectionError::NotThere { .. })), "{offset:#x}");
    }
    // SAFETY: attached to once more, which finds nothing.
    unsafe { vector.destroy() }.unwrap();
    assert!(matches!(ShmVec::<u64>::attach(&heap, place), Err(CollectionError::NotThere { .. })));
    assert_empty(&heap);
}

#[test]
fn a_segment_that_forgets_the_dead_has_no_growing_collections() {
    let backend = Arc::new(scratch("test", 16 << 20, 16 << 20).unwrap());
    let options = InitOptions { on_exit: OnExit::Reclaim, ..InitOptions::default() };
    let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options).unwrap();
    let refused = ShmVec::<u64>::create_in(&heap);
    assert!(matches!(refused, Err(CollectionError::GoesWithProcess)));
    assert!(ShmHashMap::<u64, u64>::create_in(&heap).is_err());
    assert!(ShmString::create_in(&heap).is_err());
    assert_empty(&heap);
}

fn work_in<A: CellAllocator>(allocator: &A) {
    let bytes = allocator.allocated_bytes();
    let queue = ShmQueue::<u64, A>::create_in(allocator, 10).unwrap();
    let vector = ShmVec::<[u8; 5], A>::create_in(allocator).unwrap();
    let map = ShmHashMap::<u64, u32, A>::create_in(allocator).unwrap();
    let text = ShmString::create_in(allocator).unwrap();
    for number in 0..100 {
        if queue.len() == queue.capacity() {
            queue.try_pop().unwrap();
        }
        queue.try_push(number.into()).unwrap();
        vector.push([number; 5]).unwrap();
        map.insert(number.into(), number.into()).unwrap();
        text.push_str("more ").unwrap();
    }
    assert_eq!(queue.try_pop().unwrap(), 84);
    assert_eq!(vector.remove(20).unwrap(), [20; 5]);
    assert_eq!((map.remove(&7).unwrap(), map.len().unwrap()), (Some(7), 99));
    text.set("less").unwrap();
    assert_eq!(text.get().unwrap(), "less");
    // SAFETY: it is used no more.
    unsafe { queue.destroy() }.unwrap();
    // SAFETY: it is used no more.
    unsafe { vector.destroy() }.unwrap();
    // SAFETY: it is used no more.
    unsafe { map.destroy() }.unwrap();
    // SAFETY: it is used no more.
    unsafe { text.destroy() }.unwrap();
    assert!(allocator.check().is_clean());
    assert_eq!(allocator.allocated_bytes(), bytes);
}

#[test]
fn every_allocator_carries_collections() {
    let backend = || Arc::new(scratch("test", 16 << 20, 16 << 20).unwrap());
    let (id, options) = (AllocatorId::new(0, 1), HeapOptions::default());
    work_in(&doc_heap());
    work_in(&ScalablePageAllocator::shm_init(id, backend(), &options).unwrap());
    work_in(&StackAllocator::shm_init(id, backend(), &options).unwrap());
    work_in(&MallocAllocator::new(id, &options).unwrap());
}
