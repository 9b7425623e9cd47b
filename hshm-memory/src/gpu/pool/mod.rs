//! Pools: who has which part of a device's own memory, kept in a segment of the host's.
//!
//! The processors cannot reach a device's memory, so nothing about its blocks can stand in it. A pool's tables are one
//! block of an ordinary heap: two rows of bits, for granules that are taken and for those that a block begins with,
//! and a journal. What it allocates are offsets in the device's memory, the same for all processes; each adds
//! the address at which it has that memory mapped ([`DeviceBuffer`](super::DeviceBuffer)).
//!
//! A lock guards the tables, which the death of its holder does not take along: an allocation of a device's memory is
//! nothing that anybody does a million times a second. Whoever takes the lock next finishes what the journal says, so that
//! [`DevicePool::allocate_into`] and [`DevicePool::free_from`] happen exactly once.

mod bits;
mod error;
mod layout;
#[cfg(test)]
mod tests;

use std::fmt;
use std::slice;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::bits::Bits;
pub use self::error::PoolError;
use self::layout::{FREEING, Geometry, Header, IDLE, MAGIC, TAKING, VERSION};
use crate::ThreadLocalAllocator;
use crate::pointer::OffsetPointer;
use crate::report::{CheckReport, Violation};
use crate::robust::{PATIENCE, RobustGuard};
use crate::sync::{AtomicU64, Ordering};

/// How long those wait for the lock who only look: a daemon does, and some process may keep it for spite.
const ONLOOKERS_PATIENCE: Duration = Duration::from_secs(5);

/// How a pool is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolOptions {
    /// How much of the device's memory it divides, in bytes, from its beginning.
    pub bytes: u64,
    /// What blocks begin at and are rounded up to multiples of, in bytes: a power of two from 256 to 2 MiB.
    pub granule_bytes: u64,
}

impl PoolOptions {
    /// A pool of `bytes` bytes: in granules of 4 KiB up to 16 GiB, and in larger ones beyond, so that its tables are
    /// at most a MiB long, as far as 8 TiB.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        let mut granule_bytes = 4096;
        while granule_bytes < 2 << 20 && bytes / granule_bytes > 4 << 20 {
            granule_bytes *= 2;
        }
        Self { bytes, granule_bytes }
    }
}

/// What is in a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolReport {
    /// How much can be allocated, in bytes.
    pub total_bytes: u64,
    /// How much is, in bytes.
    pub allocated_bytes: u64,
    /// In how many blocks.
    pub allocated_blocks: u64,
    /// The largest block that there is room for, in bytes.
    pub largest_free_bytes: u64,
}

/// A pool of a device's memory. Clones and other processes' values are views of the same.
///
/// What a process allocated that dies stays allocated. The first granule is never given out, so that no block has
/// the offset 0.
///
/// # Examples
/// ```
/// # use hshm_memory::doc_heap;
/// use hshm_memory::gpu::pool::{DevicePool, PoolOptions};
///
/// # let heap = doc_heap();
/// let pool = DevicePool::create(&heap, PoolOptions::new(64 << 20))?;
/// let block = pool.allocate(1 << 20)?;
/// assert_eq!(pool.usable_bytes(block)?, 1 << 20);
/// // What kernels get: buffer.device_address(block.offset_bytes(), 1 << 20).
/// // SAFETY: nobody uses the block any more.
/// unsafe { pool.free(block) }?;
/// assert_eq!(pool.report()?.allocated_blocks, 0);
/// # Ok::<(), hshm_memory::gpu::pool::PoolError>(())
/// ```
#[derive(Clone)]
pub struct DevicePool {
    heap: ThreadLocalAllocator,
    offset: OffsetPointer,
    geometry: Geometry,
}

impl fmt::Debug for DevicePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offset, geometry) = (&self.offset, &self.geometry);
        f.debug_struct("DevicePool")
            .field("offset", offset)
            .field("geometry", geometry)
            .finish_non_exhaustive()
    }
}

/// A place at which tests stop, as if the process had died there.
#[inline]
fn window() {
    #[cfg(test)]
    tests::window();
}

