//! A segment with an arena and a board, for kernels to work on.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hshm_memory::backend::{CudaShmMmap, RocmShmMmap};
use hshm_memory::gpu::GpuVendor;
use hshm_memory::gpu::arena::{ArenaOptions, DeviceArena};
use hshm_memory::{
    AllocatorId, Backend, BackendKind, InitOptions, OffsetPointer, PosixShmMmap,
    ThreadLocalAllocator,
};

use crate::gpu::{Gpu, Kit};

/// The board's words, as `kernels.cu` has them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    Over = 0,
    Sent = 1,
    Freed = 2,
    Wrong = 3,
    Refused = 4,
    Left = 5,
}

/// What the host tells kernels by the first of them. Before that it is zero, and they go on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phase {
    NothingNew = 1,
    End = 2,
}

/// A name that goes away in the end.
pub(crate) struct Named(pub(crate) String);

impl Drop for Named {
    fn drop(&mut self) {
        let _ = PosixShmMmap::unlink(&self.0);
    }
}

/// A segment that is registered for the first device, and an arena in it that this process owns.
pub(crate) struct Bench {
    pub(crate) heap: ThreadLocalAllocator,
    pub(crate) arena: DeviceArena,
    board: OffsetPointer,
}

impl Bench {
    /// A new one, under a name.
    pub(crate) fn create(vendor: GpuVendor, name: &Named, bytes: u64, arena: ArenaOptions) -> Self {
        let backend: Arc<dyn Backend> = match vendor {
            GpuVendor::Cuda => Arc::new(CudaShmMmap::create(&name.0, bytes, bytes, 0o600).unwrap()),
            GpuVendor::Rocm => Arc::new(RocmShmMmap::create(&name.0, bytes, bytes, 0o600).unwrap()),
        };
        let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
        let id = AllocatorId::new(0, 1);
        let heap = ThreadLocalAllocator::shm_init(id, backend, &options).unwrap();
        let (cell, _) = heap.custom_header();
        let arena = DeviceArena::create_into(&heap, cell, arena).unwrap();
        let board = heap.allocate_into(second(cell), 64).unwrap();
        Self { heap, arena, board }.ready()
    }

    /// The one that another process made, and does not own any more.
    pub(crate) fn open(vendor: GpuVendor, name: &str) -> Self {
        let file = PosixShmMmap::open(name).unwrap();
        let heap = ThreadLocalAllocator::open_fd(BackendKind::of_vendor(vendor), file).unwrap();
        let (cell, _) = heap.custom_header();
        let arena = DeviceArena::open(&heap, heap.read_cell(cell).unwrap()).unwrap();
        let board = heap.read_cell(second(cell)).unwrap();
        Self { heap, arena, board }.ready()
    }

    fn ready(self) -> Self {
        self.heap.backend().device().unwrap().register(0).unwrap();
        self.arena.claim().unwrap();
        self.clear();
        self
    }

    pub(crate) fn clear(&self) {
        for at in 0..8 {
            self.word_at(at).store(0, Ordering::Release);
        }
    }

    fn word_at(&self, at: u64) -> &AtomicU64 {
        let offset = OffsetPointer::new(self.board.offset_bytes() + at * 8);
        let address = self.heap.resolve(offset, 8).unwrap();
        // SAFETY: [mapped] resolve checked it, and the heap lives as long; [atomic] all use it so.
        unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
    }

    pub(crate) fn read(&self, word: Word) -> u64 {
        self.word_at(word as u64).load(Ordering::Acquire)
    }

    /// Tells kernels how far it is.
    pub(crate) fn tell(&self, phase: Phase) {
        self.word_at(Word::Over as u64).store(phase as u64, Ordering::Release);
    }

    /// What kernels are given.
    pub(crate) fn kit(&self, words: &[u64]) -> Kit {
        let mut all = [0; 7];
        all[..words.len()].copy_from_slice(words);
        let view = self.arena.view(0).unwrap();
        Kit { view, board: self.board.offset_bytes(), words: all }
    }

    /// Runs a kernel to its end, which each of its threads must reach.
    pub(crate) fn run(&self, gpu: &Gpu, name: &str, groups: u32, threads: u32, words: &[u64]) {
        let before = self.read(Word::Left);
        gpu.start(name, groups, threads, &self.kit(words));
        gpu.wait(name);
        assert_eq!(self.read(Word::Left) - before, u64::from(groups * threads), "{name}");
        assert_eq!(self.read(Word::Wrong), 0, "{name}");
    }

