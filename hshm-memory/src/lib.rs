//! Shared memory that many processes allocate from, and that survives the death of any of them.

pub mod backend;
mod context;
mod error;
mod options;
mod pointer;
mod process;
pub mod report;

pub use backend::{Backend, BackendError, BackendKind, MemfdMmap, PosixShmMmap};
pub use context::MemContext;
pub use error::{AllocError, SegmentError};
pub use options::{InitOptions, OnExit, UnknownName};
pub use pointer::{AllocatorId, FullPtr, OffsetPointer, Pointer};
pub use process::ProcessId;
pub use report::{CheckReport, HeapReport, RecoveryReport};
