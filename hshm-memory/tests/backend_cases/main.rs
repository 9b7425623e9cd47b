//! What each backend does beyond what all do: its options, its files, its parts, and what it refuses.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod files;
mod manager;
mod options;
mod parts;

use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::Backend;

/// The eight bytes at `offset`, as shared memory is to be used.
pub(crate) fn word(backend: &dyn Backend, offset: u64) -> &AtomicU64 {
    assert!(offset + 8 <= backend.committed_bytes());
    let address = backend.base().as_ptr().wrapping_add(usize::try_from(offset).unwrap());
    // SAFETY: [mapped] it lies in what is committed; [atomic] all tests use the memory so.
    unsafe { AtomicU64::from_ptr(address.cast()) }
}

pub(crate) fn read(backend: &dyn Backend, offset: u64) -> u64 {
    word(backend, offset).load(Ordering::Acquire)
}
