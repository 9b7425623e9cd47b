//! What happens to segments, as whoever watches them is told.

use hshm_memory::{ProcessId, RecoveryReport};
use serde::{Deserialize, Serialize};

/// Something that happened to a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: one more than that of the event before it, whichever segment that befell. So a
    /// watcher that may not see all segments finds gaps.
    pub sequence: u64,
    /// When it happened, in milliseconds since 1970-01-01 UTC.
    pub unix_ms: u64,
    /// The segment.
    pub segment: String,
    /// What happened.
    pub what: EventKind,
}

/// What happened to a segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// It was made.
    Created {
        /// Its committed length, in bytes.
        committed_bytes: u64,
        /// The user who owns it.
        uid: u32,
    },
    /// A session attached it.
    Attached {
        /// The session.
        session: u64,
        /// Its process.
        process: ProcessId,
    },
    /// A session let go of it, or ended while its process lives on.
    Detached {
        /// The session.
        session: u64,
        /// Its process, if the daemon can see it.
        process: ProcessId,
    },
    /// A process died that had it attached or held worker slots of it.
    Died {
        /// The process.
        process: ProcessId,
    },
    /// What a dead process held of it was recovered.
    Recovered {
        /// The process.
        process: ProcessId,
        /// How much it was.
        report: RecoveryReport,
        /// How long it took, in microseconds.
        micros: u64,
    },
    /// It was made longer.
    Grown {
        /// Its committed length now, in bytes.
        committed_bytes: u64,
    },
    /// It was unlinked.
    Destroyed,
}

impl EventKind {
    /// The kind's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Attached { .. } => "attached",
            Self::Detached { .. } => "detached",
            Self::Died { .. } => "died",
            Self::Recovered { .. } => "recovered",
            Self::Grown { .. } => "grown",
            Self::Destroyed => "destroyed",
        }
    }
}

/// How far somebody has read the events of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCursor {
    /// Which run of the daemon: numbers begin anew with each.
    pub run: u64,
    /// The number of the last event that was read or passed over.
    pub sequence: u64,
}

/// A page of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// By ascending number, at most [`EVENTS_PER_PAGE`](crate::limits::EVENTS_PER_PAGE).
    pub events: Vec<Event>,
    /// Where to go on.
    pub cursor: EventCursor,
    /// How many events before these, of whichever segments, the daemon keeps no more.
    pub missed: u64,
    /// Whether the cursor that was given is of an earlier run of the daemon: what happened between is
    /// not known, and these events are the first of this run.
    pub restarted: bool,
}
