//! A worker's queues of pages. The ends are private to the process; the links stand in the
//! descriptors, are only hints, and are checked before they are followed.

use std::cell::Cell;

use super::view::View;
use super::words::Tag;
use crate::sync::Ordering;

/// In `Descriptor::queued`: the page is in no queue.
pub(super) const NOT_QUEUED: u32 = 0;
/// It has free blocks and waits for being allocated from.
pub(super) const PARTIAL: u32 = 1;
/// It has none and waits for a free.
pub(super) const FULL: u32 = 2;

/// A doubly linked list of pages of one class and owner.
#[derive(Debug)]
pub(super) struct Queue {
    /// [`PARTIAL`] or [`FULL`].
    name: u32,
    first: Cell<u32>,
    last: Cell<u32>,
    /// Pages in it.
    len: Cell<u32>,
}

impl Queue {
    pub(super) fn new(name: u32) -> Self {
        Self { name, first: Cell::new(0), last: Cell::new(0), len: Cell::new(0) }
    }

    /// How many pages are in it.
    pub(super) fn len(&self) -> u32 {
        self.len.get()
    }

    /// The first page, if its tag is still `tag`.
    pub(super) fn first(&self, view: &View, tag: Tag) -> Option<u32> {
        let unit = self.first.get();
        if unit == 0 {
            return None;
        }
        if view.tag(unit) != Some(tag) {
            self.forget();
            return None;
        }
        Some(unit)
    }

    pub(super) fn push_back(&self, view: &View, unit: u32) {
        let old = self.last.replace(unit);
        self.len.set(self.len.get().saturating_add(1));
        let descriptor = view.descriptor(unit);
        descriptor.queued.store(self.name, Ordering::Relaxed);
        descriptor.next.store(0, Ordering::Relaxed);
        descriptor.previous.store(old, Ordering::Relaxed);
        if old == 0 {
            self.first.set(unit);
        } else {
            view.descriptor(old).next.store(unit, Ordering::Relaxed);
        }
    }

    /// Takes `unit`, which is in this queue, out of it. All pages of the queue have the tag `tag`.
    pub(super) fn remove(&self, view: &View, unit: u32, tag: Tag) {
        let descriptor = view.descriptor(unit);
        descriptor.queued.store(NOT_QUEUED, Ordering::Relaxed);
        let next = descriptor.next.load(Ordering::Relaxed);
        let previous = descriptor.previous.load(Ordering::Relaxed);
        let ours = |neighbour: u32| neighbour == 0 || view.tag(neighbour) == Some(tag);
        let consistent = ours(next)
            && ours(previous)
            && (previous != 0 || self.first.get() == unit)
            && (next != 0 || self.last.get() == unit);
        if !consistent {
            // Somebody scribbled on the links. The pages stay ours and their blocks usable; they
            // are only not looked for any more.
            self.forget();
            return;
        }
        self.len.set(self.len.get().saturating_sub(1));
        if previous == 0 {
            self.first.set(next);
        } else {
            view.descriptor(previous).next.store(next, Ordering::Relaxed);
        }
        if next == 0 {
            self.last.set(previous);
        } else {
            view.descriptor(next).previous.store(previous, Ordering::Relaxed);
        }
    }

    fn forget(&self) {
        self.first.set(0);
        self.last.set(0);
        self.len.set(0);
    }
}
