//! What vectors, strings and maps in shared memory have in common: a first block with a lock that
//! outlives its holder, and one block of values, which a larger one can replace.
//!
//! Every operation, a look too, is done by the lock's holder alone. Whoever takes the lock from a dead
//! one finishes or undoes what it was about, and finds out from the words alone:
//!
//! - One word, the *state*, says which cell names the current block and how many values there are. What
//!   is written beyond the values, or to a block that is not current, does not count until the state
//!   says so. A block that another cell names is not current any more, or not yet: it is freed.
//! - Bytes that count are overwritten by way of the scratch area: first they are written there, then
//!   the word `redo` says so, then they are copied. Copying may be done again.
//!
//! The cells are filled and emptied by [`CellAllocator`]: with an allocator that does so exactly
//! once, no block is lost.

mod layout;

use std::time::Duration;

use self::layout::CELLS;
pub(super) use self::layout::Kind;
use self::layout::Parts;
use super::{CellAllocator, CollectionError, bytes};
use crate::context::MemContext;
use crate::crash_point;
use crate::error::AllocError;
use crate::pointer::OffsetPointer;
use crate::robust::{Acquired, PATIENCE, RobustGuard};
use crate::sync::{AtomicU64, Ordering};

/// Words before the values of a block: how many it has room for, and how many places are in use,
/// which only maps count.
const BLOCK_WORDS: usize = 2;

/// Which cell names the current block (bits 0-1), and how many values there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State(u64);

impl State {
    const fn new(cell: usize, len: u64) -> Self {
        Self(len << 2 | (cell % CELLS) as u64)
    }

    const fn cell(self) -> usize {
        (self.0 & 3) as usize
    }

    const fn len(self) -> u64 {
        self.0 >> 2
    }
}

/// A collection under a lock, as this process sees it.
#[derive(Debug)]
pub(super) struct Guarded<'a, A: ?Sized> {
    allocator: &'a A,
    place: OffsetPointer,
    kind: Kind,
    parts: Parts<'a>,
    /// How long it waits for the lock.
    patience: Duration,
}

impl<'a, A: CellAllocator + ?Sized> Guarded<'a, A> {
    pub(super) fn create_in(allocator: &'a A, kind: Kind) -> Result<Self, CollectionError> {
        may_be_made(allocator)?;
        let place = allocator.allocate_offset(MemContext::DEFAULT, kind.root_bytes())?;
        Self::over(allocator, place, kind, Parts::initialise(allocator, place, kind, new_seed()))
    }

    pub(super) fn create_into(
        allocator: &'a A,
        cell: OffsetPointer,
        kind: Kind,
    ) -> Result<Self, CollectionError> {
        may_be_made(allocator)?;
        let place = allocator.allocate_into(cell, kind.root_bytes())?;
        Self::over(allocator, place, kind, Parts::initialise(allocator, place, kind, new_seed()))
    }

    pub(super) fn attach(
        allocator: &'a A,
        place: OffsetPointer,
        kind: Kind,
    ) -> Result<Self, CollectionError> {
        Self::over(allocator, place, kind, Parts::find(allocator, place, kind))
    }

    fn over(
        allocator: &'a A,
        place: OffsetPointer,
        kind: Kind,
        parts: Result<Parts<'a>, CollectionError>,
    ) -> Result<Self, CollectionError> {
        Ok(Self { allocator, place, kind, parts: parts?, patience: PATIENCE })
    }

    /// Gives back all blocks but the first.
    ///
    /// # Safety
    /// Nobody else uses the collection any more.
    unsafe fn unmake(&self) -> Result<(), CollectionError> {
        self.parts.unmake();
        for cell in 0..CELLS {
            // SAFETY: the caller gives up what the cells name.
            unsafe { self.allocator.free_from(self.cell_place(cell)) }?;
        }
        Ok(())
    }

