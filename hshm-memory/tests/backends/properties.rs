//! What every backend must do. Each function fails by a panic.

use std::ops::Range;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::backend::{BASE_ALIGN, HugePages, MIN_ALIGN, NodeSet, NumaPolicy};
use hshm_memory::{
    AllocError, AllocatorId, Backend, BackendError, BackendKind, BackendOptions, InitOptions,
    ThreadLocalAllocator,
};

use crate::subjects::{Made, Place, Property, Subject, may_bind, may_lock};

const SIZE: u64 = 8 << 20;
const CAPACITY: u64 = 64 << 20;
/// Tells the test that is run again in a process of its own where to look.
pub(crate) const PLACE: &str = "HSHM_SUITE_PLACE";

pub(crate) fn run(property: Property, subject: Subject) {
    match property {
        Property::Create => create(subject),
        Property::Alignment => alignment(subject),
        Property::ZeroFilled => zero_filled(subject),
        Property::Grow => grow(subject),
        Property::Populate => populate(subject),
        Property::Punch => punch(subject),
        Property::Capacity => capacity(subject),
        Property::GrownByOther => grown_by_other(subject),
        Property::SecondHandle => second_handle(subject),
        Property::SecondProcess => second_process(subject),
        Property::Destroy => destroy(subject),
        Property::Unmap => unmap(subject),
        Property::Threads => threads(subject),
        Property::Options => options(subject),
        Property::Allocator => allocator(subject),
    }
}

fn made(subject: Subject) -> Made {
    subject.create(SIZE, CAPACITY, &BackendOptions::default())
}

/// The eight bytes at `offset`, which every test uses as shared memory is to be used.
fn word(backend: &dyn Backend, offset: u64) -> &AtomicU64 {
    assert!(offset + 8 <= backend.committed_bytes());
    let address = backend.base().as_ptr().wrapping_add(usize::try_from(offset).unwrap());
    // SAFETY: [mapped] it lies in what is committed; [atomic] all tests use the memory so.
    unsafe { AtomicU64::from_ptr(address.cast()) }
}

fn read(backend: &dyn Backend, offset: u64) -> u64 {
    word(backend, offset).load(Ordering::Acquire)
}

fn write(backend: &dyn Backend, offset: u64, value: u64) {
    word(backend, offset).store(value, Ordering::Release);
}

/// Offsets all over a range: its first and last words, and some between.
fn offsets(range: Range<u64>) -> impl Iterator<Item = u64> {
    let last = range.end - 8;
    range.step_by(40_960).map(|offset| offset & !7).chain([last])
}

fn create(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    assert_eq!(backend.kind(), subject.kind());
    assert!(backend.committed_bytes() >= SIZE && backend.capacity_bytes() >= SIZE);
    assert!(backend.committed_bytes() <= backend.capacity_bytes());
    assert!(!backend.is_damaged());
    let is_shared = subject.excuses().iter().all(|(excused, _)| *excused != Property::SecondHandle);
    let has_file = backend.fd().is_some();
    assert_eq!(has_file, is_shared && subject.kind() != BackendKind::Slice);
    if !has_file {
        // Nobody can be handed what is one process's own, or a part.
        let file = std::fs::File::open("/dev/zero").unwrap().into();
        let refused = subject.kind().open_fd(file, SIZE).unwrap_err();
        assert!(matches!(refused, BackendError::NotShared { .. }), "{refused}");
    }
    if can(subject, Property::Grow) {
        for (size, capacity) in [(0, 0), (0, SIZE), (SIZE, SIZE - 1), (SIZE, u64::MAX)] {
            let refused = subject.try_create(size, capacity, &BackendOptions::default());
            assert!(matches!(refused, Err(BackendError::BadSize { .. })), "{size} in {capacity}");
        }
    }
}

fn can(subject: Subject, property: Property) -> bool {
    subject.excuses().iter().all(|(excused, _)| *excused != property)
}

