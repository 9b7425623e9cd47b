//! How things stand before an operation, and the steps that operations are made of.
//!
//! Most blocks are of sizes that have a class of just their size, so that the balance can be written
//! down: 1024 bytes (64 to a page), 32 KiB (16 to a medium page), 256 KiB (a run of four units).

use super::process;
use super::world::World;

/// A small block.
pub(super) const SMALL: usize = 1 << 10;
/// Small blocks of a page.
pub(super) const SMALL_PER_PAGE: u64 = 64;
/// Small blocks of a row of a cache, in a segment of 18 MiB.
pub(super) const SMALL_PER_ROW: u64 = 4;
/// A medium block.
pub(super) const MEDIUM: usize = 32 << 10;
/// A block that is a run of units.
pub(super) const LARGE: usize = 256 << 10;
/// A run that is small enough to be kept by who frees it.
pub(super) const SHORT_RUN: usize = 128 << 10;

pub(super) fn nothing(_: &World) {}

/// Claims a slot.
pub(super) fn warm(w: &World) {
    take_and_free(w, 16);
}

pub(super) fn elsewhere(w: &World, work: impl FnOnce(&World)) {
    process::run(|| work(w)).expect("another process does its part");
}

pub(super) fn take(w: &World, bytes: usize) {
    let _ = w.heap.allocate(bytes).expect("a block");
}

pub(super) fn take_small(w: &World) {
    take(w, SMALL);
}

pub(super) fn free_first(w: &World) {
    w.free(0);
}

pub(super) fn resize_first(w: &World, bytes: usize) {
    // SAFETY: [owned] the block is in the table and this process's to resize.
    unsafe { w.heap.reallocate(w.block(0), bytes) }.expect("room for it");
}

pub(super) fn fill_cell(w: &World, bytes: usize) {
    w.heap.allocate_into(w.cell(0), bytes).expect("a block for the cell");
}

pub(super) fn empty_cell(w: &World) {
    // SAFETY: [owned] blocks in cells are used by nobody.
    assert!(unsafe { w.heap.free_from(w.cell(0)) }.expect("the cell names a block"));
}

/// A page of ours with one block, which another freed for good when it died.
pub(super) fn idle_page_that_a_dead_freed_to(w: &World) {
    fill_cell(w, SMALL);
    w.lose_another("from.freed", empty_cell);
}

/// The same, and no other unit is free.
pub(super) fn full_but_for_what_a_dead_freed(w: &World) {
    idle_page_that_a_dead_freed_to(w);
    while w.heap.report().units_free > 0 {
        w.hold(8, 8 * SMALL);
    }
}

pub(super) fn leave(w: &World) {
    w.heap.detach_thread();
}

/// Does what makes a worker want a cache, but for the last bit.
pub(super) fn nearly_cached(w: &World) {
    [16, 32, 48, 64].into_iter().for_each(|bytes| take_and_free(w, bytes));
}

pub(super) fn cached(w: &World) {
    nearly_cached(w);
    take_and_free(w, 80);
    assert!(w.heap.report().cached_blocks > 0, "there is a cache");
}

fn take_and_free(w: &World, bytes: usize) {
    let block = w.heap.allocate(bytes).expect("a block");
    // SAFETY: [owned] it was just allocated.
    unsafe { w.heap.free(block) }.expect("it is allocated");
}

/// The row of small blocks is full, with blocks of the survivor.
pub(super) fn cached_anothers(w: &World) {
    cached(w);
    w.drop_blocks(w.known() - SMALL_PER_ROW..w.known());
    assert!(w.heap.report().cached_blocks > SMALL_PER_ROW);
}

/// Blocks of another, of nobody and of its own stand in the cache.
pub(super) fn cached_of_all_sorts(w: &World) {
    w.hold(2, 2 * SMALL - 512);
    elsewhere(w, |w| {
        w.hold(3, SMALL + 512);
        leave(w);
    });
    cached(w);
    w.hold(2, 48);
    w.drop_blocks(1..w.known());
}

/// Some blocks of a page stand in the cache, others are allocated.
pub(super) fn cached_of_a_page_in_use(w: &World) {
    cached(w);
    w.hold(8, SMALL);
    w.drop_blocks(1..6);
}

/// The bin has blocks that another freed together.
pub(super) fn bin_of_a_parcel(w: &World) {
    cached(w);
    w.hold(SMALL_PER_PAGE - SMALL_PER_ROW, SMALL);
    elsewhere(w, |w| {
        cached(w);
        w.drop_blocks(0..2 * SMALL_PER_ROW);
        leave(w);
    });
    w.hold(SMALL_PER_ROW, SMALL);
}

/// A page of which some blocks stand in the cache, one is allocated and the others are free.
pub(super) fn cached_of_an_idle_page(w: &World) {
    cached(w);
    w.hold(2 * SMALL_PER_PAGE, SMALL);
    w.drop_blocks(1..SMALL_PER_PAGE);
}

/// The same page is the one that the bin is of.
pub(super) fn cached_of_an_idle_page_in_a_bin(w: &World) {
    cached(w);
    w.hold(SMALL_PER_PAGE - 2 * SMALL_PER_ROW, SMALL);
    w.drop_blocks(1..w.known());
}

/// A page of 64 small blocks, all allocated, hence without owner, and the first of another page.
pub(super) fn full_page_and_one(w: &World) {
    w.hold(SMALL_PER_PAGE + 1, SMALL);
}

/// The bin has one block, from the page's middle; all others were freed.
pub(super) fn idle_page_with_a_bin(w: &World) {
    w.hold(SMALL_PER_PAGE - 1, SMALL);
    w.free(0);
    w.forget(0);
    // The last of the bin: the bin is loaded with the block just freed.
    w.hold(1, SMALL);
    w.drop_blocks(0..w.known());
}

/// Every unit is a small page, and all are idle.
pub(super) fn idle_pages_everywhere(w: &World) {
    while w.heap.report().units_free > 0 {
        w.hold(SMALL_PER_PAGE, SMALL);
    }
    w.drop_blocks(0..w.known());
}

/// A full page, of which some blocks in a row are freed.
pub(super) fn sparse_page(w: &World) {
    w.hold(SMALL_PER_PAGE, SMALL);
    w.drop_blocks(8..40);
}

pub(super) fn trim(w: &World) {
    assert!(w.heap.trim().expect("a slot") > 0, "there is memory to give back");
}

/// The same, and the memory behind those is not there.
pub(super) fn purged_page(w: &World) {
    sparse_page(w);
    trim(w);
}

/// A page of nobody's with free blocks, purged or not.
pub(super) fn left_by_another(w: &World, page: fn(&World)) {
    warm(w);
    elsewhere(w, |w| {
        page(w);
        leave(w);
    });
}
