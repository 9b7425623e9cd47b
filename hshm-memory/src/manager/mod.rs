//! The memory manager: which backends and allocators this process has, by their numbers.
//!
//! A process has one for everybody, [`memory_manager`]; a library may have its own, so that it
//! disturbs nobody's numbers. Looking things up takes no lock: the table is replaced whole by each
//! change, and a fork in the midst of one leaves the child with the table before or after it.

mod error;
mod state;
mod sub_allocator;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

pub use self::error::ManagerError;
use self::state::{AllocatorEntry, BackendEntry, Named, Place, State};
use crate::allocator::{Allocator, ShmAllocator};
use crate::backend::{Backend, BackendError};
use crate::pointer::{AllocatorId, FullPtr, Pointer};
use crate::typed::TypedAllocator;

/// The number by which a process knows a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MemoryBackendId(u32);

impl MemoryBackendId {
    /// The backend number `number`.
    #[must_use]
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for MemoryBackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A backend that can be made from a size and a name, and so by a manager.
pub trait InitBackend: Backend + Sized + 'static {
    /// Makes it, `size_bytes` long and with room to grow.
    ///
    /// # Errors
    /// As its own constructor.
    fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError>;

    /// Opens what stands under this name.
    ///
    /// # Errors
    /// As its own constructor; [`BackendError::NotShared`] if no other can have made it.
    fn shm_attach(name: &str) -> Result<Self, BackendError>;

    /// Takes the name away, if it has one.
    ///
    /// # Errors
    /// As its own destructor.
    fn shm_destroy(name: &str) -> Result<(), BackendError>;
}

/// Address space for a backend of `size_bytes` of which no more is known: for the allocator's tables,
/// and for growing to four times its size.
pub(crate) fn roomy(size_bytes: u64) -> u64 {
    size_bytes.saturating_mul(4).max(64 << 20)
}

type DestroyBackend = fn(&str) -> Result<(), BackendError>;

/// The backends and allocators that this process has.
///
/// # Examples
/// What a single process does, from beginning to end:
/// ```
/// use hshm_memory::{
///     memory_manager, AllocatorId, InitOptions, MemContext, MemoryBackendId, PosixShmMmap,
///     ThreadLocalAllocator, TypedAllocator,
/// };
///
/// # let shm_name = format!("test_allocators.{}", std::process::id());
/// # let shm_name = shm_name.as_str();
/// # /*
/// let shm_name = "test_allocators";
/// # */
/// let manager = memory_manager();
/// let allocator_id = AllocatorId::new(0, 0);
///
/// // Create a 1 GiB backend with number 0. Memory is taken as it is used.
/// manager.create_backend::<PosixShmMmap>(MemoryBackendId::new(0), shm_name, 1 << 30)?;
///
/// // Create an allocator over backend 0.
/// let options = InitOptions { custom_header_bytes: 64, ..InitOptions::default() };
/// let allocator = manager.create_allocator::<ThreadLocalAllocator>(
///     MemoryBackendId::new(0), allocator_id, &options)?;
///
/// let number = allocator.new_object(MemContext::DEFAULT, 42_u64)?;
/// assert_eq!(manager.find(number.address.cast()), Some(number.shared));
/// # unsafe { allocator.delete_object(MemContext::DEFAULT, number)? };
///
/// // Unregister the allocator.
/// manager.unregister_allocator(allocator_id)?;
///
/// // Destroy the backend.
/// manager.destroy_backend(MemoryBackendId::new(0))?;
/// # Ok::<(), hshm_memory::ManagerError>(())
/// ```
pub struct MemoryManager {
    /// `None` as long as it is empty, so that it can be a constant.
    state: ArcSwapOption<State>,
}

/// The manager that everybody in this process shares (`HSHM_MEMORY_MANAGER` in hermes-shm).
#[must_use]
pub fn memory_manager() -> &'static MemoryManager {
    static MANAGER: MemoryManager = MemoryManager::new();
    &MANAGER
}

impl Default for MemoryManager {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryManager {
    /// A manager that has nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: ArcSwapOption::const_empty() }
    }

    fn read<R>(&self, f: impl FnOnce(&State) -> R) -> R {
        match &*self.state.load() {
            Some(state) => f(state),
            None => f(&State::EMPTY),
        }
    }

