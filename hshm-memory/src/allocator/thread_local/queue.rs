//! A worker's queues of pages. The ends are private to the process; the links stand in the
//! descriptors, are only hints, and are checked before they are followed.

use std::cell::{Cell, OnceCell};

use super::page::Page;
use super::size_class::CLASSES;
use super::view::View;
use super::words::Tag;
use crate::sync::Ordering;

/// In `Descriptor::queued`: the page is in no queue.
pub(super) const NOT_QUEUED: u32 = 0;
/// It has free blocks and waits for being allocated from.
pub(super) const PARTIAL: u32 = 1;
/// It has none and waits for a free.
pub(super) const FULL: u32 = 2;

/// A worker's queues of one name, by class. They are made when the first page is put into one: most of what
/// a heap has beside its slot, of which a short-lived process needs nothing.
#[derive(Debug)]
pub(super) struct Queues {
    /// [`PARTIAL`] or [`FULL`].
    name: u32,
    by_class: OnceCell<Box<[Queue]>>,
}

impl Queues {
    pub(super) const fn new(name: u32) -> Self {
        Self { name, by_class: OnceCell::new() }
    }

    /// How many pages of `class` are in its queue.
    pub(super) fn len(&self, class: usize) -> u32 {
        self.of(class).map_or(0, |queue| queue.len.get())
    }

    /// Puts a page at the end of its class's queue.
    pub(super) fn push_back(&self, page: &Page<'_>) {
        let name = self.name;
        let queues = self.by_class.get_or_init(|| (0..CLASSES).map(|_| Queue::new(name)).collect());
        if let Some(queue) = queues.get(page.class()) {
            queue.push_back(page.view, page.unit);
        }
    }

    /// Takes a page, which is in its class's queue, out of it.
    pub(super) fn remove(&self, page: &Page<'_>) {
        if let Some(queue) = self.of(page.class()) {
            queue.remove(page.view, page.unit, page.tag);
        }
    }

    /// Takes the first page that has the tag `tag`.
    pub(super) fn take_first<'v>(&self, view: &'v View, tag: Tag) -> Option<Page<'v>> {
        let queue = self.of(tag.class())?;
        let unit = queue.first(view, tag)?;
        queue.remove(view, unit, tag);
        Some(Page::new(view, unit, tag))
    }

    /// The queue of `class`, unless no page was ever put into any.
    fn of(&self, class: usize) -> Option<&Queue> {
        self.by_class.get()?.get(class)
    }
}

/// A doubly linked list of pages of one class and owner.
#[derive(Debug)]
struct Queue {
    /// [`PARTIAL`] or [`FULL`].
    name: u32,
    first: Cell<u32>,
    last: Cell<u32>,
    /// Pages in it.
    len: Cell<u32>,
}

impl Queue {
    fn new(name: u32) -> Self {
        Self { name, first: Cell::new(0), last: Cell::new(0), len: Cell::new(0) }
    }

    /// The first page, if its tag is still `tag`.
    fn first(&self, view: &View, tag: Tag) -> Option<u32> {
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

    fn push_back(&self, view: &View, unit: u32) {
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
    fn remove(&self, view: &View, unit: u32, tag: Tag) {
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
