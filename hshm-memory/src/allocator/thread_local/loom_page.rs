//! Models of a page's way from owner to owner: a block that is freed while the page is given up is
//! seen by somebody, and one at a time has the page.

use std::sync::Arc;

use super::page::{tag_after_push, transition_abandon, transition_adopt};
use super::remote::{Mark, Place, push};
use super::words::{Remote, Tag};
use crate::sync::model::explore;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

const OWNER: u32 = 1;
const CLASS: usize = 0;
const PAGE: u64 = 1 << 16;
const BLOCKS: u32 = 2;

struct Page {
    tag: AtomicU32,
    remote: AtomicU64,
    links: [AtomicU64; BLOCKS as usize],
    /// The owner's list: any word that is not an atomic's first.
    local: AtomicU64,
    /// How many hold the page at this moment.
    holders: AtomicU32,
}

impl Page {
    /// `OWNER`'s, with all blocks allocated.
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tag: AtomicU32::new(Tag::page(OWNER, CLASS).0),
            remote: AtomicU64::new(Remote::empty(0).0),
            links: std::array::from_fn(|_| AtomicU64::new(0)),
            local: AtomicU64::new(0),
            holders: AtomicU32::new(1),
        })
    }

    /// What [`super::page::Page::abandon`] does. The page's remote blocks if it was taken back.
    fn abandon(&self, owner: u32) -> Option<u32> {
        let ownerless = Tag::page(0, CLASS);
        let seen = Remote(self.remote.load(Ordering::SeqCst));
        if seen.count() > 0 {
            // It is marked as worth adopting, so somebody will look.
            return Some(seen.count());
        }
        self.local.store(0x55, Ordering::Relaxed);
        assert_eq!(self.holders.fetch_add(u32::MAX, Ordering::Relaxed), 1);
        if transition_abandon(&self.tag, ownerless, &self.remote, seen) {
            return None;
        }
        self.adopt(ownerless, owner)
    }

    /// What [`super::page::Page::adopt`] does. The remote blocks that the new owner sees.
    fn adopt(&self, from: Tag, owner: u32) -> Option<u32> {
        transition_adopt(&self.tag, from, owner)?;
        assert_eq!(self.holders.fetch_add(1, Ordering::Relaxed), 0, "two have the page");
        assert_eq!(self.local.load(Ordering::Relaxed), 0x55, "the owner's list was not handed on");
        Some(Remote(self.remote.load(Ordering::SeqCst)).count())
    }

    /// A remote free and the look after it: [`super::heap::Heap::free_remotely`].
    fn free(&self, owner: u32, block: usize) -> Option<u32> {
        let place = Place { page: PAGE, offset_in_page: block as u64 * 16 };
        let link = &self.links[block];
        let pushed = push(&self.remote, link, place, Mark::default(), |_| None, || Some(BLOCKS));
        assert_eq!(pushed, Ok(true));
        let tag = tag_after_push(&self.tag);
        if tag.owner() == 0 { self.adopt(tag, owner) } else { None }
    }
}

#[test]
fn a_block_freed_while_its_page_is_given_up_is_seen() {
    explore(3, || {
        let page = Page::new();
        let [owner, freer] = [(); 2].map(|()| Arc::clone(&page));
        let owner = loom::thread::spawn(move || owner.abandon(OWNER));
        let freer = loom::thread::spawn(move || freer.free(2, 0));
        let (owner, freer) = (owner.join().unwrap(), freer.join().unwrap());
        assert!(owner == Some(1) || freer == Some(1), "the block is lost: {owner:?} {freer:?}");
        assert_ne!(Tag(page.tag.load(Ordering::SeqCst)).owner(), 0);
    });
}

#[test]
fn of_two_freers_and_the_owner_one_has_the_page_and_sees_both_blocks() {
    explore(3, || {
        let page = Page::new();
        let [owner, first, second] = [(); 3].map(|()| Arc::clone(&page));
        let holders = [
            loom::thread::spawn(move || owner.abandon(OWNER)),
            loom::thread::spawn(move || first.free(2, 0)),
            loom::thread::spawn(move || second.free(3, 1)),
        ];
        let seen = holders.map(|holder| holder.join().unwrap());
        // Blocks that the holder does not see yet are pushed to a page that has an owner.
        assert_eq!(seen.iter().flatten().count(), 1, "{seen:?}");
        assert_ne!(Tag(page.tag.load(Ordering::SeqCst)).owner(), 0);
        assert_eq!(Remote(page.remote.load(Ordering::SeqCst)).count(), 2);
    });
}
