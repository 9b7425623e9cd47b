//! Shared memory that many processes allocate from, as an application sees it.
//!
//! A [`Client`] talks to `hshmd`, which makes segments and hands them out. A [`Segment`] is one of
//! them, mapped into this process: it allocates and frees without asking anybody, and goes on doing
//! so while the daemon is down. The library is synchronous, starts no thread and needs no runtime.
//!
//! An allocation is known by its *offset*, which means the same in every process that has the
//! segment attached. So one process can hand data to another by sending it eight bytes:
//!
//! ```no_run
//! use hshm_client::{Client, CreateOptions};
//!
//! fn main() -> Result<(), hshm_client::Error> {
//!     // Finds the daemon by HSHM_SOCKET, or where it listens by default.
//!     let client = Client::connect()?;
//!     client.create(&CreateOptions::new("jobs", 64 << 20))?;
//!
//!     // One process puts data there, and tells others where: by a pipe, a queue, a cell ...
//!     let segment = client.attach("jobs")?;
//!     let block = segment.put_bytes(b"to be or not to be")?;
//!     let offset: u64 = segment.share(block);
//!
//!     // ... and another, which attached "jobs" too, uses it in place and frees it.
//!     let block = segment.receive(offset)?;
//!     let mut text = [0; 18];
//!     segment.read_bytes(block, &mut text)?;
//!     assert_eq!(&text, b"to be or not to be");
//!     // Sound, since the offset was sent to this process alone, which uses the block no more.
//!     unsafe { segment.free(block)? };
//!     Ok(())
//! }
//! ```
//!
//! # Fork
//!
//! A child of `fork` may go on using the clients and segments that it inherited. It opens a
//! connection of its own at its first request, and never uses its parent's; nor does it allocate
//! through its parent's worker slots. Only where the daemon lives in another pid namespace, the child
//! should attach its segments anew before it allocates: what the parent was told of its own identity
//! does not hold for the child.

mod allocator;
mod client;
mod connection;
mod device_part;
mod error;
mod events;
mod read_only;
mod segment;
mod target;

pub use allocator::SegmentAllocator;
pub use client::{Client, ClientBuilder, Inspection};
pub use device_part::DevicePart;
pub use error::Error;
pub use events::{Events, Watched};
pub use hshm_memory::backend::{HugePages, NodeSet, NumaPolicy, Obtained};
pub use hshm_memory::gpu;
pub use hshm_memory::report::{
    ClassReport, Content, OperationCounts, Stretch, Violation, WorkerReport, WorkerState,
};
pub use hshm_memory::thread_model;
pub use hshm_memory::{
    AllocError, Allocator, AllocatorId, BackendError, BackendKind, BackendOptions, CheckReport,
    FullPtr, HeapReport, MemContext, OffsetPointer, OnExit, Pointer, ProcessId, RepairReport,
    ScalablePageAllocator, SegmentError, StackAllocator, ThreadLocalAllocator, UnknownName,
};
/// What a segment is to be like when it is created. `CreateOptions::new(name, size_bytes)` gives the
/// defaults; change its fields as needed.
pub use hshm_proto::CreateSegment as CreateOptions;
pub use hshm_proto::{
    AllocatorKind, DeviceMemoryInfo, DriverStatus, ErrorCode, ErrorReply, Event, EventKind,
    SegmentDevice, SegmentInfo, SessionInfo, SessionState, StatusInfo, VersionMismatch,
};
pub use read_only::ReadOnlySegment;
pub use segment::{DeviceChoice, Segment};
