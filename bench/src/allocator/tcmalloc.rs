//! tcmalloc, loaded from the system's library: linked in, it would replace `malloc`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::transmute;

use super::{Heap, Setup, address_of, block_at};

const LIBRARY: &CStr = c"libtcmalloc_minimal.so.4";

pub(crate) struct Tcmalloc {
    allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

/// The library's version, or why there is none.
pub(crate) fn version() -> Result<String, String> {
    let address = symbol(load()?, c"tc_version")?;
    // SAFETY: [ffi] the function's type as in gperftools/tcmalloc.h.
    let version: unsafe extern "C" fn(*mut c_int, *mut c_int, *mut *const c_char) -> *const c_char =
        unsafe { transmute(address) };
    let (mut major, mut minor, mut patch) = (0, 0, std::ptr::null());
    // SAFETY: [ffi] three places to write to; the result is not used.
    unsafe { version(&raw mut major, &raw mut minor, &raw mut patch) };
    Ok(format!("gperftools {major}.{minor}"))
}

fn load() -> Result<*mut c_void, String> {
    // LOCAL: its `malloc` is to replace nobody's.
    // SAFETY: [ffi] the library's initialisers are those of any program that links it.
    let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        let name = LIBRARY.to_string_lossy();
        return Err(format!("{name} was not found (Debian: libtcmalloc-minimal4)"));
    }
    Ok(library)
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: [ffi] an open library and a C string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    if address.is_null() {
        return Err(format!("tcmalloc's library lacks {}", name.to_string_lossy()));
    }
    Ok(address)
}

// SAFETY: [ffi] it is an allocator.
unsafe impl Heap for Tcmalloc {
    fn create(_: &Setup<'_>) -> Result<Self, String> {
        let library = load()?;
        let (allocate, free) = (symbol(library, c"tc_malloc")?, symbol(library, c"tc_free")?);
        Ok(Self {
            // SAFETY: [ffi] the function's type as in gperftools/tcmalloc.h.
            allocate: unsafe {
                transmute::<*mut c_void, unsafe extern "C" fn(usize) -> *mut c_void>(allocate)
            },
            // SAFETY: [ffi] as above.
            free: unsafe { transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(free) },
        })
    }

    #[inline(always)]
    fn allocate(&self, bytes: usize) -> u64 {
        // SAFETY: [ffi] any size will do.
        block_at(unsafe { (self.allocate)(bytes) })
    }

    #[inline(always)]
    fn address(&self, block: u64, _: usize) -> *mut u8 {
        address_of(block)
    }

    #[inline(always)]
    unsafe fn free(&self, block: u64) {
        // SAFETY: [ffi] the caller gives up a block of this allocator.
        unsafe { (self.free)(address_of(block)) };
    }
}
