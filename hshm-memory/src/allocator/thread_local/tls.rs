//! Which heap a thread uses: thread-local storage, explicit contexts, the end of threads, and fork.
//!
//! A forked child has copies of its parent's heaps, whose slots are the parent's: it must never use
//! them. A fork raises the generation in the child, where every older heap is stale, and each thread
//! of it claims a slot anew.
//!
//! A thread here is one of the operating system: user-level threads share the heap of the stream that
//! they run on. One may go on elsewhere wherever it yields, so nothing here yields while it has a
//! heap or a reference into thread-local storage (`NoPause`), and what reads thread-local storage is
//! called through `by_pointer`. Why that is so, and enough, the Argobots thread model says.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::heap::Heap;
use super::recover::{self, Leave};
use super::view::View;
use super::{Inner, slots};
use crate::context::MemContext;
use crate::error::AllocError;
use crate::options::OnExit;
use crate::platform;
use crate::process;
use crate::thread_model::{self, NoPause, by_pointer};

thread_local! {
    /// The heap that this thread used last. No destructor, so that reading it is one access.
    static CURRENT: Current = const {
        Current { _pad0: 0, key: Cell::new(0), _pad1: 0, heap: Cell::new(ptr::null()) }
    };
    /// All heaps of this thread; it keeps what `CURRENT` points to alive.
    static HEAPS: RefCell<ThreadHeaps> = const { RefCell::new(ThreadHeaps(Vec::new())) };
    /// Held from before a fork until after it, on both sides.
    static FORK_GUARD: RefCell<Option<MutexGuard<'static, Registry>>> =
        const { RefCell::new(None) };
}

/// Both are where no block can begin, in the low bits of their addresses: see [`super::heap`].
#[repr(C, align(16))]
struct Current {
    _pad0: u64,
    /// The allocator that `heap` belongs to; 0 for none.
    key: Cell<u64>,
    _pad1: u64,
    heap: Cell<*const Heap>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { heaps: Vec::new(), named: BTreeMap::new() });
/// Forks between the first process that loaded this library and this one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// All heaps of the process.
struct Registry {
    heaps: Vec<Arc<Heap>>,
    /// Those that contexts name, by allocator and slot.
    named: BTreeMap<(u64, u32), Arc<NamedHeap>>,
}

/// A heap for whoever has the context: one thread after the other.
struct NamedHeap {
    heap: Arc<Heap>,
    busy: AtomicBool,
}

struct ThreadHeaps(Vec<Arc<Heap>>);

impl Drop for ThreadHeaps {
    fn drop(&mut self) {
        let _ = CURRENT.try_with(|current| current.key.set(0));
        for heap in self.0.drain(..) {
            retire(&heap);
        }
    }
}

/// The calling thread's heap of the allocator `key`, if it is the one it used last.
#[inline(always)]
pub(super) fn current(key: u64) -> Option<*const Heap> {
    by_pointer!(current_here as fn(u64) -> Option<*const Heap>)(key)
}

#[inline(always)]
fn current_here(key: u64) -> Option<*const Heap> {
    CURRENT.with(|current| (current.key.get() == key).then(|| current.heap.get()))
}

/// Runs `f` with the calling thread's heap, which is claimed if there is none yet.
pub(super) fn with_heap<R>(
    inner: &Inner,
    f: impl FnOnce(&Heap) -> Result<R, AllocError>,
) -> Result<R, AllocError> {
    let _use = NoPause::begin();
    let heap = match current(inner.key) {
        Some(heap) => heap,
        None => match by_pointer!(find_or_claim as Find)(inner) {
            Some(heap) => heap?,
            None => return with_passing_heap(inner, f),
        },
    };
    // SAFETY: [owned] `HEAPS` of this thread keeps the heap alive, nothing that `f` calls removes
    // it or yields, and no other thread uses it.
    f(unsafe { &*heap })
}

/// The same where the thread is ending and its thread-local storage gone.
#[cold]
fn with_passing_heap<R>(
    inner: &Inner,
    f: impl FnOnce(&Heap) -> Result<R, AllocError>,
) -> Result<R, AllocError> {
    let heap = claim(inner)?;
    let result = f(&heap);
    retire(&heap);
    result
}

type Find = fn(&Inner) -> Option<Result<*const Heap, AllocError>>;

/// `None` if the thread is ending.
#[cold]
fn find_or_claim(inner: &Inner) -> Option<Result<*const Heap, AllocError>> {
    HEAPS.try_with(|heaps| find_or_claim_in(inner, heaps)).ok()
}

fn find_or_claim_in(
    inner: &Inner,
    heaps: &RefCell<ThreadHeaps>,
) -> Result<*const Heap, AllocError> {
    let generation = generation();
    let mut heaps = heaps.borrow_mut();
    heaps.0.retain(|heap| !heap.is_stale(generation));
    let found = heaps.0.iter().find(|heap| heap.key == inner.key);
    let heap = match found {
        Some(heap) => Arc::as_ptr(heap),
        None => {
            let heap = claim(inner)?;
            let address = Arc::as_ptr(&heap);
            heaps.0.push(heap);
            address
        }
    };
    let _ = CURRENT.try_with(|current| {
        current.key.set(inner.key);
        current.heap.set(heap);
    });
    Ok(heap)
}

