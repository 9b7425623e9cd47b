//! The remote free list of a page: what others than its owner free, taken whole by the owner.
//!
//! A Treiber stack (R. K. Treiber, "Systems Programming: Coping with Parallelism", 1986) that is
//! only ever emptied at once, so that its head needs no protection against reuse. One word names
//! its first block, its length and, for a journalled push, the pusher's slot and sequence number.
//!
//! Whoever changes the word while it names a journalled push first makes sure that the pusher's
//! recoverer can learn that the push happened ([`acknowledge`]): a compare-and-swap whose success
//! survives its maker, after Attiya, Ben-Baruch and Hendler, "Nesting-Safe Recoverable
//! Linearizability" (PODC 2018).

use super::words::{List, Operation, Remote, Step, unit_of};
use crate::sync::{AtomicU64, Ordering};

/// What the pusher of a journalled operation left: its journal's first word and the
/// acknowledgement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pusher<'s> {
    pub(crate) operation: &'s AtomicU64,
    pub(crate) acknowledged: &'s AtomicU64,
}

/// A push as the journal has it: which slot, with which sequence number; zeros for a plain one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) slot: u32,
    pub(crate) sequence: u32,
}

/// The block is on more lists than it can be: the list is as long as the page has blocks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overfull;

/// Puts the block at `place` on `list`, its page's. `link` is the block's first word. `carved` is
/// asked after the list was read, so that it is never less than what the list was made of: how many
/// blocks were carved from the page, or None if it is not what the caller took it for any more.
pub(crate) fn push<'s>(
    list: &AtomicU64,
    link: &AtomicU64,
    place: Place,
    mark: Mark,
    pusher_of: impl Fn(u32) -> Option<Pusher<'s>>,
    carved: impl Fn() -> Option<u32>,
) -> Result<bool, Overfull> {
    let link = Link { distance: place.offset_in_page, word: link, blocks: 1 };
    push_chain(list, place.page, &[link], mark, pusher_of, carved)
}

/// A block that is to be put on a list, alone or as the first of a parcel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link<'s> {
    /// Its distance from the page's beginning.
    pub(crate) distance: u64,
    /// Its first word.
    pub(crate) word: &'s AtomicU64,
    /// How many blocks it stands for: 1, or all of the parcel.
    pub(crate) blocks: u32,
}

/// The same with several blocks of the page that begins at `page`. All of them are pushed, or none.
pub(crate) fn push_chain<'s>(
    list: &AtomicU64,
    page: u64,
    chain: &[Link<'_>],
    mark: Mark,
    pusher_of: impl Fn(u32) -> Option<Pusher<'s>>,
    carved: impl Fn() -> Option<u32>,
) -> Result<bool, Overfull> {
    let Some(first) = chain.last() else { return Ok(true) };
    let more = chain.iter().fold(0_u32, |more, link| more.saturating_add(link.blocks));
    // ORDER: Acquire pairs with the Release below and in `take`, so that acknowledging sees the
    // pusher's journal.
    let mut word = Remote(list.load(Ordering::Acquire));
    loop {
        let Some(blocks) = carved() else { return Ok(false) };
        if word.count().saturating_add(more) > blocks {
            return Err(Overfull);
        }
        let mut rest = word.to_list(page);
        for &Link { distance, word, blocks } in chain {
            let link = if blocks > 1 { rest.of_parcel() } else { rest };
            // ORDER: Relaxed: the blocks are ours until the compare-and-swap below publishes them.
            word.store(link.0, Ordering::Relaxed);
            rest = List::new(page + distance, rest.count() + blocks);
        }
        // Died here: the blocks are still allocated, or in a cache.
        crate::crash_point!("free.linked");
        acknowledge(list, word, page, &pusher_of);
        let pushed = word.with_chain(first.distance, more, mark.slot, mark.sequence);
        // ORDER: Release publishes the link to whoever takes the list; Acquire as above. SeqCst,
        // because the caller looks at the page's owner next, who may be giving the page up: one
        // of the two must see the other's write.
        match list.compare_exchange_weak(word.0, pushed.0, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => return Ok(true),
            Err(found) => word = Remote(found),
        }
    }
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Where the page begins, in bytes from the segment's start.
    pub(crate) page: u64,
    /// The block's distance from there.
    pub(crate) offset_in_page: u64,
}

/// Empties `list`. `prepare` is told what will be taken before it is: it puts the list where
/// recovery finds it, because between the two a death must lose nothing.
pub(crate) fn take<'s>(
    list: &AtomicU64,
    page: u64,
    pusher_of: impl Fn(u32) -> Option<Pusher<'s>>,
    prepare: impl Fn(List),
) -> List {
    // ORDER: Acquire pairs with the Release of every push on the list.
    let mut word = Remote(list.load(Ordering::Acquire));
    while word.count() > 0 {
        prepare(word.to_list(page));
        // Died here: the list is in two places; recovery finds the first block on the remote list
        // and empties the other.
        crate::crash_point!("page.loaded_remote");
        acknowledge(list, word, page, &pusher_of);
        // The sequence number stays, as the empty list's generation.
        let emptied = Remote::empty(word.sequence());
        match list.compare_exchange(word.0, emptied.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return word.to_list(page),
            Err(found) => word = Remote(found),
        }
    }
    prepare(List::EMPTY);
    List::EMPTY
}

/// Records for the pusher that `word` names, if its operation is still under way, that its push is
/// on the list. To be called before `word` is replaced.
pub(crate) fn acknowledge<'s>(
    list: &AtomicU64,
    word: Remote,
    page: u64,
    pusher_of: &impl Fn(u32) -> Option<Pusher<'s>>,
) {
    if word.slot() == 0 {
        return;
    }
    let Some(pusher) = pusher_of(word.slot()) else { return };
    let unit = unit_of(word.to_list(page).first());
    let pushed = Operation::new(Step::FreeFrom, unit, word.sequence()).acknowledgement();
    loop {
        // ORDER: SeqCst throughout: the acknowledgement must be read before the journal, and the
        // journal before the list, so that an older operation's acknowledgement never replaces a
        // newer one's: the compare-and-swap fails if another acknowledgement came between.
        let before = pusher.acknowledged.load(Ordering::SeqCst);
        if before == pushed
            || !Operation(pusher.operation.load(Ordering::SeqCst)).pushes(unit, word.sequence())
            || list.load(Ordering::SeqCst) != word.0
        {
            return;
        }
        let swapped = pusher.acknowledged.compare_exchange(
            before,
            pushed,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        if swapped.is_ok() {
            crate::crash_point!("remote.acknowledged");
            return;
        }
    }
}

/// Whether the push of `operation`, by a slot that does nothing any more, is known to have
/// happened.
pub(crate) fn push_happened(
    list: &AtomicU64,
    slot: u32,
    operation: Operation,
    acknowledged: &AtomicU64,
) -> bool {
    // ORDER: SeqCst: the list is read before the acknowledgement. Had the push been on the list
    // and been replaced before the first read, the acknowledgement is there by the second.
    let word = Remote(list.load(Ordering::SeqCst));
    let on_top = word.count() > 0 && word.slot() == slot && word.sequence() == operation.sequence();
    on_top || acknowledged.load(Ordering::SeqCst) == operation.acknowledgement()
}
