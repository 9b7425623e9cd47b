//! Collections that need raw pointers, in an allocator's memory.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::alloc::Layout;
use std::collections::HashMap as StdMap;
use std::hash::RandomState;
use std::ptr::NonNull;
use std::rc::Rc;

use allocator_api2::alloc::Allocator as _;
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::HashMap;
use hshm_memory::{Allocator, LocalAlloc, MemContext, ThreadLocalAllocator, doc_heap};

fn assert_empty(heap: &ThreadLocalAllocator) {
    assert!(heap.check().is_clean());
    assert_eq!(heap.report().allocated_bytes, 0);
}

#[test]
fn a_vector_grows_and_shrinks_in_shared_memory() {
    let heap = doc_heap();
    let mut numbers = Vec::new_in(LocalAlloc::new(&heap));
    let mut model = std::vec::Vec::new();
    for number in 0..200_000_u64 {
        numbers.push(number * 7);
        model.push(number * 7);
    }
    assert_eq!(*numbers, *model);
    assert!(heap.offset_of(NonNull::from(&numbers[0]).cast()).is_some(), "it is in the segment");
    assert!(heap.report().allocated_bytes >= 1_600_000);
    numbers.truncate(10);
    numbers.shrink_to_fit();
    assert!(heap.report().allocated_bytes < 1000);
    assert_eq!(*numbers, model[..10]);
    numbers.clear();
    numbers.shrink_to_fit();
    assert_empty(&heap);
    drop(numbers);
    assert_empty(&heap);
}

#[test]
fn boxes_and_vectors_drop_what_they_hold() {
    let heap = doc_heap();
    let value = Rc::new(5);
    let local = LocalAlloc::new(&heap);
    let boxed = Box::new_in(Rc::clone(&value), local);
    let mut many = Vec::with_capacity_in(3, local);
    many.extend((0..100).map(|_| Rc::clone(&value)));
    let slice: Box<[Rc<i32>], _> = many.into_boxed_slice();
    assert_eq!((Rc::strong_count(&value), **boxed, *slice[99]), (102, 5, 5));
    drop((boxed, slice));
    assert_eq!(Rc::strong_count(&value), 1);
    assert_empty(&heap);
}

#[test]
fn a_map_does_what_the_standard_one_does() {
    let heap = doc_heap();
    let hasher = RandomState::new();
    let mut map = HashMap::with_hasher_in(hasher, LocalAlloc::new(&heap));
    let mut model = StdMap::new();
    let mut seed = 1_u64;
    for _ in 0..100_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let key = seed >> 52;
        if seed >> 40 & 3 == 0 {
            assert_eq!(map.remove(&key), model.remove(&key));
        } else {
            assert_eq!(map.insert(key, seed), model.insert(key, seed));
        }
        assert_eq!(map.len(), model.len());
    }
    assert!(model.iter().all(|(key, value)| map.get(key) == Some(value)));
    assert!(heap.report().allocated_bytes > 0);
    drop(map);
    assert_empty(&heap);
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let heap = doc_heap();
    let local = LocalAlloc::new(&heap);
    let mut bytes: Vec<u8, _> = Vec::new_in(local);
    bytes.extend_from_slice(&[3; 1000]);
    assert!(bytes.try_reserve(1 << 30).is_err());
    assert_eq!(bytes[..], [3; 1000], "it is as it was");
    let mut map: HashMap<u64, [u64; 100], _, _> =
        HashMap::with_hasher_in(RandomState::new(), local);
    assert!(map.try_reserve(1 << 20).is_err());
    // Until there is no more.
    let mut boxes = std::vec::Vec::new();
    while let Ok(boxed) = Box::try_new_in([7_u8; 100_000], local) {
        boxes.push(boxed);
    }
    assert!(boxes.len() > 100, "{} blocks", boxes.len());
    assert!(boxes.iter().all(|boxed| boxed.iter().all(|&byte| byte == 7)));
    drop((boxes, bytes, map));
    assert_empty(&heap);
}

#[test]
fn every_layout_is_honoured() {
    #[repr(align(4096))]
    struct Page([u8; 5000]);

    let heap = doc_heap();
    let local = LocalAlloc::new(&heap);
    let page = Box::new_in(Page([1; 5000]), local);
    assert_eq!(NonNull::from(&*page).addr().get() % 4096, 0);
    assert!(page.0.iter().all(|&byte| byte == 1));
    drop(page);
    let mut pages = Vec::new_in(local);
    pages.extend((0..20).map(|n| Page([n; 5000])));
    assert!(pages.iter().zip(0..).all(|(page, n)| page.0.iter().all(|&byte| byte == n)));
    drop(pages);
    let mut nothings = Vec::new_in(local);
    nothings.extend((0..1000).map(|_| ()));
    drop((nothings, Box::new_in((), local)));
    assert_empty(&heap);
}

/// From every size and alignment to every other, and to nothing and back.
#[test]
fn blocks_keep_what_they_hold_when_they_are_resized() {
    let heap = doc_heap();
    let sizes = [0, 1, 15, 16, 17, 100, 5000, 70_000];
    let layouts: std::vec::Vec<Layout> = sizes
        .iter()
        .flat_map(|&size| [1, 8, 64, 4096].map(|align| Layout::from_size_align(size, align)))
        .map(Result::unwrap)
        .collect();
    let context = heap.create_tls().unwrap();
    for local in [LocalAlloc::new(&heap), LocalAlloc::with_context(&heap, context)] {
        for &old in &layouts {
            for &new in &layouts {
                resize(local, old, new);
            }
        }
    }
    heap.free_tls(context).unwrap();
    assert_empty(&heap);
}

fn resize(local: LocalAlloc<'_>, old: Layout, new: Layout) {
    let block = local.allocate(old).unwrap().cast::<u8>();
    // SAFETY: the block is as long.
    unsafe { block.write_bytes(9, old.size()) };
    let resized = if new.size() >= old.size() {
        // SAFETY: the block is allocated, by the layout given.
        unsafe { local.grow_zeroed(block, old, new) }
    } else {
        // SAFETY: as above.
        unsafe { local.shrink(block, old, new) }
    };
    let resized = resized.unwrap();
    assert_eq!(resized.len(), new.size());
    let block = resized.cast::<u8>();
    assert_eq!(block.addr().get() % new.align(), 0, "{old:?} to {new:?}");
    // SAFETY: the block is as long, and all of it was written.
    let bytes = unsafe { std::slice::from_raw_parts(block.as_ptr(), new.size()) };
    let kept = old.size().min(new.size());
    assert!(bytes[..kept].iter().all(|&byte| byte == 9), "{old:?} to {new:?}");
    assert!(bytes[kept..].iter().all(|&byte| byte == 0), "{old:?} to {new:?}");
    // SAFETY: it is not used any more.
    unsafe { local.deallocate(block, new) };
}

#[test]
fn any_allocator_will_do() {
    let heap = doc_heap();
    let any: &dyn Allocator = &heap;
    let mut text = Vec::new_in(LocalAlloc::with_context(any, MemContext::DEFAULT));
    text.extend_from_slice(b"to be or not to be");
    assert_eq!(&text[..5], b"to be");
    drop(text);
    assert_empty(&heap);
}
