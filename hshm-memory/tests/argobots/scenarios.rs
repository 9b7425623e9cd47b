//! What is done with the library, each in a process of its own.

use std::collections::BTreeSet;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hshm_memory::collections::ShmQueue;
use hshm_memory::robust::RobustLock;
use hshm_memory::thread_model::{
    Argobots as Model, Pthreads, ThreadId, ThreadLocalKey, ThreadModel, ThreadModelKind,
    thread_model,
};
use hshm_memory::{
    Allocator, AllocatorId, HeapOptions, InitOptions, MemContext, MemfdMmap, OffsetPointer,
    ScalablePageAllocator, ShmAllocator, ThreadLocalAllocator,
};

use crate::abt::{Argobots, Work};

pub(crate) fn run(name: &str) {
    match name {
        "storage" => storage(),
        "destructors" => destructors(),
        "sleep" => sleep(),
        "turns" => turns(),
        "named" => named(),
        "locks" => locks(),
        "queue" => queue(),
        "heaps" => heaps(),
        "tasklets" => tasklets(),
        "outside" => outside(),
        "missing" => missing(),
        other => panic!("no scenario {other}"),
    }
}

fn system_number() -> ThreadId {
    Pthreads.get_tid()
}

fn heap(worker_slots: u32) -> ThreadLocalAllocator {
    let backend = MemfdMmap::create("argobots", 64 << 20, 512 << 20).unwrap();
    let options = InitOptions { worker_slots, ..InitOptions::default() };
    ThreadLocalAllocator::shm_init(AllocatorId::new(0, 0), Arc::new(backend), &options).unwrap()
}

fn assert_empty(heap: &ThreadLocalAllocator) {
    let report = heap.check();
    assert!(report.violations.is_empty(), "{report:?}");
    assert_eq!(heap.report().allocated_bytes, 0);
}

fn storage() {
    const THREADS: usize = 64;
    let model = thread_model();
    // Before there are user-level threads, so that theirs is added later.
    let early: ThreadLocalKey<u64> = model.create_tls(ptr::null_mut()).unwrap();
    let abt = Argobots::init();
    assert_eq!(model.kind(), ThreadModelKind::Argobots);
    Model.library().unwrap();
    assert!(Model.is_user_level(), "the thread that initialises the library is one");
    let key: ThreadLocalKey<u64> = model.create_tls(ptr::null_mut()).unwrap();
    let streams = abt.streams(3);
    let (numbers, moves) = (Mutex::new(BTreeSet::new()), AtomicU64::new(0));
    let works = (0..THREADS as u64).map(|thread| {
        let (key, early, numbers, moves) = (&key, &early, &numbers, &moves);
        Box::new(move || {
            let mut mine = [thread, thread + 1000];
            let [first, second] = &mut mine;
            let (first, second) = (ptr::from_mut(first), ptr::from_mut(second));
            assert!(Model.is_user_level());
            assert!(model.get_tls(key).is_null());
            assert!(model.get_tls(early).is_null());
            model.set_tls(key, first).unwrap();
            model.set_tls(early, second).unwrap();
            let (number, first_stream) = (model.get_tid(), system_number());
            let (mut rounds, mut moved) = (0, false);
            // Some are done before others begin: until it has gone on elsewhere, or never will.
            while rounds < 200 || (!moved && rounds < 200_000) {
                rounds += 1;
                model.yield_now();
                assert_eq!(model.get_tls(key), first);
                assert_eq!(model.get_tls(early), second);
                assert_eq!(model.get_tid(), number);
                moved |= system_number() != first_stream;
            }
            moves.fetch_add(u64::from(moved), Ordering::Relaxed);
            model.set_tls(key, ptr::null_mut()).unwrap();
            assert!(model.get_tls(key).is_null());
            assert!(numbers.lock().unwrap().insert(number), "{number} twice");
        }) as Work<'_>
    });
    streams.run(works);
    assert_eq!(numbers.lock().unwrap().len(), THREADS);
    assert!(moves.load(Ordering::Relaxed) > 0, "none ever moved");
    // A thread that Argobots does not know.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut mine = 5;
            assert!(!Model.is_user_level());
            assert_eq!(model.get_tid(), system_number());
            assert!(model.get_tls(&key).is_null());
            model.set_tls(&key, &raw mut mine).unwrap();
            assert_eq!(model.get_tls(&key), &raw mut mine);
            model.yield_now();
            model.sleep_for_us(100);
        });
    });
    streams.free();
    drop((key, early));
    abt.finalize();
}