    /// What is needed to run kernels that move much, on so many threads.
    pub(crate) fn sweep<'a>(&'a self, gpu: &'a Gpu, groups: u32, threads: u32) -> Sweep<'a> {
        let all = u64::from(groups * threads);
        let (said, words) = self.block(all);
        Sweep { bench: self, gpu, groups, threads, said, words }
    }

    /// A block of the heap's as words that kernels read and write.
    pub(crate) fn block(&self, words: u64) -> (OffsetPointer, *mut u64) {
        let bytes = usize::try_from(words * 8).unwrap();
        let block = self.heap.allocate(bytes).unwrap();
        (block, self.heap.resolve(block, bytes).unwrap().cast().as_ptr())
    }

    /// Nothing is under way, and arena and heap are sound.
    pub(crate) fn assert_sound(&self) {
        let arena = self.arena.check().unwrap();
        assert!(arena.violations.is_empty(), "{arena:?}");
        let heap = self.heap.check();
        assert!(heap.violations.is_empty(), "{heap:?}");
    }

    /// All that was allocated was freed, but for the arena and the board.
    pub(crate) fn assert_empty(&self) {
        let report = self.arena.report().unwrap();
        assert_eq!((report.allocated_blocks, report.chunks_in_use), (0, 0), "{report:?}");
        assert_eq!(report.refused_frees, 0, "{report:?}");
        assert_eq!(self.heap.report().allocated_blocks, 2);
        self.assert_sound();
    }
}

/// A grid whose threads each have a word for what they have to say.
pub(crate) struct Sweep<'a> {
    bench: &'a Bench,
    gpu: &'a Gpu,
    groups: u32,
    threads: u32,
    said: OffsetPointer,
    words: *mut u64,
}

impl Sweep<'_> {
    /// Runs a kernel over `count` words at an offset or an address: what the threads said, added up, and how long it took,
    /// in seconds.
    pub(crate) fn run(&self, kernel: &str, at: u64, count: u64, value: u64) -> (u64, f64) {
        let all = u64::from(self.groups * self.threads);
        let len = usize::try_from(all).unwrap();
        // SAFETY: [owned] no kernel is at work, and the block is as long.
        unsafe { self.words.write_bytes(0, len) };
        let kit = self.bench.kit(&[at, count, all, value, self.said.offset_bytes()]);
        let started = Instant::now();
        self.gpu.start(kernel, self.groups, self.threads, &kit);
        self.gpu.wait(kernel);
        let seconds = started.elapsed().as_secs_f64();
        // SAFETY: [owned] as above, again.
        let said = (0..len).map(|at| unsafe { self.words.wrapping_add(at).read() });
        (said.fold(0, u64::wrapping_add), seconds)
    }
}

impl Drop for Sweep<'_> {
    fn drop(&mut self) {
        // SAFETY: [owned] no kernel is at work.
        let _ = unsafe { self.bench.heap.free(self.said) };
    }
}

/// The cell beside one.
fn second(cell: OffsetPointer) -> OffsetPointer {
    OffsetPointer::new(cell.offset_bytes() + 8)
}

/// One of the words that stand in a block, as `kernels.cu` has it.
fn pattern(block: OffsetPointer, at: u64) -> u64 {
    block.offset_bytes().wrapping_add(at).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills a block.
///
/// # Safety
/// The `count` words at `words` are the caller's.
pub(crate) unsafe fn fill(words: *mut u64, block: OffsetPointer, count: u64) {
    for at in 0..count {
        let value = if at == 0 { count } else { pattern(block, at) };
        let word = words.wrapping_add(usize::try_from(at).unwrap());
        // SAFETY: the caller promises.
        unsafe { ptr::write(word, value) };
    }
}

/// Asserts that a block is as it was filled, or with all but its first word turned over.
///
/// # Safety
/// The block was filled with `count` words at most, and nobody writes there.
pub(crate) unsafe fn verify(words: *const u64, block: OffsetPointer, is_turned: bool) {
    // SAFETY: the caller promises.
    let count = unsafe { ptr::read(words) };
    assert!((2..=256).contains(&count), "{block:?} has {count} words");
    for at in 1..count {
        // SAFETY: the caller promises.
        let found = unsafe { ptr::read(words.wrapping_add(usize::try_from(at).unwrap())) };
        let expected = pattern(block, at);
        let expected = if is_turned { !expected } else { expected };
        assert_eq!(found, expected, "{block:?} at {at}");
    }
}
