//! A pool, stopped after every store.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use super::layout::Header;
use super::{DevicePool, PoolError, PoolOptions};
use crate::sync::Ordering;
use crate::{AllocatorId, InitOptions, MemfdMmap, OffsetPointer, ThreadLocalAllocator};

thread_local! {
    /// After how many stores this thread stops.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a stopped thread unwinds with.
struct Stopped;

pub(super) fn window() {
    let Some(left) = LEFT.get() else { return };
    if left == 0 {
        LEFT.set(None);
        panic::resume_unwind(Box::new(Stopped));
    }
    LEFT.set(Some(left - 1));
}

/// Does `work` but for what comes after `stores` stores. `None` if it was stopped.
fn stopped_after<T>(stores: u32, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.set(Some(stores));
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    LEFT.set(None);
    done.ok()
}

const GRANULE: u64 = 256;

fn heap() -> ThreadLocalAllocator {
    let backend = Arc::new(MemfdMmap::create("pool", 4 << 20, 4 << 20).unwrap());
    let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
    ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options).unwrap()
}

fn pool(heap: &ThreadLocalAllocator, granules: u64) -> DevicePool {
    let options = PoolOptions { bytes: granules * GRANULE, granule_bytes: GRANULE };
    DevicePool::create(heap, options).unwrap()
}

fn assert_has(pool: &DevicePool, blocks: u64, granules: u64) {
    let check = pool.check().unwrap();
    assert!(check.is_clean(), "{check:?}");
    let report = pool.report().unwrap();
    assert_eq!((report.allocated_blocks, report.allocated_bytes), (blocks, granules * GRANULE));
    assert_eq!(check.allocated_blocks, blocks);
}

/// # Safety
/// As [`DevicePool::free`]; nothing here uses what it allocates.
unsafe fn free(pool: &DevicePool, block: OffsetPointer) -> Result<(), PoolError> {
    // SAFETY: the caller promises.
    unsafe { pool.free(block) }
}

#[test]
fn blocks_are_apart_and_what_is_freed_is_given_out_again() {
    let heap = heap();
    let pool = pool(&heap, 200);
    let mut random = 1_u64;
    let mut blocks: BTreeMap<u64, u64> = BTreeMap::new();
    for round in 0..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let bytes = (random >> 40) % (GRANULE * 12);
        if random >> 63 == 0 {
            match pool.allocate(bytes) {
                Ok(block) => {
                    let (from, len) =
                        (block.offset_bytes(), bytes.max(1).next_multiple_of(GRANULE));
                    assert_eq!(pool.usable_bytes(block).unwrap(), len);
                    assert!(from >= GRANULE && from + len <= pool.bytes());
                    let before = blocks.range(..from + len).next_back();
                    assert!(before.is_none_or(|(at, len)| at + len <= from), "round {round}");
                    blocks.insert(from, len);
                }
                Err(PoolError::Full { free_bytes, .. }) => {
                    let taken: u64 = blocks.values().sum();
                    assert_eq!(free_bytes, pool.bytes() - GRANULE - taken);
                    let largest = pool.report().unwrap().largest_free_bytes;
                    assert!(largest < bytes.max(1), "{largest} for {bytes}");
                }
                Err(other) => panic!("{other}"),
            }
        } else if let Some((&block, _)) = blocks.range(random % pool.bytes()..).next() {
            blocks.remove(&block);
            // SAFETY: [owned] it is the model's.
            unsafe { free(&pool, OffsetPointer::new(block)) }.unwrap();
        }
    }
    assert_has(&pool, blocks.len() as u64, blocks.values().sum::<u64>() / GRANULE);
    for block in blocks.into_keys() {
        // SAFETY: [owned] as above.
        unsafe { free(&pool, OffsetPointer::new(block)) }.unwrap();
        // SAFETY: [owned] as above; it is refused.
        let twice = unsafe { free(&pool, OffsetPointer::new(block)) };
        assert!(matches!(twice, Err(PoolError::NotAllocated { .. })));
    }
    assert_has(&pool, 0, 0);
    let all = pool.allocate(pool.bytes() - GRANULE).unwrap();
    for wrong in [0, GRANULE - 1, GRANULE + 1, 2 * GRANULE, pool.bytes(), u64::MAX] {
        // SAFETY: [owned] it is refused.
        let refused = unsafe { free(&pool, OffsetPointer::new(wrong)) };
        assert!(matches!(refused, Err(PoolError::NotAllocated { .. })), "{wrong:#x}");
    }
    assert!(matches!(pool.allocate(1), Err(PoolError::Full { free_bytes: 0, .. })));
    assert!(matches!(pool.allocate(u64::MAX), Err(PoolError::Full { .. })));
    // SAFETY: [owned] as above.
    unsafe { free(&pool, all) }.unwrap();
}

