//! Arenas: memory in which device code allocates and frees, and exchanges blocks with the host.
//!
//! # Why an arena, and not a worker's slot with pages of its own
//! An arena is one large block of the ordinary allocator. To the host's heap it is allocated, and that is all: whatever
//! changes in slots, pages and their recovery, device code need not follow. Inside, nothing that the host's heap
//! modifies is modified by the device, which over PCIe could not be done atomically; what the device's threads
//! share among themselves they do with atomics of the device's own scope. And recovery has one thing to decide: whose
//! arena it is.
//!
//! # Who does what
//! `include/hshm/device.h` is the device's side. This is the host's: any process that has the segment attached frees
//! blocks of the arena, hands over blocks, and takes what the device hands over or gives back. One process at a time *owns*
//! the arena: its device code works there. If that process dies, its kernels have ended with it, and the
//! next one that claims the arena mends it.
//!
//! # What a death costs
//! Blocks that are allocated stay so, as in the rest of the heap under [`OnExit::Keep`](crate::OnExit::Keep). A free of a
//! host's block that the device had put into its ring happens, exactly once. A free that a device's thread was about, or a block
//! that was being handed over, is lost with the process: the block stays allocated, until the arena is destroyed. There is at
//! most one for each thread that was at work.

mod error;
mod exchange;
mod layout;
mod settle;

use std::fmt;
use std::ptr::NonNull;
use std::slice;

pub use self::error::ArenaError;
pub use self::exchange::Drained;
#[doc(hidden)]
pub use self::layout::layout_constants;
use self::layout::{Chunk, Geometry, Header, MAGIC, MAX_PIECES, RINGS, Ring, VERSION};
pub use self::settle::{ArenaReport, Settled};
use super::DevicePiece;
use crate::error::AllocError;
use crate::pointer::OffsetPointer;
use crate::process::ProcessId;
use crate::sync::{AtomicU64, Ordering};
use crate::{LAYOUT_VERSION, ThreadLocalAllocator};

/// What kernels are told of a segment and an arena in it: `hshm_view` of `device.h`, passed to them by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceView {
    layout_version: u64,
    arena: u64,
    arena_bytes: u64,
    piece_count: u64,
    pieces: [DevicePiece; MAX_PIECES],
}

/// How an arena is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaOptions {
    /// How long it is, its tables included, in bytes. They take about a hundredth, and are rounded up to 64 KiB.
    pub bytes: u64,
    /// How many blocks can be under way at once in each direction, and how many frees: a power of two from 16 to
    /// 65536.
    pub ring_entries: u64,
}

impl Default for ArenaOptions {
    fn default() -> Self {
        Self { bytes: 16 << 20, ring_entries: 4096 }
    }
}

/// Memory in which device code allocates. Clones and other processes' values are views of the same.
///
/// # Examples
/// A process without a device makes an arena, and another may claim it for its own.
/// ```
/// # use hshm_memory::{AllocatorId, InitOptions, MemfdMmap, ThreadLocalAllocator};
/// use hshm_memory::gpu::arena::{ArenaOptions, DeviceArena};
///
/// # let backend = std::sync::Arc::new(MemfdMmap::create("example", 16 << 20, 16 << 20)?);
/// # let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
/// # let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options)?;
/// // The application's header is zeroed: its first eight bytes are an empty cell.
/// let (cell, _) = heap.custom_header();
/// let arena = DeviceArena::create_into(&heap, cell, ArenaOptions { bytes: 1 << 20, ..ArenaOptions::default() })?;
/// arena.claim()?;
/// // What kernels get if the memory is registered: arena.view(0)?
/// let block = heap.allocate(100)?;
/// arena.send(block)?;
/// assert!(arena.receive()?.is_none());
/// arena.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct DeviceArena {
    heap: ThreadLocalAllocator,
    offset: OffsetPointer,
    geometry: Geometry,
}

