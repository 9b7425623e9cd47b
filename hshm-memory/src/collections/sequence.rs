//! What a vector and a string do with bytes: elements of one size, one after the other.

use std::collections::TryReserveError;
use std::time::Duration;

use super::guarded::{Block, Guarded, Held, Kind};
use super::{CellAllocator, CollectionError, bytes};
use crate::crash_point;
use crate::pointer::OffsetPointer;

/// Bytes that the first block of elements has room for.
const LEAST_BYTES: usize = 64;

/// Elements of one size under a lock.
#[derive(Debug)]
pub(super) struct Sequence<'a, A: ?Sized> {
    guarded: Guarded<'a, A>,
    element_bytes: usize,
}

/// What an operation works on.
struct Working<'h> {
    block: Block<'h>,
    len: usize,
}

impl<'a, A: CellAllocator + ?Sized> Sequence<'a, A> {
    pub(super) fn create_in(allocator: &'a A, kind: Kind) -> Result<Self, CollectionError> {
        let guarded = Guarded::create_in(allocator, kind)?;
        Ok(Self { guarded, element_bytes: kind.first_bytes })
    }

    pub(super) fn create_into(
        allocator: &'a A,
        cell: OffsetPointer,
        kind: Kind,
    ) -> Result<Self, CollectionError> {
        let guarded = Guarded::create_into(allocator, cell, kind)?;
        Ok(Self { guarded, element_bytes: kind.first_bytes })
    }

    pub(super) fn attach(
        allocator: &'a A,
        place: OffsetPointer,
        kind: Kind,
    ) -> Result<Self, CollectionError> {
        let guarded = Guarded::attach(allocator, place, kind)?;
        Ok(Self { guarded, element_bytes: kind.first_bytes })
    }

