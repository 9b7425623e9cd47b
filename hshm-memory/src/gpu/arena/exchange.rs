//! The host's ends of an arena's rings.
//!
//! Whoever is at one of them holds the arena's lock, so that on the host's side there is one at a time, in whichever
//! process. The lock outlives its holder, and what it guards is whole after each store: see each function.

use super::layout::{NEVER_FILLED, Ring};
use super::{ArenaError, DeviceArena};
use crate::error::AllocError;
use crate::pointer::OffsetPointer;
use crate::robust::{Acquired, RobustGuard};
use crate::sync::{AtomicU64, Ordering};

/// What the device had given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Drained {
    /// Blocks that were freed.
    pub freed: u64,
    /// Entries that named no block.
    pub refused: u64,
}

/// What stands in a place of a ring that the device fills. The place itself says so: the device's counter is none that
/// the host may rely on while device code works.
enum Place {
    Filled(u64),
    /// The device died before it filled it.
    NeverFilled,
    Empty,
}

impl Place {
    fn of(cell: &AtomicU64) -> Self {
        // ORDER: Acquire pairs with the device's release store of the entry.
        match cell.load(Ordering::Acquire) {
            0 => Self::Empty,
            NEVER_FILLED => Self::NeverFilled,
            offset => Self::Filled(offset),
        }
    }
}

impl DeviceArena {
    /// Frees a block of the arena's. It is free once device code has taken note (`hshm_drain`, or an allocation
    /// that finds no room), or the arena was claimed anew.
    ///
    /// # Safety
    /// The block is allocated, and nobody uses it any more.
    ///
    /// # Errors
    /// [`ArenaError::NotAllocated`] if no block of the arena can begin there; [`ArenaError::Full`] if too many frees
    /// wait for the device.
    pub unsafe fn free(&self, block: OffsetPointer) -> Result<(), ArenaError> {
        let offset = block.offset_bytes();
        let (chunk, number) = self.block_at(offset).ok_or(ArenaError::NotAllocated { offset })?;
        let bits = self.chunks()?.get(chunk).and_then(|chunk| chunk.bits.get(number / 64));
        let bit = 1 << (number % 64);
        // ORDER: Relaxed: the block was handed over, with all that came before.
        if bits.is_none_or(|bits| bits.load(Ordering::Relaxed) & bit == 0) {
            return Err(ArenaError::NotAllocated { offset });
        }
        let guard = self.host_end()?;
        self.put(&guard, Ring::HostFrees, offset)
    }

    /// Hands a block, of the heap's or of the arena's, to device code (`hshm_receive`).
    ///
    /// # Errors
    /// [`ArenaError::Full`] if too many wait there; [`ArenaError::NotAllocated`] for null.
    pub fn send(&self, block: OffsetPointer) -> Result<(), ArenaError> {
        if block.is_null() {
            return Err(ArenaError::NotAllocated { offset: 0 });
        }
        let guard = self.host_end()?;
        self.put(&guard, Ring::HostBlocks, block.offset_bytes())
    }

    /// Takes a block that device code handed over (`hshm_send`), of the arena's or of the heap's. A process that is
    /// killed right then leaves it allocated.
    ///
    /// # Errors
    /// If the arena's block is gone, or its lock is not to be had.
    pub fn receive(&self) -> Result<Option<OffsetPointer>, ArenaError> {
        let guard = self.host_end()?;
        loop {
            let (tail, cell) = self.next(&guard, Ring::DeviceBlocks)?;
            match Place::of(cell) {
                Place::Empty => return Ok(None),
                Place::NeverFilled => self.take(Ring::DeviceBlocks, tail, cell)?,
                Place::Filled(offset) => {
                    self.take(Ring::DeviceBlocks, tail, cell)?;
                    return Ok(Some(OffsetPointer::new(offset)));
                }
            }
        }
    }