    /// Gives back all blocks.
    ///
    /// # Safety
    /// Nobody else uses the collection any more.
    pub(super) unsafe fn destroy(self) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.unmake() }?;
        // SAFETY: as above.
        unsafe { self.allocator.free_offset_no_null_check(MemContext::DEFAULT, self.place) }?;
        Ok(())
    }

    /// Gives back all blocks, the first of which the cell at `cell` names.
    ///
    /// # Safety
    /// As [`Self::destroy`].
    pub(super) unsafe fn destroy_from(self, cell: OffsetPointer) -> Result<(), CollectionError> {
        // SAFETY: the caller promises it.
        unsafe { self.unmake() }?;
        // SAFETY: as above.
        unsafe { self.allocator.free_from(cell) }?;
        Ok(())
    }

    /// Takes the lock. If the one before died with it, what it was about is finished or undone;
    /// `count` finds out how many values there are, where the state may be wrong about that.
    pub(super) fn lock(
        &self,
        count: impl FnOnce(&Held<'_, 'a, A>) -> Result<(), CollectionError>,
    ) -> Result<Held<'_, 'a, A>, CollectionError> {
        let guard = self.parts.root.lock.lock_timeout(self.patience)?;
        let held = Held { guarded: self, guard };
        if held.guard.acquired() == Acquired::FromDead {
            held.mend()?;
            count(&held)?;
            // Died here: the next one mends again.
            crash_point!("guarded.mended");
            held.guard.mended();
        }
        Ok(held)
    }

    pub(super) fn corrupt(&self, why: &'static str) -> CollectionError {
        CollectionError::Corrupt { what: self.kind.what, offset: self.place.offset_bytes(), why }
    }

    fn cell_place(&self, cell: usize) -> OffsetPointer {
        let distance = std::mem::offset_of!(layout::Root, cells) + cell * 8;
        OffsetPointer::new(self.place.offset_bytes() + distance as u64)
    }
}

impl<A: ?Sized> Guarded<'_, A> {
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    pub(super) fn place(&self) -> OffsetPointer {
        self.place
    }

    /// A number of this collection's own.
    pub(super) fn seed(&self) -> u64 {
        self.parts.root.seed.load(Ordering::Relaxed)
    }
}

/// What a collection may be made in.
fn may_be_made<A: CellAllocator + ?Sized>(allocator: &A) -> Result<(), CollectionError> {
    if allocator.keeps_blocks() { Ok(()) } else { Err(CollectionError::GoesWithProcess) }
}

/// A number that nobody can guess, as far as the standard library can help it.
fn new_seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};

    RandomState::new().hash_one(0)
}

/// The values of a collection, in whichever block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'m> {
    /// How many values there is room for.
    pub(super) capacity: usize,
    /// Places in use, where they are counted.
    pub(super) used: Option<&'m AtomicU64>,
    /// Their words.
    pub(super) words: &'m [AtomicU64],
}

impl Block<'_> {
    const NONE: Self = Self { capacity: 0, used: None, words: &[] };
}

/// A collection whose lock the caller holds.
#[derive(Debug)]
pub(super) struct Held<'g, 'a, A: CellAllocator + ?Sized> {
    pub(super) guarded: &'g Guarded<'a, A>,
    guard: RobustGuard<'g>,
}

impl<A: CellAllocator + ?Sized> Held<'_, '_, A> {
    fn state(&self) -> State {
        // ORDER: Relaxed, here and below where nothing else is said: the lock orders its holders; and
        // of a holder that died, the kernel ended it before it told the next one so.
        State(self.guarded.parts.root.state.load(Ordering::Relaxed))
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        usize::try_from(self.state().len()).unwrap_or(usize::MAX)
    }

    /// Makes as many values count. All that is written before does, too.
    pub(super) fn set_len(&self, len: usize) {
        let state = State::new(self.state().cell(), len as u64);
        // ORDER: Release: a death is as if the stores had happened up to some point.
        self.guarded.parts.root.state.store(state.0, Ordering::Release);
    }

