//! What those at work together share besides the allocator: a barrier, their results, and a ring of
//! batches. It lies in a file in memory, so that they may be threads or processes.

use std::cell::UnsafeCell;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::system::die;

/// The most threads, over all processes.
pub(crate) const MAX_SEATS: usize = 256;
/// Blocks that change hands at once.
pub(crate) const BATCH: usize = 120;
/// Batches under way.
const RING: usize = 64;

/// One batch of blocks.
pub(crate) type Batch = [u64; BATCH];

#[derive(Debug)]
#[repr(C, align(128))]
struct Alone<T>(T);

#[derive(Debug)]
#[repr(C, align(128))]
struct SeatResult {
    nanoseconds: AtomicU64,
    operations: AtomicU64,
}

/// The shared board; all zeros is its initial state.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Board {
    arrived: Alone<AtomicU32>,
    turn: Alone<AtomicU32>,
    /// A flag and two numbers that the workloads use as they like.
    pub(crate) flag: AtomicU64,
    pub(crate) first: AtomicU64,
    pub(crate) second: AtomicU64,
    results: [SeatResult; MAX_SEATS],
    /// Batches put into the ring so far.
    head: Alone<AtomicU64>,
    /// Batches taken out so far.
    tail: Alone<AtomicU64>,
    ring: [UnsafeCell<Batch>; RING],
}

// SAFETY: [atomic] all is atomic but the ring, whose entries belong to the one putter from `tail` +
// RING on and to the one taker from `head` on.
unsafe impl Sync for Board {}

impl Board {
    /// A new board and the file that it lies in, which child processes inherit.
    pub(crate) fn create() -> (&'static Self, OwnedFd) {
        // SAFETY: [ffi] the name is a C string; no CLOEXEC: children are to have the file.
        let fd = unsafe { libc::memfd_create(c"hshm-bench-board".as_ptr(), 0) };
        if fd < 0 {
            die(format!("no board: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: [ffi] just opened, and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: [ffi] a plain call on an open file.
        if unsafe { libc::ftruncate64(fd, size_of::<Self>().cast_signed() as i64) } != 0 {
            die(format!("no board: {}", std::io::Error::last_os_error()));
        }
        (Self::open(fd), file)
    }

    /// The board in a file that was inherited.
    pub(crate) fn open(fd: RawFd) -> &'static Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        let length = size_of::<Self>();
        // SAFETY: [ffi] a new mapping at an address of the kernel's choice.
        let address =
            unsafe { libc::mmap64(std::ptr::null_mut(), length, protection, flags, fd, 0) };
        if address == libc::MAP_FAILED {
            die(format!("no board: {}", std::io::Error::last_os_error()));
        }
        let Some(board) = NonNull::new(address.cast::<Self>()) else { die("no board: null") };
        // SAFETY: [mapped] for the rest of the process; [init] all zeros is valid.
        unsafe { board.as_ref() }
    }

    /// Waits for all of `seats`.
    pub(crate) fn wait(&self, seats: usize) {
        let turn = self.turn.0.load(Ordering::Acquire);
        let arrived = self.arrived.0.fetch_add(1, Ordering::AcqRel) + 1;
        if arrived as usize == seats {
            self.arrived.0.store(0, Ordering::Relaxed);
            // ORDER: Release: whoever sees the next turn sees the count begun anew.
            self.turn.0.store(turn + 1, Ordering::Release);
        } else {
            spin_until(|| self.turn.0.load(Ordering::Acquire) != turn);
        }
    }

    pub(crate) fn set_result(&self, seat: usize, nanoseconds: u128, operations: usize) {
        let Some(result) = self.results.get(seat) else { return };
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        result.nanoseconds.store(nanoseconds, Ordering::Relaxed);
        // ORDER: Release pairs with the Acquire of `mean`.
        result.operations.store(operations as u64, Ordering::Release);
    }

    /// Nanoseconds for each operation, the mean over the seats that did any.
    pub(crate) fn mean(&self) -> f64 {
        let mut sum = 0.0;
        let mut count = 0.0;
        for result in &self.results {
            let operations = result.operations.load(Ordering::Acquire);
            if operations > 0 {
                sum += result.nanoseconds.load(Ordering::Relaxed) as f64 / operations as f64;
                count += 1.0;
            }
        }
        sum / count
    }

    /// Hands `batch` over. Called by one thread only.
    pub(crate) fn put(&self, batch: &Batch) {
        let head = self.head.0.load(Ordering::Relaxed);
        spin_until(|| head - self.tail.0.load(Ordering::Acquire) < RING as u64);
        // SAFETY: [owned] the entry is the putter's until `head` says otherwise.
        unsafe { self.entry(head).write(*batch) };
        // ORDER: Release hands the entry over.
        self.head.0.store(head + 1, Ordering::Release);
    }

    /// Takes the oldest batch. Called by one thread only.
    pub(crate) fn take(&self) -> Batch {
        let tail = self.tail.0.load(Ordering::Relaxed);
        spin_until(|| self.head.0.load(Ordering::Acquire) > tail);
        // SAFETY: [owned] the entry is the taker's until `tail` says otherwise.
        let batch = unsafe { self.entry(tail).read() };
        // ORDER: Release hands the entry back.
        self.tail.0.store(tail + 1, Ordering::Release);
        batch
    }

    fn entry(&self, number: u64) -> *mut Batch {
        #[allow(clippy::cast_possible_truncation, reason = "below RING")]
        let at = (number % RING as u64) as usize;
        self.ring[at].get()
    }
}

/// Waits, leaving the core to others if it takes long.
pub(crate) fn spin_until(mut done: impl FnMut() -> bool) {
    let mut spins = 0_u32;
    while !done() {
        spins += 1;
        if spins.is_multiple_of(256) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
}
