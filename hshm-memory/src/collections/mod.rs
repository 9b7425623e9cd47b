//! Collections in shared memory that several processes use at once.
//!
//! Each lives in blocks of an allocator and is found again by the offset of its first block, which
//! means the same in every process. Values are [`Pod`]: every bit pattern is a value, so that a
//! process which scribbles on shared memory can make others see wrong values, and nothing worse.
//!
//! A queue is for messages and blocks nobody. Vector, string and map have a lock, which the death of its
//! holder unlocks. They grow, and whichever process makes them grow allocates the new block; so they
//! are made in segments that keep what a process allocated when it ends ([`crate::OnExit::Keep`]). In
//! one that does not, a queue goes with the process that made it.
//!
//! All processes that use one collection live in one pid namespace, as each must be able to tell
//! whether another has died.
//!

mod bytes;
mod cell;
mod error;
mod guarded;
mod identity;
mod map;
mod queue;
mod sequence;
mod string;
mod vec;

#[cfg(test)]
#[cfg(not(hshm_loom))]
mod hostile;
#[cfg(test)]
#[cfg(not(hshm_loom))]
mod tests;

pub use bytemuck::Pod;

pub use self::cell::CellAllocator;
pub use self::error::CollectionError;
pub use self::map::ShmHashMap;
pub use self::queue::ShmQueue;
pub use self::string::ShmString;
pub use self::vec::ShmVec;
