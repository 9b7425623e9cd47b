//! Where the parts of a queue stand in its block.
//!
//! ```text
//! 0      control    magic, geometry; tail, head and both events, each on lines of its own
//!        cells      8 bytes for each message that there is room for
//!        pushers    64 bytes for each thread that can push at once
//!        nodes      8 bytes and a message, for each cell and each pusher
//! ```

use std::ptr::NonNull;

use super::ring::{Pusher, Ring};
use super::waiting::Event;
use super::words::MOST_NODES;
use crate::allocator::Allocator;
use crate::collections::CollectionError;
use crate::collections::bytes::words_for;
use crate::collections::identity::pid_namespace;
use crate::error::AllocError;
use crate::pointer::OffsetPointer;
use crate::sync::{AtomicU64, Ordering};

/// What a queue is called in errors.
pub(super) const WHAT: &str = "shared queue";
/// Threads that can be in the midst of a push at once.
pub(super) const PUSHERS: u32 = 64;
/// Messages that a queue can have room for at most.
pub(super) const MOST_MESSAGES: u32 = 1 << 20;
const _: () = assert!((MOST_MESSAGES + PUSHERS) as u64 <= MOST_NODES);

/// Where the control stands: two cache lines, since processors fetch lines in pairs.
const ALIGN: usize = 128;
/// Changes with the layout.
const MAGIC: u64 = u64::from_le_bytes(*b"hshmque1");

/// Something that nothing else shares its lines with.
#[repr(C, align(128))]
#[derive(Debug)]
pub(super) struct Alone<T>(pub(super) T);

/// What a queue's block begins with.
#[repr(C, align(128))]
#[derive(Debug)]
pub(super) struct Control {
    /// The magic number mixed with the block's offset; stored last.
    magic: AtomicU64,
    element_bytes: AtomicU64,
    capacity: AtomicU64,
    pushers: AtomicU64,
    namespace: AtomicU64,
    tail: Alone<AtomicU64>,
    head: Alone<AtomicU64>,
    pub(super) not_empty: Alone<Event>,
    pub(super) not_full: Alone<Event>,
}

#[cfg(not(hshm_loom))]
const _: () = {
    use std::mem::offset_of;

    assert!(size_of::<Control>() == 640 && align_of::<Control>() == ALIGN);
    assert!(offset_of!(Control, magic) == 0);
    assert!(offset_of!(Control, element_bytes) == 8);
    assert!(offset_of!(Control, capacity) == 16);
    assert!(offset_of!(Control, pushers) == 24);
    assert!(offset_of!(Control, namespace) == 32);
    assert!(offset_of!(Control, tail) == 128);
    assert!(offset_of!(Control, head) == 256);
    assert!(offset_of!(Control, not_empty) == 384);
    assert!(offset_of!(Control, not_full) == 512);
};

/// How large everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    element_bytes: usize,
    capacity: u32,
}

impl Geometry {
    /// For at least `capacity` messages of `element_bytes` bytes.
    pub(super) fn compute(capacity: usize, element_bytes: usize) -> Result<Self, CollectionError> {
        let possible = u32::try_from(capacity).ok().filter(|n| (1..=MOST_MESSAGES).contains(n));
        let capacity = possible.ok_or(CollectionError::Capacity {
            found: capacity as u64,
            least: 1,
            most: MOST_MESSAGES.into(),
        })?;
        Ok(Self { element_bytes, capacity: capacity.next_power_of_two() })
    }

    pub(super) const fn capacity(self) -> usize {
        self.capacity as usize
    }

    const fn nodes(self) -> usize {
        (self.capacity + PUSHERS) as usize
    }

    const fn node_words(self) -> usize {
        1 + words_for(self.element_bytes)
    }

    /// Bytes from the control's beginning to the queue's end.
    fn bytes(self) -> Option<usize> {
        let nodes = self.node_words().checked_mul(8)?.checked_mul(self.nodes())?;
        nodes.checked_add(self.nodes_start())
    }

    const fn pushers_start(self) -> usize {
        (size_of::<Control>() + self.capacity() * 8).next_multiple_of(ALIGN)
    }

    const fn nodes_start(self) -> usize {
        self.pushers_start() + PUSHERS as usize * size_of::<Pusher>()
    }

    /// Bytes of a block that the queue fits in, wherever it begins.
    pub(super) fn block_bytes(self) -> Result<usize, CollectionError> {
        let bytes = self.bytes().and_then(|bytes| bytes.checked_add(ALIGN));
        bytes.filter(|&bytes| isize::try_from(bytes).is_ok()).ok_or_else(|| {
            let limit_bytes = isize::MAX.unsigned_abs() as u64;
            AllocError::TooLarge { bytes: u64::MAX, limit_bytes }.into()
        })
    }
}

/// A queue's parts, in this process's mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'m> {
    pub(super) control: &'m Control,
    pub(super) ring: Ring<'m>,
    pub(super) geometry: Geometry,
}

/// Where the control stands whose block is at `place`.
fn control_at<A: Allocator + ?Sized>(
    allocator: &A,
    place: OffsetPointer,
) -> Result<OffsetPointer, AllocError> {
    let outside = AllocError::NotAllocated {
        offset: place.offset_bytes(),
        why: "it lies outside the allocator's memory",
    };
    let address = allocator.resolve(place, 1)?.addr().get();
    let padding = (address.next_multiple_of(ALIGN) - address) as u64;
    let control = place.offset_bytes().checked_add(padding).ok_or(outside)?;
    Ok(OffsetPointer::new(control))
}