    /// Frees what device code gave back of the heap's blocks (`hshm_free`), each exactly once even if this process
    /// is killed meanwhile. Any process that has the segment attached may, and some process must every now and then.
    ///
    /// # Errors
    /// [`ArenaError::Alloc`] if the heap fails; [`ArenaError::Lock`] if the host's end is not to be had.
    pub fn drain(&self) -> Result<Drained, ArenaError> {
        let guard = self.host_end()?;
        self.drain_with(&guard)
    }

    pub(super) fn drain_with(&self, guard: &RobustGuard<'_>) -> Result<Drained, ArenaError> {
        const RING: Ring = Ring::DeviceFrees;
        let mut drained = Drained::default();
        // Only what is there now: a device that goes on filling keeps nobody here for ever.
        for _ in 0..self.geometry.ring_entries {
            let (tail, cell) = self.next(guard, RING)?;
            match Place::of(cell) {
                Place::Empty => break,
                Place::NeverFilled => {}
                Place::Filled(offset) => {
                    let (taking, mark) = (self.taking(RING)?, tail.wrapping_add(1));
                    // What names no block is a freeing one's mark only if somebody took it in hand before.
                    let in_hand = taking.load(Ordering::Acquire) == mark;
                    if !in_hand && !self.may_be_block(offset) {
                        self.refuse(cell, &mut drained)?;
                        self.take(RING, tail, cell)?;
                        continue;
                    }
                    taking.store(mark, Ordering::Release);
                    let at = self.cells_at(RING) + self.index(tail) * 8;
                    let source = OffsetPointer::new(self.offset.offset_bytes() + at);
                    // SAFETY: the device gave the block up, and its entry is the cell that names it.
                    match unsafe { self.heap.free_from(source) } {
                        Ok(true) => drained.freed += 1,
                        // One that died is freeing it; its recovery finishes that, and makes the place zero.
                        Ok(false) if cell.load(Ordering::Relaxed) != 0 => break,
                        Ok(false) => {}
                        Err(AllocError::NotAllocated { .. } | AllocError::BadCell { .. }) => {
                            self.refuse(cell, &mut drained)?;
                        }
                        Err(other) => return Err(other.into()),
                    }
                }
            }
            self.take(RING, tail, cell)?;
        }
        Ok(drained)
    }

    /// Counts an entry that is none. Died here, or later: the place is one that was never filled.
    fn refuse(&self, cell: &AtomicU64, drained: &mut Drained) -> Result<(), ArenaError> {
        cell.store(NEVER_FILLED, Ordering::Release);
        drained.refused += 1;
        self.header()?.refused.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a block of the heap's can begin there, as far as the number says.
    fn may_be_block(&self, offset: u64) -> bool {
        offset.is_multiple_of(16) && offset < self.heap.capacity_bytes()
    }

    /// The chunk that a block is in, and its number there; `None` if none of the arena's can begin at this offset.
    pub(super) fn block_at(&self, offset: u64) -> Option<(usize, usize)> {
        let blocks = self.offset.offset_bytes() + self.geometry.blocks_offset;
        let at = offset.checked_sub(blocks).filter(|at| *at < self.geometry.blocks_bytes())?;
        let chunk = usize::try_from(at / super::layout::CHUNK_BYTES).ok()?;
        let word = self.chunks().ok()?.get(chunk)?.word.load(Ordering::Relaxed);
        let size = super::layout::block_bytes(super::layout::ChunkWord(word).class()?);
        let within = at % super::layout::CHUNK_BYTES;
        if !within.is_multiple_of(size) {
            return None;
        }
        Some((chunk, usize::try_from(within / size).ok()?))
    }

    /// Takes the host's end of the rings, and finishes what one that died there was about.
    pub(super) fn host_end(&self) -> Result<RobustGuard<'_>, ArenaError> {
        let header = self.header()?;
        let guard = header.lock.lock()?;
        for ring in [Ring::DeviceFrees, Ring::DeviceBlocks] {
            let (tail, cell) = self.next(&guard, ring)?;
            // One that died had seen something there, and there is nothing any more: it took that, or its
            // recovery did, which may be long after its lock was taken over.
            let taking = self.taking(ring)?.load(Ordering::Acquire);
            if taking == tail.wrapping_add(1) && cell.load(Ordering::Acquire) == 0 {
                self.tail(ring)?.store(taking, Ordering::Release);
            }
        }
        for ring in [Ring::HostFrees, Ring::HostBlocks] {
            let head = self.head(ring)?.load(Ordering::Relaxed);
            // One that died was filling the place at the head, which device code does not look at yet: empty again.
            if self.taking(ring)?.load(Ordering::Acquire) == head.wrapping_add(1) {
                self.cell(ring, head)?.store(0, Ordering::Release);
            }
        }
        if guard.acquired() == Acquired::FromDead {
            guard.mended();
        }
        Ok(guard)
    }