impl DevicePool {
    /// Makes a pool, whose tables are a block of `heap`: a sixteen-thousandth of the memory at 4 KiB a granule.
    ///
    /// # Errors
    /// [`PoolError::BadOption`]; [`PoolError::Alloc`] if the tables cannot be had.
    pub fn create(heap: &ThreadLocalAllocator, options: PoolOptions) -> Result<Self, PoolError> {
        let geometry = Geometry::compute(options.bytes, options.granule_bytes)?;
        let bytes = usize::try_from(geometry.table_bytes()).unwrap_or(usize::MAX);
        let offset = heap.aligned_allocate(bytes, 64)?;
        let start = heap.resolve(offset, bytes)?;
        // SAFETY: [mapped] resolve checked the range; [owned] the block was just allocated.
        unsafe { start.as_ptr().write_bytes(0, bytes) };
        let pool = Self { heap: heap.clone(), offset, geometry };
        let (header, taken, starts) = pool.parts()?;
        taken.put(0, 1, true);
        starts.put(0, 1, true);
        // Bits that stand for no granule are never free.
        let beyond = geometry.words() * 64 - geometry.granules;
        taken.put(geometry.granules, beyond, true);
        let fields = [
            (&header.version, VERSION),
            (&header.offset, offset.offset_bytes()),
            (&header.granule_bytes, geometry.granule_bytes),
            (&header.granules, geometry.granules),
        ];
        for (field, value) in fields {
            field.store(value, Ordering::Relaxed);
        }
        // ORDER: Release: whoever sees the magic sees all of the above.
        header.magic.store(MAGIC, Ordering::Release);
        Ok(pool)
    }