    /// The current block, whose values have `value_words(capacity)` words.
    pub(super) fn block(
        &self,
        value_words: impl Fn(usize) -> Option<usize>,
    ) -> Result<Block<'_>, CollectionError> {
        let offset = self.guarded.parts.root.cells[self.state().cell()].load(Ordering::Acquire);
        if offset == 0 {
            return Ok(Block::NONE);
        }
        let place = OffsetPointer::new(offset);
        let head = self.words(place, BLOCK_WORDS)?;
        let capacity = usize::try_from(head[0].load(Ordering::Relaxed)).ok();
        let words = capacity.and_then(|capacity| value_words(capacity)?.checked_add(BLOCK_WORDS));
        let (Some(capacity), Some(words)) = (capacity, words) else {
            return Err(self.guarded.corrupt("its capacity is beyond all bounds"));
        };
        let words = self.words(place, words)?;
        Ok(Block { capacity, used: Some(&words[1]), words: &words[BLOCK_WORDS..] })
    }

    fn words(&self, place: OffsetPointer, count: usize) -> Result<&[AtomicU64], CollectionError> {
        let beyond = || self.guarded.corrupt("its block is beyond all bounds");
        let bytes = count.checked_mul(8).filter(|&bytes| isize::try_from(bytes).is_ok());
        let base = self.guarded.allocator.resolve(place, bytes.ok_or_else(beyond)?)?;
        if !base.addr().get().is_multiple_of(align_of::<u64>()) {
            return Err(self.guarded.corrupt("its block is not aligned"));
        }
        // SAFETY: [mapped] these bytes were resolved and are mapped as long as the allocator lives;
        // [atomic] everybody accesses them as atomics.
        Ok(unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>().as_ptr(), count) })
    }

    /// Puts a new block with room for `capacity` values in the place of the current one, with what
    /// `fill` writes there, of which `len` values count.
    pub(super) fn replace(
        &self,
        capacity: usize,
        value_words: impl Fn(usize) -> Option<usize>,
        fill: impl FnOnce(&Block<'_>) -> Result<usize, CollectionError>,
    ) -> Result<(), CollectionError> {
        let words = value_words(capacity).and_then(|words| words.checked_add(BLOCK_WORDS));
        let bytes = words.and_then(|words| words.checked_mul(8));
        let bytes = bytes.ok_or(AllocError::TooLarge {
            bytes: u64::MAX,
            limit_bytes: isize::MAX.unsigned_abs() as u64,
        })?;
        let current = self.state().cell();
        let (cell, place) = self.allocate(current, bytes)?;
        let all = self.words(place, bytes / 8)?;
        all[0].store(capacity as u64, Ordering::Relaxed);
        all[1].store(0, Ordering::Relaxed);
        let block = Block { capacity, used: Some(&all[1]), words: &all[BLOCK_WORDS..] };
        let filled = fill(&block);
        // Died here: the new block is not current; who mends frees it.
        crash_point!("guarded.filled");
        let done = filled.map(|len| {
            // ORDER: Release: what stands in the block is there before it becomes current.
            self.guarded.parts.root.state.store(State::new(cell, len as u64).0, Ordering::Release);
        });
        // Died here: the old block is not current any more; who mends frees it.
        crash_point!("guarded.published");
        self.free(if done.is_ok() { current } else { cell })?;
        done
    }

    /// A block in a cell that is not the current one's.
    fn allocate(
        &self,
        current: usize,
        bytes: usize,
    ) -> Result<(usize, OffsetPointer), CollectionError> {
        let mut refused = None;
        for cell in (0..CELLS).filter(|&cell| cell != current) {
            match self.guarded.allocator.allocate_into(self.guarded.cell_place(cell), bytes) {
                Ok(place) => return Ok((cell, place)),
                // Somebody died while it freed what this cell names, and was not recovered yet.
                Err(error @ AllocError::BadCell { .. }) => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(refused.map_or_else(|| self.guarded.corrupt("it has no cells"), Into::into))
    }

    /// Frees what a cell names that is not the current one's.
    fn free(&self, cell: usize) -> Result<(), CollectionError> {
        // SAFETY: [owned] the block is the collection's, and nobody looks at it but the lock's holder.
        unsafe { self.guarded.allocator.free_from(self.guarded.cell_place(cell)) }?;
        Ok(())
    }

    /// Writes `value` to the current block, from byte `at` of its values on, and makes `len` values
    /// count: all of it or nothing. `block` is the current block.
    pub(super) fn overwrite(
        &self,
        block: &Block<'_>,
        at: usize,
        value: &[u8],
        len: usize,
    ) -> Result<(), CollectionError> {
        let Parts { root, scratch } = self.guarded.parts;
        bytes::store(scratch, value);
        root.redo_at.store(at as u64, Ordering::Relaxed);
        root.redo_bytes.store(value.len() as u64, Ordering::Relaxed);
        let state = State::new(self.state().cell(), len as u64);
        root.redo_state.store(state.0, Ordering::Relaxed);
        // ORDER: Release: what is to be copied, and where to, stands there before it is to be.
        root.redo.store(1, Ordering::Release);
        // Died here: who mends copies it.
        crash_point!("guarded.noted");
        self.redo(block)
    }

    /// Copies what stands in the scratch area to where it is to go.
    fn redo(&self, block: &Block<'_>) -> Result<(), CollectionError> {
        let Parts { root, scratch } = self.guarded.parts;
        let read = |word: &AtomicU64| usize::try_from(word.load(Ordering::Relaxed)).ok();
        let (at, len) = (read(&root.redo_at), read(&root.redo_bytes));
        let most = scratch.len() * 8;
        let range = at.zip(len.filter(|&len| len <= most));
        let range = range.filter(|(at, len)| {
            at.checked_add(*len).is_some_and(|end| end <= block.words.len() * 8)
        });
        let (at, len) = range.ok_or_else(|| self.guarded.corrupt("its note leads nowhere"))?;
        let state = State(root.redo_state.load(Ordering::Relaxed));
        if state.cell() != self.state().cell() {
            return Err(self.guarded.corrupt("its note is about another block"));
        }
        // In pieces, so that values of any size need no memory.
        let mut piece = [0; 256];
        for start in (0..len).step_by(piece.len()) {
            let piece = &mut piece[..(len - start).min(256)];
            bytes::load_at(scratch, start, piece);
            bytes::store_at(block.words, at + start, piece);
        }
        // Died here: who mends copies it again.
        crash_point!("guarded.copied");
        // ORDER: Release, here and below: each stands only after what is before it.
        root.state.store(state.0, Ordering::Release);
        crash_point!("guarded.counted");
        root.redo.store(0, Ordering::Release);
        Ok(())
    }

    /// Finishes or undoes what a dead holder was about.
    fn mend(&self) -> Result<(), CollectionError> {
        let root = self.guarded.parts.root;
        let current = self.state().cell();
        for cell in (0..CELLS).filter(|&cell| cell != current) {
            self.free(cell)?;
        }
        if root.redo.load(Ordering::Acquire) == 1 {
            let offset = OffsetPointer::new(root.cells[current].load(Ordering::Acquire));
            // The values reach to the end of what the note is about, at least.
            let end = root
                .redo_at
                .load(Ordering::Relaxed)
                .saturating_add(root.redo_bytes.load(Ordering::Relaxed));
            let words = usize::try_from(end.div_ceil(8)).unwrap_or(usize::MAX);
            let all = self.words(offset, words.saturating_add(BLOCK_WORDS))?;
            let words = &all[BLOCK_WORDS..];
            self.redo(&Block { capacity: 0, used: None, words })?;
        }
        Ok(())
    }
}
