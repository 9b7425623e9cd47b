//! Contexts of allocators that have no storage for each thread: what [`create_tls`] hands out is a
//! number, unique over all processes, that this process then knows.
//!
//! [`create_tls`]: super::Allocator::create_tls

use std::collections::BTreeSet;

use arc_swap::ArcSwapOption;

use crate::context::MemContext;
use crate::error::AllocError;
use crate::thread_model::by_pointer;

/// The contexts that this process made, and has not freed.
///
/// The set is replaced whole by each change, so that a fork in the midst of one leaves the child with
/// a set, and nobody waits for anybody.
#[derive(Debug)]
pub(super) struct Contexts {
    /// Each with its process: a forked child has its parent's here too, and may not use them.
    issued: ArcSwapOption<BTreeSet<(u32, u32)>>,
}

impl Contexts {
    pub(super) const fn new() -> Self {
        Self { issued: ArcSwapOption::const_empty() }
    }

    /// Refuses a context that is not the default, nor one that this process made.
    #[inline]
    pub(super) fn validate(&self, context: MemContext) -> Result<(), AllocError> {
        // The set's readers keep something in thread-local storage.
        let is_issued = by_pointer!(Self::is_issued as fn(&Self, MemContext) -> bool);
        if context == MemContext::DEFAULT || is_issued(self, context) {
            Ok(())
        } else {
            Err(AllocError::BadContext { slot: context.slot() })
        }
    }

    fn is_issued(&self, context: MemContext) -> bool {
        let issued = self.issued.load();
        issued.as_ref().is_some_and(|issued| issued.contains(&key(context)))
    }

    /// Issues the number `number`, or one of those after it.
    pub(super) fn create(&self, mut number: impl FnMut() -> u32) -> MemContext {
        loop {
            let context = MemContext::with_slot(number());
            // 0 is the default; and after four thousand million numbers they come again.
            let add: Change = |issued, context| issued.insert(key(context));
            if context != MemContext::DEFAULT && self.change(add, context) {
                return context;
            }
        }
    }

    /// Takes a context back.
    pub(super) fn free(&self, context: MemContext) -> Result<(), AllocError> {
        if self.change(|issued, context| issued.remove(&key(context)), context) {
            Ok(())
        } else {
            Err(AllocError::BadContext { slot: context.slot() })
        }
    }

    /// Replaces the set by a changed one; what `change` says.
    fn change(&self, change: Change, context: MemContext) -> bool {
        by_pointer!(Self::change_here as fn(&Self, Change, MemContext) -> bool)(
            self, change, context,
        )
    }

    fn change_here(&self, change: Change, context: MemContext) -> bool {
        let mut changed = false;
        self.issued.rcu(|issued| {
            let mut issued = issued.as_deref().cloned().unwrap_or_default();
            changed = change(&mut issued, context);
            Some(std::sync::Arc::new(issued))
        });
        changed
    }
}

type Change = fn(&mut BTreeSet<(u32, u32)>, MemContext) -> bool;

fn key(context: MemContext) -> (u32, u32) {
    (std::process::id(), context.slot())
}