    /// Replaces the table by what `change` makes of it, which may be asked again.
    fn change<R>(
        &self,
        mut change: impl FnMut(&mut State) -> Result<R, ManagerError>,
    ) -> Result<R, ManagerError> {
        loop {
            let old = self.state.load_full();
            let mut new = old.as_deref().cloned().unwrap_or(State::EMPTY);
            let result = change(&mut new)?;
            let found = self.state.compare_and_swap(&old, Some(Arc::new(new)));
            let unchanged = match (&*found, &old) {
                (Some(found), Some(old)) => Arc::ptr_eq(found, old),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            if unchanged {
                return Ok(result);
            }
        }
    }
}

/// Backends.
impl MemoryManager {
    /// Makes a backend of `size_bytes` under `name` and registers it under `id`.
    ///
    /// # Errors
    /// [`ManagerError::BackendExists`] if the number is taken, and as [`InitBackend::shm_init`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Backend, MemoryBackendId, MemoryManager, PosixShmMmap};
    ///
    /// let manager = MemoryManager::new();
    /// let name = format!("create-example.{}", std::process::id());
    /// let backend = manager.create_backend::<PosixShmMmap>(MemoryBackendId::new(0), &name, 1 << 20)?;
    /// assert!(backend.committed_bytes() >= 1 << 20);
    /// manager.destroy_backend(MemoryBackendId::new(0))?;
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn create_backend<B: InitBackend>(
        &self,
        id: MemoryBackendId,
        name: &str,
        size_bytes: u64,
    ) -> Result<Arc<B>, ManagerError> {
        self.read(|state| state.vacant_backend(id))?;
        let backend = Arc::new(B::shm_init(name, size_bytes)?);
        let registered = self.register_named(id, backend.clone(), name, B::shm_destroy);
        if registered.is_err() {
            // Another thread took the number meanwhile, and nobody knows of this backend.
            let _ = B::shm_destroy(name);
        }
        registered.map(|()| backend)
    }

    /// Opens what stands under `name` and registers it under `id`.
    ///
    /// # Errors
    /// [`ManagerError::BackendExists`] if the number is taken, and as [`InitBackend::shm_attach`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemoryBackendId, MemoryManager, PosixShmMmap};
    ///
    /// let manager = MemoryManager::new();
    /// let name = format!("attach-backend-example.{}", std::process::id());
    /// let (made, attached) = (MemoryBackendId::new(0), MemoryBackendId::new(1));
    /// manager.create_backend::<PosixShmMmap>(made, &name, 1 << 20)?;
    /// // Usually in another process:
    /// manager.attach_backend::<PosixShmMmap>(attached, &name)?;
    /// manager.detach_backend(attached)?;
    /// manager.destroy_backend(made)?;
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn attach_backend<B: InitBackend>(
        &self,
        id: MemoryBackendId,
        name: &str,
    ) -> Result<Arc<B>, ManagerError> {
        self.read(|state| state.vacant_backend(id))?;
        let backend = Arc::new(B::shm_attach(name)?);
        self.register_named(id, backend.clone(), name, B::shm_destroy)?;
        Ok(backend)
    }

    /// Registers a backend that was made in another way.
    ///
    /// # Errors
    /// [`ManagerError::BackendExists`] if the number is taken.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MallocBackend, MemoryBackendId, MemoryManager};
    ///
    /// let manager = MemoryManager::new();
    /// let memory = std::sync::Arc::new(MallocBackend::create(1 << 20)?);
    /// manager.register_backend(MemoryBackendId::new(0), memory.clone())?;
    /// assert!(manager.register_backend(MemoryBackendId::new(0), memory).is_err());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn register_backend(
        &self,
        id: MemoryBackendId,
        backend: Arc<dyn Backend>,
    ) -> Result<(), ManagerError> {
        self.insert_backend(id, &BackendEntry { backend, named: None })
    }

    fn register_named(
        &self,
        id: MemoryBackendId,
        backend: Arc<dyn Backend>,
        name: &str,
        destroy: DestroyBackend,
    ) -> Result<(), ManagerError> {
        let named = Some(Named { name: name.to_owned(), destroy });
        self.insert_backend(id, &BackendEntry { backend, named })
    }

