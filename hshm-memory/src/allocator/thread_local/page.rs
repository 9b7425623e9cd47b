//! Pages: units cut into blocks of one class.
//!
//! A page's free blocks stand on up to four lists: the owner's bin (if the page is the one it takes
//! blocks from), what is left of an earlier bin, what the owner freed and what others freed; or in the
//! map of a page that was purged ([`super::purge`]). Blocks beyond the *carved* ones were never on a
//! list. A block that is on no list, in no map, and carved, is allocated (I3).

use super::layout::{Descriptor, MEDIUM_SHIFT, UNIT_SHIFT};
use super::queue::NOT_QUEUED;
use super::remote::{self, Pusher};
use super::size_class::{SMALL_CLASSES, block_bytes, page_blocks};
use super::units;
use super::view::View;
use super::words::{Kind, List, Remote, Tag, unit_start};
use crate::backend::BackendError;
use crate::options::OnExit;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// An `event` that no list reaches.
pub(super) const NO_EVENT: u32 = u32::MAX;

/// Blocks below which a list is short.
const SHORT_LIST: u32 = 16;

/// A page whose tag was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'v> {
    pub(super) view: &'v View,
    pub(super) unit: u32,
    pub(super) tag: Tag,
}

impl<'v> Page<'v> {
    pub(super) fn new(view: &'v View, unit: u32, tag: Tag) -> Self {
        Self { view, unit, tag }
    }

