//! The scenarios as a shared library, as of an application's plugin. There the address of
//! thread-local storage is asked of the loader, and a compiler asks once for a whole function if it
//! may; in a program on x86-64 it is part of each access.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod abt;
mod scenarios;

use std::ffi::{CStr, c_char};

/// Runs the scenario of this name.
///
/// # Panics
/// If it fails, which ends the process here.
///
/// # Safety
/// `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hshm_test_scenario(name: *const c_char) {
    // SAFETY: the caller's promise.
    scenarios::run(unsafe { CStr::from_ptr(name) }.to_str().unwrap());
}
