//! Allocators: what cuts a backend into blocks.

pub(crate) mod thread_local;
