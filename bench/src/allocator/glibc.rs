//! The C library's `malloc` and `free`.

use super::{Heap, Setup, address_of, block_at};

pub(crate) struct Glibc;

pub(crate) fn version() -> String {
    // SAFETY: [ffi] no argument.
    let version = unsafe { libc::gnu_get_libc_version() };
    // SAFETY: [ffi] a C string that lives for ever.
    let version = unsafe { std::ffi::CStr::from_ptr(version) };
    format!("glibc {}", version.to_string_lossy())
}

// SAFETY: [ffi] it is an allocator.
unsafe impl Heap for Glibc {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        Ok(Self)
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] any size will do.
        block_at(unsafe { libc::malloc(bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this allocator.
        unsafe { libc::free(address_of(block)) };
    }
}
