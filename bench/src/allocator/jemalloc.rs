//! jemalloc through its `malloc` and `free`, which have a prefix here.

use super::{Heap, Setup, address_of, block_at};

pub(crate) struct Jemalloc;

// SAFETY: [ffi] it is an allocator.
unsafe impl Heap for Jemalloc {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        Ok(Self)
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] any size will do.
        block_at(unsafe { tikv_jemalloc_sys::malloc(bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this allocator.
        unsafe { tikv_jemalloc_sys::free(address_of(block)) };
    }
}
