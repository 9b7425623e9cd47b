//! Where memory ends: the segment's, and the machine's.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;

use hshm_memory::{
    AllocError, BackendError, InitOptions, OffsetPointer, PosixShmMmap, SegmentError,
};
use hshm_tests::own_shm::with_own_shm;
use hshm_tests::process::{Worker, wait_until};
use hshm_tests::random::Random;
use hshm_tests::segment::{Kind, TempName, TestSegment, VARIANTS};

/// Allocates until there is no room.
fn fill_up(segment: &TestSegment, bytes: usize) -> Vec<OffsetPointer> {
    let mut blocks = Vec::new();
    loop {
        match segment.heap.allocate(bytes) {
            Ok(block) => blocks.push(block),
            Err(AllocError::OutOfMemory { committed_bytes, .. }) => {
                assert_eq!(committed_bytes, segment.heap.committed_bytes());
                return blocks;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_segment_holds_as_much_each_time_it_is_filled() {
    for (kind, on_exit) in VARIANTS {
        let options = InitOptions { on_exit, worker_slots: 4, ..Default::default() };
        let segment = TestSegment::new(kind, 8 << 20, options);
        let mut random = Random::new(21);
        let sizes = [100, 3000, 16_000, 65_536, 300_000];
        let whole = segment.heap.report().largest_free_run_bytes;
        let whole = usize::try_from(whole).unwrap();
        let mut held = [None; 5];
        for round in 0..100 {
            let which = if round < 5 { round } else { random.index(sizes.len()) };
            let mut blocks = fill_up(&segment, sizes[which]);
            let count = *held[which].get_or_insert(blocks.len());
            assert_eq!(blocks.len(), count, "{} bytes, time {round}", sizes[which]);
            assert!(count * sizes[which] > 6 << 20, "{count} blocks of {} bytes", sizes[which]);
            while !blocks.is_empty() {
                let block = blocks.swap_remove(random.index(blocks.len()));
                // SAFETY: the block is ours.
                unsafe { segment.heap.free(block) }.unwrap();
            }
            // What is kept for the next request is no loss: all memory can be had as one block.
            let block = segment.heap.allocate(whole).unwrap();
            // SAFETY: the block is ours.
            unsafe { segment.heap.free(block) }.unwrap();
        }
        segment.assert_empty();
    }
}

#[test]
fn a_full_segment_serves_again_what_is_freed() {
    for (kind, on_exit) in VARIANTS {
        let segment =
            TestSegment::new(kind, 8 << 20, InitOptions { on_exit, ..Default::default() });
        let mut blocks = fill_up(&segment, 1000);
        for _ in 0..10_000 {
            let block = blocks.swap_remove(blocks.len() / 2);
            // SAFETY: the block is ours.
            unsafe { segment.heap.free(block) }.unwrap();
            blocks.push(segment.heap.allocate(1000).unwrap());
        }
        segment.assert_sound();
        for block in blocks {
            // SAFETY: the block is ours.
            unsafe { segment.heap.free(block) }.unwrap();
        }
        segment.assert_empty();
    }
}

#[test]
fn growing_makes_room_to_the_capacity_and_no_further() {
    let segment = TestSegment::with_capacity(Kind::PosixShm, 4 << 20, 64 << 20, Default::default());
    let heap = &segment.heap;
    let mut blocks = fill_up(&segment, 60_000);
    let before = blocks.len();
    heap.grow(32 << 20).unwrap();
    blocks.extend(fill_up(&segment, 60_000));
    assert!(blocks.len() > before + 300);
    let refused = heap.grow((64 << 20) + 1);
    assert!(
        matches!(refused, Err(AllocError::Backend(BackendError::BadSize { .. }))),
        "{refused:?}"
    );
    // Larger than all there will ever be, and larger than what there is now.
    assert!(matches!(heap.allocate(1 << 40), Err(AllocError::TooLarge { .. })));
    assert!(matches!(heap.allocate(40 << 20), Err(AllocError::OutOfMemory { .. })));
    for block in blocks {
        // SAFETY: the block is ours.
        unsafe { heap.free(block) }.unwrap();
    }
    segment.assert_empty();
}

#[test]
fn sizes_that_make_no_sense_are_refused_and_leave_nothing() {
    for (size, capacity) in [(0, 0), (0, 1 << 20), (2 << 20, 1 << 20), (1 << 20, u64::MAX)] {
        let name = TempName::new();
        let made = PosixShmMmap::create(name.as_str(), size, capacity, 0o600);
        assert!(matches!(made, Err(BackendError::BadSize { .. })), "{made:?}");
        let left = PosixShmMmap::unlink(name.as_str());
        assert!(matches!(left, Err(BackendError::NotFound { .. })), "something was left");
    }
    // Too small for its own tables.
    let name = TempName::new();
    let backend = PosixShmMmap::create(name.as_str(), 64 << 10, 64 << 10, 0o600).unwrap();
    let made = hshm_memory::ThreadLocalAllocator::shm_init(
        hshm_memory::AllocatorId::new(1, 1),
        std::sync::Arc::new(backend),
        &InitOptions::default(),
    );
    assert!(matches!(made, Err(SegmentError::Truncated { .. })), "{made:?}");
}

#[test]
fn a_full_dev_shm_is_an_error_value_and_no_signal() {
    let Some(mut command) = with_own_shm(24, crate::WORKER) else {
        eprintln!("skipped: this user may not mount a file system of its own");
        return;
    };
    let name = TempName::new();
    Worker::start(command.args(["full", name.as_str()])).finish();
}

/// A control group whose processes may have so much memory, if this user may make one.
struct ControlGroup(PathBuf);

impl ControlGroup {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("hshm-test-{}", std::process::id());
        // Of the first version, and of the second.
        let places = [("memory/", "memory.limit_in_bytes"), ("", "memory.max")];
        places.iter().find_map(|(controller, limit)| {
            let path = PathBuf::from(format!("/sys/fs/cgroup/{controller}{name}"));
            std::fs::create_dir(&path).ok()?;
            let group = Self(path);
            let is_group = group.0.join("cgroup.procs").exists() && group.0.join(limit).exists();
            let is_set = is_group && std::fs::write(group.0.join(limit), bytes.to_string()).is_ok();
            is_set.then_some(group)
        })
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // Busy until the last process is gone entirely.
        wait_until("the control group is empty", || {
            std::fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

#[test]
fn the_limit_of_a_control_group_is_an_error_value_or_a_death_that_loses_nothing() {
    let Some(group) = ControlGroup::new(64 << 20) else {
        eprintln!("skipped: this user may not limit the memory of processes");
        return;
    };
    let segment = TestSegment::new(Kind::Memfd, 512 << 20, Default::default());
    let block = segment.heap.allocate(100).unwrap();
    let worker = segment.command(crate::WORKER, "limited");
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ > \"$0\"/cgroup.procs && exec \"$@\""]).arg(&group.0);
    command.arg(worker.get_program()).args(worker.get_args()).stdin(segment.fd());
    let status = command.status().unwrap();
    // Some kernels end a process that asks for more, rather than to refuse it. That is a death like
    // any other; SIGBUS would be ours.
    assert!(status.success() || status.signal() == Some(9), "{status}");
    let recovered = segment.heap.recover_dead().slots;
    assert_eq!(recovered, u32::from(!status.success()));
    segment.assert_sound();
    // Who is not in the group has all the rest.
    let more = fill_up(&segment, 1 << 20);
    assert!(more.len() > 300, "{} blocks", more.len());
    for block in more.into_iter().chain([block]) {
        // SAFETY: the block is ours.
        unsafe { segment.heap.free(block) }.unwrap();
    }
    segment.assert_sound();
}