/// Claims a slot and makes a heap of it.
fn claim(inner: &Inner) -> Result<Arc<Heap>, AllocError> {
    watch_forks();
    let process = inner.process()?;
    let id = slots::claim(&inner.view, process)?;
    let thread = thread_model::os_thread_number();
    inner.view.slot(id).thread.store(thread, crate::sync::Ordering::Relaxed);
    let heap = Arc::new(Heap::new(inner.key, Arc::clone(&inner.view), id, generation()));
    if inner.view.on_exit() == OnExit::Reclaim {
        heap.find_pages();
    }
    registry().heaps.push(Arc::clone(&heap));
    Ok(heap)
}

/// Gives a heap's slot back, once.
fn retire(heap: &Arc<Heap>) {
    let mut registry = registry();
    registry.heaps.retain(|other| !Arc::ptr_eq(other, heap));
    drop(registry);
    give_back(heap);
}

fn give_back(heap: &Heap) {
    // A stale heap's slot belongs to the process that this one was forked from.
    if heap.generation != generation() || heap.released.swap(1, Ordering::AcqRel) != 0 {
        return;
    }
    let view: &View = &heap.view;
    match view.on_exit() {
        OnExit::Keep => {
            let (_, is_vacant) = recover::vacate(view, heap.id, Leave::Orderly);
            // Else it stays this process's until that ends, and is recovered then.
            if is_vacant {
                recover::free_slot(view, heap.id);
            }
        }
        // The blocks are the process's as long as it lives; what holds none is anybody's.
        OnExit::Reclaim => {
            heap.collect();
            slots::transition_park(view.slot_word(heap.id));
        }
    }
}

/// Gives back the calling thread's heap of this allocator, if it has one.
pub(super) fn detach_thread(key: u64) {
    by_pointer!(detach_this_thread as fn(u64))(key);
}

fn detach_this_thread(key: u64) {
    let _ = CURRENT.try_with(|current| current.key.set(0));
    let mut mine = Vec::new();
    let _ = HEAPS.try_with(|heaps| {
        heaps.borrow_mut().0.retain(|heap| {
            let keep = heap.key != key;
            if !keep {
                mine.push(Arc::clone(heap));
            }
            keep
        });
    });
    for heap in mine {
        retire(&heap);
    }
}

/// Gives back all heaps of an allocator that nobody in this process has any more.
pub(super) fn detach_all(key: u64) {
    let mut registry = registry();
    let mut mine = Vec::new();
    registry.heaps.retain(|heap| {
        let keep = heap.key != key;
        if !keep {
            mine.push(Arc::clone(heap));
        }
        keep
    });
    registry.named.retain(|&(owner, _), _| owner != key);
    drop(registry);
    for heap in mine {
        give_back(&heap);
    }
}

/// Claims a slot for whoever has the context returned.
pub(super) fn create_named(inner: &Inner) -> Result<MemContext, AllocError> {
    let heap = claim(inner)?;
    let id = heap.id;
    let named = Arc::new(NamedHeap { heap, busy: AtomicBool::new(false) });
    registry().named.insert((inner.key, id), named);
    Ok(MemContext::with_slot(id))
}

/// Gives such a slot back.
pub(super) fn free_named(inner: &Inner, context: MemContext) -> Result<(), AllocError> {
    let named = registry().named.remove(&(inner.key, context.slot()));
    let named = named.ok_or(AllocError::BadContext { slot: context.slot() })?;
    let _turn = Turn::wait(&named);
    retire(&named.heap);
    Ok(())
}

/// Runs `f` with the heap that the context names.
pub(super) fn with_named<R>(
    inner: &Inner,
    context: MemContext,
    f: impl FnOnce(&Heap) -> Result<R, AllocError>,
) -> Result<R, AllocError> {
    let slot = context.slot();
    let named = registry().named.get(&(inner.key, slot)).map(Arc::clone);
    let named = named.ok_or(AllocError::BadContext { slot })?;
    let _turn = Turn::wait(&named);
    if named.heap.is_stale(generation()) {
        return Err(AllocError::BadContext { slot });
    }
    let _use = NoPause::begin();
    f(&named.heap)
}

/// One thread's turn with a named heap.
struct Turn<'h>(&'h NamedHeap);

impl<'h> Turn<'h> {
    fn wait(named: &'h NamedHeap) -> Self {
        // ORDER: Acquire pairs with the Release at the end of the turn before.
        while named.busy.swap(true, Ordering::Acquire) {
            thread_model::pause();
        }
        Self(named)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

/// Counts forks.
pub(super) fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the process's forks seen from now on. Called before there is a heap that a child could take
/// for its own.
///
/// Threads that come at once may register the handlers several times, and so may the child of a
/// fork in the midst of it: each does nothing where it has run already. Waiting for one another
/// (`Once`) would leave such a child waiting for a thread that it does not have.
pub(super) fn watch_forks() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // ORDER: Acquire pairs with the Release below: the handlers are registered.
    if WATCHED.load(Ordering::Acquire) {
        return;
    }
    platform::at_fork(Some(before_fork), Some(after_fork), Some(in_child));
    WATCHED.store(true, Ordering::Release);
}

extern "C" fn before_fork() {
    let _ = FORK_GUARD.try_with(|held| {
        let mut held = held.borrow_mut();
        if held.is_none() {
            *held = Some(registry());
        }
    });
}

extern "C" fn after_fork() {
    let _ = FORK_GUARD.try_with(|held| held.borrow_mut().take());
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    process::forget_own();
    let _ = CURRENT.try_with(|current| current.key.set(0));
    let _ = FORK_GUARD.try_with(|held| {
        if let Some(mut registry) = held.borrow_mut().take() {
            registry.heaps.clear();
            registry.named.clear();
        }
    });
}
