//! Units: claiming single ones and runs, and giving them back.
//!
//! A unit belongs to whom its tag says (I1). The bitmaps only say where looking is worth while: a
//! bit may be set for a unit that is taken, or missing for one that is free if somebody died
//! between the two stores; [`rebuild_hints`] mends that.

use std::ops::Range;

use super::layout::MEDIUM_UNITS;
use super::page::pusher;
use super::remote;
use super::view::View;
use super::words::{Kind, Remote, Tag, unit_start};
use crate::sync::{AtomicU32, Ordering};

const WORD_BITS: u32 = 64;
/// How often a run is looked at again whose owner changes.
const RUN_LOOKS: usize = 8;

/// Claims one free unit for `owner`.
pub(super) fn claim_one(view: &View, owner: u32) -> Option<u32> {
    let units = view.block_units();
    let words = units.end.div_ceil(WORD_BITS);
    for summary_index in 0..words.div_ceil(WORD_BITS) {
        let summary = view.bits(view.geometry.free_summary, summary_index);
        // ORDER: SeqCst here and in `set_free_bits`: whoever clears a summary bit looks at the word
        // after, whoever sets a bit of the word looks at the summary after; one must see the other.
        let mut candidates = summary.load(Ordering::SeqCst);
        while candidates != 0 {
            let index = summary_index * WORD_BITS + candidates.trailing_zeros();
            candidates &= candidates - 1;
            if index >= words {
                break;
            }
            if let Some(unit) = claim_in_word(view, owner, index, &units) {
                return Some(unit);
            }
        }
    }
    None
}

fn claim_in_word(view: &View, owner: u32, index: u32, units: &Range<u32>) -> Option<u32> {
    let word = view.bits(view.geometry.free_bits, index);
    let mut candidates = word.load(Ordering::SeqCst);
    while candidates != 0 {
        let unit = index * WORD_BITS + candidates.trailing_zeros();
        candidates &= candidates - 1;
        if !units.contains(&unit) {
            continue;
        }
        if claim_unit(view, owner, unit) {
            return Some(unit);
        }
        // Whoever took the unit may have died before clearing the bit.
        clear_bits(view, unit..unit + 1);
        if view.tag(unit) == Some(Tag::FREE) {
            set_free_bits(view, unit..unit + 1);
        }
    }
    clear_summary_if_empty(view, index);
    None
}

/// Takes `unit` if it is free.
fn claim_unit(view: &View, owner: u32, unit: u32) -> bool {
    let claimed = transition_claim(view.tag_word(unit), owner);
    if claimed {
        clear_bits(view, unit..unit + 1);
    }
    claimed
}

/// The free unit of this tag becomes `owner`'s. False if it is not free.
#[must_use]
fn transition_claim(tag: &AtomicU32, owner: u32) -> bool {
    // ORDER: Acquire pairs with the Release of the tag in `release_units`, so that the last owner's
    // writes to the descriptor come before ours.
    let (free, claimed) = (Tag::FREE.0, Tag::claimed(owner).0);
    let is_ours = tag.compare_exchange(free, claimed, Ordering::Acquire, Ordering::Relaxed).is_ok();
    if is_ours {
        // Died here: the unit is claimed by the dead; recovery frees it.
        crate::crash_point!("units.claimed");
    }
    is_ours
}

/// Claims just `unit`, if it is free.
pub(super) fn claim_this(view: &View, owner: u32, unit: u32) -> bool {
    view.block_units().contains(&unit) && claim_unit(view, owner, unit)
}

/// Claims `len` units in a row, the first at a multiple of `align` units.
pub(super) fn claim_run(view: &View, owner: u32, len: u32, align: u32) -> Option<u32> {
    let units = view.block_units();
    let mut start = units.start.checked_next_multiple_of(align)?;
    while start.checked_add(len).is_some_and(|end| end <= units.end) {
        match first_obstacle(view, start..start + len) {
            None => match claim_units(view, owner, start..start + len) {
                Ok(()) => return Some(start),
                Err(taken) => start = (taken + 1).checked_next_multiple_of(align)?,
            },
            Some(taken) => start = next_candidate(view, taken, units.end, align)?,
        }
    }
    None
}

/// The last unit of the range whose bit says that it is taken: a run must begin after it.
fn first_obstacle(view: &View, range: Range<u32>) -> Option<u32> {
    let mut unit = range.end;
    while unit > range.start {
        let index = (unit - 1) / WORD_BITS;
        let low = range.start.max(index * WORD_BITS);
        let word = view.bits(view.geometry.free_bits, index).load(Ordering::Relaxed);
        let mask = bit_range(low % WORD_BITS, (unit - 1) % WORD_BITS);
        let taken = !word & mask;
        if taken != 0 {
            return Some(index * WORD_BITS + WORD_BITS - 1 - taken.leading_zeros());
        }
        unit = low;
    }
    None
}

