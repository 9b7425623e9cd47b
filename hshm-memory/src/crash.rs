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
    "units.page_unbound", "claimed units of a page that was being freed", "each unit is freed";
    "page.initialised", "a claimed unit with a page's descriptor", "the unit is freed";
    "page.carved", "a list that reaches beyond the carved blocks", "the carved count is raised to the list's end";
    "page.loaded_free", "one list in a bin and in its page's saved list", "the saved list is dropped";
    "page.loaded_local", "one list in a bin and in its page's local list", "the local list is dropped";
    "page.loaded_remote", "one list in a bin and in its page's remote list", "the bin is emptied";
    "page.exhausted", "an owned page without free blocks", "the page is abandoned";
    "page.withdrawn", "a bin that names units which are claimed to be freed", "the bin is emptied, the units are freed";
    "page.adopted", "a page adopted by the dead, in no queue", "the page is abandoned again";
    "page.saved", "one list in a bin and in its page's saved list", "the bin is emptied";
    "page.abandoned", "an ownerless page", "nothing: any worker adopts it";
    "free.linked", "a link written into a block that is still allocated", "nothing: the block stays allocated, or the journal frees it";
    "free.pushed", "a freed block on its page's local list, its event not handled", "the page is freed if it has no allocated block";
    "remote.acknowledged", "an acknowledged push that is still on top of its list", "nothing: it may be acknowledged twice";
    "remote.pushed", "a freed block on a list of a page without owner", "nothing: whoever frees or allocates next adopts the page";
    "into.journalled", "a journalled allocation whose block is not taken yet", "the journal is cleared";
    "into.taken", "a block in no hand but the journal's", "the block is freed";
    "into.stored", "a cell that names its block, the journal not cleared", "the journal is cleared";
    "from.journalled", "a journalled free whose cell still names its block", "the journal is cleared";
    "from.marked", "a cell marked as being freed by the dead", "the block is freed and the cell nulled";
    "from.freed", "a freed block whose cell is still marked", "the cell is nulled";
    "from.nulled", "a null cell, the journal not cleared", "the journal is cleared";
    "slot.claimed", "a slot held by the dead", "the slot is freed";
    "slot.vacated", "a slot without pages, still held by the dead", "the slot is freed";
    "recover.taken", "a slot whose recoverer died", "another recoverer takes it over";
    "recover.journal_done", "a slot under recovery with its journal resolved", "another recoverer goes on";
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
            let this = nix::unistd::getpid();
            let _ = nix::sys::signal::kill(this, nix::sys::signal::Signal::SIGKILL);
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
