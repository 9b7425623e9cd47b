//! A worker of a storm: fills and empties cells until it is killed.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hshm_client::{Client, Error, ErrorCode, Segment};
use hshm_memory::{AllocError, OffsetPointer, ThreadLocalAllocator};
use hshm_tests::random::Random;
use hshm_tests::stamp;

use crate::args::WorkerArgs;
use crate::table::{Command, Content, LANES, LANES_PER_WORKER, Table};

/// How often an operation is tried again for which there is no slot.
const PAUSE: Duration = Duration::from_micros(200);

/// Runs the threads of a worker, for ever unless something is wrong.
pub(crate) fn run(arguments: &WorkerArgs) -> Result<(), String> {
    let segment = attach(arguments)?;
    std::thread::scope(|scope| {
        for thread in 0..arguments.threads.clamp(1, LANES_PER_WORKER) {
            let heap = segment.allocator();
            scope.spawn(move || Thread::new(heap, arguments, thread).work());
        }
    });
    Ok(())
}

/// Attaches as soon as there is a daemon.
fn attach(arguments: &WorkerArgs) -> Result<Segment, String> {
    let mut errors = 0;
    loop {
        let client = Client::builder().socket(&arguments.socket).name("storm").connect();
        match client.and_then(|client| client.attach(&arguments.segment)) {
            Ok(segment) => return Ok(segment),
            // It is being killed and started again.
            Err(Error::NoDaemon { .. } | Error::Disconnected { .. }) => {}
            Err(error) if error.daemon_code() == Some(ErrorCode::Busy) => {}
            Err(error) => {
                errors += 1;
                if errors == 20 {
                    return Err(format!("cannot attach: {error}"));
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

struct Thread<'a> {
    heap: &'a ThreadLocalAllocator,
    table: Table<'a>,
    random: Random,
    lane: usize,
    /// The lanes that cells are sent to.
    partners: Range<usize>,
    /// Cells that one thread at a time works on.
    claimed: Range<usize>,
    /// Cells that are filled and emptied by whoever comes first.
    wild: Range<usize>,
    /// How it claims cells.
    claim: u64,
}

impl<'a> Thread<'a> {
    fn new(heap: &'a ThreadLocalAllocator, arguments: &WorkerArgs, thread: usize) -> Self {
        let own = arguments.worker * LANES_PER_WORKER;
        let partners = match arguments.workers {
            0 => own..own + arguments.threads,
            workers => 0..(workers * LANES_PER_WORKER).min(LANES),
        };
        Self {
            heap,
            table: Table::of(heap),
            random: Random::new(arguments.seed.wrapping_add(thread as u64)),
            lane: own + thread,
            partners,
            claimed: arguments.claimed_from..arguments.claimed_to,
            wild: arguments.claimed_to..arguments.wild_to,
            claim: arguments.incarnation,
        }
    }

    fn work(mut self) {
        loop {
            match self.table.command() {
                Command::Run => self.one(),
                Command::Pause => {
                    self.table.lane(self.lane).paused.store(self.claim, Ordering::SeqCst);
                    while self.table.command() == Command::Pause {
                        std::thread::sleep(PAUSE);
                    }
                    self.table.lane(self.lane).paused.store(0, Ordering::SeqCst);
                }
            }
            self.table.lane(self.lane).operations.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// One thing or another.
    fn one(&mut self) {
        match self.random.below(1000) {
            0 => self.heap.detach_thread(),
            1 => self.through_a_thread(),
            // Without a free slot there is nothing that it could give back.
            2 => drop(self.heap.trim()),
            3..100 => self.hurry(),
            100..200 if !self.wild.is_empty() => {
                for _ in 0..self.random.below(1000) {
                    let cell = self.wild.start + self.random.index(self.wild.len());
                    self.change(cell);
                }
            }
            200..500 => {
                let chance = self.random.index(usize::MAX);
                let sent = self.table.receive(self.lane, chance);
                if let Some(cell) = sent.filter(|cell| self.claimed.contains(cell)) {
                    self.tend(cell);
                }
            }
            _ => {
                let cell = self.claimed.start + self.random.index(self.claimed.len());
                self.tend(cell);
            }
        }
        self.table.lane(self.lane).place.store(0, Ordering::SeqCst);
    }

    /// Some operations of a thread that then ends.
    fn through_a_thread(&mut self) {
        let mut brief = Thread {
            random: Random::new(self.random.next()),
            partners: self.partners.clone(),
            claimed: self.claimed.clone(),
            wild: self.wild.clone(),
            ..*self
        };
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..8 {
                    let cell = brief.claimed.start + brief.random.index(brief.claimed.len());
                    brief.tend(cell);
                }
            });
        });
    }

    /// Fills and empties cells that nobody else works on as quickly as can be: so it dies more often
    /// amid an operation than between two.
    fn hurry(&mut self) {
        let claimed: Vec<_> = (0..16)
            .map(|_| self.claimed.start + self.random.index(self.claimed.len()))
            .filter(|cell| {
                let claim = self.table.claim(*cell);
                claim.compare_exchange(0, self.claim, Ordering::SeqCst, Ordering::Relaxed).is_ok()
            })
            .collect();
        for cell in &claimed {
            self.table.set_content(*cell, None);
        }
        for _ in 0..self.random.below(200) {
            for cell in &claimed {
                self.change(*cell);
            }
        }
        for cell in claimed {
            self.table.claim(cell).store(0, Ordering::SeqCst);
        }
    }

    /// Works on a cell that nobody else works on: fills it, or verifies and frees what it names.
    fn tend(&mut self, cell: usize) {
        let claim = self.table.claim(cell);
        if claim.compare_exchange(0, self.claim, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return;
        }
        self.table.lane(self.lane).place.store(cell as u64 + 1, Ordering::SeqCst);
        let named = self.heap.read_cell(self.table.cell(cell)).expect("it is a cell");
        let mut filled = false;
        if named.is_null() {
            filled = self.fill(cell);
        } else {
            self.verify(cell, named);
            if self.random.below(4) > 0 {
                self.table.set_content(cell, None);
                let place = self.table.cell(cell);
                let emptied = self.timed(|_| self.empty(place));
                assert!(emptied, "cell {cell} named {named}, and was not emptied");
            }
        }
        claim.store(0, Ordering::SeqCst);
        if filled && self.random.below(2) == 0 {
            let to = self.partners.start + self.random.index(self.partners.len());
            let chance = self.random.index(usize::MAX);
            self.table.send(to, cell, chance);
        }
    }

    /// Allocates into a null cell, and writes what can be recognised. False if that cannot be.
    fn fill(&mut self, cell: usize) -> bool {
        let content = self.content();
        // What was there before may have been emptied by one who died before he could say so.
        self.table.set_content(cell, None);
        let place = self.table.cell(cell);
        let (len, align) = (content.len, content.align);
        match self.timed(|heap| heap.aligned_allocate_into(place, len, align)) {
            Ok(block) => {
                let usable = self.heap.usable_bytes(block).expect("a block");
                assert!(usable >= len, "the block at {block} has {usable} bytes, not {len}");
                // SAFETY: [owned] nobody else works on the cell, whose block this is.
                unsafe { stamp::fill(self.heap, block, len, content.stamp(cell)) };
                self.table.set_content(cell, Some(content));
                true
            }
            // Somebody died who was freeing what it named.
            Err(AllocError::BadCell { .. }) => false,
            Err(error) => self.bear(&error),
        }
    }

    fn content(&mut self) -> Content {
        let len = match self.random.below(100) {
            0..80 => self.random.size(1, 4 << 10),
            80..96 => self.random.size(4 << 10, 64 << 10),
            _ => self.random.size(64 << 10, 2 << 20),
        };
        let align = match self.random.below(16) {
            0 => 1 << self.random.below(22),
            1 | 2 => 1 << self.random.below(13),
            _ => 1,
        };
        Content { generation: self.random.next(), align, len }
    }

    /// Panics if the block in the cell is not what was written there.
    fn verify(&self, cell: usize, block: OffsetPointer) {
        // Who allocated it may have died before it was filled.
        let Some(content) = self.table.content(cell) else { return };
        verify(self.heap, cell, block, content);
        self.table.lane(self.lane).verified.fetch_add(1, Ordering::SeqCst);
    }

    /// Fills a cell that is null, or empties one that is not, perhaps at the same time as others do.
    fn change(&mut self, cell: usize) {
        let place = self.table.cell(cell);
        let named = self.heap.read_cell(place).expect("it is a cell");
        if !named.is_null() {
            self.empty(place);
            return;
        }
        let len = match self.random.below(256) {
            0 => self.random.size(4 << 10, 1 << 20),
            _ => 16 << self.random.below(8),
        };
        match self.heap.allocate_into(place, len) {
            // Another filled it first.
            Ok(_) | Err(AllocError::BadCell { .. }) => {}
            Err(error) => {
                self.bear(&error);
            }
        }
    }

    /// Whether the cell named a block, which is free now.
    fn empty(&self, place: OffsetPointer) -> bool {
        loop {
            // SAFETY: [owned] blocks in the cells that others may empty are used by nobody, and those
            // in claimed cells by the claimant.
            match unsafe { self.heap.free_from(place) } {
                Ok(emptied) => return emptied,
                Err(error) => self.bear(&error),
            };
        }
    }

    /// Waits a moment after an error that a busy segment may give, and panics after another.
    fn bear(&self, error: &AllocError) -> bool {
        let is_busy =
            matches!(error, AllocError::OutOfMemory { .. } | AllocError::NoWorkerSlot { .. });
        assert!(is_busy, "{error}");
        std::thread::sleep(PAUSE);
        false
    }

    /// Notes how long an operation took, unless the process was stopped meanwhile.
    fn timed<R>(&self, operation: impl FnOnce(&ThreadLocalAllocator) -> R) -> R {
        let lane = self.table.lane(self.lane);
        let stops = || lane.stops.load(Ordering::SeqCst);
        let before = (stops(), Instant::now());
        let result = operation(self.heap);
        let took = u64::try_from(before.1.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if stops() == before.0 {
            note_longest(lane.longest_ns, took);
        }
        result
    }
}

fn note_longest(longest: &AtomicU64, took: u64) {
    if longest.load(Ordering::Relaxed) < took {
        longest.fetch_max(took, Ordering::SeqCst);
    }
}

/// Panics if `block`, which `cell` names, does not hold `content`.
pub(crate) fn verify(
    heap: &ThreadLocalAllocator,
    cell: usize,
    block: OffsetPointer,
    content: Content,
) {
    let align = content.align as u64;
    assert!(block.offset_bytes().is_multiple_of(align), "{block} is not aligned to {align}");
    // SAFETY: [owned] whoever has the cell claimed, or paused all others, has its block.
    unsafe { stamp::verify(heap, block, content.len, content.len, content.stamp(cell)) };
}
