//! rpmalloc, which each thread initialises.

use super::{Heap, Setup, address_of, block_at};

pub(crate) struct Rpmalloc;

// SAFETY: [ffi] it is an allocator.
unsafe impl Heap for Rpmalloc {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        Ok(Self)
    }

    fn begin_thread(&self) {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: [ffi] called once, before all else.
            unsafe { rpmalloc_sys::rpmalloc_initialize() };
        });
        // SAFETY: [ffi] after the above; again for the thread that did it does nothing.
        unsafe { rpmalloc_sys::rpmalloc_thread_initialize() };
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] any size will do.
        block_at(unsafe { rpmalloc_sys::rpmalloc(bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this allocator.
        unsafe { rpmalloc_sys::rpfree(address_of(block)) };
    }
}
