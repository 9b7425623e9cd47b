use std::ptr::NonNull;
use std::sync::Arc;

use hshm_memory::{
    AllocError, AllocatorId, ArrayBackend, Backend, BackendError, BackendSlice, InitOptions,
    MemfdMmap, PosixMmapBackend, ThreadLocalAllocator,
};

const MIB: u64 = 1 << 20;

fn small() -> InitOptions {
    InitOptions { worker_slots: 8, ..InitOptions::default() }
}

fn shared(bytes: u64) -> Arc<dyn Backend> {
    Arc::new(MemfdMmap::create("parts", bytes, bytes).unwrap())
}

#[test]
fn parts_that_are_not_there_are_refused() {
    let whole: Arc<dyn Backend> = Arc::new(MemfdMmap::create("parts", MIB, 4 * MIB).unwrap());
    for (start, end) in [
        (0, 0),
        (8192, 4096),
        (1, 4096),
        (0, 4097),
        (0, MIB + 4096),
        (MIB, 2 * MIB),
        (0, u64::MAX - 4095),
    ] {
        let error = BackendSlice::new(whole.clone(), start..end).map(drop).unwrap_err();
        assert!(matches!(error, BackendError::BadPart { .. }), "{start}..{end}: {error}");
    }
    // What is grown can be had.
    whole.grow(4 * MIB).unwrap();
    let part = BackendSlice::new(whole.clone(), MIB..4 * MIB).unwrap();
    assert_eq!((part.alignment(), part.capacity_bytes()), (1 << 20, 3 * MIB));
    assert_eq!(part.base().addr().get() - whole.base().addr().get(), 1 << 20);
    let of_part = BackendSlice::new(Arc::new(part), 12_288..MIB).unwrap();
    assert_eq!((of_part.alignment(), of_part.range()), (4096, 12_288..MIB));
}

#[test]
fn several_allocators_share_one_backend() {
    let whole = shared(32 * MIB);
    let heaps: Vec<ThreadLocalAllocator> = (0..4_u32)
        .map(|index| {
            let start = u64::from(index) * 8 * MIB;
            let part = BackendSlice::new(whole.clone(), start..start + 8 * MIB).unwrap();
            let id = AllocatorId::new(0, index);
            ThreadLocalAllocator::shm_init(id, Arc::new(part), &small()).unwrap()
        })
        .collect();
    // Each is filled to the brim, and none sees another's blocks.
    for (index, heap) in heaps.iter().enumerate() {
        let mark = u8::try_from(index).unwrap();
        while let Ok(block) = heap.allocate(100_000) {
            // SAFETY: [owned] the block was just allocated, and is so long.
            unsafe { heap.resolve(block, 100_000).unwrap().write_bytes(mark, 100_000) };
        }
    }
    for (index, heap) in heaps.iter().enumerate() {
        let violations = heap.check().violations;
        assert!(violations.is_empty(), "{index}: {violations:?}");
        assert!(heap.report().allocated_bytes > 6 * MIB);
    }
    // Another process finds them at the same places.
    let again = BackendSlice::new(whole, 8 * MIB..16 * MIB).unwrap();
    let again = ThreadLocalAllocator::shm_deserialize(Arc::new(again)).unwrap();
    assert_eq!(again.id(), AllocatorId::new(0, 1));
}

#[test]
fn an_allocator_stands_in_a_block_of_another() {
    let whole = shared(32 * MIB);
    let outer =
        ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), whole.clone(), &small()).unwrap();
    let block = outer.aligned_allocate(8 << 20, 65_536).unwrap();
    let start = block.offset_bytes();
    let part = BackendSlice::new(whole, start..start + 8 * MIB).unwrap();
    let inner =
        ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), Arc::new(part), &small()).unwrap();
    let inside = inner.allocate(100).unwrap();
    let address = inner.resolve(inside, 100).unwrap();
    assert_eq!(outer.offset_of(address).unwrap().offset_bytes(), start + inside.offset_bytes());
    // SAFETY: [owned] it was just allocated.
    unsafe { inner.free(inside) }.unwrap();
    drop(inner);
    // SAFETY: [owned] nobody uses it any more.
    unsafe { outer.free(block) }.unwrap();
    assert!(outer.check().violations.is_empty());
}

#[test]
fn an_array_is_used_between_its_first_and_last_whole_page() {
    let mut memory = vec![0xff_u8; 8 << 20];
    let start = NonNull::from(memory.as_mut_slice()).cast::<u8>();
    // SAFETY: [owned] the vector is longer than 13 bytes.
    let odd = unsafe { start.add(13) };
    let len = memory.len() - 13;
    // SAFETY: [owned] nobody uses the vector before the backend is dropped.
    let backend = unsafe { ArrayBackend::create(odd, len) }.unwrap();
    let (base, first) = (backend.base().addr().get(), odd.addr().get());
    assert!(base.is_multiple_of(4096) && base >= first && base - first < 4096);
    let end = base + usize::try_from(backend.capacity_bytes()).unwrap();
    assert!(end <= first + len && first + len - end < 4096);
    let id = AllocatorId::new(5, 6);
    let heap = ThreadLocalAllocator::shm_init(id, Arc::new(backend), &small()).unwrap();
    let limit = heap.backend().alignment();
    let block = heap.aligned_allocate(10, limit).unwrap();
    assert!(heap.resolve(block, 10).unwrap().addr().get().is_multiple_of(limit));
    let error = heap.aligned_allocate(10, limit * 2).unwrap_err();
    assert!(matches!(error, AllocError::BadAlignment { .. }), "{error}");
    assert!(error.to_string().contains(&format!("at most {limit}")), "{error}");
    drop(heap);
    // SAFETY: [owned] as above.
    let again = unsafe { ArrayBackend::attach(odd, len) }.unwrap();
    let again = ThreadLocalAllocator::shm_deserialize(Arc::new(again)).unwrap();
    assert_eq!((again.id(), again.report().allocated_blocks), (id, 1));
    drop(again);
    assert!(memory.iter().take(13).all(|byte| *byte == 0xff), "what is not used is not touched");
    memory.clear();
    let mut short = [0_u8; 4096];
    let short = NonNull::from(&mut short).cast::<u8>();
    // SAFETY: [owned] nobody uses the array but the backend, if there were one.
    let error = unsafe { ArrayBackend::create(short, 4095) }.unwrap_err();
    assert!(matches!(error, BackendError::BadSize { .. }), "{error}");
}

#[test]
fn private_memory_around_a_backend_cannot_be_written() {
    let backend = PosixMmapBackend::create(MIB, MIB).unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let base = backend.base().addr().get();
    let access_at = |address: usize| {
        maps.lines().find_map(|line| {
            let mut words = line.split(' ');
            let (start, end) = words.next()?.split_once('-')?;
            let at = |digits| usize::from_str_radix(digits, 16).unwrap();
            (at(start)..at(end)).contains(&address).then(|| words.next().unwrap().to_owned())
        })
    };
    assert_eq!(access_at(base).as_deref(), Some("rw-p"));
    assert_eq!(access_at(base - 1).as_deref(), Some("---p"));
    assert_eq!(access_at(base + (1 << 20)).as_deref(), Some("---p"));
}