    /// Validates the pool at `offset` of `heap`.
    ///
    /// # Errors
    /// [`PoolError::NotThere`] or [`PoolError::Version`], by what was found.
    pub fn open(heap: &ThreadLocalAllocator, offset: OffsetPointer) -> Result<Self, PoolError> {
        let none = PoolError::NotThere { offset: offset.offset_bytes() };
        let Ok(usable) = heap.usable_bytes(offset) else { return Err(none) };
        if usable < size_of::<Header>() || !offset.offset_bytes().is_multiple_of(64) {
            return Err(none);
        }
        let geometry = Geometry { granule_bytes: 1, granules: 0 };
        let unchecked = Self { heap: heap.clone(), offset, geometry };
        let header = unchecked.header()?;
        // ORDER: Acquire pairs with the Release of the creator.
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(none);
        }
        let version = header.version.load(Ordering::Relaxed);
        if version != VERSION {
            return Err(PoolError::Version { found: version, supported: VERSION });
        }
        let granule_bytes = header.granule_bytes.load(Ordering::Relaxed);
        let granules = header.granules.load(Ordering::Relaxed);
        let bytes = granules.saturating_mul(granule_bytes);
        let Ok(geometry) = Geometry::compute(bytes, granule_bytes) else { return Err(none) };
        let is_whole = geometry.granules == granules
            && geometry.table_bytes() <= usable as u64
            && header.offset.load(Ordering::Relaxed) == offset.offset_bytes();
        if is_whole { Ok(Self { geometry, ..unchecked }) } else { Err(none) }
    }

    /// Where its tables stand in the segment: what [`DevicePool::open`] is told in another process.
    #[must_use]
    pub fn offset(&self) -> OffsetPointer {
        self.offset
    }

    /// How much of the device's memory it divides, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.geometry.granules * self.geometry.granule_bytes
    }

    /// What blocks begin at and are rounded up to multiples of, in bytes.
    #[must_use]
    pub fn granule_bytes(&self) -> u64 {
        self.geometry.granule_bytes
    }

    /// Allocates at least `bytes` bytes of the device's memory, and returns their offset in it.
    ///
    /// # Errors
    /// [`PoolError::Full`] if there is no such room in one piece; [`PoolError::Lock`].
    pub fn allocate(&self, bytes: u64) -> Result<OffsetPointer, PoolError> {
        self.take(bytes, None)
    }

    /// The same, with the offset stored in the cell at `cell` of the segment: exactly once, even if this process is
    /// killed meanwhile. The cell is eight bytes of the segment that hold zero.
    ///
    /// # Errors
    /// As [`DevicePool::allocate`]; [`PoolError::CellInUse`], and [`PoolError::Alloc`] if it is no place for a cell.
    pub fn allocate_into(
        &self,
        cell: OffsetPointer,
        bytes: u64,
    ) -> Result<OffsetPointer, PoolError> {
        self.take(bytes, Some(cell))
    }

    /// Frees a block.
    ///
    /// # Safety
    /// The block is allocated, and neither a kernel nor anybody else uses it any more.
    ///
    /// # Errors
    /// [`PoolError::NotAllocated`] if no block begins there; [`PoolError::Lock`].
    pub unsafe fn free(&self, block: OffsetPointer) -> Result<(), PoolError> {
        let _guard = self.lock()?;
        self.give_back(block, None)
    }

    /// Frees the block that the cell at `cell` names, and makes the cell zero: exactly once, even if this process
    /// is killed meanwhile. False if the cell is empty.
    ///
    /// # Safety
    /// As [`DevicePool::free`].
    ///
    /// # Errors
    /// As [`DevicePool::free`]; [`PoolError::Alloc`] if it is no place for a cell.
    pub unsafe fn free_from(&self, cell: OffsetPointer) -> Result<bool, PoolError> {
        let _guard = self.lock()?;
        // ORDER: Acquire pairs with the Release that filled it.
        let found = self.cell(cell)?.load(Ordering::Acquire);
        if found == 0 {
            return Ok(false);
        }
        self.give_back(OffsetPointer::new(found), Some(cell))?;
        Ok(true)
    }

    /// How long the block at `block` is, in bytes: what was asked for, rounded up.
    ///
    /// # Errors
    /// [`PoolError::NotAllocated`] if no block begins there; [`PoolError::Lock`].
    pub fn usable_bytes(&self, block: OffsetPointer) -> Result<u64, PoolError> {
        let _guard = self.lock()?;
        let (_, count) = self.block_at(block)?;
        Ok(count * self.geometry.granule_bytes)
    }

    /// What is in it.
    ///
    /// # Errors
    /// [`PoolError::Lock`].
    pub fn report(&self) -> Result<PoolReport, PoolError> {
        let _guard = self.lock_within(ONLOOKERS_PATIENCE)?;
        let (_, taken, starts) = self.parts()?;
        let Geometry { granule_bytes, granules } = self.geometry;
        let (mut largest, mut at) = (0, 0);
        while at < granules {
            let from = taken.next(at, granules, false);
            // At least one on, whoever changes bits meanwhile.
            at = taken.next((from + 1).min(granules), granules, true);
            largest = largest.max(at - from);
        }
        Ok(PoolReport {
            total_bytes: (granules - 1) * granule_bytes,
            allocated_bytes: taken.count(granules).saturating_sub(1) * granule_bytes,
            allocated_blocks: starts.count(granules).saturating_sub(1),
            largest_free_bytes: largest * granule_bytes,
        })
    }

    /// Walks the tables: each granule that is taken belongs to a block, and each block to granules that are.
    ///
    /// # Errors
    /// [`PoolError::Lock`].
    pub fn check(&self) -> Result<CheckReport, PoolError> {
        let _guard = self.lock_within(ONLOOKERS_PATIENCE)?;
        let (header, taken, starts) = self.parts()?;
        let granules = self.geometry.granules;
        let mut report = CheckReport { units: granules, ..CheckReport::default() };
        let mut broken = |at: u64, what: &str| {
            report.violations_total += 1;
            if report.violations.len() < CheckReport::MAX_VIOLATIONS {
                let (invariant, what) = ("pool".into(), what.to_owned());
                report.violations.push(Violation { invariant, offset: at, what });
            }
        };
        let offset = |granule: u64| granule * self.geometry.granule_bytes;
        if header.doing.load(Ordering::Relaxed) != IDLE {
            broken(0, "the journal is not empty");
        }
        if !taken.is_set(0) || !starts.is_set(0) {
            broken(0, "the first granule, which nobody has, is free");
        }
        let (mut blocks, mut at) = (0, 0);
        while at < granules {
            let start = starts.next(at, granules, true);
            let loose = taken.next(at, start, true);
            // Behind a block's last granule there is nothing until the next one's first.
            if loose < start {
                broken(offset(loose), "granules are taken that no block has");
            }
            if start == granules {
                break;
            }
            if taken.is_set(start) {
                blocks += 1;
            } else {
                broken(offset(start), "a block begins with a granule that is free");
            }
            at = taken.next(start + 1, starts.next(start + 1, granules, true), false);
        }
        report.allocated_blocks = u64::saturating_sub(blocks, 1);
        report.allocated_bytes = offset(taken.count(granules).saturating_sub(1));
        Ok(report)
    }

    fn take(&self, bytes: u64, cell: Option<OffsetPointer>) -> Result<OffsetPointer, PoolError> {
        let _guard = self.lock()?;
        let (header, taken, starts) = self.parts()?;
        let Geometry { granule_bytes, granules } = self.geometry;
        let place = cell.map(|at| self.cell(at).map(|place| (at, place))).transpose()?;
        if let Some((at, place)) = place {
            let found = place.load(Ordering::Acquire);
            if found != 0 {
                return Err(PoolError::CellInUse { cell: at.offset_bytes(), found });
            }
        }
        let count = bytes.max(1).div_ceil(granule_bytes);
        let hint = header.hint.load(Ordering::Relaxed).min(granules);
        let room = taken
            .find_room(hint, granules, count)
            .or_else(|| taken.find_room(0, hint.saturating_add(count).min(granules), count));
        let Some(first) = room else {
            let free = granules.saturating_sub(taken.count(granules));
            let (free_bytes, total_bytes) = (free * granule_bytes, (granules - 1) * granule_bytes);
            return Err(PoolError::Full { bytes, free_bytes, total_bytes });
        };
        let offset = first * granule_bytes;
        Self::begin(header, TAKING, first, count, cell);
        // Died here, or before the cell is filled: the granules are given back.
        taken.put(first, count, true);
        starts.put(first, 1, true);
        if let Some((_, place)) = place {
            // ORDER: Release pairs with the Acquire of whoever finds it there.
            place.store(offset, Ordering::Release);
            // Died here: the block is the cell's, and only the journal is cleared.
            window();
        }
        header.hint.store(first + count, Ordering::Relaxed);
        header.doing.store(IDLE, Ordering::Release);
        Ok(OffsetPointer::new(offset))
    }

    /// The lock is held.
    fn give_back(
        &self,
        block: OffsetPointer,
        cell: Option<OffsetPointer>,
    ) -> Result<(), PoolError> {
        let (first, count) = self.block_at(block)?;
        let header = self.header()?;
        Self::begin(header, FREEING, first, count, cell);
        self.finish_free(first, count, cell)
    }

    fn begin(header: &Header, doing: u64, first: u64, count: u64, cell: Option<OffsetPointer>) {
        let cell = cell.map_or(0, OffsetPointer::offset_bytes);
        for (field, value) in [(&header.first, first), (&header.count, count), (&header.cell, cell)]
        {
            field.store(value, Ordering::Relaxed);
            // Died here: nothing was begun.
            window();
        }
        // ORDER: Release: whoever finds it under way, after this thread's death, sees what it is about.
        header.doing.store(doing, Ordering::Release);
        window();
    }

    /// Does what the journal says of a block that is freed. Died anywhere here: it is done again, from the start.
    fn finish_free(
        &self,
        first: u64,
        count: u64,
        cell: Option<OffsetPointer>,
    ) -> Result<(), PoolError> {
        let (header, taken, starts) = self.parts()?;
        if let Some(place) = cell.and_then(|cell| self.cell(cell).ok())
            && place.load(Ordering::Acquire) == first * self.geometry.granule_bytes
        {
            place.store(0, Ordering::Release);
            window();
        }
        starts.put(first, 1, false);
        taken.put(first, count, false);
        header.doing.store(IDLE, Ordering::Release);
        Ok(())
    }

    /// The block that begins there: its first granule, and how many it has. The lock is held.
    fn block_at(&self, block: OffsetPointer) -> Result<(u64, u64), PoolError> {
        let offset = block.offset_bytes();
        let (_, taken, starts) = self.parts()?;
        let Geometry { granule_bytes, granules } = self.geometry;
        let first = offset / granule_bytes;
        let is_block = first > 0
            && first < granules
            && offset.is_multiple_of(granule_bytes)
            && starts.is_set(first)
            && taken.is_set(first);
        if !is_block {
            return Err(PoolError::NotAllocated { offset });
        }
        let next = starts.next(first + 1, granules, true);
        Ok((first, taken.next(first + 1, next, false) - first))
    }

    /// Takes the lock, and finishes what one that died with it was about.
    fn lock(&self) -> Result<RobustGuard<'_>, PoolError> {
        self.lock_within(PATIENCE)
    }

    fn lock_within(&self, patience: Duration) -> Result<RobustGuard<'_>, PoolError> {
        let (header, taken, starts) = self.parts()?;
        let guard = header.lock.lock_timeout(patience)?;
        // ORDER: Acquire pairs with the Release of `begin`.
        let doing = header.doing.load(Ordering::Acquire);
        if doing != IDLE {
            let first = header.first.load(Ordering::Relaxed);
            let count = header.count.load(Ordering::Relaxed);
            let cell = header.cell.load(Ordering::Relaxed);
            let cell = (cell != 0).then(|| OffsetPointer::new(cell));
            let granules = self.geometry.granules;
            // No journal that anybody writes would fail this; what does is forgotten.
            if first > 0 && first < granules && count > 0 && count <= granules - first {
                let offset = first * self.geometry.granule_bytes;
                let place = cell.and_then(|cell| self.cell(cell).ok());
                let is_kept = place.is_some_and(|place| place.load(Ordering::Acquire) == offset);
                if doing == FREEING {
                    self.finish_free(first, count, cell)?;
                } else if doing == TAKING && !is_kept {
                    starts.put(first, 1, false);
                    taken.put(first, count, false);
                }
            }
            header.doing.store(IDLE, Ordering::Release);
        }
        guard.mended();
        Ok(guard)
    }

    /// A cell of the segment.
    fn cell(&self, cell: OffsetPointer) -> Result<&AtomicU64, PoolError> {
        // This looks whether it is a place for one.
        self.heap.read_cell(cell)?;
        let place = self.heap.resolve(cell, 8)?.cast::<AtomicU64>();
        // SAFETY: [mapped] resolve checked it, and the heap's mapping lives as long as `self`; it is aligned, which
        // read_cell looked at; [atomic] it is one.
        Ok(unsafe { place.as_ref() })
    }

    /// A part of the tables that the geometry says is there.
    fn part<T>(&self, at: u64, count: u64) -> Result<&[T], PoolError> {
        let bytes = at.saturating_add(count.saturating_mul(size_of::<T>() as u64));
        let start = self.heap.resolve(self.offset, usize::try_from(bytes).unwrap_or(usize::MAX))?;
        let start = start.as_ptr().wrapping_add(usize::try_from(at).unwrap_or(usize::MAX));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        // SAFETY: [mapped] resolve checked the range, and the mapping lives as long as `self.heap`; it is aligned, as
        // tables are to 64 and parts to eight; [atomic] every field is.
        Ok(unsafe { slice::from_raw_parts(start.cast::<T>(), count) })
    }

    fn header(&self) -> Result<&Header, PoolError> {
        let none = PoolError::NotThere { offset: self.offset.offset_bytes() };
        self.part::<Header>(0, 1)?.first().ok_or(none)
    }

    fn parts(&self) -> Result<(&Header, Bits<'_>, Bits<'_>), PoolError> {
        let words = self.geometry.words();
        let taken = self.part(size_of::<Header>() as u64, words)?;
        let starts = self.part(self.geometry.starts_offset(), words)?;
        Ok((self.header()?, Bits(taken), Bits(starts)))
    }
}
