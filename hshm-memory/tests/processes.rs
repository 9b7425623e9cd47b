//! Processes that find one another's memory by its name: what one allocates others free, and what a
//! killed one leaves is put in order. The other process is this program again, with other arguments.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hshm_memory::collections::ShmQueue;
use hshm_memory::{
    Allocator, AllocatorId, BackendError, HeapOptions, InitBackend, InitOptions, MemContext,
    OffsetPointer, OnExit, PosixShmMmap, ProcessId, ScalablePageAllocator, ShmAllocator,
    ThreadLocalAllocator,
};

/// How long the other process may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(120);
const CELLS: u64 = 64;
/// Words of the application's header beside the cells.
const PROGRESS: u64 = CELLS;
const NAMED: u64 = CELLS + 1;
const HEADER_BYTES: u64 = (CELLS + 2) * 8;
const SIZE: u64 = 16 << 20;

/// Named memory, whose name is taken away at the end.
struct Named {
    name: String,
    backend: Arc<PosixShmMmap>,
}

impl Named {
    fn new(test: &str) -> Self {
        let name = format!("hshm-processes-test.{test}.{}", std::process::id());
        let backend = Arc::new(PosixShmMmap::shm_init(&name, SIZE).unwrap());
        Self { name, backend }
    }

    fn thread_local(&self, on_exit: OnExit) -> ThreadLocalAllocator {
        let options =
            InitOptions { custom_header_bytes: HEADER_BYTES, on_exit, ..InitOptions::default() };
        let id = AllocatorId::new(2, 1);
        ThreadLocalAllocator::shm_init(id, self.backend.clone(), &options).unwrap()
    }

    /// Starts this program as another process that does `role`.
    fn start(&self, role: &str) -> Other {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "the_other_process", "--nocapture"])
            .env("HSHM_TEST_ROLE", role)
            .env("HSHM_TEST_NAME", &self.name)
            .spawn();
        Other(child.unwrap())
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = PosixShmMmap::shm_destroy(&self.name);
    }
}

/// The other process, which does not outlive the test.
struct Other(Child);

impl Other {
    fn wait(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the other process is stuck");
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(status.success(), "{status}");
    }