    /// # Safety
    /// Nobody else uses it any more.
    pub(super) unsafe fn destroy(self) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.guarded.destroy() }
    }

    /// # Safety
    /// Nobody else uses it any more, and the cell names it.
    pub(super) unsafe fn destroy_from(self, cell: OffsetPointer) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.guarded.destroy_from(cell) }
    }

    fn lock(&self) -> Result<Held<'_, 'a, A>, CollectionError> {
        self.guarded.lock(|_| Ok(()))
    }

    /// Words of a block with room for so many elements.
    fn words(&self) -> impl Fn(usize) -> Option<usize> + Copy + use<A> {
        let element_bytes = self.element_bytes;
        move |capacity: usize| Some(capacity.checked_mul(element_bytes)?.div_ceil(8))
    }

    fn working<'h>(&self, held: &'h Held<'_, 'a, A>) -> Result<Working<'h>, CollectionError> {
        let (block, len) = (held.block(self.words())?, held.len());
        if len > block.capacity {
            return Err(self.guarded.corrupt("it has more values than room for them"));
        }
        Ok(Working { block, len })
    }

    /// Replaces the block by one with room for at least `least` elements, and twice as many as before,
    /// into which `fill` puts elements.
    fn grow(
        &self,
        held: &Held<'_, 'a, A>,
        working: &Working<'_>,
        least: usize,
        fill: impl FnOnce(&Block<'_>) -> Result<usize, CollectionError>,
    ) -> Result<(), CollectionError> {
        let doubled = working.block.capacity.saturating_mul(2);
        let first = LEAST_BYTES / self.element_bytes.max(1);
        held.replace(least.max(doubled).max(first), self.words(), fill)
    }

    /// Copies elements from one block to another.
    fn copy(&self, from: &Block<'_>, range: std::ops::Range<usize>, to: &Block<'_>, at: usize) {
        let (mut from_byte, end) =
            (range.start * self.element_bytes, range.end * self.element_bytes);
        let mut to_byte = at * self.element_bytes;
        let mut piece = [0; 1024];
        while from_byte < end {
            let piece = &mut piece[..(end - from_byte).min(1024)];
            bytes::load_at(from.words, from_byte, piece);
            bytes::store_at(to.words, to_byte, piece);
            from_byte += piece.len();
            to_byte += piece.len();
        }
    }

    fn store(&self, block: &Block<'_>, at: usize, values: &[u8]) {
        bytes::store_at(block.words, at * self.element_bytes, values);
    }

    fn in_range(&self, index: usize, len: usize) -> Result<(), CollectionError> {
        if index < len { Ok(()) } else { Err(CollectionError::OutOfRange { index, len }) }
    }

    /// Appends `count` elements, all at once.
    pub(super) fn append(&self, count: usize, values: &[u8]) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let working = self.working(&held)?;
        let Working { block, len } = &working;
        let new_len = len.saturating_add(count);
        if new_len > block.capacity {
            return self.grow(&held, &working, new_len, |new| {
                self.copy(block, 0..*len, new, 0);
                self.store(new, *len, values);
                Ok(new_len)
            });
        }
        self.store(block, *len, values);
        // Died here: the values do not count.
        crash_point!("guarded.appended");
        held.set_len(new_len);
        Ok(())
    }

    /// Takes the last element away. False if there is none.
    pub(super) fn pop(&self, value: &mut [u8]) -> Result<bool, CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        let Some(last) = len.checked_sub(1) else { return Ok(false) };
        bytes::load_at(block.words, last * self.element_bytes, value);
        held.set_len(last);
        Ok(true)
    }

    /// Reads the element at `index`. False if there is none.
    pub(super) fn get(&self, index: usize, value: &mut [u8]) -> Result<bool, CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        if index < len {
            bytes::load_at(block.words, index * self.element_bytes, value);
        }
        Ok(index < len)
    }

    /// Overwrites the element at `index`, and reads what was there.
    pub(super) fn set(
        &self,
        index: usize,
        value: &[u8],
        old: &mut [u8],
    ) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        self.in_range(index, len)?;
        let at = index * self.element_bytes;
        bytes::load_at(block.words, at, old);
        held.overwrite(&block, at, value, len)
    }

    /// Puts the last element in the place of the one at `index`, which it reads.
    pub(super) fn swap_remove(
        &self,
        index: usize,
        value: &mut [u8],
        last: &mut [u8],
    ) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        self.in_range(index, len)?;
        let at = index * self.element_bytes;
        bytes::load_at(block.words, at, value);
        bytes::load_at(block.words, (len - 1) * self.element_bytes, last);
        held.overwrite(&block, at, last, len - 1)
    }

    /// Puts an element before the one at `index`.
    pub(super) fn insert(&self, index: usize, value: &[u8]) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let working = self.working(&held)?;
        let Working { block, len } = &working;
        if index > *len {
            return Err(CollectionError::OutOfRange { index, len: *len });
        }
        let fill = |new: &Block<'_>| {
            self.copy(block, 0..index, new, 0);
            self.store(new, index, value);
            self.copy(block, index..*len, new, index + 1);
            Ok(len + 1)
        };
        if *len < block.capacity {
            return held.replace(block.capacity, self.words(), fill);
        }
        self.grow(&held, &working, len + 1, fill)
    }

    /// Takes the element at `index` out, which it reads, and closes the gap.
    pub(super) fn remove(&self, index: usize, value: &mut [u8]) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        self.in_range(index, len)?;
        bytes::load_at(block.words, index * self.element_bytes, value);
        if index == len - 1 {
            held.set_len(index);
            return Ok(());
        }
        held.replace(block.capacity, self.words(), |new| {
            self.copy(&block, 0..index, new, 0);
            self.copy(&block, index + 1..len, new, index);
            Ok(len - 1)
        })
    }

    /// Keeps the first `most` elements.
    pub(super) fn truncate(&self, most: usize) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let Working { len, .. } = self.working(&held)?;
        if most < len {
            held.set_len(most);
        }
        Ok(())
    }

    /// Puts `count` elements in the place of all that there are.
    pub(super) fn assign(&self, count: usize, values: &[u8]) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let Working { block, .. } = self.working(&held)?;
        // Not much more than needed, and no less than there was for as many.
        let fits = count <= block.capacity && block.capacity / 4 <= count;
        let capacity = if fits { block.capacity } else { count };
        held.replace(capacity, self.words(), |new| {
            self.store(new, 0, values);
            Ok(count)
        })
    }

    /// Makes room for at least `least` elements, or just as many as there are.
    pub(super) fn set_capacity(&self, least: Option<usize>) -> Result<(), CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        let capacity = least.map_or(len, |least| least.max(block.capacity));
        if capacity == block.capacity {
            return Ok(());
        }
        held.replace(capacity, self.words(), |new| {
            self.copy(&block, 0..len, new, 0);
            Ok(len)
        })
    }

    /// All elements, in memory of this process that `make` gets for so many.
    pub(super) fn snapshot<R>(
        &self,
        make: impl FnOnce(usize) -> Result<R, TryReserveError>,
        bytes_of: impl FnOnce(&mut R) -> &mut [u8],
    ) -> Result<R, CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        let mut all = make(len).map_err(|_| self.corrupt("it is beyond this process's memory"))?;
        bytes::load_at(block.words, 0, bytes_of(&mut all));
        Ok(all)
    }

    /// How many there are, and how many there is room for.
    pub(super) fn len_and_capacity(&self) -> Result<(usize, usize), CollectionError> {
        let held = self.lock()?;
        let Working { block, len } = self.working(&held)?;
        Ok((len, block.capacity))
    }

    pub(super) fn corrupt(&self, why: &'static str) -> CollectionError {
        self.guarded.corrupt(why)
    }
}

impl<A: ?Sized> Sequence<'_, A> {
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.guarded.set_patience(patience);
    }

    pub(super) fn place(&self) -> OffsetPointer {
        self.guarded.place()
    }
}
