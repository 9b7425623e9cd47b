//! Choices made when an allocator is created, and the hints given with an operation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What becomes of the blocks of a process that died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnExit {
    /// They stay allocated: others may hold their offsets. The pages pass to whoever needs them.
    #[default]
    Keep,
    /// They are freed with the process, also those that cells name or others know the offsets of: who
    /// shares blocks wants the other.
    Reclaim,
}

impl OnExit {
    /// The integer that stands for it in a segment.
    #[must_use]
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::Keep => 1,
            Self::Reclaim => 2,
        }
    }
}

/// A number or word that names none of the choices there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {found:?}: expected {expected}")]
pub struct UnknownName {
    /// What was being named.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// What could have stood there.
    pub expected: &'static str,
}

impl TryFrom<u32> for OnExit {
    type Error = UnknownName;

    fn try_from(value: u32) -> Result<Self, Self::Error> {
        match value {
            1 => Ok(Self::Keep),
            2 => Ok(Self::Reclaim),
            other => Err(UnknownName {
                what: "on-exit policy",
                found: other.to_string(),
                expected: "1 (keep) or 2 (reclaim)",
            }),
        }
    }
}

impl FromStr for OnExit {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "keep" => Ok(Self::Keep),
            "reclaim" => Ok(Self::Reclaim),
            other => Err(UnknownName {
                what: "on-exit policy",
                found: other.to_owned(),
                expected: "keep or reclaim",
            }),
        }
    }
}

impl fmt::Display for OnExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Reclaim => "reclaim",
        })
    }
}

/// What `ThreadLocalAllocator::shm_init` is told besides its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Bytes of a header that the application owns, zeroed at creation. At most
    /// [`InitOptions::MAX_CUSTOM_HEADER_BYTES`].
    pub custom_header_bytes: u64,
    /// What becomes of a dead process's blocks.
    pub on_exit: OnExit,
    /// How many threads, over all processes, can use the allocator at once; 1 to
    /// [`InitOptions::MAX_WORKER_SLOTS`].
    pub worker_slots: u32,
}

impl InitOptions {
    /// The largest custom header: 1 MiB.
    pub const MAX_CUSTOM_HEADER_BYTES: u64 = 1 << 20;
    /// The most worker slots a segment can have.
    pub const MAX_WORKER_SLOTS: u32 = 4095;
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { custom_header_bytes: 0, on_exit: OnExit::Keep, worker_slots: 1024 }
    }
}

/// What the simpler allocators are told besides their identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HeapOptions {
    /// Bytes of a header that the application owns, zeroed at creation. At most
    /// [`HeapOptions::MAX_CUSTOM_HEADER_BYTES`].
    pub custom_header_bytes: u64,
}

impl HeapOptions {
    /// The largest custom header: 1 MiB.
    pub const MAX_CUSTOM_HEADER_BYTES: u64 = InitOptions::MAX_CUSTOM_HEADER_BYTES;
}