    /// Ends it at any moment: SIGKILL, or `TerminateProcess`.
    fn kill(&mut self) -> ProcessId {
        let id = ProcessId::of(self.0.id()).unwrap();
        assert!(id.is_alive());
        self.0.kill().unwrap();
        assert!(!self.0.wait().unwrap().success());
        assert!(!id.is_alive());
        id
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn word(heap: &dyn Allocator, index: u64) -> &AtomicU64 {
    let address = heap.resolve(place(heap, index), 8).unwrap();
    // SAFETY: [mapped] it was resolved, and the header is aligned; [atomic] all use it like this.
    unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
}

fn place(heap: &dyn Allocator, index: u64) -> OffsetPointer {
    OffsetPointer::new(heap.custom_header().0.offset_bytes() + index * 8)
}

fn wait_until(heap: &dyn Allocator, index: u64, least: u64) {
    let deadline = Instant::now() + PATIENCE;
    while word(heap, index).load(Ordering::SeqCst) < least {
        assert!(Instant::now() < deadline, "the other process is stuck");
        std::thread::yield_now();
    }
}

fn free(heap: &dyn Allocator, block: OffsetPointer) {
    // SAFETY: [owned] the tests free what was allocated, once.
    unsafe { heap.free_offset_no_null_check(MemContext::DEFAULT, block) }.unwrap();
}

/// Allocates many blocks, and one more that lists their offsets.
fn allocate_many(heap: &dyn Allocator, byte: u8) {
    let sizes: Vec<_> = (0..1000).map(|number| 16 + number * 37 % 3000).collect();
    let list = heap.allocate_offset(MemContext::DEFAULT, sizes.len() * 8).unwrap();
    for (index, &len) in sizes.iter().enumerate() {
        let block = heap.allocate_offset(MemContext::DEFAULT, len).unwrap();
        // SAFETY: [owned] the block is the caller's and `len` bytes long.
        unsafe { heap.resolve(block, len).unwrap().write_bytes(byte, len) };
        entry(heap, list, index).store(block.offset_bytes(), Ordering::Relaxed);
    }
    word(heap, NAMED).store(list.offset_bytes(), Ordering::Release);
}

/// Verifies and frees what another process allocated so.
fn free_many(heap: &dyn Allocator, byte: u8) {
    let list = OffsetPointer::new(word(heap, NAMED).swap(0, Ordering::AcqRel));
    for index in 0..1000 {
        let len = 16 + index * 37 % 3000;
        let block = OffsetPointer::new(entry(heap, list, index).load(Ordering::Relaxed));
        let address = heap.resolve(block, len).unwrap();
        // SAFETY: [owned] the block was given to this process.
        let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
        assert!(bytes.iter().all(|&found| found == byte), "{block:?} was overwritten");
        free(heap, block);
    }
    free(heap, list);
}

fn entry(heap: &dyn Allocator, list: OffsetPointer, index: usize) -> &AtomicU64 {
    let at = OffsetPointer::new(list.offset_bytes() + index as u64 * 8);
    let address = heap.resolve(at, 8).unwrap();
    // SAFETY: [mapped] it was resolved, and the list is aligned; [atomic] all use it like this.
    unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
}

fn assert_clean(heap: &dyn Allocator) {
    let check = heap.check();
    assert!(check.is_clean() && check.allocated_blocks == 0, "{check:#?}");
}

/// What the processes that [`Named::start`] starts do.
#[test]
#[ignore = "the other tests run it, in processes of its own"]
fn the_other_process() {
    let role = std::env::var("HSHM_TEST_ROLE").unwrap();
    let name = std::env::var("HSHM_TEST_NAME").unwrap();
    let backend = Arc::new(PosixShmMmap::shm_attach(&name).unwrap());
    match role.as_str() {
        "exchange" => {
            let heap = ThreadLocalAllocator::shm_deserialize(backend).unwrap();
            free_many(&heap, 1);
            allocate_many(&heap, 2);
        }
        "fill cells" => {
            let heap = ThreadLocalAllocator::attach(&name).unwrap();
            fill_cells(&heap);
        }
        "grow" => {
            let heap = ThreadLocalAllocator::attach(&name).unwrap();
            heap.grow(heap.committed_bytes() + SIZE).unwrap();
            let block = loop {
                let block = heap.allocate(1 << 20).unwrap();
                if block.offset_bytes() > SIZE + (4 << 20) {
                    break block;
                }
            };
            // SAFETY: [owned] the block is ours and as long as that.
            unsafe { heap.resolve(block, 1 << 20).unwrap().write_bytes(7, 1 << 20) };
            word(&heap, NAMED).store(block.offset_bytes(), Ordering::SeqCst);
        }
        "work under the lock" => {
            let heap = ScalablePageAllocator::shm_deserialize(backend).unwrap();
            loop {
                let blocks =
                    [100, 5000, 70_000].map(|len| heap.allocate_offset(MemContext::DEFAULT, len));
                for block in blocks.into_iter().flatten() {
                    free(&heap, block);
                }
                word(&heap, PROGRESS).fetch_add(1, Ordering::SeqCst);
            }
        }
        "push" => {
            let heap = ThreadLocalAllocator::shm_deserialize(backend).unwrap();
            let at = OffsetPointer::new(word(&heap, NAMED).load(Ordering::SeqCst));
            let queue = ShmQueue::<u64>::attach(&heap, at).unwrap();
            (0..20_000).for_each(|number| queue.push(number, PATIENCE).unwrap());
        }
        other => panic!("no such role: {other}"),
    }
}

/// Puts blocks into cells and takes them out, until it is killed.
fn fill_cells(heap: &ThreadLocalAllocator) {
    for step in 0_usize.. {
        let cell = place(heap, step as u64 * 7 % CELLS);
        if heap.read_cell(cell).unwrap().is_null() {
            heap.allocate_into(cell, step % 40_000).unwrap();
        } else {
            // SAFETY: [owned] blocks in cells are used by nobody.
            assert!(unsafe { heap.free_from(cell) }.unwrap());
        }
        word(heap, PROGRESS).fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn what_one_process_allocates_another_frees() {
    let named = Named::new("exchange");
    let heap = named.thread_local(OnExit::Keep);
    allocate_many(&heap, 1);
    named.start("exchange").wait();
    free_many(&heap, 2);
    // The other's thread ended in order, and left no slot.
    assert_eq!(heap.recover_dead().slots, 0);
    assert_eq!(heap.holders(), [ProcessId::current().unwrap()]);
    assert_clean(&heap);
}

#[test]
fn what_a_killed_process_leaves_is_put_in_order() {
    for on_exit in [OnExit::Keep, OnExit::Reclaim] {
        let named = Named::new(&format!("killed.{on_exit}"));
        let heap = named.thread_local(on_exit);
        for _ in 0..5 {
            let mut other = named.start("fill cells");
            wait_until(&heap, PROGRESS, word(&heap, PROGRESS).load(Ordering::SeqCst) + 1000);
            let id = other.kill();
            // It calls itself by another name than the one that anybody finds out.
            let holds = || heap.holders().iter().any(|holder| holder.pid == id.pid);
            assert!(holds());
            assert_eq!(heap.recover(id).slots, 1);
            assert!(!holds());
            assert!(heap.check().is_clean(), "{:#?}", heap.check());
            // What the cells name is allocated, unless it died with its process, and nothing else.
            for cell in (0..CELLS).map(|index| place(&heap, index)) {
                match on_exit {
                    OnExit::Keep if !heap.read_cell(cell).unwrap().is_null() => {
                        // SAFETY: [owned] as in `fill_cells`.
                        assert!(unsafe { heap.free_from(cell) }.unwrap());
                    }
                    OnExit::Keep | OnExit::Reclaim => {}
                }
            }
            (0..CELLS).for_each(|index| word(&heap, index).store(0, Ordering::SeqCst));
            assert_clean(&heap);
        }
    }
}

#[test]
fn memory_that_one_process_adds_the_others_use() {
    let named = Named::new("grow");
    let heap = named.thread_local(OnExit::Keep);
    let before = heap.committed_bytes();
    named.start("grow").wait();
    let block = OffsetPointer::new(word(&heap, NAMED).load(Ordering::SeqCst));
    assert!(block.offset_bytes() + (1 << 20) > before, "it lies in what was added");
    let address = heap.resolve(block, 1 << 20).unwrap();
    // SAFETY: [owned] the block was given to this process.
    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), 1 << 20) };
    assert!(bytes.iter().all(|&byte| byte == 7));
    assert_eq!(heap.committed_bytes(), before + SIZE);
    free(&heap, block);
    assert!(heap.check().is_clean());
}

#[test]
fn a_holder_of_the_lock_that_is_killed_blocks_nobody() {
    let named = Named::new("lock");
    let options = HeapOptions { custom_header_bytes: HEADER_BYTES };
    let id = AllocatorId::new(2, 2);
    let heap = ScalablePageAllocator::shm_init(id, named.backend.clone(), &options).unwrap();
    for _ in 0..10 {
        let mut other = named.start("work under the lock");
        wait_until(&heap, PROGRESS, word(&heap, PROGRESS).load(Ordering::SeqCst) + 200);
        other.kill();
        let block = heap.allocate_offset(MemContext::DEFAULT, 1000).unwrap();
        free(&heap, block);
        let check = heap.check();
        assert!(check.is_clean(), "{check:#?}");
    }
}

#[test]
fn messages_pass_from_one_process_to_another() {
    let named = Named::new("queue");
    let heap = named.thread_local(OnExit::Keep);
    let queue = ShmQueue::<u64>::create_in(&heap, 64).unwrap();
    word(&heap, NAMED).store(queue.place().offset_bytes(), Ordering::SeqCst);
    let mut other = named.start("push");
    for expected in 0..20_000 {
        assert_eq!(queue.pop(PATIENCE).unwrap(), expected);
    }
    other.wait();
    // SAFETY: [owned] nobody uses it any more.
    unsafe { queue.destroy() }.unwrap();
    assert_clean(&heap);
}

#[test]
fn a_name_is_given_once_and_free_again_when_its_memory_is_gone() {
    let named = Named::new("name");
    let again = PosixShmMmap::shm_init(&named.name, SIZE);
    assert!(matches!(again, Err(BackendError::Exists { .. })), "{again:?}");
    let name = named.name.clone();
    drop(named);
    let gone = PosixShmMmap::shm_attach(&name);
    assert!(matches!(gone, Err(BackendError::NotFound { .. })), "{gone:?}");
}