    fn insert_backend(
        &self,
        id: MemoryBackendId,
        entry: &BackendEntry,
    ) -> Result<(), ManagerError> {
        self.change(|state| {
            state.vacant_backend(id)?;
            state.backends.insert(id, entry.clone());
            Ok(())
        })
    }

    /// Forgets a backend. Its memory stays mapped as long as anybody has it, and what has a name
    /// stays there for others.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchBackend`]; [`ManagerError::InUse`] if an allocator stands on it.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MallocBackend, MemoryBackendId, MemoryManager};
    ///
    /// let manager = MemoryManager::new();
    /// let memory = std::sync::Arc::new(MallocBackend::create(1 << 20)?);
    /// manager.register_backend(MemoryBackendId::new(0), memory)?;
    /// manager.detach_backend(MemoryBackendId::new(0))?;
    /// assert!(manager.backend(MemoryBackendId::new(0)).is_err());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn detach_backend(&self, id: MemoryBackendId) -> Result<(), ManagerError> {
        self.remove_backend(id).map(drop)
    }

    /// Forgets a backend and takes its name away: nobody can attach to it any more, and its memory
    /// is given back when the last process lets go of it.
    ///
    /// # Errors
    /// As [`MemoryManager::detach_backend`] and [`InitBackend::shm_destroy`]; it is forgotten in the
    /// latter case.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemoryBackendId, MemoryManager, PosixShmMmap};
    ///
    /// let manager = MemoryManager::new();
    /// let name = format!("destroy-example.{}", std::process::id());
    /// manager.create_backend::<PosixShmMmap>(MemoryBackendId::new(0), &name, 1 << 20)?;
    /// manager.destroy_backend(MemoryBackendId::new(0))?;
    /// assert!(manager.attach_backend::<PosixShmMmap>(MemoryBackendId::new(0), &name).is_err());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn destroy_backend(&self, id: MemoryBackendId) -> Result<(), ManagerError> {
        let entry = self.remove_backend(id)?;
        match entry.named {
            Some(Named { name, destroy }) => Ok(destroy(&name)?),
            None => Ok(()),
        }
    }

    fn remove_backend(&self, id: MemoryBackendId) -> Result<BackendEntry, ManagerError> {
        self.change(|state| {
            state.unused_backend(id)?;
            state.backends.remove(&id).ok_or(ManagerError::NoSuchBackend { id })
        })
    }

    /// The backend with the number `id`.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchBackend`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MallocBackend, MemoryBackendId, MemoryManager};
    ///
    /// let manager = MemoryManager::new();
    /// let memory = std::sync::Arc::new(MallocBackend::create(1 << 20)?);
    /// manager.register_backend(MemoryBackendId::new(7), memory)?;
    /// assert_eq!(manager.backend(MemoryBackendId::new(7))?.capacity_bytes(), 1 << 20);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn backend(&self, id: MemoryBackendId) -> Result<Arc<dyn Backend>, ManagerError> {
        self.read(|state| Ok(Arc::clone(&state.backend(id)?.backend)))
    }
}