impl fmt::Debug for DeviceArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceArena")
            .field("offset", &self.offset)
            .field("bytes", &self.geometry.bytes)
            .finish_non_exhaustive()
    }
}

impl DeviceArena {
    /// Makes an arena in a block of `heap`, and stores its offset in the cell at `cell`, as
    /// [`ThreadLocalAllocator::allocate_into`] does. Nobody owns it yet.
    ///
    /// # Errors
    /// [`ArenaError::BadOption`], and [`ArenaError::Alloc`] if the block is not to be had. If this process is killed
    /// meanwhile, the cell may name a block that [`DeviceArena::open`] refuses: it is to be freed.
    pub fn create_into(
        heap: &ThreadLocalAllocator,
        cell: OffsetPointer,
        options: ArenaOptions,
    ) -> Result<Self, ArenaError> {
        let geometry = Geometry::compute(options.bytes, options.ring_entries)?;
        let too_large =
            AllocError::TooLarge { bytes: options.bytes, limit_bytes: usize::MAX as u64 };
        let bytes = usize::try_from(options.bytes).map_err(|_| too_large)?;
        let align = usize::try_from(layout::CHUNK_BYTES).unwrap_or(1 << 16);
        let offset = heap.aligned_allocate_into(cell, bytes, align)?;
        let arena = Self { heap: heap.clone(), offset, geometry };
        let tables = usize::try_from(geometry.blocks_offset).unwrap_or(bytes);
        let start = heap.resolve(offset, tables)?;
        // SAFETY: [mapped] resolve checked the range; [owned] the block was just allocated, and its cell tells nobody
        // yet that it is an arena: that is the magic, which is made zero here and stored last.
        unsafe { start.as_ptr().write_bytes(0, tables) };
        let header = arena.header()?;
        let fields = [
            (&header.version, VERSION),
            (&header.offset, offset.offset_bytes()),
            (&header.bytes, geometry.bytes),
            (&header.ring_entries, geometry.ring_entries),
            (&header.chunks, geometry.chunks),
            (&header.cells_offset, geometry.cells_offset),
            (&header.table_offset, geometry.table_offset),
            (&header.blocks_offset, geometry.blocks_offset),
        ];
        for (field, value) in fields {
            field.store(value, Ordering::Relaxed);
        }
        // ORDER: Release: whoever sees the magic sees all of the above.
        header.magic.store(MAGIC, Ordering::Release);
        Ok(arena)
    }

    /// Validates the arena at `offset` of `heap`.
    ///
    /// # Errors
    /// [`ArenaError::NotThere`] if no block with an arena begins there, [`ArenaError::Version`] or
    /// [`ArenaError::Corrupt`] by what was found.
    pub fn open(heap: &ThreadLocalAllocator, offset: OffsetPointer) -> Result<Self, ArenaError> {
        let not_there = ArenaError::NotThere { offset: offset.offset_bytes() };
        let Ok(usable) = heap.usable_bytes(offset) else { return Err(not_there) };
        if usable < size_of::<Header>()
            || !offset.offset_bytes().is_multiple_of(layout::CHUNK_BYTES)
        {
            return Err(not_there);
        }
        let smallest = Geometry {
            bytes: size_of::<Header>() as u64,
            ring_entries: 0,
            chunks: 0,
            cells_offset: 0,
            table_offset: 0,
            blocks_offset: 0,
        };
        let unchecked = Self { heap: heap.clone(), offset, geometry: smallest };
        let header = unchecked.header()?;
        // ORDER: Acquire pairs with the Release of the creator.
        if header.magic.load(Ordering::Acquire) != MAGIC {
            return Err(not_there);
        }
        let version = header.version.load(Ordering::Relaxed);
        if version != VERSION {
            return Err(ArenaError::Version { found: version, supported: VERSION });
        }
        let bytes = header.bytes.load(Ordering::Relaxed);
        let corrupt = |field, found| ArenaError::Corrupt { field, found };
        if bytes > usable as u64 {
            return Err(corrupt("its length, which is beyond its block's", bytes));
        }
        let entries = header.ring_entries.load(Ordering::Relaxed);
        let geometry = Geometry::compute(bytes, entries)
            .map_err(|_| corrupt("the number of its rings' entries, or its length", entries))?;
        let fields = [
            (&header.offset, offset.offset_bytes(), "its own offset"),
            (&header.chunks, geometry.chunks, "the number of its chunks"),
            (&header.cells_offset, geometry.cells_offset, "where its rings are"),
            (&header.table_offset, geometry.table_offset, "where its descriptors are"),
            (&header.blocks_offset, geometry.blocks_offset, "where its blocks are"),
        ];
        for (field, expected, name) in fields {
            let found = field.load(Ordering::Relaxed);
            if found != expected {
                return Err(corrupt(name, found));
            }
        }
        Ok(Self { geometry, ..unchecked })
    }