    pub(super) fn descriptor(&self) -> &'v Descriptor {
        self.view.descriptor(self.unit)
    }

    pub(super) fn class(&self) -> usize {
        self.tag.class()
    }

    pub(super) fn start(&self) -> u64 {
        unit_start(self.unit)
    }

    fn shift(&self) -> u32 {
        if self.class() < SMALL_CLASSES { UNIT_SHIFT } else { MEDIUM_SHIFT }
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        offset >> self.shift() == self.start() >> self.shift()
    }

    pub(super) fn block_bytes(&self) -> u32 {
        block_bytes(self.class())
    }

    /// Blocks that fit.
    pub(super) fn blocks(&self) -> u32 {
        page_blocks(self.class())
    }

    pub(super) fn carved(&self) -> u32 {
        self.descriptor().carved.load(Ordering::Relaxed).min(self.blocks())
    }

    /// How many blocks were carved from it, unless its owner changed. For who frees to it: a count from
    /// before its remote list was read may be less than what that list has by now.
    pub(super) fn carved_while_it_stands(&self) -> Option<u32> {
        (self.view.tag(self.unit) == Some(self.tag)).then(|| self.carved())
    }

    /// Whether its unit is still a page of its class, whoever has it.
    pub(super) fn still_stands(&self) -> bool {
        let now = self.view.tag(self.unit);
        now.is_some_and(|now| now.with_owner(0) == self.tag.with_owner(0))
    }

    /// The number of the block that begins at `offset`, if one does.
    pub(super) fn index_of(&self, offset: u64) -> Option<u32> {
        let within = u32::try_from(offset.checked_sub(self.start())?).ok()?;
        let size = self.block_bytes();
        let index = within.checked_div(size)?;
        (index * size == within && index < self.blocks()).then_some(index)
    }

    /// Its carved blocks, if it is a small page, for many questions about them.
    pub(super) fn carved_blocks(&self) -> CarvedBlocks {
        let size = self.block_bytes();
        let reciprocal = (1_u64 << 32).checked_div(size.into()).unwrap_or(0) + 1;
        CarvedBlocks { start: self.start(), size, count: self.carved(), reciprocal }
    }

    pub(super) fn block(&self, index: u32) -> u64 {
        self.start() + u64::from(index) * u64::from(self.block_bytes())
    }

    pub(super) fn local(&self) -> List {
        List(self.descriptor().local.load(Ordering::Relaxed))
    }

    pub(super) fn free(&self) -> List {
        List(self.descriptor().free.load(Ordering::Relaxed))
    }

    pub(super) fn remote(&self) -> Remote {
        Remote(self.descriptor().remote.load(Ordering::SeqCst))
    }

    /// How many units it has.
    pub(super) fn units(&self) -> u32 {
        1 << (self.shift() - UNIT_SHIFT)
    }

    /// Free blocks on the page's own lists or in its map, which are all there are unless it is loaded
    /// in a bin.
    pub(super) fn listed(&self) -> u32 {
        let purged = self.purged().map_or(0, |purged| purged.count());
        self.free().count() + self.local().count() + self.remote().count() + purged
    }

    /// Whether no block is allocated, the page not being loaded in a bin.
    pub(super) fn is_wholly_free(&self) -> bool {
        self.listed() >= self.carved()
    }

    /// Makes claimed units a page of `class` without any block carved yet.
    pub(super) fn initialise(view: &'v View, owner: u32, unit: u32, class: usize) -> Self {
        let descriptor = view.descriptor(unit);
        let generation = Remote(descriptor.remote.load(Ordering::Relaxed)).sequence();
        // ORDER: Relaxed: the tag that publishes the page is stored with Release.
        descriptor.carved.store(0, Ordering::Relaxed);
        descriptor.local.store(0, Ordering::Relaxed);
        descriptor.free.store(0, Ordering::Relaxed);
        descriptor.event.store(NO_EVENT, Ordering::Relaxed);
        descriptor.queued.store(NOT_QUEUED, Ordering::Relaxed);
        descriptor.purged.store(0, Ordering::Relaxed);
        let emptied = Remote::empty(generation.wrapping_add(1) & Remote::SEQUENCE_MASK);
        // ORDER: Release: who sees the list emptied sees what `release_page` acknowledged.
        descriptor.remote.store(emptied.0, Ordering::Release);
        crate::crash_point!("page.initialised");
        let tag = Tag::page(owner, class);
        units::publish_page(view, unit, tag);
        Self::new(view, unit, tag)
    }

    /// Puts free blocks of this page, which the caller owns, into its empty bin. False if there
    /// are none.
    pub(super) fn load(&self, bin: &AtomicU64, cut: Cut) -> Result<Option<Loaded>, BackendError> {
        let descriptor = self.descriptor();
        let free = self.free();
        if !free.is_empty() {
            bin.store(free.0, Ordering::Relaxed);
            // Died here: both name one list; recovery drops this one.
            crate::crash_point!("page.loaded_free");
            // ORDER: Release keeps it after the bin's store. So below.
            descriptor.free.store(0, Ordering::Release);
            return Ok(Some(Loaded { blocks: free.count(), freed_locally: 0 }));
        }
        let local = self.local();
        // A short list would soon bring us back here: cut more first, if there is something to cut
        // and memory for it.
        if (1..SHORT_LIST).contains(&local.count())
            && self.purged().is_none()
            && let Ok(Some(carved)) = self.carve(bin, cut)
        {
            return Ok(Some(carved));
        }
        if !local.is_empty() {
            bin.store(local.0, Ordering::Relaxed);
            crate::crash_point!("page.loaded_local");
            descriptor.local.store(0, Ordering::Release);
            let blocks = local.count();
            return Ok(Some(Loaded { blocks, freed_locally: blocks }));
        }
        let taken = self.take_remote(|list| bin.store(list.0, Ordering::Release));
        if !taken.is_empty() {
            return Ok(Some(Loaded { blocks: taken.count(), freed_locally: 0 }));
        }
        // Before any are cut, which would have memory put behind all that comes before them.
        if let Some(restored) = self.restore(bin)? {
            return Ok(Some(restored));
        }
        self.carve(bin, cut)
    }

    /// Empties the remote list; `prepare` is told of it before.
    pub(super) fn take_remote(&self, prepare: impl Fn(List)) -> List {
        let list = &self.descriptor().remote;
        // A look first: most pages have nothing there, and the line is others' to write.
        if Remote(list.load(Ordering::Relaxed)).count() == 0 {
            return List::EMPTY;
        }
        remote::take(list, self.start(), |slot| pusher(self.view, slot), prepare)
    }

    /// Cuts more blocks and puts them into the empty bin.
    fn carve(&self, bin: &AtomicU64, cut: Cut) -> Result<Option<Loaded>, BackendError> {
        let carved = self.carved();
        let left = self.blocks() - carved;
        if left == 0 {
            return Ok(None);
        }
        // Twice as many each time, or all that are carved take many steps; but for medium blocks, of
        // which each is worth one.
        let as_many = if self.tag.kind() == Kind::Small { carved } else { 0 };
        let wanted = (cut.bytes / self.block_bytes()).max(as_many).clamp(1, left);
        let count = match self.make_resident(carved + wanted) {
            Ok(()) => wanted,
            // Memory is short: one block may still be had where many are not.
            Err(error) if wanted == 1 => return Err(error),
            Err(_) => self.make_resident(carved + 1).map(|()| 1)?,
        };
        let count = count.min(cut.most);
        for index in carved..carved + count {
            let behind = carved + count - index - 1;
            let rest =
                if behind == 0 { List::EMPTY } else { List::new(self.block(index + 1), behind) };
            if let Some(word) = self.view.word(self.block(index)) {
                word.store(rest.0, Ordering::Relaxed);
            }
        }
        // ORDER: Release: the links stand before the list does.
        bin.store(List::new(self.block(carved), count).0, Ordering::Release);
        // Died here: the list reaches beyond the carved blocks; recovery counts them in.
        crate::crash_point!("page.carved");
        self.descriptor().carved.store(carved + count, Ordering::Release);
        Ok(Some(Loaded { blocks: count, freed_locally: 0 }))
    }

    /// Makes a page whose blocks are all free one of which none was ever carved.
    pub(super) fn forget_blocks(&self) {
        let descriptor = self.descriptor();
        // ORDER: Release: none is carved before the lists are empty, or what was on them would look
        // allocated.
        descriptor.carved.store(0, Ordering::Release);
        // Died here, or in what follows: lists of a page that has no carved blocks, which recovery
        // frees, and a row that has some of them, which it leaves out.
        crate::crash_point!("page.forgotten");
        descriptor.local.store(0, Ordering::Release);
        descriptor.free.store(0, Ordering::Release);
        descriptor.purged.store(0, Ordering::Release);
    }

    /// Puts memory behind the first `blocks` blocks.
    pub(super) fn make_resident(&self, blocks: u32) -> Result<(), BackendError> {
        let bytes = u64::from(blocks) * u64::from(self.block_bytes());
        let mut unit = self.unit;
        let mut left = bytes;
        while left > 0 {
            self.view.make_resident(unit, left)?;
            unit += 1;
            left = left.saturating_sub(1 << UNIT_SHIFT);
        }
        Ok(())
    }

    /// Puts a block that was allocated from this page, which `self.tag`'s owner holds, on the local
    /// list.
    pub(super) fn push_local(&self, offset: u64) {
        self.push_chain_local(std::iter::once(offset));
    }

    /// The same with several blocks.
    pub(super) fn push_chain_local(&self, offsets: impl Iterator<Item = u64>) {
        let mut list = self.local();
        for offset in offsets {
            let Some(link) = self.view.word(offset) else { continue };
            link.store(list.0, Ordering::Relaxed);
            crate::crash_point!("free.linked");
            list = list.with_first(offset);
        }
        // ORDER: Release: the links stand before the list names them.
        self.descriptor().local.store(list.0, Ordering::Release);
        crate::crash_point!("free.pushed");
    }

    /// Takes an ownerless page. None if somebody else did.
    pub(super) fn adopt(&self, owner: u32) -> Option<Self> {
        let adopted = transition_adopt(self.view.tag_word(self.unit), self.tag, owner)?;
        crate::crash_point!("page.adopted");
        self.descriptor().event.store(NO_EVENT, Ordering::Relaxed);
        self.descriptor().queued.store(NOT_QUEUED, Ordering::Relaxed);
        units::clear_adoptable(self.view, self.unit);
        Some(Self::new(self.view, self.unit, adopted))
    }

    /// Leaves the page without owner, for anybody to adopt. It is in no bin. Returns the page again
    /// if blocks were freed to it meanwhile and it could be taken back.
    #[must_use]
    pub(super) fn abandon(&self) -> Option<Self> {
        debug_assert_eq!(self.view.on_exit(), OnExit::Keep, "reclaimed pages have one owner");
        let owner = self.tag.owner();
        let ownerless = Self::new(self.view, self.unit, self.tag.with_owner(0));
        let remote = self.remote();
        if self.listed() > 0 || self.carved() < self.blocks() {
            units::set_adoptable(self.view, self.unit);
        }
        let word = self.view.tag_word(self.unit);
        if transition_abandon(word, ownerless.tag, &self.descriptor().remote, remote) {
            None
        } else {
            ownerless.adopt(owner)
        }
    }
}