/// Allocators.
impl MemoryManager {
    /// Lays an allocator out over a whole backend and registers it.
    ///
    /// # Errors
    /// [`ManagerError::AllocatorExists`], [`ManagerError::NoSuchBackend`], and as
    /// [`ShmAllocator::shm_init`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{AllocatorId, HeapOptions, MallocBackend, MemoryBackendId, MemoryManager, ScalablePageAllocator};
    ///
    /// let manager = MemoryManager::new();
    /// let memory = std::sync::Arc::new(MallocBackend::create(1 << 20)?);
    /// let (backend, id) = (MemoryBackendId::new(0), AllocatorId::new(0, 1));
    /// manager.register_backend(backend, memory)?;
    /// manager.create_allocator::<ScalablePageAllocator>(backend, id, &HeapOptions::default())?;
    /// assert_eq!(manager.allocator(id)?.id(), id);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn create_allocator<A: ShmAllocator + 'static>(
        &self,
        backend_id: MemoryBackendId,
        id: AllocatorId,
        options: &A::Options,
    ) -> Result<Arc<A>, ManagerError> {
        self.read(|state| state.vacant_allocator(id))?;
        let allocator = Arc::new(A::shm_init(id, self.backend(backend_id)?, options)?);
        self.insert_allocator(allocator.clone(), Place::Backend(backend_id))?;
        Ok(allocator)
    }

    /// Attaches to the allocator that stands in a backend and registers it under the identity that
    /// it was created with.
    ///
    /// # Errors
    /// [`ManagerError::AllocatorExists`], [`ManagerError::NoSuchBackend`], and as
    /// [`ShmAllocator::shm_deserialize`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{AllocatorId, HeapOptions, MallocBackend, MemoryBackendId, MemoryManager, StackAllocator};
    ///
    /// let manager = MemoryManager::new();
    /// let memory = std::sync::Arc::new(MallocBackend::create(1 << 20)?);
    /// let (backend, id) = (MemoryBackendId::new(0), AllocatorId::new(0, 1));
    /// manager.register_backend(backend, memory)?;
    /// manager.create_allocator::<StackAllocator>(backend, id, &HeapOptions::default())?;
    /// manager.unregister_allocator(id)?;
    /// // It still stands in the backend.
    /// let arena = manager.attach_allocator::<StackAllocator>(backend)?;
    /// assert_eq!(manager.allocator(id)?.kind(), hshm_memory::AllocatorKind::Stack);
    /// # drop(arena);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn attach_allocator<A: ShmAllocator + 'static>(
        &self,
        backend_id: MemoryBackendId,
    ) -> Result<Arc<A>, ManagerError> {
        let allocator = Arc::new(A::shm_deserialize(self.backend(backend_id)?)?);
        self.insert_allocator(allocator.clone(), Place::Backend(backend_id))?;
        Ok(allocator)
    }

    /// Registers an allocator that was made in another way.
    ///
    /// # Errors
    /// [`ManagerError::AllocatorExists`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{Allocator, MemoryManager, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// assert!(manager.allocator(Allocator::id(&*heap)).is_ok());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn register_allocator(&self, allocator: Arc<dyn Allocator>) -> Result<(), ManagerError> {
        self.insert_allocator(allocator, Place::Own)
    }

    fn insert_allocator(
        &self,
        allocator: Arc<dyn Allocator>,
        place: Place,
    ) -> Result<(), ManagerError> {
        let id = allocator.id();
        let entry = AllocatorEntry { allocator, place };
        self.change(|state| {
            state.vacant_allocator(id)?;
            // What it stands on may have been removed meanwhile.
            match place {
                Place::Own => {}
                Place::Backend(backend) => drop(state.backend(backend)?),
                Place::Block { parent, .. } => drop(state.allocator(parent)?),
            }
            state.allocators.insert(id, entry.clone());
            Ok(())
        })
    }

    /// Forgets an allocator. Its blocks and its layout stay in its memory; who holds the allocator
    /// may go on using it.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`]; [`ManagerError::InUse`] if it has sub-allocators.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemoryManager, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// manager.unregister_allocator(heap.id())?;
    /// assert!(manager.allocator(heap.id()).is_err());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn unregister_allocator(&self, id: AllocatorId) -> Result<(), ManagerError> {
        self.remove_allocator(id).map(drop)
    }

    fn remove_allocator(&self, id: AllocatorId) -> Result<AllocatorEntry, ManagerError> {
        self.change(|state| {
            state.unused_allocator(id)?;
            if state.default == Some(id) {
                state.default = None;
            }
            state.allocators.remove(&id).ok_or(ManagerError::NoSuchAllocator { id })
        })
    }

    /// The allocator with the identity `id`.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemContext, MemoryManager, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// let found = manager.allocator(heap.id())?;
    /// found.allocate_offset(MemContext::DEFAULT, 100)?;
    /// assert_eq!(heap.report().allocated_blocks, 1);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn allocator(&self, id: AllocatorId) -> Result<Arc<dyn Allocator>, ManagerError> {
        self.read(|state| Ok(Arc::clone(&state.allocator(id)?.allocator)))
    }

    /// All allocators registered, by ascending identity.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemoryManager, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// manager.register_allocator(std::sync::Arc::new(doc_heap()))?;
    /// assert_eq!(manager.allocators().len(), 1);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    #[must_use]
    pub fn allocators(&self) -> Vec<Arc<dyn Allocator>> {
        self.read(|state| {
            state.allocators.values().map(|entry| Arc::clone(&entry.allocator)).collect()
        })
    }

    /// Makes `id` the allocator that [`MemoryManager::default_allocator`] answers.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemoryManager, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// assert!(manager.set_default_allocator(heap.id()).is_err());
    /// manager.register_allocator(heap.clone())?;
    /// manager.set_default_allocator(heap.id())?;
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn set_default_allocator(&self, id: AllocatorId) -> Result<(), ManagerError> {
        self.change(|state| {
            state.allocator(id)?;
            state.default = Some(id);
            Ok(())
        })
    }

    /// The allocator for whoever does not care which.
    ///
    /// # Errors
    /// [`ManagerError::NoDefault`] if none was set, or it was unregistered.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemoryManager, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// assert!(manager.default_allocator().is_err());
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// manager.set_default_allocator(heap.id())?;
    /// assert_eq!(manager.default_allocator()?.id(), heap.id());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn default_allocator(&self) -> Result<Arc<dyn Allocator>, ManagerError> {
        self.read(|state| {
            let id = state.default.ok_or(ManagerError::NoDefault)?;
            Ok(Arc::clone(&state.allocator(id)?.allocator))
        })
    }
}