fn alignment(subject: Subject) {
    for _ in 0..4 {
        let made = made(subject);
        let backend = made.backend();
        let alignment = backend.alignment();
        assert!(alignment.is_power_of_two() && alignment >= MIN_ALIGN);
        assert!(backend.base().addr().get().is_multiple_of(alignment));
        if let Some(place) = made.place.as_ref().filter(|_| can(subject, Property::SecondHandle)) {
            let other = place.open();
            assert_eq!(other.alignment(), alignment);
            assert!(other.base().addr().get().is_multiple_of(alignment));
        }
        let expected = match subject {
            Subject::Array => return,
            Subject::SharedPart => 1 << 16,
            Subject::PrivatePart => 4096,
            Subject::Malloc
            | Subject::PosixMmap
            | Subject::PosixShm
            | Subject::Memfd
            | Subject::FileInTmpfs
            | Subject::FileOnDisk
            | Subject::HugeMemfd
            | Subject::HugeFile => BASE_ALIGN,
        };
        assert_eq!(alignment, expected);
    }
}

fn zero_filled(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    assert!(offsets(0..backend.committed_bytes()).all(|offset| read(&**backend, offset) == 0));
}

fn grow(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    write(&**backend, SIZE - 8, 7);
    let base = backend.base();
    backend.grow(3 * SIZE).unwrap();
    let grown = backend.committed_bytes();
    assert!(grown >= 3 * SIZE);
    backend.grow(SIZE).unwrap();
    assert_eq!(backend.committed_bytes(), grown, "it never shrinks");
    assert_eq!(backend.base(), base, "it never moves");
    assert_eq!(read(&**backend, SIZE - 8), 7);
    backend.populate(SIZE..grown).unwrap();
    assert!(offsets(SIZE..grown).all(|offset| read(&**backend, offset) == 0));
    write(&**backend, grown - 8, 8);
    backend.grow(CAPACITY).unwrap();
    assert_eq!(read(&**backend, grown - 8), 8);
    write(&**backend, CAPACITY - 8, 9);
}

fn populate(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    write(&**backend, 4096, 5);
    let resident = || backend.obtained().unwrap().resident_bytes;
    // Any range will do, aligned or not, and doing it twice does no harm.
    for range in [0..1, 4096..8192, 100..SIZE - 100, 0..SIZE, 5..5] {
        backend.populate(range.clone()).unwrap();
        backend.populate(range).unwrap();
    }
    assert_eq!(read(&**backend, 4096), 5, "it changes nothing");
    assert!(resident() >= SIZE, "{} of {SIZE} bytes are there", resident());
}

fn punch(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    backend.populate(0..SIZE).unwrap();
    let fill = || offsets(0..SIZE).for_each(|offset| write(&**backend, offset, !0));
    for hole in
        [0..4096, 4096..12_288, 40_960..1 << 20, (2 << 20) - 8192..(6 << 20) + 4096, 0..SIZE]
    {
        fill();
        // The words on both sides of the hole.
        let outside = [hole.start.checked_sub(8), Some(hole.end).filter(|&end| end < SIZE)];
        let outside: Vec<u64> = outside.into_iter().flatten().collect();
        outside.iter().for_each(|&offset| write(&**backend, offset, 3));
        write(&**backend, hole.start, 1);
        write(&**backend, hole.end - 8, 1);
        backend.punch(hole.clone()).unwrap();
        backend.populate(hole.clone()).unwrap();
        assert!((hole.start..hole.end).step_by(512).all(|offset| read(&**backend, offset) == 0));
        assert_eq!(read(&**backend, hole.end - 8), 0);
        assert!(outside.iter().all(|&offset| read(&**backend, offset) == 3), "only the hole");
    }
    // What was never used can be punched as well.
    let fresh = crate::properties::made(subject);
    fresh.backend().punch(0..SIZE).unwrap();
    assert_eq!(read(&**fresh.backend(), 0), 0);
}

fn capacity(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    let (committed, capacity) = (backend.committed_bytes(), backend.capacity_bytes());
    for beyond in [capacity + 1, capacity * 2, u64::MAX - (4 << 20)] {
        let refused = backend.grow(beyond).unwrap_err();
        assert!(matches!(refused, BackendError::BadSize { .. }), "{refused}");
    }
    assert_eq!(backend.committed_bytes(), committed);
    backend.grow(capacity).unwrap();
    assert_eq!(backend.committed_bytes(), capacity);
}

