//! snmalloc through its C functions.

use super::{Heap, Setup, address_of, block_at};

pub(crate) struct Snmalloc;

// Its crate declares these without the prefix that they have.
unsafe extern "C" {
    fn sn_malloc(bytes: usize) -> *mut libc::c_void;
    fn sn_free(block: *mut libc::c_void);
}

// Links the library.
use snmalloc_sys as _;

// SAFETY: [ffi] it is an allocator.
unsafe impl Heap for Snmalloc {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        Ok(Self)
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] any size will do.
        block_at(unsafe { sn_malloc(bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this allocator.
        unsafe { sn_free(address_of(block)) };
    }
}