    pub(super) fn index(&self, ticket: u64) -> u64 {
        ticket & (self.geometry.ring_entries - 1)
    }

    pub(super) fn head(&self, ring: Ring) -> Result<&AtomicU64, ArenaError> {
        let words = self.header()?.rings.get(ring as usize);
        words
            .map(|words| &words.head)
            .ok_or(ArenaError::Corrupt { field: "a ring", found: ring as u64 })
    }

    pub(super) fn tail(&self, ring: Ring) -> Result<&AtomicU64, ArenaError> {
        let words = self.header()?.rings.get(ring as usize);
        words
            .map(|words| &words.tail)
            .ok_or(ArenaError::Corrupt { field: "a ring", found: ring as u64 })
    }

    pub(super) fn taking(&self, ring: Ring) -> Result<&AtomicU64, ArenaError> {
        let word = self.header()?.taking.get(ring as usize);
        word.ok_or(ArenaError::Corrupt { field: "a ring", found: ring as u64 })
    }

    pub(super) fn cell(&self, ring: Ring, ticket: u64) -> Result<&AtomicU64, ArenaError> {
        let index = usize::try_from(self.index(ticket)).unwrap_or(usize::MAX);
        let cell = self.cells(ring)?.get(index);
        cell.ok_or(ArenaError::Corrupt { field: "a ring's place", found: ticket })
    }

    /// Puts an entry into a ring that the host fills.
    fn put(&self, _: &RobustGuard<'_>, ring: Ring, value: u64) -> Result<(), ArenaError> {
        let head = self.head(ring)?.load(Ordering::Relaxed);
        let cell = self.cell(ring, head)?;
        // ORDER: Acquire pairs with the device's release store: it has read what it took.
        if cell.load(Ordering::Acquire) != 0 {
            let name = if ring == Ring::HostFrees { "of frees" } else { "of blocks" };
            return Err(ArenaError::Full { ring: name, entries: self.geometry.ring_entries });
        }
        let next = head.wrapping_add(1);
        // ORDER: Release for each: who takes the lock of a dead one sees the one before.
        self.taking(ring)?.store(next, Ordering::Release);
        cell.store(value, Ordering::Release);
        // Died here: the entry is beyond the head, and `host_end` takes it back. A free has not happened then.
        // ORDER: Release: whoever sees the head sees the entry, and what was written into the block.
        self.head(ring)?.store(next, Ordering::Release);
        Ok(())
    }

    /// Where the next entry is to be found in a ring that the device fills.
    fn next(&self, _: &RobustGuard<'_>, ring: Ring) -> Result<(u64, &AtomicU64), ArenaError> {
        let tail = self.tail(ring)?.load(Ordering::Relaxed);
        Ok((tail, self.cell(ring, tail)?))
    }

    /// Empties a place and goes on behind it.
    fn take(&self, ring: Ring, tail: u64, cell: &AtomicU64) -> Result<(), ArenaError> {
        // ORDER: Release for each: who takes the lock of a dead one sees the one before.
        self.taking(ring)?.store(tail.wrapping_add(1), Ordering::Release);
        cell.store(0, Ordering::Release);
        // Died here: the place is empty, and the tail at it. `host_end` goes on behind it.
        self.tail(ring)?.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }
}
