//! A segment as the allocators have it that need no more than a header before their blocks: its
//! first page, what the application has of it, and the only place where an offset becomes an address.

use std::ptr::NonNull;
use std::sync::Arc;

use super::AllocatorKind;
use crate::backend::{Backend, BackendError};
use crate::error::{AllocError, SegmentError};
use crate::options::{HeapOptions, OnExit};
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::{HeapReport, OperationCounts};
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The grain of everything: of blocks, and of where they begin.
pub(super) const GRANULE_BYTES: u64 = 16;
/// Where the application's header begins.
const HEADER_BYTES: u64 = 4096;
/// Where the allocator's own part of the first page begins.
const TABLE_OFFSET: u64 = 128;
/// How much of the first page is the allocator's own.
pub(super) const TABLE_BYTES: usize = 4096 - 128;
/// The grain in which memory is populated.
const POPULATE_BYTES: u64 = 64 << 10;
/// The largest capacity: 64 TiB.
const MAX_CAPACITY_BYTES: u64 = 1 << 46;

/// What kind of allocator lays a segment out so, and in which version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    pub(super) kind: AllocatorKind,
    pub(super) magic: u64,
    pub(super) version: u32,
}

/// The segment's first bytes. All but `magic` and `resident` are written once, before `magic`.
#[repr(C)]
struct Header {
    /// Which allocator stands here; stored last, when all else stands.
    magic: AtomicU64,
    /// The version of the layout.
    layout_version: AtomicU32,
    /// Which allocator this is.
    kind: AtomicU32,
    id_major: AtomicU32,
    id_minor: AtomicU32,
    /// Length of the address range, in bytes. It stands where all allocators have it.
    capacity: AtomicU64,
    /// Length of the application's header, in bytes.
    custom_header_bytes: AtomicU64,
    /// Where blocks begin.
    first_block: AtomicU64,
    /// A checksum over the fields above that never change.
    checksum: AtomicU64,
    /// How much of the segment has memory behind it, from its start.
    resident: AtomicU64,
    _reserved: [AtomicU64; 8],
}

#[cfg(not(hshm_loom))]
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<Header>() as u64 == TABLE_OFFSET);
    assert!(offset_of!(Header, layout_version) == 8);
    assert!(offset_of!(Header, kind) == 12);
    assert!(offset_of!(Header, id_major) == 16);
    assert!(offset_of!(Header, capacity) == 24);
    assert!(offset_of!(Header, custom_header_bytes) == 32);
    assert!(offset_of!(Header, first_block) == 40);
    assert!(offset_of!(Header, checksum) == 48);
    assert!(offset_of!(Header, resident) == 56);
    assert!(TABLE_BYTES as u64 == HEADER_BYTES - TABLE_OFFSET);
};

/// Where everything stands: validated once, and kept privately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    id: AllocatorId,
    capacity: u64,
    custom_header_bytes: u64,
    first_block: u64,
}

impl Geometry {
    fn compute(
        id: AllocatorId,
        capacity: u64,
        options: &HeapOptions,
    ) -> Result<Self, SegmentError> {
        let bad = |what, found, expected: String| SegmentError::BadOption { what, found, expected };
        let custom_header_bytes = options.custom_header_bytes;
        if custom_header_bytes > HeapOptions::MAX_CUSTOM_HEADER_BYTES {
            let limit = HeapOptions::MAX_CUSTOM_HEADER_BYTES;
            let expected = format!("at most {limit} bytes");
            return Err(bad("the custom header's length", custom_header_bytes, expected));
        }
        if capacity > MAX_CAPACITY_BYTES {
            return Err(bad("the capacity", capacity, "at most 64 TiB".to_owned()));
        }
        let first_block = HEADER_BYTES + custom_header_bytes.next_multiple_of(64);
        let needed_bytes = first_block + 64;
        let capacity = capacity & !63;
        if capacity < needed_bytes {
            return Err(SegmentError::Truncated { found_bytes: capacity, needed_bytes });
        }
        Ok(Self { id, capacity, custom_header_bytes, first_block })
    }

