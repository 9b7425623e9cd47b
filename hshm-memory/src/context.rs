//! The memory context: hints that go with an operation.

/// Which worker slot an operation is to use.
///
/// The default context names none: the calling thread's own slot is found, and claimed if it has
/// none yet. A context made by `create_tls` names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct MemContext {
    slot: u32,
}

impl MemContext {
    /// The context that says: find the current thread.
    pub const DEFAULT: Self = Self { slot: 0 };

    #[must_use]
    pub(crate) const fn with_slot(slot: u32) -> Self {
        Self { slot }
    }

    /// The slot named, or 0 for the current thread's.
    #[must_use]
    #[inline]
    pub const fn slot(self) -> u32 {
        self.slot
    }
}