fn destructors() {
    unsafe extern "C" fn ended(count: *mut AtomicU32) {
        // SAFETY: [owned] the counter outlives whoever sets it.
        unsafe { &*count }.fetch_add(1, Ordering::Relaxed);
    }
    let model = thread_model();
    let abt = Argobots::init();
    let streams = abt.streams(2);
    let count = AtomicU32::new(0);
    // SAFETY: [owned] the counter outlives the threads.
    let key = unsafe { model.create_tls_with_destructor(ptr::null_mut(), ended) }.unwrap();
    let start = |thread: u32| {
        let (key, count) = (&key, &count);
        let work = Box::new(move || {
            model.yield_now();
            if !thread.is_multiple_of(4) {
                model.set_tls(key, ptr::from_ref(count).cast_mut()).unwrap();
            }
            model.yield_now();
        });
        // SAFETY: [owned] all are joined below.
        unsafe { streams.start(work) }
    };
    let threads: Vec<_> = (0..16).map(start).collect();
    threads.iter().for_each(crate::abt::Thread::join);
    assert_eq!(count.load(Ordering::Relaxed), 0, "joining is not freeing");
    threads.into_iter().for_each(crate::abt::Thread::free);
    assert_eq!(count.load(Ordering::Relaxed), 12);
    // A thread of the operating system, under the same key.
    std::thread::scope(|scope| {
        let set = || model.set_tls(&key, ptr::from_ref(&count).cast_mut()).unwrap();
        scope.spawn(set).join().unwrap();
    });
    assert_eq!(count.load(Ordering::Relaxed), 13);
    streams.free();
    drop(key);
    abt.finalize();
}

fn sleep() {
    let model = thread_model();
    let abt = Argobots::init();
    let streams = abt.streams(1);
    let (woken, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    let (woken, steps) = (&woken, &steps);
    let sleeper: Work<'_> = Box::new(move || {
        let before = Instant::now();
        // It sleeps until the other, on the same stream, has done something meanwhile.
        while steps.load(Ordering::Relaxed) < 3 {
            model.sleep_for_us(2000);
        }
        assert!(before.elapsed() >= Duration::from_millis(2));
        woken.store(true, Ordering::Relaxed);
    });
    let other: Work<'_> = Box::new(move || {
        while !woken.load(Ordering::Relaxed) {
            steps.fetch_add(1, Ordering::Relaxed);
            model.sleep_for_us(100);
        }
    });
    streams.run([sleeper, other]);
    streams.free();
    abt.finalize();
}

/// A turn that a user-level thread keeps while it yields, which this library's own never do.
fn turns() {
    let model = thread_model();
    let abt = Argobots::init();
    let streams = abt.streams(1);
    let (busy, sum) = (AtomicBool::new(false), AtomicU64::new(0));
    let works = (0..8).map(|_| {
        Box::new(|| {
            for _ in 0..100 {
                while busy.swap(true, Ordering::Acquire) {
                    model.yield_now();
                }
                let seen = sum.load(Ordering::Relaxed);
                model.yield_now();
                model.sleep_for_us(1);
                sum.store(seen + 1, Ordering::Relaxed);
                busy.store(false, Ordering::Release);
            }
        }) as Work<'_>
    });
    streams.run(works);
    assert_eq!(sum.load(Ordering::Relaxed), 800);
    streams.free();
    abt.finalize();
}