impl<'m> Parts<'m> {
    /// Finds the parts in the block at `place`, whatever bytes stand there.
    fn map<A: Allocator + ?Sized>(
        allocator: &'m A,
        place: OffsetPointer,
        geometry: Geometry,
    ) -> Result<Self, CollectionError> {
        let bytes = geometry.block_bytes()? - ALIGN;
        let base = allocator.resolve(control_at(allocator, place)?, bytes)?;
        if !base.addr().get().is_multiple_of(ALIGN) {
            let limit = 1 << base.addr().get().trailing_zeros();
            return Err(AllocError::BadAlignment { align: ALIGN, limit }.into());
        }
        let at = |start: usize| {
            // SAFETY: [mapped] all parts begin in the `bytes` bytes that were resolved.
            unsafe { base.add(start) }
        };
        // SAFETY: [mapped] these bytes were resolved and are mapped as long as the allocator lives;
        // the base is aligned; [atomic] all fields are atomics, of which all bytes are valid.
        let control = unsafe { at(0).cast::<Control>().as_ref() };
        // SAFETY: [mapped] [atomic] as above.
        let cells = unsafe { slice(at(size_of::<Control>()).cast(), geometry.capacity()) };
        // SAFETY: [mapped] [atomic] as above; they begin at a multiple of their alignment.
        let pushers = unsafe { slice(at(geometry.pushers_start()).cast(), PUSHERS as usize) };
        let words = geometry.nodes() * geometry.node_words();
        // SAFETY: [mapped] [atomic] as above.
        let nodes = unsafe { slice(at(geometry.nodes_start()).cast(), words) };
        let ring = Ring {
            tail: &control.tail.0,
            head: &control.head.0,
            cells,
            pushers,
            nodes,
            node_words: geometry.node_words(),
        };
        Ok(Self { control, ring, geometry })
    }

    /// Lays an empty queue out in the block at `place`, which is the caller's.
    pub(super) fn initialise<A: Allocator + ?Sized>(
        allocator: &'m A,
        place: OffsetPointer,
        geometry: Geometry,
    ) -> Result<Self, CollectionError> {
        let parts = Self::map(allocator, place, geometry)?;
        let control = parts.control;
        // ORDER: Release: what was there before is nothing before it becomes something else.
        control.magic.store(0, Ordering::Release);
        control.element_bytes.store(geometry.element_bytes as u64, Ordering::Relaxed);
        control.capacity.store(geometry.capacity.into(), Ordering::Relaxed);
        control.pushers.store(PUSHERS.into(), Ordering::Relaxed);
        control.namespace.store(pid_namespace(), Ordering::Relaxed);
        control.not_empty.0.initialise();
        control.not_full.0.initialise();
        parts.ring.initialise();
        // Died here: the block holds no queue; who has its offset can free it.
        crate::crash_point!("queue.laid_out");
        // ORDER: Release: whoever sees the magic sees all of the above.
        control.magic.store(magic_at(place), Ordering::Release);
        Ok(parts)
    }

    /// Validates the queue that stands in the block at `place`.
    pub(super) fn find<A: Allocator + ?Sized>(
        allocator: &'m A,
        place: OffsetPointer,
        element_bytes: usize,
    ) -> Result<Self, CollectionError> {
        let offset = place.offset_bytes();
        let not_there = CollectionError::NotThere { offset, expected: WHAT };
        let corrupt = |why| CollectionError::Corrupt { what: WHAT, offset, why };
        let base = allocator.resolve(control_at(allocator, place)?, size_of::<Control>())?;
        if !base.addr().get().is_multiple_of(ALIGN) {
            return Err(not_there);
        }
        // SAFETY: [mapped] these bytes were resolved, and the base is aligned; [atomic] all fields
        // are atomics.
        let control = unsafe { base.cast::<Control>().as_ref() };
        // ORDER: Acquire pairs with the Release in `initialise`.
        if control.magic.load(Ordering::Acquire) != magic_at(place) {
            return Err(not_there);
        }
        let found_bytes = control.element_bytes.load(Ordering::Relaxed);
        if found_bytes != element_bytes as u64 {
            let expected_bytes = element_bytes as u64;
            let what = WHAT;
            return Err(CollectionError::ElementSize { what, offset, found_bytes, expected_bytes });
        }
        if control.pushers.load(Ordering::Relaxed) != PUSHERS.into() {
            return Err(corrupt("its number of pushers is not what this layout has"));
        }
        let namespace = control.namespace.load(Ordering::Relaxed);
        let own = pid_namespace();
        if namespace != own && namespace != 0 && own != 0 {
            return Err(CollectionError::Namespace { what: WHAT, offset });
        }
        let capacity = usize::try_from(control.capacity.load(Ordering::Relaxed));
        let geometry = capacity.ok().and_then(|capacity| {
            let geometry = Geometry::compute(capacity, element_bytes).ok()?;
            (geometry.capacity() == capacity).then_some(geometry)
        });
        let geometry =
            geometry.ok_or_else(|| corrupt("its capacity is no power of two to 2^20"))?;
        Self::map(allocator, place, geometry)
    }

    /// Says that there is no queue any more.
    pub(super) fn unmake(&self) {
        // ORDER: Release: the block is freed after this.
        self.control.magic.store(0, Ordering::Release);
    }
}

/// # Safety
/// As [`std::slice::from_raw_parts`], for a `T` made of atomics.
unsafe fn slice<'m, T>(first: NonNull<T>, len: usize) -> &'m [T] {
    // SAFETY: the caller promises it.
    unsafe { std::slice::from_raw_parts(first.as_ptr(), len) }
}

/// What says that a queue stands in the block at `place`.
const fn magic_at(place: OffsetPointer) -> u64 {
    MAGIC ^ place.offset_bytes().rotate_left(16)
}
