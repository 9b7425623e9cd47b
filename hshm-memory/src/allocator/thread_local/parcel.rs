//! Parcels: blocks of a page that were freed together, of which only the first was touched.
//!
//! A block on a list names the rest of the list in its first word. The first of a parcel says so there
//! ([`List::of_parcel`]), and names the others in its further words: 16 bits for how many they are, then
//! 16 for each, its distance from the page's beginning in granules. So who frees what another processor
//! wrote last fetches one block's memory instead of all, and who takes them again has most of theirs at
//! hand.
//!
//! The list's length counts all of them. Nothing but the slow path of allocating takes the first block
//! of a parcel off a list, and unpacks it before.

use super::page::Page;
use super::size_class::GRANULE_SHIFT;
use super::words::List;
use crate::sync::Ordering;

/// Numbers in a word.
const LANES: u32 = 4;
/// Bits of a number.
const LANE_BITS: u32 = 16;
const LANE_MASK: u64 = (1 << LANE_BITS) - 1;
/// What distances are counted in.
const GRANULE: u16 = 1 << GRANULE_SHIFT;

/// How many other blocks one of this size can name.
pub(super) const fn most_named(block_bytes: u32) -> u32 {
    // Without the link and the count.
    (block_bytes - 8) * 8 / LANE_BITS - 1
}

/// Names the blocks `others`, each by its distance from the page's beginning, in the one at `first`, for
/// which they are not too many. That it does is said when it is linked.
pub(super) fn write(page: &Page<'_>, first: u64, others: &[u16]) {
    let (mut word, mut lane, mut at) = (others.len() as u64 & LANE_MASK, 1, first + 8);
    for &distance in others {
        word |= u64::from(distance / GRANULE) << (lane * LANE_BITS);
        lane += 1;
        if lane == LANES {
            store(page, at, word);
            (word, lane, at) = (0, 0, at + 8);
        }
    }
    if lane > 0 {
        store(page, at, word);
    }
}

fn store(page: &Page<'_>, at: u64, value: u64) {
    if let Some(word) = page.view.word(at) {
        // ORDER: Relaxed: whoever pushes the block publishes it.
        word.store(value, Ordering::Relaxed);
    }
}

/// The blocks that the one at `first` names, as far as it can name any, whatever stands there.
pub(super) fn named<'v>(page: &Page<'v>, first: u64) -> impl Iterator<Item = u64> + use<'v> {
    let page = *page;
    let lane = move |number: u32| {
        let word = page.view.word(first + 8 + u64::from(number / LANES) * 8);
        let word = word.map_or(0, |word| word.load(Ordering::Relaxed));
        word >> (number % LANES * LANE_BITS) & LANE_MASK
    };
    let most = most_named(page.block_bytes());
    let count = u32::try_from(lane(0)).unwrap_or(0).min(most);
    (1..=count).map(move |number| page.start() + lane(number) * u64::from(GRANULE))
}

/// Makes the blocks of the parcel that begins at `first`, which is on a list of the caller's, an ordinary
/// part of that list.
pub(super) fn unpack(page: &Page<'_>, first: u64) {
    let Some(link) = page.view.word(first) else { return };
    let mut rest = List(link.load(Ordering::Relaxed)).without_parcel();
    if !page.contains(rest.first()) {
        rest = List::EMPTY;
    }
    let blocks = page.carved_blocks();
    for offset in named(page, first).filter(|&offset| blocks.find(offset).is_some()) {
        if let Some(word) = page.view.word(offset) {
            // ORDER: Relaxed: until the first block names them, these links are not on the list.
            word.store(rest.0, Ordering::Relaxed);
            rest = rest.with_first(offset);
        }
    }
    // Died here: the parcel is as it was, and its blocks' own words are nobody's.
    crate::crash_point!("parcel.linked");
    // ORDER: Release: the links stand before the list leads to them.
    link.store(rest.0, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_each_size_has_room_for_what_it_names() {
        for (bytes, most) in [(16, 3), (32, 11), (64, 27), (112, 51)] {
            assert_eq!(most_named(bytes), most);
            assert!(8 + (most + 1) * 2 <= bytes);
        }
    }
}
