//! Crash points: places where a test kills the process with SIGKILL, one for each window in which
//! shared memory is between two states.
//!
//! Without the feature `crash-points` a point compiles to nothing.

/// One window, and who closes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPoint {
    /// Its name.
    pub name: &'static str,
    /// What a process that dies there leaves.
    pub leaves: &'static str,
    /// What recovery makes of it.
    pub repair: &'static str,
}

macro_rules! points {
    ($($name:literal, $leaves:literal, $repair:literal;)*) => {
        /// All crash points there are.
        pub const CRASH_POINTS: &[CrashPoint] =
            &[$(CrashPoint { name: $name, leaves: $leaves, repair: $repair },)*];
    };
}

points! {
    "units.claimed", "a unit claimed by the dead, its free bit still set", "the unit is freed";
    "units.released", "a free unit whose free bit is missing", "the hints are rebuilt";
    "units.run_in_transit", "a run whose units are all the dead's", "the run is taken apart";
    "units.run_unbound", "claimed units of a run that was being freed", "each unit is freed";
    "units.page_half_published", "bodies of a page that has no head yet", "bodies and head are freed";
    "units.page_half_unbound", "a page of whose bodies some are claimed already", "the page is freed";
    "units.page_unbound", "claimed units of a page that was being freed", "each unit is freed";
    "run.cut", "a run that is shorter than it says, and claimed units behind it", "the units are freed";
    "run.neighbours_claimed", "claimed units behind a run", "the units are freed";
    "run.extended", "a run that is shorter than it says, and claimed units behind it", "the units are freed";
    "page.initialised", "a claimed unit with a page's descriptor", "the unit is freed";
    "page.carved", "a list that reaches beyond the carved blocks", "the carved count is raised to the list's end";
    "page.forgotten", "lists of a page without carved blocks, and some of them in its owner's cache", "the page is freed, the row's are dropped";
    "page.loaded_free", "one list in a bin and in its page's saved list", "the saved list is dropped";
    "page.loaded_local", "one list in a bin and in its page's local list", "the local list is dropped";
    "page.loaded_remote", "one list in a bin and in its page's remote list", "the bin is emptied";
    "page.exhausted", "an owned page without free blocks", "the page is abandoned";
    "page.withdrawn", "a bin that names units which are claimed to be freed", "the bin is emptied, the units are freed";
    "page.adopted", "a page adopted by the dead, in no queue", "the page is abandoned again";
    "page.saved", "one list in a bin and in its page's saved list", "the bin is emptied";
    "purge.mapped", "one list in a page's map and in itself", "the list is emptied";
    "purge.unlisted", "memory behind free blocks that is said to have been given back", "nothing: it is used again with the blocks";
    "purge.restored", "one list in a bin and in its page's map", "the bin is emptied";
    "trim.unit_claimed", "a free unit claimed by the dead, with memory that is said to have been given back", "the unit is freed";
    "page.abandoned", "an ownerless page", "nothing: any worker adopts it";
    "free.linked", "a link written into a block that is still allocated", "nothing: the block stays allocated, or the journal frees it";
    "free.pushed", "a freed block on its owner's list or in its bin, its event not handled", "the page is freed if it has no allocated block";
    "remote.acknowledged", "an acknowledged push that is still on top of its list", "nothing: it may be acknowledged twice";
    "remote.pushed", "a freed block on a list of a page without owner", "nothing: whoever frees or allocates next adopts the page";
    "cache.claimed", "a cache's unit that no slot names", "the unit is freed";
    "cache.placed", "a block in a row that does not count it", "nothing: the block stays allocated";
    "cache.filled", "a row with blocks that its owner's page has not carved", "the row's are dropped";
    "parcel.linked", "a parcel, and links among its blocks that are on no list", "nothing: it stays a parcel";
    "cache.flushed", "a block in a row and on its page's local list", "the row's is dropped";
    "cache.journalled", "a journalled flush whose blocks are on no list yet", "the row is emptied as it is";
    "cache.pushed", "blocks in a row and on the remote list of another's page", "the row's are dropped";
    "cache.forgotten", "a journalled flush that is done", "the journal is cleared";
    "cache.released", "a cache's unit that no slot names", "the unit is freed";
    "into.journalled", "a journalled allocation whose block is not taken yet", "the journal is cleared";
    "into.taken", "a block in no hand but the journal's", "the block is freed";
    "into.stored", "a cell that names its block, the journal not cleared", "the journal is cleared";
    "from.journalled", "a journalled free whose cell still names its block", "the journal is cleared";
    "from.marked", "a cell marked as being freed by the dead", "the block is freed and the cell nulled";
    "from.freed", "a freed block whose cell is still marked", "the cell is nulled";
    "from.nulled", "a null cell, the journal not cleared", "the journal is cleared";
    "slot.claimed", "a slot held by the dead", "the slot is freed";
    "slot.vacated", "a slot without pages, still held by the dead", "the slot is freed";
    "grow.tables_ready", "tables for units that are not there yet", "nothing: nobody looks beyond the segment's end";
    "grow.extended", "new units whose free bits are missing", "the hints are rebuilt by who next finds no room, or grows or recovers it";
    "recover.taken", "a slot whose recoverer died", "another recoverer takes it over";
    "recover.journal_done", "a slot under recovery with its journal resolved", "another recoverer goes on";
    "scalable.locked", "a lock that the dead hold, nothing begun", "the next one takes the lock over";
    "scalable.uncached", "a free page in no cache", "the caches are made anew";
    "scalable.half_uncached", "a free page that its cache leads to one way only", "the caches are made anew";
    "scalable.cached", "a page in a cache that is not marked as filled", "the caches are made anew";
    "scalable.half_cached", "a free page that its cache leads to one way only", "the caches are made anew";
    "scalable.rest_written", "a header inside a free page, which is no page's", "nothing: no header leads there";
    "scalable.lead_written", "a header inside a free page, which is no page's", "nothing: no header leads there";
    "scalable.lead_cut", "free pages side by side", "they are joined";
    "scalable.taken", "an allocated block in no hand, not counted, and a page in no cache", "caches and sums are made anew";
    "scalable.rest_cached", "an allocated block in no hand, not counted", "the sums are made anew";
    "scalable.half_counted", "sums of which one is ahead", "the sums are made anew";
    "scalable.freed", "a free page in no cache, still counted", "caches and sums are made anew";
    "scalable.joined_next", "a joined page in no cache", "the caches are made anew";
    "scalable.joined_before", "a joined page in no cache, which the next one does not know", "sizes and caches are made anew";
    "scalable.told_next", "a free page in no cache", "the caches are made anew";
    "scalable.grown", "a block that has grown, not counted", "caches and sums are made anew";
    "scalable.cut_written", "a header inside a block, which is no page's", "nothing: no header leads there";
    "scalable.shrunk", "a block that has shrunk, still counted, and a page in no cache", "caches and sums are made anew";
    "scalable.tail_written", "a header beyond the last page", "the next one to need memory writes it anew";
    "scalable.end_moved", "a free page at the end, in no cache", "the caches are made anew";
    "scalable.caches_emptied", "free pages in no cache, by one who mended", "the next one mends";
    "scalable.mend_joined", "pages joined, in no cache, by one who mended", "the next one mends";
    "scalable.mend_cached", "caches and sums half made, by one who mended", "the next one mends";
    "scalable.mended", "all in order, but not said to be", "the next one mends";
    "scalable.done", "a lock that the dead hold, all in order", "the next one takes the lock over";
    "guarded.laid_out", "a collection's block without its magic number", "nothing: whoever has its offset frees it";
    "guarded.appended", "a value beyond those that count", "nothing";
    "guarded.filled", "a new block that is not current", "the next holder of the lock frees it";
    "guarded.published", "an old block that is not current any more", "the next holder of the lock frees it";
    "guarded.noted", "a note of bytes that are to be copied", "the next holder of the lock copies them";
    "guarded.copied", "bytes that were copied, the note still there", "the next holder of the lock copies them again";
    "guarded.counted", "the same, and the count of values changed", "the next holder of the lock copies them again";
    "guarded.mended", "a lock taken from the dead, everything mended", "the next holder mends again";
    "map.stored", "a pair at a place that does not count as full", "nothing: the place is free";
    "map.shown", "a pair that the count does not include", "the next holder of the lock counts";
    "map.hidden", "a place given up that the count includes", "the next holder of the lock counts";
    "queue.laid_out", "a queue's block without its magic number", "nothing: whoever has its offset frees it";
    "queue.claimed", "a pusher held by the dead", "whoever needs a pusher takes it over";
    "queue.announced", "a pusher whose exchange did not happen", "the next holder finds the place without the node";
    "queue.exchanged", "a pusher whose exchange may have happened", "the next holder finds the node at its place, or settled";
    "queue.pushed", "a message beyond the tail", "whoever looks at the tail moves it on";
    "queue.popped", "a head at a place that was emptied", "whoever looks at the head moves it on";
    "queue.unannounced", "a message that nobody was woken for", "nothing: who waits looks again by itself";
    "queue.waking", "an event that nobody was woken for", "nothing: who waits looks again by itself";
    "segment.without_magic", "an object that is laid out, but does not say that it is a segment", "the daemon's next start removes it with its record";
    "daemon.create_recorded", "a record of a segment whose creation began", "the next start removes the record";
    "daemon.object_made", "such a record, and an empty object", "the next start removes both";
    "daemon.laid_out", "such a record, and a whole segment that nobody was told of", "the next start removes both";
    "daemon.create_ready", "a whole segment, whose creator got no answer", "the next start adopts it";
    "daemon.attached", "a client that may or may not have got its descriptor", "the next start adopts the segment; the client asks again";
    "daemon.destroy_recorded", "a record of a segment that is to be removed, and its object", "the next start removes both";
    "daemon.object_removed", "such a record without an object", "the next start removes the record";
    "daemon.removed", "nothing, but the client got no answer", "nothing";
    "daemon.adopting", "some segments adopted, and some not", "the next start adopts them all";
    "daemon.orphan_found", "a whole segment of which no record tells", "the next start adopts it";
    "daemon.removal_half_done", "the record of a half-made segment whose object is removed", "the next start removes the record";
}