    fn store(&self, header: &Header, format: Format) {
        // ORDER: Relaxed suffices: the magic is stored after these with Release.
        let relaxed = Ordering::Relaxed;
        header.layout_version.store(format.version, relaxed);
        header.kind.store(format.kind.to_u32(), relaxed);
        header.id_major.store(self.id.major, relaxed);
        header.id_minor.store(self.id.minor, relaxed);
        header.capacity.store(self.capacity, relaxed);
        header.custom_header_bytes.store(self.custom_header_bytes, relaxed);
        header.first_block.store(self.first_block, relaxed);
        header.checksum.store(self.checksum(format), relaxed);
    }

    fn load(header: &Header, format: Format) -> Result<Self, SegmentError> {
        let relaxed = Ordering::Relaxed;
        // ORDER: Acquire pairs with the Release of the magic at the end of `Segment::publish`.
        let magic = header.magic.load(Ordering::Acquire);
        if magic != format.magic {
            return Err(format.kind.not_found(magic));
        }
        let found = header.layout_version.load(relaxed);
        if found != format.version {
            return Err(SegmentError::LayoutVersion { found, supported: format.version });
        }
        let corrupt = |field, found, why| Err(SegmentError::Corrupt { field, found, why });
        let kind = header.kind.load(relaxed);
        if kind != format.kind.to_u32() {
            return corrupt("the allocator's kind", kind.into(), "which the magic contradicts");
        }
        let id = AllocatorId::new(header.id_major.load(relaxed), header.id_minor.load(relaxed));
        let custom_header_bytes = header.custom_header_bytes.load(relaxed);
        let capacity = header.capacity.load(relaxed);
        let Ok(geometry) = Self::compute(id, capacity, &HeapOptions { custom_header_bytes }) else {
            return corrupt("the capacity", capacity, "which no segment of these options has");
        };
        if geometry.capacity != capacity {
            return corrupt("the capacity", capacity, "which is no multiple of 64");
        }
        let first_block = header.first_block.load(relaxed);
        if first_block != geometry.first_block {
            return corrupt("the first block", first_block, "which the custom header contradicts");
        }
        let checksum = header.checksum.load(relaxed);
        if checksum != geometry.checksum(format) {
            return corrupt("the checksum", checksum, "which the fields contradict");
        }
        Ok(geometry)
    }