/// The first aligned unit after `taken` whose bit is set.
fn next_candidate(view: &View, taken: u32, end: u32, align: u32) -> Option<u32> {
    let mut unit = taken + 1;
    while unit < end {
        let word = view.bits(view.geometry.free_bits, unit / WORD_BITS).load(Ordering::Relaxed);
        let rest = word & bit_range(unit % WORD_BITS, WORD_BITS - 1);
        if rest != 0 {
            let free = unit / WORD_BITS * WORD_BITS + rest.trailing_zeros();
            return free.checked_next_multiple_of(align);
        }
        unit = (unit / WORD_BITS + 1) * WORD_BITS;
    }
    None
}

/// Bits `from` to `to`, both included.
const fn bit_range(from: u32, to: u32) -> u64 {
    (u64::MAX << from) & (u64::MAX >> (WORD_BITS - 1 - to))
}

/// Claims all units of a range or none; the error is the unit that somebody else has.
fn claim_units(view: &View, owner: u32, range: Range<u32>) -> Result<(), u32> {
    let tags = range.clone().zip(view.tag_words(range.clone()));
    let taken = tags.into_iter().find(|(_, tag)| !transition_claim(tag, owner));
    let claimed = range.start..taken.map_or(range.end, |(unit, _)| unit);
    // The bits of a word all at once: until then others look at the tags in vain.
    clear_bits(view, claimed.clone());
    let Some((taken, _)) = taken else { return Ok(()) };
    release_units(view, claimed);
    Err(taken)
}

/// Gives back a unit that the caller has claimed.
pub(super) fn release_unit(view: &View, unit: u32) {
    release_units(view, unit..unit + 1);
}

/// Gives back units that the caller has claimed.
pub(super) fn release_units(view: &View, units: Range<u32>) {
    for tag in view.tag_words(units.clone()) {
        // ORDER: Release pairs with the Acquire in `transition_claim`.
        tag.store(Tag::FREE.0, Ordering::Release);
        // Died here: the units are free but not found until the hints are rebuilt, which recovery does.
        crate::crash_point!("units.released");
    }
    set_free_bits(view, units);
}

/// Makes a claimed run an allocated block.
pub(super) fn publish_run(view: &View, owner: u32, run: Range<u32>) {
    let head = view.descriptor(run.start);
    head.run_units.store(run.end - run.start, Ordering::Relaxed);
    // ORDER: Release: the length stands before the tag that says it does.
    view.tag_word(run.start).store(Tag::transit(owner).0, Ordering::Release);
    // Died here, or anywhere below: recovery takes the run apart.
    crate::crash_point!("units.run_in_transit");
    for body in view.tag_words(run.start + 1..run.end) {
        // ORDER: Release: whoever sees that the unit is this run's sees what made it free before.
        body.store(Tag::RUN_BODY.0, Ordering::Release);
    }
    // ORDER: Release: the bodies stand before the block does.
    view.tag_word(run.start).store(Tag::large(owner).0, Ordering::Release);
}

/// The units of the run that begins at `head`, as far as their tags agree.
pub(super) fn run_of(view: &View, head: u32) -> Range<u32> {
    let len = view.descriptor(head).run_units.load(Ordering::Relaxed);
    let end = head.saturating_add(len).clamp(head + 1, view.units().max(head + 1));
    let belongs = |&unit: &u32| view.tag(unit) == Some(Tag::RUN_BODY);
    let broken = (head + 1..end).find(|unit| !belongs(unit));
    head..broken.unwrap_or(end)
}

