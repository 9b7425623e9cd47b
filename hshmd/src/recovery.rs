//! The recovery of one dead process, in steps.

use std::collections::BTreeSet;
use std::time::Instant;

use hshm_memory::{ProcessId, RecoveryReport};
use hshm_proto::EventKind;
use tracing::info;

use crate::processes::Processes;
use crate::registry::Registry;
use crate::segment::SharedSegment;

/// Worker slots that one step recovers at most, each of which takes a walk over the segment's units.
/// Between two steps the daemon may stop.
const SLOTS_PER_STEP: u32 = 32;

/// What is still to be recovered of a dead process.
#[derive(Debug)]
pub(crate) struct Recovery {
    dead: ProcessId,
    /// Segments that it is known to have used; who watches them was told of its death.
    used: BTreeSet<String>,
    segments: std::vec::IntoIter<SharedSegment>,
    /// The one at hand.
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    segment: SharedSegment,
    begun: Instant,
    report: RecoveryReport,
}

impl Recovery {
    /// Of all segments that there are, `used` or not.
    pub(crate) fn new(registry: &Registry, dead: ProcessId, used: BTreeSet<String>) -> Self {
        for name in &used {
            // One that is gone meanwhile has lost nothing.
            if let Ok(segment) = registry.get(name) {
                registry.events.publish(&segment.record, EventKind::Died { process: dead });
            }
        }
        Self { dead, used, segments: registry.all().into_iter(), current: None }
    }

    /// Recovers some of it. What is left, or `None` if that is nothing.
    pub(crate) fn step(mut self, registry: &Registry, processes: &Processes) -> Option<Self> {
        let mut left = SLOTS_PER_STEP;
        while left > 0 {
            let current = match self.current.take() {
                Some(current) => current,
                None => Current {
                    segment: self.segments.next()?,
                    begun: Instant::now(),
                    report: RecoveryReport::default(),
                },
            };
            let more = self.recover(current, left, registry, processes);
            left = left.saturating_sub(more);
        }
        Some(self)
    }

    /// Recovers `most` slots of the segment at hand, which stays at hand if there may be more. Returns
    /// how many it were.
    fn recover(
        &mut self,
        mut current: Current,
        most: u32,
        registry: &Registry,
        processes: &Processes,
    ) -> u32 {
        let name = &current.segment.record.name;
        let Some(allocator) = current.segment.usable() else {
            processes.recovered_in(self.dead, name);
            return 0;
        };
        let more = allocator.recover_some(self.dead, usize::try_from(most).unwrap_or(usize::MAX));
        current.report += more;
        processes.count_recovered(self.dead, more.slots);
        let (pid, slots) = (self.dead.pid, current.report.slots);
        if more.slots >= most {
            info!(segment = name, pid, slots, "recovering what a dead process held");
            self.current = Some(current);
            return more.slots;
        }
        processes.recovered_in(self.dead, name);
        if current.report != RecoveryReport::default() {
            self.tell(&current, registry);
        }
        more.slots
    }

    /// Says that a segment is recovered.
    fn tell(&self, current: &Current, registry: &Registry) {
        let Current { segment, begun, report } = current;
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        if !self.used.contains(&segment.record.name) {
            registry.events.publish(&segment.record, EventKind::Died { process: self.dead });
        }
        let recovered = EventKind::Recovered { process: self.dead, report: *report, micros };
        registry.events.publish(&segment.record, recovered);
        info!(
            segment = segment.record.name,
            pid = self.dead.pid,
            slots = report.slots,
            operations_completed = report.operations_completed,
            operations_undone = report.operations_undone,
            pages_abandoned = report.pages_abandoned,
            pages_freed = report.pages_freed,
            "recovered what a dead process held"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;
    use std::process::{Command, Stdio};

    use hshm_memory::{Allocator as _, BackendKind, BackendOptions, ThreadLocalAllocator};
    use hshm_proto::{CreateSegment, SessionInfo, SessionState};

    use super::*;
    use crate::access::Peer;
    use crate::config::Limits;
    use crate::manager::Manager;
    use crate::paths::Namespace;
    use crate::state::StateDir;

    const SLOTS: u32 = 3 * SLOTS_PER_STEP + 4;

    fn dead() -> ProcessId {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        id
    }

    /// Claims `count` slots of the segment in the name of `process`.
    fn claim(segment: &SharedSegment, process: ProcessId, count: u32) {
        let file = segment.usable().unwrap().backend().fd().unwrap().try_clone_to_owned().unwrap();
        let heap = ThreadLocalAllocator::open_fd(BackendKind::Memfd, file).unwrap();
        // The dead give nothing back.
        let heap = ManuallyDrop::new(heap);
        heap.set_identity(process);
        for _ in 0..count {
            let _ = heap.create_tls().unwrap();
        }
    }

    #[test]
    fn each_step_recovers_so_many_slots_and_shows() {
        let dir = tempfile::tempdir().unwrap();
        let (state, namespace) = (StateDir::open(dir.path()), Namespace::of(dir.path()));
        let (limits, manager) = (Limits::default(), Manager::default());
        let registry = Registry::new(state.unwrap(), namespace.unwrap(), limits, manager);
        let processes = Processes::default();
        let dead = dead();
        let peer =
            Peer { uid: 0, gid: 0, groups: vec![], process: None, rules: Default::default() };
        let mut held = BTreeSet::new();
        for (name, slots) in [("a", SLOTS), ("b", 1), ("c", 0)] {
            let request = CreateSegment {
                worker_slots: Some(SLOTS),
                backend: BackendKind::Memfd,
                ..CreateSegment::new(name, 4 << 20)
            };
            let made = registry.create(&request, &BackendOptions::default(), &peer).unwrap();
            claim(&made, dead, slots);
            held.insert(name.to_owned());
        }

        let used = processes.died(dead, &held);
        let mut recovery = Some(Recovery::new(&registry, dead, used));
        let shown = || processes.page(None, &peer, 3).0;
        let mut steps = Vec::new();
        while let Some(left) = recovery {
            let [SessionInfo { state: SessionState::Recovering, segments, .. }] = &shown()[..]
            else {
                panic!("it is being recovered: {:?}", shown());
            };
            steps.push((segments.join(" "), processes.counts().recovered_slots));
            recovery = left.step(&registry, &processes);
        }
        let step = u64::from(SLOTS_PER_STEP);
        let expected = [("a b c", 0), ("a b c", step), ("a b c", 2 * step), ("a b c", 3 * step)];
        assert_eq!(steps, expected.map(|(segments, slots)| (segments.to_owned(), slots)));
        assert!(shown().is_empty(), "nothing is left");
        assert_eq!(processes.buried(dead), SLOTS + 1);
        assert_eq!(processes.counts().recovered_processes, 1);
        assert!(registry.all().iter().all(|segment| segment.holders().is_empty()));
    }
}