    /// FNV-1a over the fields: it finds accidents, not intent.
    fn checksum(&self, format: Format) -> u64 {
        let fields = [
            format.magic,
            u64::from(format.version),
            u64::from(self.id.major),
            u64::from(self.id.minor),
            self.capacity,
            self.custom_header_bytes,
            self.first_block,
        ];
        fields.into_iter().flat_map(u64::to_le_bytes).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// A mapped segment whose header was written or validated. Everything in here but the bytes behind
/// `base` is private to this process.
#[derive(Debug)]
pub(super) struct Segment {
    backend: Arc<dyn Backend>,
    base: NonNull<u8>,
    /// The largest alignment that blocks can have.
    align_limit: usize,
    geometry: Geometry,
    format: Format,
    /// How much of the address range has memory behind it, as far as this process has looked.
    limit: AtomicU64,
}

// SAFETY: [mapped] the mapping lives as long as the backend, which is held; [atomic] all that is
// reached through it is atomics, and blocks, whose use the allocator hands to one owner each.
unsafe impl Send for Segment {}
// SAFETY: [atomic] as above.
unsafe impl Sync for Segment {}

impl Segment {
    /// Prepares a new segment: all of the header but the magic, see [`Segment::publish`]. The
    /// backend is grown by what the headers take, if its capacity allows, so that the size it was
    /// created with remains for blocks.
    pub(super) fn create(
        format: Format,
        id: AllocatorId,
        backend: Arc<dyn Backend>,
        options: &HeapOptions,
    ) -> Result<Self, SegmentError> {
        let geometry = Geometry::compute(id, backend.capacity_bytes(), options)?;
        let wanted = backend.committed_bytes().saturating_add(geometry.first_block);
        backend.grow(wanted.min(geometry.capacity))?;
        let needed_bytes = geometry.first_block + 64;
        let found_bytes = backend.committed_bytes();
        if found_bytes < needed_bytes {
            return Err(SegmentError::Truncated { found_bytes, needed_bytes });
        }
        backend.populate(0..needed_bytes)?;
        let segment = Self::over(backend, geometry, format);
        let header = segment.header();
        if AllocatorKind::of_magic(header.magic.load(Ordering::Acquire)).is_some() {
            return Err(SegmentError::Exists);
        }
        geometry.store(header, format);
        header.resident.store(needed_bytes, Ordering::Relaxed);
        Ok(segment)
    }

    /// Lets others attach.
    pub(super) fn publish(&self) {
        // ORDER: Release: whoever sees the magic sees all that was stored before.
        self.header().magic.store(self.format.magic, Ordering::Release);
    }

    /// Validates the segment that stands in `backend`.
    pub(super) fn open(format: Format, backend: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        let found_bytes = backend.committed_bytes();
        if found_bytes < HEADER_BYTES {
            return Err(SegmentError::Truncated { found_bytes, needed_bytes: HEADER_BYTES });
        }
        let geometry = Geometry::load(header_at(backend.base()), format)?;
        if geometry.capacity > backend.capacity_bytes() {
            return Err(SegmentError::Corrupt {
                field: "the capacity",
                found: geometry.capacity,
                why: "which is more than was mapped",
            });
        }
        let needed_bytes = geometry.first_block + 64;
        if found_bytes < needed_bytes {
            return Err(SegmentError::Truncated { found_bytes, needed_bytes });
        }
        Ok(Self::over(backend, geometry, format))
    }

    fn over(backend: Arc<dyn Backend>, geometry: Geometry, format: Format) -> Self {
        let (base, align_limit) = (backend.base(), backend.alignment());
        let segment =
            Self { backend, base, align_limit, geometry, format, limit: AtomicU64::new(0) };
        segment.refresh_limit();
        segment
    }

    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    pub(super) fn kind(&self) -> AllocatorKind {
        self.format.kind
    }

    pub(super) fn id(&self) -> AllocatorId {
        self.geometry.id
    }

    pub(super) fn capacity(&self) -> u64 {
        self.geometry.capacity
    }

    pub(super) fn first_block(&self) -> u64 {
        self.geometry.first_block
    }

    pub(super) fn custom_header(&self) -> (OffsetPointer, usize) {
        let len = usize::try_from(self.geometry.custom_header_bytes).unwrap_or(0);
        (OffsetPointer::new(HEADER_BYTES), len)
    }

    fn header(&self) -> &Header {
        header_at(self.base)
    }

    /// The allocator's own part of the first page.
    pub(super) fn table<T>(&self) -> &T {
        const {
            assert!(size_of::<T>() <= TABLE_BYTES && align_of::<T>() <= 64);
        }
        let address = self.base.as_ptr().wrapping_add(to_usize(TABLE_OFFSET)).cast::<T>();
        // SAFETY: [mapped] it fits the first page, which was found to have memory behind it;
        // [atomic] T is made of atomics, for which all bytes are valid.
        unsafe { &*address }
    }

    /// A report of a segment in which nothing was counted yet.
    pub(super) fn blank_report(&self) -> HeapReport {
        let committed_bytes = self.refresh_limit();
        HeapReport {
            layout_version: self.format.version,
            id: self.id(),
            on_exit: OnExit::Keep,
            capacity_bytes: self.capacity(),
            committed_bytes,
            unit_bytes: GRANULE_BYTES,
            units_total: (committed_bytes.saturating_sub(self.first_block())) / GRANULE_BYTES,
            units_free: 0,
            largest_free_run_bytes: 0,
            custom_header_bytes: self.geometry.custom_header_bytes,
            allocated_bytes: 0,
            allocated_blocks: 0,
            classes: Vec::new(),
            large_blocks: 0,
            large_bytes: 0,
            cached_blocks: 0,
            cached_bytes: 0,
            abandoned_pages: 0,
            workers: Vec::new(),
            worker_slots: 0,
            operations: OperationCounts::default(),
        }
    }

    /// Asks how long the segment is, and remembers it.
    pub(super) fn refresh_limit(&self) -> u64 {
        let limit = self.backend.committed_bytes().min(self.geometry.capacity) & !63;
        // ORDER: Relaxed: the value bounds accesses and orders nothing.
        self.limit.store(limit, Ordering::Relaxed);
        limit
    }

    /// Bytes from the start that may be touched, as of the last look.
    pub(super) fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether bytes up to `end` may be touched.
    pub(super) fn reaches(&self, end: u64) -> bool {
        end <= self.limit() || end <= self.refresh_limit()
    }

    /// The eight bytes at `offset` among the blocks, if they are there.
    pub(super) fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let inside = offset >= self.geometry.first_block
            && offset.checked_add(8).is_some_and(|end| end <= self.limit());
        (inside && offset.is_multiple_of(8)).then(|| {
            let address = self.base.as_ptr().wrapping_add(to_usize(offset));
            // SAFETY: [mapped] the range was just checked; eight-byte alignment too; [atomic] the
            // bytes are accessed as an atomic by everyone who takes them for the allocator's.
            unsafe { AtomicU64::from_ptr(address.cast()) }
        })
    }

    /// Puts memory behind all bytes up to `end`, and some more.
    pub(super) fn make_resident(&self, end: u64) -> Result<(), BackendError> {
        let header = self.header();
        // ORDER: Relaxed: whoever reads an old value populates what is populated already.
        let resident = header.resident.load(Ordering::Relaxed);
        if end <= resident {
            return Ok(());
        }
        let limit = self.limit();
        let upto = end.checked_next_multiple_of(POPULATE_BYTES).unwrap_or(end).min(limit);
        if self.backend.populate(resident.min(end)..upto).is_err() {
            // Less may be had.
            self.backend.populate(resident.min(end)..end)?;
            header.resident.fetch_max(end, Ordering::Relaxed);
            return Ok(());
        }
        header.resident.fetch_max(upto, Ordering::Relaxed);
        Ok(())
    }

    /// The address of `len` bytes at `offset`, if they all lie in the segment, after its header.
    pub(super) fn resolve(&self, offset: u64, len: usize) -> Result<NonNull<u8>, AllocError> {
        let end = offset.checked_add(len as u64);
        let inside = offset >= HEADER_BYTES && end.is_some_and(|end| self.reaches(end));
        if !inside {
            return Err(AllocError::NotAllocated { offset, why: "it lies outside the segment" });
        }
        let address = self.base.as_ptr().wrapping_add(to_usize(offset));
        NonNull::new(address).ok_or(AllocError::NotAllocated { offset, why: "it is null" })
    }

    /// The offset of an address in the segment, after its header.
    pub(super) fn offset_of(&self, address: NonNull<u8>) -> Option<OffsetPointer> {
        let distance = address.addr().get().checked_sub(self.base.addr().get())? as u64;
        (distance >= HEADER_BYTES && distance < self.limit()).then(|| OffsetPointer::new(distance))
    }

    /// Refuses an alignment that this memory cannot promise.
    pub(super) fn validate_align(&self, align: usize) -> Result<u64, AllocError> {
        let limit = self.align_limit;
        if align.is_power_of_two() && align <= limit {
            Ok((align as u64).max(GRANULE_BYTES))
        } else {
            Err(AllocError::BadAlignment { align, limit })
        }
    }

    /// There is no room.
    pub(super) fn full(&self, bytes: usize) -> AllocError {
        AllocError::OutOfMemory { bytes: bytes as u64, committed_bytes: self.limit() }
    }

    /// Refuses a block that could never be had, whose own header takes a granule.
    pub(super) fn validate_len(&self, bytes: usize) -> Result<u64, AllocError> {
        let limit_bytes = self.capacity() - self.first_block() - GRANULE_BYTES;
        let bytes = (bytes as u64).max(1);
        if bytes > limit_bytes {
            return Err(AllocError::TooLarge { bytes, limit_bytes });
        }
        Ok(bytes.next_multiple_of(GRANULE_BYTES))
    }
}

/// The header at a mapping's start.
fn header_at<'m>(base: NonNull<u8>) -> &'m Header {
    // SAFETY: [mapped] callers checked that the first page is there, and hold the mapping for as
    // long as they use the reference; [atomic] all fields are atomics.
    unsafe { base.cast::<Header>().as_ref() }
}

/// Offsets are below the length of a mapping, which is a `usize`.
#[inline]
fn to_usize(offset: u64) -> usize {
    #[allow(clippy::cast_possible_truncation, reason = "an offset into a mapping")]
    let offset = offset as usize;
    offset
}

/// Twenty bits that tell a header of a block at `offset` from bytes that stand there by chance.
pub(super) const fn seal(offset: u64, fields: u64, salt: u64) -> u64 {
    let mixed = (offset ^ fields.rotate_left(29) ^ salt.rotate_left(47))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed >> 44
}
