//! Size classes: sixteen to a doubling, so that rounding up wastes at most 1/16 of a block beyond
//! 512 bytes; below, classes are 16 bytes apart, which is the least alignment of any block.
//!
//! The scheme is the usual one of segregated-fit allocators (Wilson et al., "Dynamic Storage
//! Allocation: A Survey and Critical Review", 1995).

use super::layout::{MEDIUM_SHIFT, UNIT_SHIFT};

/// Every block's size and alignment is a multiple of this.
pub(crate) const GRANULE_BYTES: usize = 16;
/// The granule, as a power of two.
pub(crate) const GRANULE_SHIFT: u32 = GRANULE_BYTES.trailing_zeros();
/// Classes.
pub(crate) const CLASSES: usize = 144;
/// Classes whose pages are one unit. The rest have pages of [`super::layout::MEDIUM_UNITS`].
pub(crate) const SMALL_CLASSES: usize = 96;
/// The largest block of a one-unit page.
pub(crate) const SMALL_MAX_BYTES: usize = 8 << 10;
/// The largest block that has a class. Beyond, a block is a run of units.
pub(crate) const MEDIUM_MAX_BYTES: usize = 64 << 10;

/// Sizes of medium classes are multiples of this.
const MEDIUM_GRANULE_BYTES: usize = SMALL_MAX_BYTES >> STEPS_LOG2;

/// Classes up to this size are one granule apart.
const LINEAR_MAX_BYTES: usize = 512;
const LINEAR_CLASSES: usize = LINEAR_MAX_BYTES / GRANULE_BYTES;
/// The classes of one doubling, as a power of two.
const STEPS_LOG2: u32 = 4;

/// The class whose blocks are the smallest that hold `bytes`, which is 1 to
/// [`MEDIUM_MAX_BYTES`].
#[inline]
pub(crate) const fn class_of(bytes: usize) -> usize {
    if bytes <= LINEAR_MAX_BYTES {
        return bytes.saturating_sub(1) / GRANULE_BYTES;
    }
    // The zero-based granule that the last byte lies in: its leading bit names the doubling, the
    // four bits after it the step.
    let granule = (bytes - 1) / GRANULE_BYTES;
    let doubling = usize::BITS - 1 - granule.leading_zeros();
    let step = (granule >> (doubling - STEPS_LOG2)) & ((1 << STEPS_LOG2) - 1);
    let doublings = (doubling - LINEAR_CLASSES.trailing_zeros()) as usize;
    LINEAR_CLASSES + (doublings << STEPS_LOG2) + step
}

/// The size of a class's blocks.
const fn block_bytes_computed(class: usize) -> u32 {
    let granules = if class < LINEAR_CLASSES {
        class + 1
    } else {
        let doublings = (class - LINEAR_CLASSES) >> STEPS_LOG2;
        let step = (class - LINEAR_CLASSES) & ((1 << STEPS_LOG2) - 1);
        ((1 << STEPS_LOG2) + step + 1) << (doublings + 1)
    };
    #[allow(clippy::cast_possible_truncation, reason = "at most 64 KiB")]
    let bytes = (granules * GRANULE_BYTES) as u32;
    bytes
}

static BLOCK_BYTES: [u32; CLASSES] = {
    let mut table = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        table[class] = block_bytes_computed(class);
        class += 1;
    }
    table
};

/// The size of the blocks of `class`, in bytes; 0 for a number that is no class.
#[inline]
pub(crate) fn block_bytes(class: usize) -> u32 {
    BLOCK_BYTES.get(class).copied().unwrap_or(0)
}

static PAGE_BLOCKS: [u32; CLASSES] = {
    let mut table = [0; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        let shift = if class < SMALL_CLASSES { UNIT_SHIFT } else { MEDIUM_SHIFT };
        table[class] = (1 << shift) / block_bytes_computed(class);
        class += 1;
    }
    table
};

/// How many blocks a page of `class` has room for; 0 for a number that is no class.
#[inline]
pub(crate) fn page_blocks(class: usize) -> u32 {
    PAGE_BLOCKS.get(class).copied().unwrap_or(0)
}