fn grown_by_other(subject: Subject) {
    let made = made(subject);
    let other = made.place.as_ref().unwrap().open();
    assert_eq!(other.committed_bytes(), made.backend().committed_bytes());
    other.grow(4 * SIZE).unwrap();
    assert!(made.backend().committed_bytes() >= 4 * SIZE);
    write(&*other, 4 * SIZE - 8, 11);
    assert_eq!(read(&**made.backend(), 4 * SIZE - 8), 11);
}

fn second_handle(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    let other = made.place.as_ref().unwrap().open();
    assert_eq!(other.kind(), backend.kind());
    assert_ne!(other.base(), backend.base());
    for (index, offset) in offsets(0..SIZE).enumerate() {
        write(&**backend, offset, index as u64);
        assert_eq!(read(&*other, offset), index as u64);
    }
    other.punch(4096..8192).unwrap();
    assert_eq!(read(&**backend, 4096), 0);
    drop(other);
    write(&**backend, 0, 1);
}

fn second_process(subject: Subject) {
    let made = made(subject);
    let backend = made.backend();
    offsets(0..SIZE).for_each(|offset| write(&**backend, offset, offset));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_sees_the_same_bytes"])
        .env(PLACE, made.place.as_ref().unwrap().to_words())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
    assert!(offsets(0..SIZE).all(|offset| read(&**backend, offset) == !offset));
}

/// What the other process does.
pub(crate) fn look_and_answer(place: &str) {
    let backend = Place::from_words(place).open();
    for offset in offsets(0..SIZE) {
        assert_eq!(read(&*backend, offset), offset);
        write(&*backend, offset, !offset);
    }
}

fn destroy(subject: Subject) {
    let mut made = made(subject);
    let place = made.place.clone().unwrap();
    assert!(place.is_there());
    made.destroy();
    assert!(!place.is_there());
    // Who has it goes on.
    write(&**made.backend(), 0, 1);
    made.backend().grow(2 * SIZE).unwrap();
    write(&**made.backend(), 2 * SIZE - 8, 1);
    // A failed attempt leaves nothing either.
    let numa = NumaPolicy::Bind(NodeSet::new([1023]).unwrap());
    let refused =
        subject.try_create(SIZE, CAPACITY, &BackendOptions { numa, ..Default::default() });
    let error = refused.unwrap_err();
    assert!(matches!(error, BackendError::Numa { .. }), "{error}");
    let suite = format!("hshm-suite.{}.", std::process::id());
    for folder in ["/dev/shm".as_ref(), std::env::temp_dir().as_path()] {
        let left = std::fs::read_dir(folder).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(&suite)), "{left:?}");
    }
}

/// How much of `range` has a mapping, in bytes.
fn mapped_bytes(range: &Range<usize>) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let overlap = maps.lines().map(|line| {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let at = |digits| usize::from_str_radix(digits, 16).unwrap();
        at(end).min(range.end).saturating_sub(at(start).max(range.start))
    });
    overlap.sum()
}

fn unmap(subject: Subject) {
    let mut made = made(subject);
    let start = made.backend().base().addr().get();
    let range = start..start + usize::try_from(made.backend().capacity_bytes()).unwrap();
    assert_eq!(mapped_bytes(&range), range.len());
    let other = made.place.as_ref().map(Place::open);
    drop(other);
    made.detach();
    // What the test itself needs may be put where the backend was.
    assert!(mapped_bytes(&range) < range.len() / 4);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&made.label));
}

fn threads(subject: Subject) {
    const THREADS: u64 = 4;
    const PART: u64 = SIZE / THREADS;
    let made = made(subject);
    let backend: &dyn Backend = &**made.backend();
    let can_grow = can(subject, Property::Grow);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let own = thread * PART..(thread + 1) * PART;
                for round in 1..=8 {
                    backend.populate(own.clone()).unwrap();
                    offsets(own.clone()).for_each(|offset| write(backend, offset, round));
                    assert!(offsets(own.clone()).all(|offset| read(backend, offset) == round));
                    let hole = own.start + 4096 * round..own.start + (1 << 20);
                    backend.punch(hole.clone()).unwrap();
                    assert!(offsets(hole).all(|offset| read(backend, offset) == 0));
                    if can_grow {
                        let bytes = SIZE + (thread + round) * (1 << 20);
                        backend.grow(bytes).unwrap();
                        assert!(backend.committed_bytes() >= bytes);
                    }
                }
            });
        }
    });
    assert_eq!(read(backend, 0), 8);
}

