//! Collections in shared memory that several processes use at once.
//!
//! Each lives in blocks of an allocator and is found again by the offset of its first block, which
//! means the same in every process. Values are [`Pod`]: every bit pattern is a value, so that a
//! process which scribbles on shared memory can make others see wrong values, and nothing worse.
//!
//! All processes that use one collection live in one pid namespace, as each must be able to tell
//! whether another has died.
//!

mod bytes;
mod cell;
mod error;
mod identity;
mod queue;

pub use bytemuck::Pod;

pub use self::cell::CellAllocator;
pub use self::error::CollectionError;
pub use self::queue::ShmQueue;