/// Makes the run before `unit` end there, if it says that it reaches further. `unit` is one that a
/// dead had claimed: it may have been about to make the run longer or shorter, and then the run says
/// the greater length. To be called before the unit is freed.
pub(super) fn end_run_before(view: &View, unit: u32) {
    let mut head = unit;
    loop {
        head = head.saturating_sub(1);
        match view.tag(head).map(Tag::kind) {
            Some(Kind::RunBody) => {}
            Some(Kind::Large | Kind::Transit) => break,
            _ => return,
        }
    }
    // Nobody alive says such a length: the unit was never theirs.
    let word = &view.descriptor(head).run_units;
    let said = word.load(Ordering::Relaxed);
    if said > unit - head {
        let _ = word.compare_exchange(said, unit - head, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Makes the allocated run at `head`, whose tag was `tag`, one in transit of `owner`'s, and returns
/// the tag that it had. None if it is allocated no more.
pub(super) fn unbind_run(view: &View, owner: u32, head: u32, tag: Tag) -> Option<Tag> {
    let mut tag = tag;
    // As often as the run's owner can leave: once, and a few times for good measure.
    for _ in 0..RUN_LOOKS {
        // ORDER: Acquire pairs with the Release of `publish_run`, so that the length is seen.
        let unbound = view.tag_word(head).compare_exchange(
            tag.0,
            Tag::transit(owner).0,
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        match unbound {
            Ok(_) => return Some(tag),
            // Its owner left, or was recovered, meanwhile; it is allocated as before.
            Err(now) if Tag(now).kind() == Kind::Large => tag = Tag(now),
            Err(_) => return None,
        }
    }
    None
}

/// Frees the run that begins at `head`, which is in transit by `owner`.
pub(super) fn dismantle_run(view: &View, owner: u32, head: u32) {
    let len = view.descriptor(head).run_units.load(Ordering::Relaxed);
    let end = head.saturating_add(len).clamp(head + 1, view.units().max(head + 1));
    // First all units become claimed, while the head says that they belong together; only then is
    // the first of them freed. So whoever goes on after a death never frees a unit twice.
    let claimed = Tag::claimed(owner);
    let bodies = (head + 1..end).zip(view.tag_words(head + 1..end));
    // What is not ours is none: the length was overwritten.
    let broken = bodies.into_iter().find(|(_, body)| {
        let tag = Tag(body.load(Ordering::Relaxed));
        if tag == Tag::RUN_BODY {
            body.store(claimed.0, Ordering::Relaxed);
        }
        tag != Tag::RUN_BODY && tag != claimed
    });
    // ORDER: Release: the bodies are claimed before the head no longer binds them.
    view.tag_word(head).store(claimed.0, Ordering::Release);
    // Died here: all units are claimed by the dead; recovery frees each.
    crate::crash_point!("units.run_unbound");
    release_units(view, head..broken.map_or(end, |(unit, _)| unit));
}

/// Publishes a page of one or eight claimed units, whose descriptor is ready.
pub(super) fn publish_page(view: &View, unit: u32, tag: Tag) {
    if tag.kind() == Kind::Medium {
        for place in 1..MEDIUM_UNITS {
            view.tag_word(unit + place).store(Tag::medium_body(place).0, Ordering::Relaxed);
            // Died here: bodies without a head; recovery frees those that the dead had claimed, and
            // `rebuild_hints` those that already look like a page's.
            crate::crash_point!("units.page_half_published");
        }
    }
    // ORDER: Release: the descriptor and the bodies stand before the page does.
    view.tag_word(unit).store(tag.0, Ordering::Release);
}

/// Frees the units of a page that the caller owns and that has no allocated block.
pub(super) fn release_page(view: &View, owner: u32, unit: u32, tag: Tag) {
    unbind_page(view, owner, unit, tag);
    release_unbound_page(view, unit, tag);
}

/// Makes the units of such a page claimed ones.
pub(super) fn unbind_page(view: &View, owner: u32, unit: u32, tag: Tag) {
    // Blocks that others freed are not taken from their list any more: so whoever pushed the last
    // one is told here that its push happened, before the memory is something else.
    let list = &view.descriptor(unit).remote;
    let word = Remote(list.load(Ordering::SeqCst));
    remote::acknowledge(list, word, unit_start(unit), &|slot| pusher(view, slot));
    if tag.kind() == Kind::Medium {
        // The bodies become claimed while the head still binds them, as in `dismantle_run`.
        for place in 1..MEDIUM_UNITS {
            view.tag_word(unit + place).store(Tag::claimed(owner).0, Ordering::Relaxed);
            // Died here: a page in which the blocks of its own bin may lie in units that are no part of it
            // any more; recovery gives them back to it all the same, so that it is wholly free.
            crate::crash_point!("units.page_half_unbound");
        }
    }
    // ORDER: Release: the bodies are claimed before the head no longer binds them.
    view.tag_word(unit).store(Tag::claimed(owner).0, Ordering::Release);
    // Died here: all units are claimed by the dead; recovery frees each.
    crate::crash_point!("units.page_unbound");
}

/// Frees the units of a page of tag `tag` after they were made claimed ones.
pub(super) fn release_unbound_page(view: &View, unit: u32, tag: Tag) {
    let units = if tag.kind() == Kind::Medium { MEDIUM_UNITS } else { 1 };
    release_units(view, unit..unit + units);
}

/// Marks an ownerless page as worth adopting.
pub(super) fn set_adoptable(view: &View, unit: u32) {
    let bit = 1 << (unit % WORD_BITS);
    view.bits(view.geometry.adoptable_bits, unit / WORD_BITS).fetch_or(bit, Ordering::Relaxed);
}

/// Takes that mark away.
pub(super) fn clear_adoptable(view: &View, unit: u32) {
    let word = view.bits(view.geometry.adoptable_bits, unit / WORD_BITS);
    let bit = 1 << (unit % WORD_BITS);
    if word.load(Ordering::Relaxed) & bit != 0 {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// The units marked adoptable, from `from` on and then from the start.
pub(super) fn adoptable(view: &View, from: u32) -> impl Iterator<Item = u32> + '_ {
    let words = view.units().div_ceil(WORD_BITS);
    let first = from / WORD_BITS;
    (first..words).chain(0..first.min(words)).flat_map(move |index| {
        let mut word = view.bits(view.geometry.adoptable_bits, index).load(Ordering::Relaxed);
        std::iter::from_fn(move || {
            let unit = (word != 0).then(|| index * WORD_BITS + word.trailing_zeros())?;
            word &= word - 1;
            Some(unit)
        })
    })
}

/// Makes the units known that the segment grew by. Whoever made it longer does so; this is for the
/// case that it died before.
pub(super) fn know_grown(view: &View) {
    let committed = &view.header().committed;
    let limit = view.limit();
    // ORDER: Relaxed: the word only says that the hints were set, each of which is its own.
    if committed.load(Ordering::Relaxed) < limit {
        rebuild_hints(view);
        committed.fetch_max(limit, Ordering::Relaxed);
    }
}

/// Makes the hints agree with the tags: needed when somebody died between a tag and its bit, and
/// when a segment grew. Safe at any time, by anybody.
pub(super) fn rebuild_hints(view: &View) {
    for unit in view.block_units() {
        match view.tag(unit) {
            Some(Tag::FREE) => set_free_bits(view, unit..unit + 1),
            Some(tag) if matches!(tag.kind(), Kind::Small | Kind::Medium) && tag.owner() == 0 => {
                let page = view.descriptor(unit);
                // Unlocked looks at another's page: for a hint that is enough.
                let lists = [&page.local, &page.free];
                let filled = lists.iter().any(|list| list.load(Ordering::Relaxed) != 0)
                    || page.purged.load(Ordering::Relaxed) != 0;
                if filled || Remote(page.remote.load(Ordering::Relaxed)).count() > 0 {
                    set_adoptable(view, unit);
                }
            }
            _ => {}
        }
    }
}

fn set_free_bits(view: &View, units: Range<u32>) {
    for (index, bits) in words_of(units) {
        view.bits(view.geometry.free_bits, index).fetch_or(bits, Ordering::SeqCst);
        let summary = view.bits(view.geometry.free_summary, index / WORD_BITS);
        let bit = 1 << (index % WORD_BITS);
        if summary.load(Ordering::SeqCst) & bit == 0 {
            summary.fetch_or(bit, Ordering::SeqCst);
        }
    }
}

fn clear_bits(view: &View, units: Range<u32>) {
    for (index, bits) in words_of(units) {
        view.bits(view.geometry.free_bits, index).fetch_and(!bits, Ordering::SeqCst);
    }
}

/// The words of a bitmap that tell of `units`, by number, and which bits of each do.
fn words_of(units: Range<u32>) -> impl Iterator<Item = (u32, u64)> {
    (units.start / WORD_BITS..units.end.div_ceil(WORD_BITS)).map(move |index| {
        let first = index * WORD_BITS;
        let (from, end) = (units.start.max(first), units.end.min(first + WORD_BITS));
        (index, bit_range(from - first, end - first - 1))
    })
}

fn clear_summary_if_empty(view: &View, index: u32) {
    let word = view.bits(view.geometry.free_bits, index);
    if word.load(Ordering::SeqCst) != 0 {
        return;
    }
    let summary = view.bits(view.geometry.free_summary, index / WORD_BITS);
    let bit = 1 << (index % WORD_BITS);
    summary.fetch_and(!bit, Ordering::SeqCst);
    if word.load(Ordering::SeqCst) != 0 {
        summary.fetch_or(bit, Ordering::SeqCst);
    }
}