    /// Where it stands.
    #[must_use]
    pub fn offset(&self) -> OffsetPointer {
        self.offset
    }

    /// The heap that it is a block of.
    #[must_use]
    pub fn heap(&self) -> &ThreadLocalAllocator {
        &self.heap
    }

    /// Whether a block is one of the arena's, by its offset.
    #[must_use]
    pub fn contains(&self, block: OffsetPointer) -> bool {
        let blocks = self.offset.offset_bytes() + self.geometry.blocks_offset;
        block.offset_bytes().checked_sub(blocks).is_some_and(|at| at < self.geometry.blocks_bytes())
    }

    /// Becomes the owner: this process's device code may work here from now on. An arena whose owner died is mended
    /// first ([`Settled`] says what was found). Nothing happens if this process owns it.
    ///
    /// # Errors
    /// [`ArenaError::Owned`] if another process has it that lives.
    pub fn claim(&self) -> Result<Settled, ArenaError> {
        let own = ProcessId::of(std::process::id()).map_err(AllocError::Identity)?;
        let owner = &self.header()?.owner;
        // Under the lock, so that of two that find the owner dead one waits until the other has mended all.
        let guard = self.host_end()?;
        // ORDER: Acquire pairs with the Release of whoever had it before.
        let found = owner.load(Ordering::Acquire);
        if found == own.to_bits() {
            return Ok(Settled::default());
        }
        if found != 0 {
            let by = ProcessId::from_bits(found);
            if by.is_alive() {
                return Err(ArenaError::Owned { by });
            }
        }
        let settled = if found == 0 { Settled::default() } else { self.settle(&guard)? };
        // Died or failed before this: the next one finds a dead owner too, and mends.
        // ORDER: Release pairs with the Acquire above, of whoever comes next.
        owner.store(own.to_bits(), Ordering::Release);
        Ok(settled)
    }

    /// Gives the arena up: no device code of this process works here any more. What is allocated stays so.
    ///
    /// # Errors
    /// [`ArenaError::NotOwner`] if this process does not own it.
    pub fn release(&self) -> Result<(), ArenaError> {
        let _guard = self.host_end()?;
        self.require_owner()?;
        // ORDER: Release pairs with the Acquire of whoever claims it next.
        self.header()?.owner.store(0, Ordering::Release);
        Ok(())
    }

    /// The process that owns it.
    ///
    /// # Errors
    /// If the arena's block is gone.
    pub fn owner(&self) -> Result<Option<ProcessId>, ArenaError> {
        let found = self.header()?.owner.load(Ordering::Relaxed);
        Ok((found != 0).then(|| ProcessId::from_bits(found)))
    }

    fn require_owner(&self) -> Result<(), ArenaError> {
        let own = ProcessId::of(std::process::id()).map_err(AllocError::Identity)?;
        if self.owner()? == Some(own) { Ok(()) } else { Err(ArenaError::NotOwner) }
    }

