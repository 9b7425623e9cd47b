//! Ranges of a mapping, and filling them with zeros where the kernel cannot be asked to.

use std::ops::Range;
use std::ptr::NonNull;

use super::BackendError;
use crate::sync::{AtomicU64, Ordering};

/// The kernel's page size as this library counts it. Kernels with larger pages (16 or 64 KiB on
/// some Arm machines) are served too: every range rounds outwards in the kernel.
#[cfg(unix)]
pub(super) const PAGE_BYTES: u64 = 4096;

/// The largest capacity: what x86-64 and Arm give a process's address space, with room to spare.
pub(super) const MAX_CAPACITY_BYTES: u64 = 1 << 46;

/// Checks that a size and a capacity go together, before anything is created.
pub(super) fn validate_sizes(size_bytes: u64, capacity_bytes: u64) -> Result<(), BackendError> {
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

/// Refuses to grow beyond the capacity.
pub(super) fn validate_grow(size_bytes: u64, capacity_bytes: u64) -> Result<(), BackendError> {
    if size_bytes <= capacity_bytes {
        return Ok(());
    }
    let why = "the capacity was fixed when the segment was created";
    Err(BackendError::BadSize { size_bytes, capacity_bytes, why })
}

/// Where `range` begins, and how long it is, if it lies below `capacity` and is not empty.
pub(super) fn inside(range: &Range<u64>, capacity: u64) -> Option<(usize, usize)> {
    if range.end > capacity {
        return None;
    }
    let len = range.end.checked_sub(range.start).filter(|&len| len > 0)?;
    Some((usize::try_from(range.start).ok()?, usize::try_from(len).ok()?))
}

/// `range`, extended outwards to multiples of `grain`.
#[cfg(any(unix, test))]
pub(super) fn outwards(range: &Range<u64>, grain: u64) -> Range<u64> {
    range.start / grain * grain..range.end.checked_next_multiple_of(grain).unwrap_or(range.end)
}

/// The part of `range` between multiples of `grain`; empty if there is none.
#[cfg(any(unix, test))]
pub(super) fn inwards(range: &Range<u64>, grain: u64) -> Range<u64> {
    let start = range.start.checked_next_multiple_of(grain).unwrap_or(range.end).min(range.end);
    start..(range.end / grain * grain).max(start)
}

/// Writes zeros over `range` of the memory at `base`, whose ends are multiples of eight.
///
/// # Safety
/// The range is mapped for reading and writing, and nobody has a reference to bytes of it.
pub(super) unsafe fn zero(base: NonNull<u8>, range: Range<u64>) {
    for offset in range.step_by(8) {
        let Ok(offset) = usize::try_from(offset) else { return };
        let word = base.as_ptr().wrapping_add(offset);
        // SAFETY: [mapped] the caller says so; backends begin at multiples of eight and more;
        // [atomic] whoever else still looks at a word that was given up does so atomically.
        let word = unsafe { AtomicU64::from_ptr(word.cast()) };
        // ORDER: Relaxed: whoever uses the memory next is handed it with an order of its own.
        word.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_round_as_they_say() {
        assert_eq!(outwards(&(1..4097), 4096), 0..8192);
        assert_eq!(outwards(&(4096..8192), 4096), 4096..8192);
        assert_eq!(inwards(&(1..8193), 4096), 4096..8192);
        assert!(inwards(&(1..4096), 4096).is_empty());
        assert!(inwards(&(5..6), 4096).is_empty());
        assert_eq!(inside(&(5..6), 6), Some((5, 1)));
        assert_eq!(inside(&(5..7), 6), None);
        let (start, end) = (7, 6);
        assert_eq!(inside(&(start..end), 6), None);
    }
}
