//! Worker slots: one for each thread that allocates, unique over all processes.

use super::layout::{Counters, Slot};
use super::view::View;
use super::words::{Operation, SlotState, SlotWord};
use crate::error::AllocError;
use crate::options::OnExit;
use crate::process::ProcessId;
use crate::sync::{AtomicU64, Ordering};

/// Claims a slot for a thread of `process`.
pub(super) fn claim(view: &View, process: ProcessId) -> Result<u32, AllocError> {
    if view.on_exit() == OnExit::Reclaim {
        // A slot that another thread of ours left, with the pages in it.
        let parked = SlotWord::parked(process);
        let id = view.slots_in_use().find(|&(id, word)| {
            word == parked && transition_claim(view.slot_word(id), word, process)
        });
        if let Some((id, _)) = id {
            return Ok(id);
        }
    }
    for id in view.slot_ids() {
        if !transition_claim(view.slot_word(id), SlotWord::FREE, process) {
            continue;
        }
        // Died here: the slot names its holder and is empty; recovery frees it.
        crate::crash_point!("slot.claimed");
        if let Err(error) = view.backend().populate(view.slot_range(id)) {
            view.slot_word(id).store(SlotWord::FREE.0, Ordering::Release);
            return Err(error.into());
        }
        return Ok(id);
    }
    Err(AllocError::NoWorkerSlot { slots: view.geometry.worker_slots })
}

/// From `from`, free or parked, to live. False if the word is another.
#[must_use]
pub(super) fn transition_claim(word: &AtomicU64, from: SlotWord, process: ProcessId) -> bool {
    // A look first: most slots of a busy segment are taken.
    if word.load(Ordering::Relaxed) != from.0 {
        return false;
    }
    // ORDER: Acquire pairs with the Release of whoever gave the slot up, so that its bins are seen
    // empty.
    let live = SlotWord::live(process).0;
    word.compare_exchange(from.0, live, Ordering::Acquire, Ordering::Relaxed).is_ok()
}

/// From live to parked: the thread ends, its process keeps the slot.
pub(super) fn transition_park(word: &AtomicU64) {
    let live = SlotWord(word.load(Ordering::Relaxed));
    if live.state() == SlotState::Live {
        // ORDER: Release pairs with the Acquire of the thread that takes the slot over.
        word.store(SlotWord::parked(live.process()).0, Ordering::Release);
    }
}

/// From the dead holder's word `from` to recovering. False if somebody else recovers it or did.
#[must_use]
pub(super) fn transition_recover(word: &AtomicU64, from: SlotWord, by: ProcessId) -> bool {
    let recovering = SlotWord::recovering(by).0;
    // ORDER: Acquire pairs with the last holder's Release, or with the kernel's end of it.
    word.compare_exchange(from.0, recovering, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

/// From the caller's, live or recovering, to free: a vacated slot for another holder. Its counts
/// are added to `retired`.
pub(super) fn transition_free(word: &AtomicU64, slot: &Slot, retired: &Counters) {
    for (counter, total) in [
        (&slot.counters.loaded, &retired.loaded),
        (&slot.counters.local_frees, &retired.local_frees),
        (&slot.counters.remote_frees, &retired.remote_frees),
        (&slot.counters.adoptions, &retired.adoptions),
    ] {
        // Died between the two: the totals fall short by this slot's counts, which are figures
        // for people; nothing rests on them.
        let count = counter.swap(0, Ordering::Relaxed);
        total.fetch_add(count, Ordering::Relaxed);
    }
    slot.thread.store(0, Ordering::Relaxed);
    slot.cache.store(0, Ordering::Relaxed);
    slot.journal.operation.store(Operation::IDLE.0, Ordering::Relaxed);
    crate::crash_point!("slot.vacated");
    // ORDER: Release pairs with the Acquire of the next holder's claim.
    word.store(SlotWord::FREE.0, Ordering::Release);
}