    /// What to pass to kernels on the device number `device`, for which the segment is registered. To be made anew
    /// after the segment has grown, if kernels are to see what was added.
    ///
    /// # Errors
    /// [`ArenaError::NotOwner`] if this process does not own the arena; [`ArenaError::Backend`] if the segment is not
    /// registered; [`ArenaError::Pieces`] if it was registered in more pieces than a view has room for.
    pub fn view(&self, device: u32) -> Result<DeviceView, ArenaError> {
        self.require_owner()?;
        let memory = self.heap.backend().device().ok_or(ArenaError::NotForDevices)?;
        self.view_of(&memory.pieces(device)?)
    }

    /// The same for device code that runs in this process, compiled as plain C++: with this process's addresses.
    ///
    /// # Errors
    /// [`ArenaError::NotOwner`] if this process does not own the arena.
    pub fn host_view(&self) -> Result<DeviceView, ArenaError> {
        self.require_owner()?;
        let backend = self.heap.backend();
        let address = backend.base().addr().get() as u64;
        self.view_of(&[DevicePiece { offset: 0, bytes: self.heap.committed_bytes(), address }])
    }

    fn view_of(&self, found: &[DevicePiece]) -> Result<DeviceView, ArenaError> {
        let mut pieces = [DevicePiece::default(); MAX_PIECES];
        let room = pieces.get_mut(..found.len());
        room.ok_or(ArenaError::Pieces { found: found.len() })?.copy_from_slice(found);
        Ok(DeviceView {
            layout_version: LAYOUT_VERSION.into(),
            arena: self.offset.offset_bytes(),
            arena_bytes: self.geometry.bytes,
            piece_count: found.len() as u64,
            pieces,
        })
    }

    /// Frees the arena that the cell names, with all that is in it. Nobody may use it any more: no kernel, and no other process.
    ///
    /// # Safety
    /// As [`ThreadLocalAllocator::free_from`]: the cell names this arena, and nobody uses a block of it.
    ///
    /// # Errors
    /// As [`ThreadLocalAllocator::free_from`].
    pub unsafe fn destroy(self, cell: OffsetPointer) -> Result<(), ArenaError> {
        // ORDER: Relaxed: nobody uses it any more. Who opens what is allocated here later finds no arena.
        self.header()?.magic.store(0, Ordering::Relaxed);
        // SAFETY: the caller promises the same.
        unsafe { self.heap.free_from(cell) }?;
        Ok(())
    }

    fn start(&self) -> Result<NonNull<u8>, ArenaError> {
        let bytes = usize::try_from(self.geometry.bytes).unwrap_or(usize::MAX);
        Ok(self.heap.resolve(self.offset, bytes)?)
    }

    /// A part of the arena that the geometry says is there.
    fn part<T>(&self, at: u64, count: u64) -> Result<&[T], ArenaError> {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let start = self.start()?.as_ptr().wrapping_add(at).cast::<T>();
        // SAFETY: [mapped] the geometry was checked to lie in the arena, and the arena by resolve in the mapping, which lives
        // as long as `self.heap`; it is aligned, as arenas are to 64 KiB and parts to 64; [atomic] every field is.
        Ok(unsafe { slice::from_raw_parts(start, count) })
    }

    fn header(&self) -> Result<&Header, ArenaError> {
        let header = self.part::<Header>(0, 1)?.first();
        header.ok_or(ArenaError::NotThere { offset: self.offset.offset_bytes() })
    }

    /// The places of a ring.
    fn cells(&self, ring: Ring) -> Result<&[AtomicU64], ArenaError> {
        self.part(self.cells_at(ring), self.geometry.ring_entries)
    }

    /// Where they begin in the arena.
    fn cells_at(&self, ring: Ring) -> u64 {
        debug_assert!((ring as usize) < RINGS);
        self.geometry.cells_offset + ring as u64 * self.geometry.ring_entries * 8
    }

    fn chunks(&self) -> Result<&[Chunk], ArenaError> {
        self.part(self.geometry.table_offset, self.geometry.chunks)
    }
}
