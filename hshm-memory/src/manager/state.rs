//! What a manager knows: an immutable table, replaced whole by each change.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::error::ManagerError;
use super::{DestroyBackend, MemoryBackendId};
use crate::allocator::Allocator;
use crate::backend::Backend;
use crate::pointer::{AllocatorId, OffsetPointer};

/// A registered backend.
#[derive(Clone, Debug)]
pub(super) struct BackendEntry {
    pub(super) backend: Arc<dyn Backend>,
    /// How to take its name away, for one that has a name.
    pub(super) named: Option<Named>,
}

/// A name, and who knows what it names.
#[derive(Clone)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) destroy: DestroyBackend,
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A registered allocator.
#[derive(Clone, Debug)]
pub(super) struct AllocatorEntry {
    pub(super) allocator: Arc<dyn Allocator>,
    pub(super) place: Place,
}

/// Where an allocator's memory comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// It was registered ready made.
    Own,
    /// A registered backend.
    Backend(MemoryBackendId),
    /// A block of another allocator.
    Block { parent: AllocatorId, offset: OffsetPointer },
}

#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) backends: BTreeMap<MemoryBackendId, BackendEntry>,
    pub(super) allocators: BTreeMap<AllocatorId, AllocatorEntry>,
    pub(super) default: Option<AllocatorId>,
}

impl State {
    pub(super) const EMPTY: Self =
        Self { backends: BTreeMap::new(), allocators: BTreeMap::new(), default: None };

    pub(super) fn backend(&self, id: MemoryBackendId) -> Result<&BackendEntry, ManagerError> {
        self.backends.get(&id).ok_or(ManagerError::NoSuchBackend { id })
    }

    pub(super) fn allocator(&self, id: AllocatorId) -> Result<&AllocatorEntry, ManagerError> {
        self.allocators.get(&id).ok_or(ManagerError::NoSuchAllocator { id })
    }

    pub(super) fn vacant_backend(&self, id: MemoryBackendId) -> Result<(), ManagerError> {
        match self.backends.contains_key(&id) {
            true => Err(ManagerError::BackendExists { id }),
            false => Ok(()),
        }
    }

    pub(super) fn vacant_allocator(&self, id: AllocatorId) -> Result<(), ManagerError> {
        match self.allocators.contains_key(&id) {
            true => Err(ManagerError::AllocatorExists { id }),
            false => Ok(()),
        }
    }

    /// An error if an allocator stands on this backend.
    pub(super) fn unused_backend(&self, id: MemoryBackendId) -> Result<(), ManagerError> {
        let user = self
            .allocators
            .iter()
            .find(|(_, entry)| matches!(entry.place, Place::Backend(backend) if backend == id));
        match user {
            Some((&by, _)) => Err(ManagerError::InUse { what: format!("backend {id}"), by }),
            None => Ok(()),
        }
    }

    /// An error if another allocator stands in a block of this one.
    pub(super) fn unused_allocator(&self, id: AllocatorId) -> Result<(), ManagerError> {
        let user = self
            .allocators
            .iter()
            .find(|(_, entry)| matches!(entry.place, Place::Block { parent, .. } if parent == id));
        match user {
            Some((&by, _)) => Err(ManagerError::InUse { what: format!("allocator {id}"), by }),
            None => Ok(()),
        }
    }
}
