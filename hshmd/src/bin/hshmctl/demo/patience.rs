//! Waiting without burning a processor.

use std::thread;
use std::time::Duration;

use hshm_client::{AllocError, BackendError};

const SHORTEST: Duration = Duration::from_micros(20);
const LONGEST: Duration = Duration::from_millis(2);

/// Pauses that double as long as there is nothing to do.
pub(super) struct Patience {
    pause: Duration,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { pause: SHORTEST }
    }

    /// There was something to do.
    pub(super) fn renew(&mut self) {
        self.pause = SHORTEST;
    }

    /// There was nothing to do.
    pub(super) fn pause(&mut self) {
        thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(LONGEST);
    }
}

/// Whether an allocation failed for want of memory, which comes back when others free some.
pub(super) fn is_shortage(error: &AllocError) -> bool {
    matches!(error, AllocError::OutOfMemory { .. } | AllocError::Backend(BackendError::Full { .. }))
}
