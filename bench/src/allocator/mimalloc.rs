//! mimalloc through `mi_malloc` and `mi_free`.

use super::{Heap, Setup, address_of, block_at};

pub(crate) struct Mimalloc;

pub(crate) fn version() -> String {
    // SAFETY: [ffi] no argument.
    let version = unsafe { libmimalloc_sys::mi_version() };
    let crate_version = env!("VERSION_LIBMIMALLOC_SYS");
    format!("{version} (libmimalloc-sys {crate_version})")
}

// SAFETY: [ffi] it is an allocator.
unsafe impl Heap for Mimalloc {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        Ok(Self)
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] any size will do.
        block_at(unsafe { libmimalloc_sys::mi_malloc(bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this allocator.
        unsafe { libmimalloc_sys::mi_free(address_of(block)) };
    }
}
