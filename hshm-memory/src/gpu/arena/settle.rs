//! An arena at rest: what is in it, and what becomes of it when its device code is gone.

use super::layout::{BITMAP_WORDS, Chunk, ChunkWord, NEVER_FILLED, Ring, block_bytes, blocks_of};
use super::{ArenaError, DeviceArena};
use crate::report::{CheckReport, Violation};
use crate::robust::RobustGuard;
use crate::sync::Ordering;

/// What was found when an arena was taken over from a dead owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settled {
    /// Blocks of the heap's that the device had given back, and that were freed.
    pub host_blocks_freed: u64,
    /// Blocks of the arena's that the host had given back, and that were freed.
    pub own_blocks_freed: u64,
    /// Blocks that were counted as taken, and were not.
    pub miscounted: u64,
    /// Entries that device code was about to make.
    pub unfinished: u64,
}

/// What is in an arena. While device code works there, each number is true at some moment, but not all at
/// the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ArenaReport {
    /// Chunks there are, of 64 KiB each.
    pub chunks: u64,
    /// Chunks that are cut into blocks.
    pub chunks_in_use: u64,
    /// Blocks that are allocated, those among them that the host gave back and the device has not taken note of.
    pub allocated_blocks: u64,
    /// And how many bytes they are.
    pub allocated_bytes: u64,
    /// Frees that wait for the device.
    pub frees_to_device: u64,
    /// Blocks that wait for the device.
    pub blocks_to_device: u64,
    /// Frees that wait for the host.
    pub frees_to_host: u64,
    /// Blocks that wait for the host.
    pub blocks_to_host: u64,
    /// Frees of the device's that named no block, since the arena was made.
    pub refused_frees: u64,
}

/// Bits of a chunk that are set, of those that its class has, and the others.
fn taken(chunk: &Chunk, class: u64) -> (u64, u64) {
    let blocks = blocks_of(class);
    let (mut inside, mut beyond) = (0, 0);
    for (at, word) in (0..BITMAP_WORDS as u64).zip(&chunk.bits) {
        let word = word.load(Ordering::Acquire);
        let here = blocks.saturating_sub(at * 64).min(64);
        let mask = if here == 64 { u64::MAX } else { (1 << here) - 1 };
        inside += u64::from((word & mask).count_ones());
        beyond += u64::from((word & !mask).count_ones());
    }
    (inside, beyond)
}

impl DeviceArena {
    /// Finishes what a dead owner's device code was about. The host's end of the rings is held. May be interrupted, and
    /// begun again.
    pub(super) fn settle(&self, guard: &RobustGuard<'_>) -> Result<Settled, ArenaError> {
        let mut settled = Settled::default();
        for ring in [Ring::DeviceFrees, Ring::DeviceBlocks] {
            settled.unfinished += self.close_gaps(ring)?;
        }
        settled.own_blocks_freed = self.apply_frees()?;
        for ring in [Ring::HostFrees, Ring::HostBlocks] {
            self.clear_taken(ring)?;
        }
        settled.miscounted = self.recount()?;
        settled.host_blocks_freed = self.drain_with(guard)?.freed;
        Ok(settled)
    }

    /// Marks the places that were given out and never filled.
    fn close_gaps(&self, ring: Ring) -> Result<u64, ArenaError> {
        let (head, tail) = (self.head(ring)?, self.tail(ring)?.load(Ordering::Relaxed));
        let given = head.load(Ordering::Acquire).wrapping_sub(tail);
        if given > self.geometry.ring_entries {
            // No counter that device code leaves; what the ring held cannot be told.
            for cell in self.cells(ring)? {
                cell.store(0, Ordering::Release);
            }
            head.store(tail, Ordering::Release);
            return Ok(0);
        }
        let mut gaps = 0;
        for ticket in 0..given {
            let cell = self.cell(ring, tail.wrapping_add(ticket))?;
            if cell.load(Ordering::Acquire) == 0 {
                cell.store(NEVER_FILLED, Ordering::Release);
                gaps += 1;
            }
        }
        Ok(gaps)
    }

    /// Does the frees that the host had asked for.
    fn apply_frees(&self) -> Result<u64, ArenaError> {
        let (head, tail) = (self.head(Ring::HostFrees)?, self.tail(Ring::HostFrees)?);
        let mut freed = 0;
        for _ in 0..self.geometry.ring_entries {
            let ticket = tail.load(Ordering::Acquire);
            let waiting = head.load(Ordering::Acquire).wrapping_sub(ticket);
            if waiting == 0 {
                break;
            }
            if waiting > self.geometry.ring_entries {
                tail.store(head.load(Ordering::Acquire), Ordering::Release);
                break;
            }
            let offset = self.cell(Ring::HostFrees, ticket)?.load(Ordering::Relaxed);
            if let Some((chunk, number)) = self.block_at(offset)
                && let Some(word) =
                    self.chunks()?.get(chunk).and_then(|it| it.bits.get(number / 64))
            {
                let bit = 1 << (number % 64);
                freed += u64::from(word.fetch_and(!bit, Ordering::AcqRel) & bit != 0);
            }
            // Died here: done again, it finds the bit clear. Nobody allocates meanwhile.
            tail.store(ticket.wrapping_add(1), Ordering::Release);
        }
        Ok(freed)
    }

