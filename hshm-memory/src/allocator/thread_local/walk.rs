//! Following the lists of a page block by block, whatever stands in them.

use super::page::Page;
use super::parcel;
use super::words::List;
use crate::sync::Ordering;

/// The most blocks that a page can have.
const MAX_BLOCKS: usize = 4096;

/// The blocks of one page that were met on its lists.
#[derive(Clone, Debug)]
pub(super) struct Met {
    bits: [u64; MAX_BLOCKS / 64],
    /// How many.
    pub(super) count: u32,
    /// The number after the highest one met.
    pub(super) end: u32,
}

/// What is wrong with a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It names an offset at which no block of the page begins.
    NoBlock(u64),
    /// A block is on it twice, or on another list of the page too.
    Twice(u64),
    /// It is not as long as it says.
    Length { said: u32, found: u32 },
}

impl Met {
    pub(super) fn new() -> Self {
        Self { bits: [0; MAX_BLOCKS / 64], count: 0, end: 0 }
    }

    /// Follows `list`, which takes at most as many steps as the page has blocks.
    pub(super) fn follow(&mut self, page: &Page<'_>, list: List) -> Result<(), Fault> {
        let mut rest = list;
        let mut found = 0;
        while !rest.is_empty() {
            let offset = rest.first();
            let index = page.index_of(offset).ok_or(Fault::NoBlock(offset))?;
            if !self.insert(index) {
                return Err(Fault::Twice(offset));
            }
            found += 1;
            let word = page.view.word(offset).ok_or(Fault::NoBlock(offset))?;
            let link = List(word.load(Ordering::Relaxed));
            if link.is_of_parcel() {
                for named in parcel::named(page, offset) {
                    let index = page.index_of(named).ok_or(Fault::NoBlock(named))?;
                    if !self.insert(index) {
                        return Err(Fault::Twice(named));
                    }
                    found += 1;
                }
            }
            let next = link.without_parcel();
            rest = if page.contains(next.first()) { next } else { List::EMPTY };
        }
        if found == list.count() {
            Ok(())
        } else {
            Err(Fault::Length { said: list.count(), found })
        }
    }

    pub(super) fn insert(&mut self, index: u32) -> bool {
        let bit = 1 << (index % 64);
        let Some(word) = self.bits.get_mut(index as usize / 64) else { return false };
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.count += 1;
        self.end = self.end.max(index + 1);
        true
    }

    /// A bit for each block.
    pub(super) fn words(&self) -> &[u64] {
        &self.bits
    }

    pub(super) fn contains(&self, index: u32) -> bool {
        self.bits.get(index as usize / 64).is_some_and(|word| word & 1 << (index % 64) != 0)
    }
}
