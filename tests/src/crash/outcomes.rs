//! How an operation may leave the balance when its process dies in it.

use super::situations::{LARGE, MEDIUM, SMALL};

/// A unit of a segment.
pub(super) const UNIT: i64 = 64 << 10;

/// How a death may leave the balance, the blocks in cells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// By how much more bytes are allocated than before.
    pub delta: i64,
    /// Whether the block at the table's start is free.
    pub freed: bool,
    /// Bytes in a block that nobody knows the offset of.
    pub leaked: i64,
}

pub(super) const fn outcome(delta: i64, freed: bool, leaked: i64) -> Outcome {
    Outcome { delta, freed, leaked }
}

/// Nothing was allocated or freed, but in cells.
pub(super) const EXACT: &[Outcome] = &[outcome(0, false, 0)];
pub(super) const SMALL_BYTES: i64 = SMALL.cast_signed() as i64;
pub(super) const MEDIUM_BYTES: i64 = MEDIUM.cast_signed() as i64;
pub(super) const LARGE_BYTES: i64 = LARGE.cast_signed() as i64;
pub(super) const TAKES_SMALL: &[Outcome] =
    &[outcome(0, false, 0), outcome(SMALL_BYTES, false, SMALL_BYTES)];
pub(super) const TAKES_MEDIUM: &[Outcome] =
    &[outcome(0, false, 0), outcome(MEDIUM_BYTES, false, MEDIUM_BYTES)];
pub(super) const TAKES_LARGE: &[Outcome] =
    &[outcome(0, false, 0), outcome(LARGE_BYTES, false, LARGE_BYTES)];
pub(super) const FREES_SMALL: &[Outcome] = &[outcome(0, false, 0), outcome(-SMALL_BYTES, true, 0)];
pub(super) const FREES_MEDIUM: &[Outcome] =
    &[outcome(0, false, 0), outcome(-MEDIUM_BYTES, true, 0)];
pub(super) const FREES_LARGE: &[Outcome] = &[outcome(0, false, 0), outcome(-LARGE_BYTES, true, 0)];
pub(super) const MOVES_SMALL: &[Outcome] = &[
    outcome(0, false, 0),
    outcome(4 * SMALL_BYTES, false, 4 * SMALL_BYTES),
    outcome(3 * SMALL_BYTES, true, 4 * SMALL_BYTES),
];
pub(super) const MOVES_LARGE: &[Outcome] = &[
    outcome(0, false, 0),
    outcome(2 * LARGE_BYTES, false, 2 * LARGE_BYTES),
    outcome(LARGE_BYTES, true, 2 * LARGE_BYTES),
];
pub(super) const BECOMES_LARGE: &[Outcome] = &[
    outcome(0, false, 0),
    outcome(LARGE_BYTES, false, LARGE_BYTES),
    outcome(LARGE_BYTES - SMALL_BYTES, true, LARGE_BYTES),
];
pub(super) const GROWS_BY_FOUR: &[Outcome] = &[
    outcome(0, false, 0),
    outcome(UNIT, false, 0),
    outcome(2 * UNIT, false, 0),
    outcome(3 * UNIT, false, 0),
    outcome(4 * UNIT, false, 0),
];
pub(super) const SHRINKS_BY_TWO: &[Outcome] =
    &[outcome(0, false, 0), outcome(-UNIT, false, 0), outcome(-2 * UNIT, false, 0)];
