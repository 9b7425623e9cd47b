//! The one door to atomics: the standard library's, or a model checker's.

#[cfg(hshm_loom)]
pub(crate) mod model;

#[cfg(not(hshm_loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(hshm_loom)]
pub(crate) use self::model::{AtomicU32, AtomicU64, Ordering};