#[test]
fn whatever_store_was_the_last_an_operation_happened_or_it_did_not() {
    for count in [1, 3, 64, 130] {
        let (mut seen, mut reached_end) = ([0_u32; 2], 0);
        for stores in 0..32 {
            let heap = heap();
            let pool = pool(&heap, 200);
            let cell = heap.custom_header().0;
            // So that the block crosses words of the rows, and has neighbours.
            let before = pool.allocate(37 * GRANULE).unwrap();
            let done = stopped_after(stores, || pool.allocate_into(cell, count * GRANULE).unwrap());
            let named = heap.read_cell(cell).unwrap();
            assert!(done.is_none_or(|block| block == named));
            let has = u64::from(!named.is_null());
            assert_has(&pool, 1 + has, 37 + has * count);
            seen[usize::try_from(has).unwrap()] += 1;
            reached_end += u32::from(done.is_some());
            // Without a cell nobody has it, whatever was done.
            if stopped_after(stores, || pool.allocate(5 * GRANULE).unwrap()).is_none() {
                assert_has(&pool, 1 + has, 37 + has * count);
            }
            // SAFETY: [owned] nobody uses it.
            unsafe { free(&pool, before) }.unwrap();
        }
        assert!(seen.iter().all(|times| *times > 1) && reached_end > 1, "{seen:?}");
    }
}

#[test]
fn freeing_is_finished_whatever_store_was_the_last() {
    for stores in 0..16 {
        let heap = heap();
        let pool = pool(&heap, 300);
        let cell = heap.custom_header().0;
        let _other = pool.allocate(37 * GRANULE).unwrap();
        pool.allocate_into(cell, 130 * GRANULE).unwrap();
        let _behind = pool.allocate(2 * GRANULE).unwrap();
        // SAFETY: [owned] nobody uses it.
        let freed = stopped_after(stores, || unsafe { pool.free_from(cell) }.unwrap());
        let report = pool.report().unwrap();
        let is_left = u64::from(!heap.read_cell(cell).unwrap().is_null());
        assert!(freed.is_none() || is_left == 0);
        assert_eq!(report.allocated_blocks, 2 + is_left, "{stores}");
        assert_has(&pool, 2 + is_left, 39 + is_left * 130);
        // SAFETY: [owned] as above.
        assert_eq!(unsafe { pool.free_from(cell) }.unwrap(), is_left == 1);
        assert_has(&pool, 2, 39);
    }
}

#[test]
fn a_pool_is_opened_only_where_one_is_and_any_bytes_are_survived() {
    let heap = heap();
    let pool = pool(&heap, 1000);
    let open = |at| DevicePool::open(&heap, OffsetPointer::new(at)).map(|_| ());
    open(pool.offset().offset_bytes()).unwrap();
    for wrong in [0, 64, pool.offset().offset_bytes() + 64, u64::MAX - 63] {
        assert!(matches!(open(wrong), Err(PoolError::NotThere { .. })), "{wrong:#x}");
    }
    let header = pool.header().unwrap();
    header.version.store(7, Ordering::Relaxed);
    assert!(matches!(open(pool.offset().offset_bytes()), Err(PoolError::Version { found: 7, .. })));
    header.version.store(1, Ordering::Relaxed);
    for (field, values) in [
        (&header.granules, [0, 1, 1 << 33, u64::MAX]),
        (&header.granule_bytes, [0, 1, 255, u64::MAX]),
        (&header.offset, [0, 64, 4096, u64::MAX]),
    ] {
        let before = field.load(Ordering::Relaxed);
        for value in values {
            field.store(value, Ordering::Relaxed);
            assert!(open(pool.offset().offset_bytes()).is_err(), "{value}");
        }
        field.store(before, Ordering::Relaxed);
    }
    let words = pool.part::<crate::sync::AtomicU64>(0, pool.geometry.table_bytes() / 8).unwrap();
    let after_lock = (size_of::<Header>() - 48) / 8;
    let cell = heap.custom_header().0;
    for value in [u64::MAX, 1, 2, 1 << 63, 0x5555_5555_5555_5555, 0] {
        for word in &words[after_lock..] {
            word.store(value, Ordering::Relaxed);
        }
        let _ = (pool.check(), pool.report(), pool.allocate(3 * GRANULE));
        if heap.read_cell(cell).unwrap().is_null() {
            let _ = pool.allocate_into(cell, 1);
        }
        // SAFETY: [owned] nobody uses a device's memory here.
        let _ = unsafe { pool.free_from(cell) };
        // SAFETY: [owned] as above.
        let _ = unsafe { pool.free(OffsetPointer::new(GRANULE)) };
    }
    for options in [(1 << 20, 255), (1 << 20, 4 << 20), (256, 256), (u64::MAX, 256)] {
        let options = PoolOptions { bytes: options.0, granule_bytes: options.1 };
        assert!(DevicePool::create(&heap, options).is_err(), "{options:?}");
    }
}
