//! What a guarded collection's first block holds.

use crate::allocator::Allocator;
use crate::collections::CollectionError;
use crate::collections::bytes::words_for;
use crate::collections::identity::pid_namespace;
use crate::pointer::OffsetPointer;
use crate::robust::RobustLock;
use crate::sync::{AtomicU64, Ordering};

/// Cells for blocks: the current one, its successor, and others that still wait for the recovery of
/// somebody who died while freeing what they name.
pub(super) const CELLS: usize = 4;

/// What stands at the beginning of the first block; the scratch area follows.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Root {
    /// The kind's magic number mixed with the block's offset; stored last.
    magic: AtomicU64,
    first_bytes: AtomicU64,
    second_bytes: AtomicU64,
    namespace: AtomicU64,
    pub(super) lock: RobustLock,
    /// See [`super::State`].
    pub(super) state: AtomicU64,
    /// Each null or naming a block of values, one of which is the current one.
    pub(super) cells: [AtomicU64; CELLS],
    /// Whether what stands in the scratch area is to be copied (1) or not (0).
    pub(super) redo: AtomicU64,
    /// Where to in the current block, in bytes.
    pub(super) redo_at: AtomicU64,
    /// How many bytes.
    pub(super) redo_bytes: AtomicU64,
    /// The state afterwards.
    pub(super) redo_state: AtomicU64,
    /// A number that differs between collections.
    pub(super) seed: AtomicU64,
}

#[cfg(not(hshm_loom))]
const _: () = {
    use std::mem::offset_of;

    assert!(size_of::<Root>() == 128 && align_of::<Root>() == 8);
    assert!(offset_of!(Root, lock) == 32);
    assert!(offset_of!(Root, state) == 48);
    assert!(offset_of!(Root, cells) == 56);
    assert!(offset_of!(Root, redo) == 88);
    assert!(offset_of!(Root, seed) == 120);
};

/// What tells one kind of collection from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::collections) struct Kind {
    /// What it is called in errors.
    pub(in crate::collections) what: &'static str,
    /// What its first block begins with; changes with the layout.
    pub(in crate::collections) magic: [u8; 8],
    /// Bytes of an element, or of a key.
    pub(in crate::collections) first_bytes: usize,
    /// Bytes of what belongs to a key.
    pub(in crate::collections) second_bytes: usize,
}

impl Kind {
    /// The most bytes that are overwritten at once.
    const fn scratch_words(self) -> usize {
        let (first, second) = (words_for(self.first_bytes), words_for(self.second_bytes));
        if first > second { first } else { second }
    }

    /// Bytes of the first block.
    pub(super) const fn root_bytes(self) -> usize {
        size_of::<Root>() + self.scratch_words() * 8
    }

    const fn magic_at(self, place: OffsetPointer) -> u64 {
        u64::from_le_bytes(self.magic) ^ place.offset_bytes().rotate_left(16)
    }
}

/// The first block's parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'m> {
    pub(super) root: &'m Root,
    pub(super) scratch: &'m [AtomicU64],
}

impl<'m> Parts<'m> {
    /// Finds the parts in the block at `place`, whatever bytes stand there.
    fn map<A: Allocator + ?Sized>(
        allocator: &'m A,
        place: OffsetPointer,
        kind: Kind,
    ) -> Result<Self, CollectionError> {
        let base = allocator.resolve(place, kind.root_bytes())?;
        if !base.addr().get().is_multiple_of(align_of::<u64>()) {
            let offset = place.offset_bytes();
            return Err(CollectionError::NotThere { offset, expected: kind.what });
        }
        // SAFETY: [mapped] these bytes were resolved and are mapped as long as the allocator lives;
        // the base is aligned; [atomic] all fields are atomics, of which all bytes are valid.
        let root = unsafe { base.cast::<Root>().as_ref() };
        // SAFETY: [mapped] the scratch area was resolved together with the root.
        let scratch = unsafe { base.add(size_of::<Root>()) }.cast::<AtomicU64>();
        // SAFETY: [mapped] [atomic] as above.
        let scratch = unsafe { std::slice::from_raw_parts(scratch.as_ptr(), kind.scratch_words()) };
        Ok(Self { root, scratch })
    }

    /// Lays an empty collection out in the block at `place`, which is the caller's.
    pub(super) fn initialise<A: Allocator + ?Sized>(
        allocator: &'m A,
        place: OffsetPointer,
        kind: Kind,
        seed: u64,
    ) -> Result<Self, CollectionError> {
        let parts = Self::map(allocator, place, kind)?;
        let root = parts.root;
        // ORDER: Release: what was there before is nothing before it becomes something else.
        root.magic.store(0, Ordering::Release);
        root.first_bytes.store(kind.first_bytes as u64, Ordering::Relaxed);
        root.second_bytes.store(kind.second_bytes as u64, Ordering::Relaxed);
        root.namespace.store(pid_namespace(), Ordering::Relaxed);
        root.lock.initialise();
        for word in [&root.state, &root.redo, &root.redo_at, &root.redo_bytes, &root.redo_state] {
            word.store(0, Ordering::Relaxed);
        }
        for cell in &root.cells {
            cell.store(0, Ordering::Relaxed);
        }
        root.seed.store(seed, Ordering::Relaxed);
        // Died here: the block holds no collection; who has its offset can free it.
        crate::crash_point!("guarded.laid_out");
        // ORDER: Release: whoever sees the magic sees all of the above.
        root.magic.store(kind.magic_at(place), Ordering::Release);
        Ok(parts)
    }

    /// Validates the collection that stands in the block at `place`.
    pub(super) fn find<A: Allocator + ?Sized>(
        allocator: &'m A,
        place: OffsetPointer,
        kind: Kind,
    ) -> Result<Self, CollectionError> {
        let offset = place.offset_bytes();
        let parts = Self::map(allocator, place, kind)?;
        let root = parts.root;
        // ORDER: Acquire pairs with the Release in `initialise`.
        if root.magic.load(Ordering::Acquire) != kind.magic_at(place) {
            return Err(CollectionError::NotThere { offset, expected: kind.what });
        }
        let first = (root.first_bytes.load(Ordering::Relaxed), kind.first_bytes as u64);
        let second = (root.second_bytes.load(Ordering::Relaxed), kind.second_bytes as u64);
        for (found_bytes, expected_bytes) in [first, second] {
            if found_bytes != expected_bytes {
                let what = kind.what;
                return Err(CollectionError::ElementSize {
                    what,
                    offset,
                    found_bytes,
                    expected_bytes,
                });
            }
        }
        let (namespace, own) = (root.namespace.load(Ordering::Relaxed), pid_namespace());
        if namespace != own && namespace != 0 && own != 0 {
            return Err(CollectionError::Namespace { what: kind.what, offset });
        }
        Ok(parts)
    }

    /// Says that there is no collection any more.
    pub(super) fn unmake(&self) {
        // ORDER: Release: the block is freed after this.
        self.root.magic.store(0, Ordering::Release);
    }
}
