//! Sizes and capacities that can be.

use super::BackendError;

/// The largest capacity: what x86-64 and Arm give a process's address space, with room to spare.
pub(super) const MAX_CAPACITY_BYTES: u64 = 1 << 46;

/// Checks that a size and a capacity go together, before anything is created.
pub(super) fn validate(size_bytes: u64, capacity_bytes: u64) -> Result<(), BackendError> {
    let bad = |why| Err(BackendError::BadSize { size_bytes, capacity_bytes, why });
    if size_bytes == 0 {
        return bad("the size is zero");
    }
    if size_bytes > capacity_bytes {
        return bad("the size is beyond the capacity");
    }
    if capacity_bytes > MAX_CAPACITY_BYTES {
        return bad("the capacity is beyond 64 TiB");
    }
    Ok(())
}
