//! Boost.Interprocess's managed shared memory.

use std::ffi::{CString, c_char, c_void};

use super::{Heap, Setup, address_of, block_at};

/// The C++ object.
#[repr(C)]
struct Segment {
    _private: [u8; 0],
}

unsafe extern "C" {
    fn bench_boost_version() -> u32;
    fn bench_boost_create(name: *const c_char, bytes: usize) -> *mut Segment;
    fn bench_boost_open(name: *const c_char) -> *mut Segment;
    fn bench_boost_close(segment: *mut Segment);
    fn bench_boost_allocate(segment: *mut Segment, bytes: usize) -> *mut c_void;
    fn bench_boost_free(segment: *mut Segment, block: *mut c_void);
    fn bench_boost_handle(segment: *mut Segment, block: *const c_void) -> u64;
    fn bench_boost_address(segment: *mut Segment, handle: u64) -> *mut c_void;
}

pub(crate) fn version() -> String {
    // SAFETY: [ffi] no argument.
    let version = unsafe { bench_boost_version() };
    format!("Boost {}.{}.{}", version / 100_000, version / 100 % 1000, version % 100)
}

pub(crate) struct Boost {
    segment: *mut Segment,
}

// SAFETY: [ffi] the segment locks itself.
unsafe impl Sync for Boost {}

impl Boost {
    fn over(segment: *mut Segment, verb: &str) -> Result<Self, String> {
        if segment.is_null() {
            return Err(format!("Boost could not {verb} the segment"));
        }
        Ok(Self { segment })
    }
}

impl Drop for Boost {
    fn drop(&mut self) {
        // SAFETY: [ffi] made by create or open, and dropped once.
        unsafe { bench_boost_close(self.segment) };
    }
}

fn c_name(setup: &Setup<'_>) -> Result<CString, String> {
    CString::new(setup.segment).map_err(|error| error.to_string())
}

// SAFETY: [ffi] it is an allocator, and handles are offsets in the segment.
unsafe impl Heap for Boost {
    fn create(setup: &Setup<'_>) -> Result<Self, String> {
        let name = c_name(setup)?;
        // SAFETY: [ffi] a C string.
        let segment = unsafe { bench_boost_create(name.as_ptr(), setup.segment_bytes()) };
        Self::over(segment, "create")
    }

    fn attach(setup: &Setup<'_>) -> Result<Self, String> {
        let name = c_name(setup)?;
        // SAFETY: [ffi] a C string.
        Self::over(unsafe { bench_boost_open(name.as_ptr()) }, "open")
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] the segment is open.
        block_at(unsafe { bench_boost_allocate(self.segment, bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this segment.
        unsafe { bench_boost_free(self.segment, address_of(block)) };
    }

    #[inline(always)]
    fn export(&self, block: u64) -> u64 {
        // SAFETY: [ffi] a block of this segment.
        unsafe { bench_boost_handle(self.segment, address_of(block)) }
    }

    #[inline(always)]
    fn import(&self, block: u64) -> u64 {
        // SAFETY: [ffi] a handle of this segment.
        block_at(unsafe { bench_boost_address(self.segment, block) })
    }
}
