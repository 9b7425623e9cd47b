//! What happened to segments lately, for whoever watches.
//!
//! There is one list for all watchers, of a fixed length: the newest event takes the place of the
//! oldest. A watcher is a cursor in a request of its own, so one that reads slowly, or not at all, costs
//! nothing and learns how many events it missed.

use std::collections::VecDeque;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hshm_memory::ProcessId;
use hshm_proto::limits::{EVENTS_PER_PAGE, MAX_EVENT_WAIT_MS};
use hshm_proto::{Event, EventCursor, EventKind, EventPage};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::Peer;
use crate::state::{Record, now_unix_ms};

/// Events that are kept: at some 400 bytes each, half a megabyte.
const KEPT: usize = 1024;

/// The events of this run of the daemon.
#[derive(Debug)]
pub(crate) struct Events {
    run: u64,
    ring: Mutex<Ring>,
    /// The number of the newest event.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    /// The number of the newest event; 0 if there was none yet.
    newest: u64,
    kept: VecDeque<(Record, Event)>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { run: now_unix_ms(), ring: Mutex::default(), newest: watch::channel(0).0 }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Nothing under this lock is left half done by a panic.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells that something happened to the segment that `record` is of. Who may see that segment then
    /// may see the event.
    pub(crate) fn publish(&self, record: &Record, what: EventKind) {
        let mut ring = self.ring();
        ring.newest += 1;
        let sequence = ring.newest;
        let segment = record.name.clone();
        let event = Event { sequence, unix_ms: now_unix_ms(), segment, what };
        if ring.kept.len() >= KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back((record.clone(), event));
        drop(ring);
        self.newest.send_modify(|newest| *newest = (*newest).max(sequence));
    }

    /// What happened after `after` that `peer` may see, of the segment `name` if one is given. Waits
    /// for something at most `wait_ms`.
    pub(crate) async fn after(
        &self,
        peer: &Peer,
        name: Option<&str>,
        after: Option<EventCursor>,
        wait_ms: u32,
    ) -> EventPage {
        let mut newest = self.newest.subscribe();
        let wait = Duration::from_millis(wait_ms.min(MAX_EVENT_WAIT_MS).into());
        let deadline = Instant::now() + wait;
        let restarted = after.is_some_and(|after| after.run != self.run);
        let Some(mut after) = after else {
            let sequence = self.ring().newest;
            return self.page(Vec::new(), sequence, 0, false);
        };
        if restarted {
            after.sequence = 0;
        }
        loop {
            newest.mark_unchanged();
            let (events, sequence, missed) = self.ring().after(peer, name, after.sequence);
            if restarted || missed > 0 || !events.is_empty() {
                return self.page(events, sequence, missed, restarted);
            }
            after.sequence = sequence;
            let changed = tokio::time::timeout_at(deadline, newest.changed()).await;
            if changed.is_err() {
                return self.page(Vec::new(), sequence, 0, false);
            }
        }
    }

    fn page(&self, events: Vec<Event>, sequence: u64, missed: u64, restarted: bool) -> EventPage {
        EventPage { events, cursor: EventCursor { run: self.run, sequence }, missed, restarted }
    }
}

impl Ring {
    /// What is kept after number `after`, up to which number that reaches, and how many are lost
    /// before it.
    fn after(&self, peer: &Peer, name: Option<&str>, after: u64) -> (Vec<Event>, u64, u64) {
        // A number beyond the newest was never given to anybody.
        let after = after.min(self.newest);
        let oldest = self.kept.front().map_or(self.newest, |(_, event)| event.sequence - 1);
        let missed = oldest.saturating_sub(after);
        let mut events = Vec::new();
        for (record, event) in self.kept.iter().skip_while(|(_, event)| event.sequence <= after) {
            if events.len() == EVENTS_PER_PAGE {
                let last = events.last().map_or(after, |event: &Event| event.sequence);
                return (events, last, missed);
            }
            if name.is_none_or(|name| name == record.name) && peer.may_see(record) {
                events.push(event.clone());
            }
        }
        (events, self.newest, missed)
    }
}