/// What it takes to tell a small page's blocks from what is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct CarvedBlocks {
    start: u64,
    size: u32,
    count: u32,
    /// 2^32 divided by the size, rounded up.
    reciprocal: u64,
}

impl CarvedBlocks {
    /// The number of the block that begins at `offset`, and its distance from the page's beginning, if
    /// one does.
    pub(super) fn find(&self, offset: u64) -> Option<(u32, u16)> {
        let distance = u16::try_from(offset.wrapping_sub(self.start)).ok()?;
        // Exact, since a distance times a size is less than 2^32.
        #[allow(clippy::cast_possible_truncation, reason = "less than the distance")]
        let number = ((u64::from(distance) * self.reciprocal) >> 32) as u32;
        let is_one = number * self.size == distance.into() && number < self.count;
        is_one.then_some((number, distance))
    }
}

/// The ownerless page of tag `from` becomes `owner`'s. None if it was not ownerless any more.
#[must_use]
pub(super) fn transition_adopt(word: &AtomicU32, from: Tag, owner: u32) -> Option<Tag> {
    let adopted = from.with_owner(owner);
    // ORDER: SeqCst, of which Acquire pairs with the Release of whoever gave it up, so that its
    // lists are seen.
    word.compare_exchange(from.0, adopted.0, Ordering::SeqCst, Ordering::Relaxed).ok()?;
    Some(adopted)
}