fn options(subject: Subject) {
    let nodes = NodeSet::new([0]).unwrap();
    for numa in [
        NumaPolicy::Default,
        NumaPolicy::Bind(nodes.clone()),
        NumaPolicy::Interleave(nodes.clone()),
        NumaPolicy::Preferred(nodes),
    ] {
        if numa != NumaPolicy::Default && !may_bind() {
            continue;
        }
        let huge_pages = HugePages::Try;
        let plain = BackendOptions { numa: numa.clone(), huge_pages, ..Default::default() };
        let lock = may_lock();
        let options = BackendOptions { lock, populate: true, ..plain };
        let made = subject.create(SIZE / 2, CAPACITY, &options);
        let obtained = made.backend().obtained().unwrap();
        assert!(obtained.resident_bytes >= SIZE / 2, "{obtained:?}");
        assert!(!lock || obtained.locked_bytes >= SIZE / 2, "{obtained:?}");
        assert_eq!(obtained.numa, numa);
        made.backend().grow(SIZE * 3 / 4).unwrap();
        made.backend().populate(0..SIZE * 3 / 4).unwrap();
        let obtained = made.backend().obtained().unwrap();
        assert!(!lock || obtained.locked_bytes >= SIZE * 3 / 4, "{obtained:?}");
        // Locked memory can be given back as any other.
        write(&**made.backend(), 0, 1);
        made.backend().punch(0..8192).unwrap();
        assert_eq!(read(&**made.backend(), 0), 0);
    }
    let made = subject.create(SIZE, CAPACITY, &BackendOptions::default());
    let obtained = made.backend().obtained().unwrap();
    if !subject.is_huge() {
        assert_eq!(
            (obtained.resident_bytes, obtained.locked_bytes),
            (0, 0),
            "nothing is asked for"
        );
    }
}

fn allocator(subject: Subject) {
    let made = made(subject);
    let backend = Arc::clone(made.backend());
    let id = AllocatorId::new(3, 4);
    let init = InitOptions { worker_slots: 64, ..InitOptions::default() };
    let heap = ThreadLocalAllocator::shm_init(id, backend, &init).unwrap();
    let limit = made.backend().alignment();
    for align in [limit, limit / 2, 64] {
        let block = heap.aligned_allocate(100, align).unwrap();
        assert!(heap.resolve(block, 100).unwrap().addr().get().is_multiple_of(align));
        // SAFETY: [owned] the block was just allocated here.
        unsafe { heap.free(block) }.unwrap();
    }
    let refused = heap.aligned_allocate(100, limit * 2).unwrap_err();
    let AllocError::BadAlignment { limit: said, .. } = refused else { panic!("{refused}") };
    assert_eq!(said, limit);
    std::thread::scope(|scope| {
        for thread in 0..3_u8 {
            let heap = &heap;
            scope.spawn(move || {
                let mut blocks = Vec::new();
                for len in [16, 100, 5000, 70_000].into_iter().cycle().take(60) {
                    let block = heap.allocate(len).unwrap();
                    // SAFETY: [owned] the block is this thread's, and so long.
                    unsafe { heap.resolve(block, len).unwrap().write_bytes(thread, len) };
                    blocks.push((block, len));
                }
                for (block, len) in blocks {
                    let address = heap.resolve(block, len).unwrap();
                    // SAFETY: [owned] the block is this thread's, and so long.
                    let bytes = unsafe { std::slice::from_raw_parts(address.as_ptr(), len) };
                    assert!(bytes.iter().all(|byte| *byte == thread));
                    // SAFETY: [owned] as above; nobody uses it after this.
                    unsafe { heap.free(block) }.unwrap();
                }
            });
        }
    });
    assert_eq!(heap.report().allocated_bytes, 0);
    let check = heap.check();
    assert!(check.violations.is_empty(), "{:?}", check.violations);
    if can(subject, Property::SecondHandle) {
        let other = made.place.as_ref().unwrap().open();
        let other = ThreadLocalAllocator::shm_deserialize(other).unwrap();
        let block = heap.allocate(10).unwrap();
        // SAFETY: [owned] the block was just allocated.
        unsafe { other.free(block) }.unwrap();
    }
}