/// Whether a process is about to be dead, or is: its connections are closed before that is said of it.
pub(crate) fn is_ending(process: ProcessId) -> bool {
    /// Of the kernel's flags of a task: it is exiting.
    const PF_EXITING: u64 = 4;
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", process.pid)) else { return true };
    // What follows the command's name, which may hold anything: the state is field 3, the flags 9.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next().unwrap_or_default();
    let flags = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or(0);
    matches!(state, "Z" | "X") || flags & PF_EXITING != 0
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use hshm_memory::{AllocatorId, AllocatorKind, BackendKind};

    use super::*;

    fn record(name: &str, uid: u32) -> Record {
        let (backend, allocator) = (BackendKind::Memfd, AllocatorKind::ThreadLocal);
        let record = Record::creating(name, backend, allocator, None, AllocatorId::new(1, 1));
        Record { uid, gid: uid, mode: 0o600, ..record }
    }

    fn peer(uid: u32) -> Peer {
        Peer { uid, gid: uid, groups: Vec::new(), process: None, rules: std::sync::Arc::default() }
    }

    /// Neither root nor whoever runs this test.
    const OWNER: u32 = 4_000_001;
    const OTHER: u32 = 4_000_002;

    #[tokio::test]
    async fn a_watcher_gets_what_it_may_see_of_what_it_asked_for() {
        let events = Events::new();
        let start = events.after(&peer(OWNER), None, None, 0).await;
        assert!(start.events.is_empty());
        events.publish(&record("mine", OWNER), EventKind::Destroyed);
        events.publish(&record("theirs", OTHER), EventKind::Destroyed);
        events.publish(&record("mine too", OWNER), EventKind::Destroyed);
        let names = |page: &EventPage| -> Vec<String> {
            page.events.iter().map(|event| event.segment.clone()).collect()
        };
        let page = events.after(&peer(OWNER), None, Some(start.cursor), 0).await;
        assert_eq!(names(&page), ["mine", "mine too"]);
        assert_eq!(page.cursor.sequence, 3);
        let page = events.after(&peer(OTHER), None, Some(start.cursor), 0).await;
        assert_eq!(names(&page), ["theirs"]);
        let page = events.after(&peer(0), None, Some(start.cursor), 0).await;
        assert_eq!(page.events.iter().map(|event| event.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        let page = events.after(&peer(0), Some("theirs"), Some(start.cursor), 0).await;
        assert_eq!(names(&page), ["theirs"]);
        let page = events.after(&peer(OTHER), Some("mine"), Some(start.cursor), 0).await;
        assert!(page.events.is_empty() && page.missed == 0, "{page:?}");
    }

    #[tokio::test]
    async fn what_a_slow_watcher_did_not_read_is_counted_and_not_kept() {
        let events = Events::new();
        let start = events.after(&peer(0), None, None, 0).await;
        let total = 10 * u64::try_from(KEPT).unwrap();
        for _ in 0..total {
            events.publish(&record("s", OWNER), EventKind::Destroyed);
        }
        assert_eq!(events.ring().kept.len(), KEPT);
        let (mut cursor, mut missed, mut read) = (start.cursor, 0, 0);
        loop {
            let page = events.after(&peer(0), None, Some(cursor), 0).await;
            if page.events.is_empty() {
                break;
            }
            assert!(page.events.len() <= EVENTS_PER_PAGE);
            assert_eq!(page.events[0].sequence, cursor.sequence + page.missed + 1);
            missed += page.missed;
            read += page.events.len();
            cursor = page.cursor;
        }
        assert_eq!((read, missed), (KEPT, total - u64::try_from(KEPT).unwrap()));
    }

    #[tokio::test]
    async fn a_cursor_of_another_run_or_of_nobody_does_no_harm() {
        let events = Events::new();
        events.publish(&record("s", OWNER), EventKind::Destroyed);
        let run = events.run;
        let page = events.after(&peer(0), None, Some(EventCursor { run: 1, sequence: 9 }), 0).await;
        assert!(page.restarted && page.events.len() == 1, "{page:?}");
        let beyond = EventCursor { run, sequence: u64::MAX };
        let page = events.after(&peer(0), None, Some(beyond), 0).await;
        assert_eq!((page.events.len(), page.cursor.sequence), (0, 1));
    }

    #[tokio::test]
    async fn a_waiting_watcher_is_woken() {
        let events = std::sync::Arc::new(Events::new());
        let start = events.after(&peer(0), None, None, 0).await;
        let waiting = {
            let events = std::sync::Arc::clone(&events);
            tokio::spawn(async move {
                events.after(&peer(0), Some("s"), Some(start.cursor), MAX_EVENT_WAIT_MS).await
            })
        };
        tokio::task::yield_now().await;
        events.publish(&record("other", OWNER), EventKind::Destroyed);
        tokio::task::yield_now().await;
        events.publish(&record("s", OWNER), EventKind::Destroyed);
        assert_eq!(waiting.await.unwrap().events.len(), 1);
    }

    #[test]
    fn a_process_that_ended_is_told_from_one_that_runs() {
        assert!(!is_ending(ProcessId::current().unwrap()));
        let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        while !is_ending(id) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_ending(id));
    }
}