    /// Empties the places of a ring to the device that were taken: whoever took the last ones died before making
    /// them zero.
    fn clear_taken(&self, ring: Ring) -> Result<(), ArenaError> {
        let (head, tail) = (self.head(ring)?.load(Ordering::Acquire), self.tail(ring)?);
        let mut waiting = head.wrapping_sub(tail.load(Ordering::Acquire));
        if waiting > self.geometry.ring_entries {
            // No counter that device code leaves; what the ring held cannot be told.
            tail.store(head, Ordering::Release);
            waiting = 0;
        }
        for ticket in 0..self.geometry.ring_entries - waiting {
            self.cell(ring, head.wrapping_add(ticket))?.store(0, Ordering::Release);
        }
        Ok(())
    }

    /// Makes the chunks' counts anew from their bits.
    fn recount(&self) -> Result<u64, ArenaError> {
        let mut miscounted = 0;
        for chunk in self.chunks()? {
            let found = ChunkWord(chunk.word.load(Ordering::Acquire));
            // A word that nobody stores is left for `check` to tell of.
            let Some(class) = found.class() else { continue };
            let (inside, _) = taken(chunk, class);
            miscounted += found.count().saturating_sub(inside);
            chunk.word.store(ChunkWord::new(class, inside).0, Ordering::Release);
        }
        Ok(miscounted)
    }

    /// What is in it.
    ///
    /// # Errors
    /// If the arena's block is gone.
    pub fn report(&self) -> Result<ArenaReport, ArenaError> {
        let waiting = |ring| -> Result<u64, ArenaError> {
            let tail = self.tail(ring)?.load(Ordering::Acquire);
            let waiting = self.head(ring)?.load(Ordering::Acquire).wrapping_sub(tail);
            Ok(waiting.min(self.geometry.ring_entries))
        };
        let mut report = ArenaReport {
            chunks: self.geometry.chunks,
            frees_to_device: waiting(Ring::HostFrees)?,
            blocks_to_device: waiting(Ring::HostBlocks)?,
            frees_to_host: waiting(Ring::DeviceFrees)?,
            blocks_to_host: waiting(Ring::DeviceBlocks)?,
            refused_frees: self.header()?.refused.load(Ordering::Relaxed),
            ..ArenaReport::default()
        };
        for chunk in self.chunks()? {
            let word = ChunkWord(chunk.word.load(Ordering::Acquire));
            let Some(class) = word.class() else { continue };
            let (inside, _) = taken(chunk, class);
            report.chunks_in_use += 1;
            report.allocated_blocks += inside;
            report.allocated_bytes += inside * block_bytes(class);
        }
        Ok(report)
    }

    /// Walks the arena and names what cannot be. While device code works there, what it is about may show as
    /// violations.
    ///
    /// # Errors
    /// If the arena's block is gone.
    pub fn check(&self) -> Result<CheckReport, ArenaError> {
        let mut report = CheckReport::default();
        let mut broken = |offset: u64, what: String| {
            report.violations_total += 1;
            if report.violations.len() < CheckReport::MAX_VIOLATIONS {
                report.violations.push(Violation { invariant: "arena".into(), offset, what });
            }
        };
        let (mut blocks, mut bytes) = (0, 0);
        let first = self.offset.offset_bytes() + self.geometry.blocks_offset;
        for (chunk, number) in self.chunks()?.iter().zip(0..) {
            let at = first + number * super::layout::CHUNK_BYTES;
            let word = ChunkWord(chunk.word.load(Ordering::Acquire));
            let Some(class) = word.class() else {
                let (inside, _) = taken(chunk, 0);
                if word.0 != 0 || inside != 0 {
                    broken(
                        at,
                        format!("a chunk of no class, word {:#x}, has {inside} bits set", word.0),
                    );
                }
                continue;
            };
            let (inside, beyond) = taken(chunk, class);
            blocks += inside;
            bytes += inside * block_bytes(class);
            if beyond != 0 {
                broken(at, format!("{beyond} bits are set beyond the chunk's blocks"));
            }
            if inside != word.count() {
                broken(
                    at,
                    format!("a chunk counts {} blocks, and {inside} bits are set", word.count()),
                );
            }
        }
        for ring in [Ring::HostFrees, Ring::HostBlocks, Ring::DeviceFrees, Ring::DeviceBlocks] {
            let tail = self.tail(ring)?.load(Ordering::Acquire);
            let waiting = self.head(ring)?.load(Ordering::Acquire).wrapping_sub(tail);
            let full = self.cells(ring)?.iter().filter(|cell| cell.load(Ordering::Acquire) != 0);
            let full = full.count() as u64;
            if waiting != full {
                let at = self.offset.offset_bytes() + self.cells_at(ring);
                broken(
                    at,
                    format!("a ring counts {waiting} entries, and {full} of its places are full"),
                );
            }
        }
        (report.pages, report.allocated_blocks, report.allocated_bytes) =
            (self.geometry.chunks, blocks, bytes);
        Ok(report)
    }
}
