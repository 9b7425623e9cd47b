//! The one door to atomics: the standard library's, or loom's when a model is checked.

#[cfg(not(hshm_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(hshm_loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
