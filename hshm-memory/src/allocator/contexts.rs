//! Contexts of allocators that have no storage for each thread: what [`create_tls`] hands out is a
//! number, unique over all processes, that this process then knows.
//!
//! [`create_tls`]: super::Allocator::create_tls

use std::collections::BTreeSet;

use arc_swap::ArcSwapOption;

use crate::context::MemContext;
use crate::error::AllocError;

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
        if context == MemContext::DEFAULT || self.is_issued(context) {
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
            if context != MemContext::DEFAULT && self.change(|issued| issued.insert(key(context))) {
                return context;
            }
        }
    }

    /// Takes a context back.
    pub(super) fn free(&self, context: MemContext) -> Result<(), AllocError> {
        if self.change(|issued| issued.remove(&key(context))) {
            Ok(())
        } else {
            Err(AllocError::BadContext { slot: context.slot() })
        }
    }

    fn change(&self, change: impl Fn(&mut BTreeSet<(u32, u32)>) -> bool) -> bool {
        let mut changed = false;
        self.issued.rcu(|issued| {
            let mut issued = issued.as_deref().cloned().unwrap_or_default();
            changed = change(&mut issued);
            Some(std::sync::Arc::new(issued))
        });
        changed
    }
}

fn key(context: MemContext) -> (u32, u32) {
    (std::process::id(), context.slot())
}