/// One entry for each count of granules that a small block can have.
// A constant, so that it stands beside the code that it is compiled into.
const SMALL_CLASS_OF: &[u8; SMALL_MAX_BYTES / GRANULE_BYTES + 1] = &{
    let mut table = [0; SMALL_MAX_BYTES / GRANULE_BYTES + 1];
    let mut granules = 1;
    while granules < table.len() {
        #[allow(clippy::cast_possible_truncation, reason = "below SMALL_CLASSES")]
        let class = class_of(granules * GRANULE_BYTES) as u8;
        table[granules] = class;
        granules += 1;
    }
    table
};

/// The class for a block of `bytes`, if a one-unit page can hold it: one shift, one load, no
/// branch that depends on the size.
#[inline(always)]
pub(crate) fn small_class_of(bytes: usize) -> Option<usize> {
    if bytes > SMALL_MAX_BYTES {
        return None;
    }
    SMALL_CLASS_OF.get(bytes.div_ceil(GRANULE_BYTES)).map(|&class| class as usize)
}

/// One entry for each count of medium granules.
const MEDIUM_CLASS_OF: &[u8; MEDIUM_MAX_BYTES / MEDIUM_GRANULE_BYTES] = &{
    let mut table = [0; MEDIUM_MAX_BYTES / MEDIUM_GRANULE_BYTES];
    let mut granules = 0;
    while granules < table.len() {
        #[allow(clippy::cast_possible_truncation, reason = "below CLASSES")]
        let class = class_of((granules + 1) * MEDIUM_GRANULE_BYTES) as u8;
        table[granules] = class;
        granules += 1;
    }
    table
};

/// The class for a block of `bytes`, which are more than a one-unit page can hold and at most
/// [`MEDIUM_MAX_BYTES`]: the same as [`class_of`] says, sooner.
#[inline]
pub(crate) fn medium_class_of(bytes: usize) -> usize {
    let granules = bytes.saturating_sub(1) / MEDIUM_GRANULE_BYTES;
    MEDIUM_CLASS_OF.get(granules).map_or(0, |&class| class as usize)
}

const _: () = {
    assert!(class_of(SMALL_MAX_BYTES) == SMALL_CLASSES - 1);
    assert!(class_of(MEDIUM_MAX_BYTES) == CLASSES - 1);
    assert!(block_bytes_computed(SMALL_CLASSES - 1) as usize == SMALL_MAX_BYTES);
    assert!(block_bytes_computed(CLASSES - 1) as usize == MEDIUM_MAX_BYTES);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_gets_the_smallest_class_that_holds_it() {
        for bytes in 1..=MEDIUM_MAX_BYTES {
            let class = class_of(bytes);
            assert!(block_bytes(class) as usize >= bytes, "{bytes}");
            if class > 0 {
                assert!((block_bytes(class - 1) as usize) < bytes, "{bytes}");
            }
            let expected = (bytes <= SMALL_MAX_BYTES).then_some(class);
            assert_eq!(small_class_of(bytes), expected);
            if expected.is_none() {
                assert_eq!(medium_class_of(bytes), class);
            }
        }
        assert_eq!(small_class_of(0), Some(0));
    }

    #[test]
    fn a_class_wastes_at_most_an_eighth_or_fifteen_bytes() {
        for bytes in 1..=MEDIUM_MAX_BYTES {
            let waste = block_bytes(class_of(bytes)) as usize - bytes;
            assert!(waste < GRANULE_BYTES || waste * 8 <= bytes, "{bytes} wastes {waste}");
        }
    }

    #[test]
    fn a_size_rounded_up_to_an_alignment_gets_blocks_that_keep_it() {
        for align in [16_usize, 32, 64, 128, 512, 4096, 32768, 65536] {
            for bytes in (1..=MEDIUM_MAX_BYTES).step_by(7) {
                let rounded = bytes.next_multiple_of(align);
                if rounded <= MEDIUM_MAX_BYTES {
                    let block = block_bytes(class_of(rounded)) as usize;
                    assert_eq!(block % align, 0, "{bytes} aligned to {align} got {block}");
                }
            }
        }
    }
}
