//! iceoryx2's pool allocator in POSIX shared memory, as its publishers use it for their payloads:
//! all blocks have the size of the largest.

use std::alloc::Layout;
use std::fmt::Debug;
use std::time::Duration;

use iceoryx2_bb_elementary_traits::allocator::Allocate;
use iceoryx2_bb_posix::access_mode::AccessMode;
use iceoryx2_bb_system_types::file_name::{FileName, SemanticString};
use iceoryx2_cal::named_concept::NamedConceptBuilder;
use iceoryx2_cal::shared_memory::posix::Memory;
use iceoryx2_cal::shared_memory::{
    SharedMemory, SharedMemoryBuilder, SharedMemoryForPoolAllocator,
};
use iceoryx2_cal::shm_allocator::PointerOffset;
use iceoryx2_cal::shm_allocator::pool_allocator::{Config, PoolAllocator};

use super::{Heap, Setup};
use crate::case::Workload;
use crate::system::die;
use crate::workload;

// Links the logger that iceoryx2 expects somebody to define.
use iceoryx2_bb_loggers as _;

type Pool = Memory<PoolAllocator>;

/// The alignment of every block, in bytes.
const ALIGN: usize = 16;

pub(crate) struct Iceoryx2 {
    pool: Pool,
    base: usize,
}

// SAFETY: [atomic] the pool is a lock-free set of indices, which processes share.
unsafe impl Sync for Iceoryx2 {}

impl Iceoryx2 {
    fn over(pool: Pool) -> Self {
        let base = pool.payload_start_address();
        Self { pool, base }
    }
}

#[cold]
#[inline(never)]
fn text(error: impl Debug) -> String {
    format!("iceoryx2: {error:?}")
}

/// The largest block that the case needs, in bytes, and how many blocks at once.
fn bucket(setup: &Setup<'_>) -> (usize, usize) {
    let case = setup.case;
    let (bytes, blocks) = match case.workload {
        Workload::Batch => (case.size, workload::batch::BLOCKS),
        Workload::Mixed | Workload::Scale => (workload::mixed::MAX_BYTES, workload::mixed::SLOTS),
        Workload::Larson => (workload::larson::MAX_BYTES, workload::larson::BLOCKS_PER_SEAT),
        Workload::Xmalloc => (workload::xmalloc::MAX_BYTES, workload::xmalloc::BLOCKS_IN_FLIGHT),
        Workload::Pair
        | Workload::Pages
        | Workload::Large
        | Workload::Attach
        | Workload::Control
        | Workload::Recover => (case.size.max(64), 16),
    };
    (bytes.next_multiple_of(ALIGN), blocks * case.seats() + 16)
}

fn builder(setup: &Setup<'_>) -> Result<<Pool as SharedMemory<PoolAllocator>>::Builder, String> {
    let name = FileName::new(setup.segment.as_bytes()).map_err(text)?;
    Ok(<Pool as SharedMemory<PoolAllocator>>::Builder::new(&name))
}

// SAFETY: [mapped] it is an allocator of offsets from `base`.
unsafe impl Heap for Iceoryx2 {
    fn create(setup: &Setup<'_>) -> Result<Self, String> {
        let (bytes, blocks) = bucket(setup);
        let bucket_layout = Layout::from_size_align(bytes, ALIGN).map_err(text)?;
        let pool = builder(setup)?
            .size(bytes * blocks)
            .has_ownership(true)
            .create(&Config { bucket_layout })
            .map_err(text)?;
        Ok(Self::over(pool))
    }

    fn attach(setup: &Setup<'_>) -> Result<Self, String> {
        let pool = builder(setup)?.timeout(Duration::from_secs(1)).has_ownership(false);
        Ok(Self::over(pool.open(AccessMode::ReadWrite).map_err(text)?))
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        let layout = Layout::from_size_align(bytes, ALIGN);
        match layout.map_err(text).and_then(|layout| self.pool.allocate(layout).map_err(text)) {
            Ok(block) => block.offset.as_value(),
            Err(error) => die(error),
        }
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        let address = self.base + PointerOffset::from_value(block).offset();
        std::ptr::with_exposed_provenance_mut(address)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: the caller promises the same.
        unsafe { self.pool.deallocate_bucket(PointerOffset::from_value(block)) };
    }
}