/// Dies here if the environment or [`arm`] says so.
#[cfg(feature = "crash-points")]
#[macro_export]
#[doc(hidden)]
macro_rules! crash_point {
    ($name:literal) => {{
        const INDEX: u32 = $crate::crash::index_of($name);
        $crate::crash::reach(INDEX);
    }};
}

/// Nothing: the feature is off.
#[cfg(not(feature = "crash-points"))]
#[macro_export]
#[doc(hidden)]
macro_rules! crash_point {
    ($name:literal) => {
        const _: u32 = $crate::crash::index_of($name);
    };
}

/// The number of a point, from 1; fails to compile for a name that is not in the list.
#[doc(hidden)]
#[must_use]
pub const fn index_of(name: &str) -> u32 {
    let mut index = 0;
    while index < CRASH_POINTS.len() {
        if same(CRASH_POINTS[index].name, name) {
            #[allow(clippy::cast_possible_truncation, reason = "a few dozen")]
            let number = index as u32 + 1;
            return number;
        }
        index += 1;
    }
    panic!("no such crash point");
}

const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(feature = "crash-points")]
mod armed {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::CRASH_POINTS;

    static ARMED: AtomicU32 = AtomicU32::new(0);
    static PASSES: AtomicU32 = AtomicU32::new(0);

    /// Makes this process kill itself when it reaches the point `name` after passing it `passes`
    /// times. False if there is no such point.
    pub fn arm(name: &str, passes: u32) -> bool {
        let Some(index) = CRASH_POINTS.iter().position(|point| point.name == name) else {
            return false;
        };
        PASSES.store(passes, Ordering::SeqCst);
        ARMED.store(u32::try_from(index).unwrap_or(u32::MAX) + 1, Ordering::SeqCst);
        true
    }

    #[doc(hidden)]
    pub fn reach(index: u32) {
        if ARMED.load(Ordering::SeqCst) != index {
            return;
        }
        let last = PASSES.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if last.is_err() {
            crate::platform::kill_this_process();
        }
    }
}

#[cfg(feature = "crash-points")]
pub use armed::{arm, reach};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, point) in CRASH_POINTS.iter().enumerate() {
            assert_eq!(index_of(point.name) as usize, index + 1);
        }
    }
}
