//! Backends on Windows. Memory there is *reserved*, which takes address space, and then *committed*,
//! which the system vouches for: what is committed is never found missing. The committed bytes of a
//! backend are those from its beginning; growing commits more.

mod memfd;
mod options;
mod private;
mod section;
mod shared;
mod space;
#[cfg(test)]
mod tests;

pub use self::memfd::MemfdMmap;
pub use self::private::PosixMmapBackend;
pub use self::shared::PosixShmMmap;
use super::BackendError;

/// Nothing needs to be done here: shared memory that is mapped cannot be cut short on Windows.
///
/// # Errors
/// None; elsewhere it can fail.
pub fn survive_truncation() -> Result<(), BackendError> {
    Ok(())
}