/// One heap that a context names, for user-level threads of all streams and others at once.
fn named() {
    let abt = Argobots::init();
    let heap = heap(8);
    let streams = abt.streams(2);
    let context = heap.create_tls().unwrap();
    let work = |heap: &ThreadLocalAllocator, thread: u64| {
        let model = thread_model();
        for round in 0..300 {
            let block = heap.allocate_offset(context, 64).unwrap();
            write(heap, block, 64, thread * 1000 + round);
            model.yield_now();
            verify(heap, block, 64, thread * 1000 + round);
            // SAFETY: [owned] nobody else has it.
            unsafe { heap.free_offset_no_null_check(context, block) }.unwrap();
        }
    };
    std::thread::scope(|scope| {
        let heap = &heap;
        for thread in 0..2 {
            scope.spawn(move || work(heap, thread));
        }
        streams.run((2..32).map(|thread| Box::new(move || work(heap, thread)) as Work<'_>));
    });
    heap.free_tls(context).unwrap();
    assert_empty(&heap);
    streams.free();
    abt.finalize();
}

/// A lock between processes, which names threads of the operating system, and an allocator under it.
fn locks() {
    const THREADS: u64 = 300;
    let abt = Argobots::init();
    let backend = Arc::new(MemfdMmap::create("locks", 16 << 20, 16 << 20).unwrap());
    let options = HeapOptions::default();
    let heap = ScalablePageAllocator::shm_init(AllocatorId::new(0, 0), backend, &options).unwrap();
    let (lock, counter) = (RobustLock::new(), AtomicU64::new(0));
    let streams = abt.streams(3);
    let pause = abt.yielder();
    let works = (0..THREADS).map(|_| {
        let (heap, lock, counter) = (&heap, &lock, &counter);
        Box::new(move || {
            let context = heap.create_tls().unwrap();
            for round in 0..20 {
                pause();
                // Guarded by the lock, and not atomic in any other way.
                let guard = lock.lock().unwrap();
                let seen = counter.load(Ordering::Relaxed);
                let context = if round % 2 == 0 { context } else { MemContext::DEFAULT };
                let block = heap.allocate_offset(context, 64).unwrap();
                counter.store(seen + 1, Ordering::Relaxed);
                drop(guard);
                pause();
                // SAFETY: [owned] nobody else has it.
                unsafe { heap.free_offset_no_null_check(context, block) }.unwrap();
            }
            heap.free_tls(context).unwrap();
        }) as Work<'_>
    });
    streams.run(works);
    assert_eq!(counter.load(Ordering::Relaxed), THREADS * 20);
    assert_eq!(heap.allocated_bytes(), 0);
    let report = heap.check();
    assert!(report.violations.is_empty(), "{report:?}");
    streams.free();
    abt.finalize();
}

/// Who waits for a message and who sends it share a stream, as do those who wait for room.
fn queue() {
    const THREADS: u64 = 4;
    const EACH: u64 = 200;
    let abt = Argobots::init();
    let heap = heap(8);
    let queue = ShmQueue::<u64>::create_in(&heap, 1).unwrap();
    let sum = AtomicU64::new(0);
    let streams = abt.streams(1);
    let works = (0..2 * THREADS).map(|thread| {
        let (queue, sum) = (&queue, &sum);
        Box::new(move || {
            for round in 0..EACH {
                if thread < THREADS {
                    let message = queue.pop(Duration::from_secs(100)).unwrap();
                    sum.fetch_add(message, Ordering::Relaxed);
                } else {
                    queue.push(round + 1, Duration::from_secs(100)).unwrap();
                }
            }
        }) as Work<'_>
    });
    streams.run(works);
    assert_eq!(sum.load(Ordering::Relaxed), THREADS * EACH * (EACH + 1) / 2);
    // SAFETY: [owned] nobody uses it any more.
    unsafe { queue.destroy() }.unwrap();
    streams.free();
    assert_empty(&heap);
    abt.finalize();
}

/// Fills a block with numbers that follow from `seed`.
fn write(heap: &ThreadLocalAllocator, block: OffsetPointer, bytes: usize, seed: u64) {
    let address = heap.resolve(block, bytes).unwrap().cast::<u64>();
    for word in 0..bytes / 8 {
        // SAFETY: [owned] the block is the caller's, aligned to 16 and `bytes` long.
        unsafe { address.as_ptr().wrapping_add(word).write(seed ^ word as u64) };
    }
}

fn verify(heap: &ThreadLocalAllocator, block: OffsetPointer, bytes: usize, seed: u64) {
    let address = heap.resolve(block, bytes).unwrap().cast::<u64>();
    for word in 0..bytes / 8 {
        // SAFETY: [owned] as in `write`.
        let found = unsafe { address.as_ptr().wrapping_add(word).read() };
        assert_eq!(found, seed ^ word as u64, "{block:?} was overwritten");
    }
}

/// A block on its way, with how long it is and what was written.
type Parcel = (OffsetPointer, usize, u64);

/// What one user-level thread does: between any two operations, and before each use of what they
/// returned, it yields, by the application's own means. The operations are inlined here.
fn allocate_and_free(
    heap: &ThreadLocalAllocator,
    thread: u64,
    others: &Mutex<Vec<Parcel>>,
    pause: impl Fn(),
) -> u64 {
    let (mut moves, mut stream) = (0, system_number());
    let mut random = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut pause = || {
        pause();
        let now = system_number();
        moves += u64::from(now != stream);
        stream = now;
    };
    let mut mine: Vec<Parcel> = Vec::new();
    for round in 0..24 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Mostly small, of few classes, so that streams contend for the same bins.
        let bytes = if random.is_multiple_of(16) { 4096 } else { 16 << (random >> 8 & 3) };
        let seed = thread << 32 | round;
        let block = heap.allocate(bytes).unwrap();
        pause();
        write(heap, block, bytes, seed);
        pause();
        // At once and without a yield, as between two calls in a row.
        let second = heap.allocate(bytes).unwrap();
        write(heap, second, bytes, !seed);
        pause();
        mine.push((block, bytes, seed));
        let given = {
            let mut others = others.lock().unwrap();
            others.push((second, bytes, !seed));
            let place = usize::try_from(random >> 16).unwrap() % others.len();
            others.swap_remove(place)
        };
        pause();
        verify(heap, given.0, given.1, given.2);
        // SAFETY: [owned] it was handed to this one.
        unsafe { heap.free(given.0) }.unwrap();
        pause();
        if mine.len() > 4 {
            let (block, bytes, seed) = mine.swap_remove(0);
            verify(heap, block, bytes, seed);
            // SAFETY: [owned] nobody else has it.
            let grown = unsafe { heap.reallocate(block, bytes * 2) }.unwrap();
            pause();
            verify(heap, grown, bytes, seed);
            // SAFETY: [owned] nobody else has it.
            unsafe { heap.free(grown) }.unwrap();
            pause();
        }
    }
    for (block, bytes, seed) in mine {
        verify(heap, block, bytes, seed);
        // SAFETY: [owned] nobody else has it.
        unsafe { heap.free(block) }.unwrap();
        pause();
    }
    moves
}

fn heaps() {
    const STREAMS: u32 = 3;
    let abt = Argobots::init();
    // One slot for each stream and none beside: they are not claimed by user-level threads.
    let heap = heap(STREAMS);
    let streams = abt.streams(STREAMS as usize);
    let others = Mutex::new(Vec::new());
    let moves = AtomicU64::new(0);
    let pause = abt.yielder();
    for wave in 0..4 {
        let works = (0..1000).map(|thread| {
            let (heap, others, moves) = (&heap, &others, &moves);
            Box::new(move || {
                let moved = allocate_and_free(heap, wave * 1000 + thread + 1, others, pause);
                moves.fetch_add(moved, Ordering::Relaxed);
            }) as Work<'_>
        });
        streams.run(works);
    }
    assert!(moves.load(Ordering::Relaxed) > 1000, "they hardly moved");
    streams.free();
    assert_eq!(others.lock().unwrap().len(), 0);
    assert_empty(&heap);
    abt.finalize();
}

fn tasklets() {
    let model = thread_model();
    let abt = Argobots::init();
    let heap = heap(4);
    let streams = abt.streams(2);
    let key: ThreadLocalKey<u64> = model.create_tls(ptr::null_mut()).unwrap();
    let numbers = Mutex::new(BTreeSet::new());
    let works = (0..100).map(|thread| {
        let (heap, key, numbers) = (&heap, &key, &numbers);
        Box::new(move || {
            let mut mine = thread;
            assert!(model.get_tls(key).is_null());
            model.set_tls(key, &raw mut mine).unwrap();
            let block = heap.allocate(100).unwrap();
            write(heap, block, 96, thread);
            // It has no stack of its own to be suspended on: the processor is given up.
            model.yield_now();
            model.sleep_for_us(10);
            verify(heap, block, 96, thread);
            // SAFETY: [owned] nobody else has it.
            unsafe { heap.free(block) }.unwrap();
            assert_eq!(model.get_tls(key), &raw mut mine);
            assert!(numbers.lock().unwrap().insert(model.get_tid()));
        }) as Work<'_>
    });
    streams.run_tasklets(works);
    streams.free();
    assert_empty(&heap);
    drop(key);
    abt.finalize();
}

/// The whole of what a thread of the operating system does.
fn as_the_systems_own() {
    let model = thread_model();
    assert!(!Model.is_user_level());
    assert_eq!(model.kind(), ThreadModelKind::Argobots);
    assert_eq!(model.get_tid(), system_number());
    let mut mine = 7_u32;
    let key = model.create_tls(&raw mut mine).unwrap();
    assert_eq!(model.get_tls(&key), &raw mut mine);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(model.get_tls(&key).is_null()));
    });
    let before = Instant::now();
    model.sleep_for_us(1000);
    assert!(before.elapsed() >= Duration::from_millis(1));
    model.yield_now();
    let heap = heap(4);
    let context = heap.create_tls().unwrap();
    for context in [MemContext::DEFAULT, context] {
        let block = heap.allocate_offset(context, 100).unwrap();
        // SAFETY: [owned] nobody else has it.
        unsafe { heap.free_offset_no_null_check(context, block) }.unwrap();
    }
    heap.free_tls(context).unwrap();
    assert_empty(&heap);
}

fn outside() {
    Model.library().unwrap();
    as_the_systems_own();
    let abt = Argobots::init();
    let key: ThreadLocalKey<u8> = thread_model().create_tls(ptr::null_mut()).unwrap();
    let mut mine = 1;
    thread_model().set_tls(&key, &raw mut mine).unwrap();
    abt.finalize();
    // The key's second half is the library's, whose time is over.
    drop(key);
    as_the_systems_own();
}

fn missing() {
    let said = Model.library().unwrap_err().to_string();
    let library = std::env::var("HSHM_ARGOBOTS_LIB").unwrap();
    assert!(said.contains(&library) && said.contains("install Argobots"), "{said}");
    assert!(!said.contains('\n'), "{said}");
    as_the_systems_own();
}
