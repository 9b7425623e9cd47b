//! How large the segment is, and how much of the files is in it at once.

use anyhow::{Result, bail};
use hshm_client::BackendKind;
use hshmd::size::format_size;
use nix::sys::statvfs::statvfs;

const MIB: u64 = 1 << 20;

/// Room for what is not file contents: the segment's own tables, the board, and pages that each
/// process keeps for each size of block.
const SLACK_BYTES: u64 = 64 * MIB;
/// What the demo takes when it could have more.
const MOST_BYTES: u64 = 512 * MIB;
/// Below this, the processes' pages would leave no room for contents.
const LEAST_BYTES: u64 = 16 * MIB;
/// The longest piece of a file.
const MOST_PIECE_BYTES: u64 = 4 * MIB;

/// Sizes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizing {
    /// Length of the segment.
    pub(super) segment: u64,
    /// How far it could grow.
    pub(super) capacity: u64,
    /// Longest piece of a file that is shared at once.
    pub(super) piece: u64,
    /// Most contents that are in the segment at once: the rest waits until workers have freed some.
    pub(super) window: u64,
}

impl Sizing {
    /// Sizes for files of `tree_bytes` together.
    pub(super) fn choose(
        tree_bytes: u64,
        requested: Option<u64>,
        backend: BackendKind,
    ) -> Result<Self> {
        let free = if backend == BackendKind::PosixShm { free_shm_bytes() } else { u64::MAX };
        Self::within(tree_bytes, requested, free)
    }

    fn within(tree_bytes: u64, requested: Option<u64>, free: u64) -> Result<Self> {
        let needed = tree_bytes.saturating_add(tree_bytes / 4).saturating_add(SLACK_BYTES);
        let segment = requested.unwrap_or(needed.min(free / 2).min(MOST_BYTES));
        if segment < LEAST_BYTES {
            let why = match requested {
                Some(bytes) => format!("{} is too small a size", format_size(bytes)),
                None => format!("/dev/shm has only {} free", format_size(free)),
            };
            let least = format_size(LEAST_BYTES);
            bail!("{why}: the demo needs {least}; enlarge /dev/shm, or use --backend memfd");
        }
        let piece = (segment / 64).clamp(MIB / 4, MOST_PIECE_BYTES);
        Ok(Self { segment, capacity: segment.saturating_mul(4), piece, window: segment / 2 })
    }
}

/// What is free where POSIX shared memory is; if that cannot be told, creating will.
fn free_shm_bytes() -> u64 {
    statvfs("/dev/shm")
        .map_or(u64::MAX, |found| found.blocks_available().saturating_mul(found.fragment_size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_fits_the_files_and_the_machine() {
        let size = |tree, free| Sizing::within(tree, None, free).unwrap().segment;
        assert_eq!(size(0, u64::MAX), 64 * MIB);
        assert_eq!(size(100 * MIB, u64::MAX), 189 * MIB);
        assert_eq!(size(100 * MIB, 64 * MIB), 32 * MIB);
        assert_eq!(size(u64::MAX, u64::MAX), 512 * MIB);
        assert!(Sizing::within(0, None, 31 * MIB).is_err());
        assert!(Sizing::within(0, Some(MIB), u64::MAX).is_err());
    }

    #[test]
    fn several_pieces_are_under_way_even_in_the_smallest_segment() {
        let sizing = Sizing::within(0, Some(LEAST_BYTES), u64::MAX).unwrap();
        assert!(sizing.window / sizing.piece >= 16, "{sizing:?}");
    }
}