/// Pointers.
impl MemoryManager {
    /// The local address of the `len` bytes that `pointer` names, whichever allocator it is of.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`], and as [`Allocator::resolve`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemContext, MemoryManager, TypedAllocator, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// let object = heap.new_object(MemContext::DEFAULT, 7_u64)?;
    /// assert_eq!(manager.resolve(object.shared, 8)?, object.address.cast());
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn resolve(&self, pointer: Pointer, len: usize) -> Result<NonNull<u8>, ManagerError> {
        self.read(|state| {
            let entry = state.allocator(pointer.allocator)?;
            Ok(entry.allocator.resolve(pointer.offset, len)?)
        })
    }

    /// The object that `pointer` names, as this process sees it.
    ///
    /// # Errors
    /// [`ManagerError::NoSuchAllocator`], and as [`TypedAllocator::full_ptr`].
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemContext, MemoryManager, TypedAllocator, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// let object = heap.new_object(MemContext::DEFAULT, 7_u64)?;
    /// let found = manager.full_ptr::<u64>(object.shared)?;
    /// // SAFETY: the object was just made, and nobody writes it.
    /// assert_eq!(unsafe { found.address.as_ref() }, &7);
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    pub fn full_ptr<T>(&self, pointer: Pointer) -> Result<FullPtr<T>, ManagerError> {
        self.read(|state| {
            Ok(state.allocator(pointer.allocator)?.allocator.full_ptr::<T>(pointer)?)
        })
    }

    /// Which allocator holds this address, and where: the innermost, if one stands in a block of
    /// another.
    ///
    /// # Examples
    /// ```
    /// use hshm_memory::{MemContext, MemoryManager, TypedAllocator, doc_heap};
    ///
    /// let manager = MemoryManager::new();
    /// let heap = std::sync::Arc::new(doc_heap());
    /// manager.register_allocator(heap.clone())?;
    /// let object = heap.new_object(MemContext::DEFAULT, 7_u64)?;
    /// assert_eq!(manager.find(object.address.cast()), Some(object.shared));
    /// # Ok::<(), hshm_memory::ManagerError>(())
    /// ```
    #[must_use]
    pub fn find(&self, address: NonNull<u8>) -> Option<Pointer> {
        self.read(|state| {
            let holders = state.allocators.values().filter_map(|entry| {
                let offset = entry.allocator.offset_of(address)?;
                let extent = entry.allocator.backend().map_or(u64::MAX, |b| b.capacity_bytes());
                Some((extent, Pointer { allocator: entry.allocator.id(), offset }))
            });
            holders.min_by_key(|(extent, _)| *extent).map(|(_, pointer)| pointer)
        })
    }
}

impl fmt::Debug for MemoryManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.read(|state| {
            f.debug_struct("MemoryManager")
                .field("backends", &state.backends.keys())
                .field("allocators", &state.allocators.keys())
                .field("default", &state.default)
                .finish_non_exhaustive()
        })
    }
}
