//! Our ThreadLocalAllocator over a named POSIX segment.

use std::fmt::Display;
use std::sync::Arc;

use hshm_memory::{AllocatorId, InitOptions, OffsetPointer, PosixShmMmap, ThreadLocalAllocator};

use super::{Heap, Setup};
use crate::system::die;

pub(crate) struct Hshm {
    allocator: ThreadLocalAllocator,
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cold]
#[inline(never)]
fn failed(error: impl Display) -> ! {
    die(error)
}

// SAFETY: [mapped] it is an allocator, and `resolve` gives the block's place in the mapping.
unsafe impl Heap for Hshm {
    fn create(setup: &Setup<'_>) -> Result<Self, String> {
        let bytes = setup.segment_bytes() as u64;
        let capacity = bytes + (64 << 20);
        let backend = PosixShmMmap::create(setup.segment, bytes, capacity, 0o600).map_err(text)?;
        let (id, options) = (AllocatorId::new(1, 0), InitOptions::default());
        let allocator =
            ThreadLocalAllocator::shm_init(id, Arc::new(backend), &options).map_err(text)?;
        Ok(Self { allocator })
    }

    fn attach(setup: &Setup<'_>) -> Result<Self, String> {
        Ok(Self { allocator: ThreadLocalAllocator::attach(setup.segment).map_err(text)? })
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        match self.allocator.allocate(bytes) {
            Ok(block) => block.offset_bytes(),
            Err(error) => failed(error),
        }
    }

    #[inline(always)]
    fn allocate_mapped(&self, bytes: usize) -> (u64, *mut u8) {
        match self.allocator.allocate_mapped(bytes) {
            Ok((block, address)) => (block.offset_bytes(), address.as_ptr()),
            Err(error) => failed(error),
        }
    }

    #[inline(always)]
    fn address(&self, block: u64, bytes: usize) -> *mut u8 {
        match self.allocator.resolve(OffsetPointer::new(block), bytes) {
            Ok(address) => address.as_ptr(),
            Err(error) => failed(error),
        }
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: the caller promises the same.
        if let Err(error) = unsafe { self.allocator.free(OffsetPointer::new(block)) } {
            failed(error);
        }
    }

    fn recover(&self) -> Result<usize, String> {
        let report = self.allocator.recover_dead();
        usize::try_from(report.slots).map_err(text)
    }
}