/// The caller's page becomes nobody's, with tag `to`. False if `remote` is no longer `seen`: then
/// somebody freed a block to it who may have found it still owned.
#[must_use]
pub(super) fn transition_abandon(
    word: &AtomicU32,
    to: Tag,
    remote: &AtomicU64,
    seen: Remote,
) -> bool {
    // ORDER: SeqCst: whoever gives a page up looks at the remote list after, whoever pushes on the
    // remote list looks at the owner after ([`tag_after_push`]): one must see the other. Release
    // hands the lists to the next owner.
    word.swap(to.0, Ordering::SeqCst);
    crate::crash_point!("page.abandoned");
    Remote(remote.load(Ordering::SeqCst)) == seen
}

/// Whose the page is, to one who just pushed on its remote list.
pub(super) fn tag_after_push(word: &AtomicU32) -> Tag {
    // ORDER: SeqCst, after the push's: see `transition_abandon`.
    Tag(word.load(Ordering::SeqCst))
}

/// What [`Page::load`] put into the bin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    pub(super) blocks: u32,
    /// Blocks of those that the owner itself had freed.
    pub(super) freed_locally: u32,
}

/// How blocks are to be cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// About as many bytes of them as memory is to be there for,
    pub(super) bytes: u32,
    /// and this many blocks at most.
    pub(super) most: u32,
}

/// Where the recoverer of `slot` would look for its journalled push.
pub(super) fn pusher(view: &View, slot: u32) -> Option<Pusher<'_>> {
    (1..=view.geometry.worker_slots).contains(&slot).then(|| {
        let slot = view.slot(slot);
        Pusher { operation: &slot.journal.operation, acknowledged: &slot.acknowledged }
    })
}
