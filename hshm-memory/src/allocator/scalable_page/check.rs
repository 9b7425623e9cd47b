//! The whole heap put to its invariants.

use std::time::Duration;

use super::heap::{Heap, Page};
use super::layout::{CACHES, State, cache_of};
use crate::allocator::segment::GRANULE_BYTES;
use crate::report::CheckReport;
use crate::sync::Ordering;

/// How long a check waits for the lock.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

impl Heap<'_> {
    /// Asserts P1 to P5.
    pub(super) fn check(&self) -> CheckReport {
        let mut report = CheckReport::default();
        let mut free = [0_u64; CACHES];
        if self.check_pages(&mut report, &mut free) {
            self.check_caches(&mut report, &free);
            self.check_sums(&mut report);
        }
        report
    }

    /// P1, P2, P3; counts the free pages for each cache. False if the pages could not be walked.
    fn check_pages(&self, report: &mut CheckReport, free: &mut [u64; CACHES]) -> bool {
        let mut before: Option<Page> = None;
        let walked = self.walk(|page| {
            report.units += page.granules;
            report.pages += 1;
            let told = self.granules_before(page.at).unwrap_or(u64::MAX);
            let expected = before.map_or(0, |before| before.granules);
            if told != expected {
                let what = format!("the page before has {expected} granules, not {told}");
                report.violate("P2", page.at, what);
            }
            match page.state {
                State::Free => {
                    report.free_blocks += 1;
                    if let Some(count) = free.get_mut(cache_of(page.granules)) {
                        *count += 1;
                    }
                    if before.is_some_and(|before| before.state == State::Free) {
                        report.violate("P3", page.at, "so is the page before, free".to_owned());
                    }
                }
                State::Allocated => {
                    report.allocated_blocks += 1;
                    report.allocated_bytes += page.block_bytes();
                }
            }
            before = Some(page);
            Ok(())
        });
        if let Err(error) = walked {
            let at = before.map_or(self.segment.first_block(), Page::end);
            report.violate("P1", at, error.to_string());
            return false;
        }
        let told = self.table.last_granules.load(Ordering::Relaxed);
        let expected = before.map_or(0, |before| before.granules);
        if told != expected {
            let what = format!("the last page has {expected} granules, not {told}");
            report.violate("P2", self.end, what);
        }
        true
    }

    /// P4: each cache leads to as many pages as there are free ones for it, each once.
    fn check_caches(&self, report: &mut CheckReport, free: &[u64; CACHES]) {
        for (cache, &expected) in free.iter().enumerate() {
            let mut link = self.cache(cache).load(Ordering::Relaxed);
            let mut previous = 0;
            let mut found = 0;
            // Pages that are found one after the other, each naming the one before, are different.
            while link != 0 && found <= expected {
                let back = self.cached(link, cache).and_then(|_| self.links(link));
                match back {
                    Ok((next, back)) if back == previous => {
                        previous = link;
                        link = next;
                        found += 1;
                    }
                    Ok((_, back)) => {
                        let what = format!("its cache has {previous:#x} before it, not {back:#x}");
                        report.violate("P4", link, what);
                        break;
                    }
                    Err(error) => {
                        report.violate("P4", link, error.to_string());
                        break;
                    }
                }
            }
            if found != expected {
                let what = format!("cache {cache} holds {found} pages of {expected}");
                report.violate("P4", 0, what);
            }
            let bit = self
                .table
                .filled
                .get(cache / 64)
                .map_or(0, |word| word.load(Ordering::Relaxed) >> (cache % 64) & 1);
            if (bit == 1) != (expected > 0) {
                let what = format!("cache {cache} is marked {bit} and holds {expected} pages");
                report.violate("P4", 0, what);
            }
        }
    }

    /// P5.
    fn check_sums(&self, report: &mut CheckReport) {
        let (bytes, blocks) = self.sums();
        if (bytes, blocks) != (report.allocated_bytes, report.allocated_blocks) {
            let what = format!(
                "{blocks} blocks with {bytes} bytes are counted, {} with {} are there",
                report.allocated_blocks, report.allocated_bytes
            );
            report.violate("P5", 0, what);
        }
        let all = (self.end - self.segment.first_block()) / GRANULE_BYTES;
        if report.units != all {
            report.violate("P1", 0, format!("the pages have {} granules of {all}", report.units));
        }
    }
}
