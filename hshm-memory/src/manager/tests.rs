use super::*;
use crate::OffsetPointer;
use crate::{InitOptions, MemContext, PosixShmMmap, ThreadLocalAllocator};

/// A name that is this test's alone.
fn name(test: &str) -> String {
    format!("hshm-manager-test.{test}.{}", std::process::id())
}

const BACKEND: MemoryBackendId = MemoryBackendId::new(3);
const ID: AllocatorId = AllocatorId::new(3, 1);

fn create(manager: &MemoryManager, name: &str) -> Arc<ThreadLocalAllocator> {
    manager.create_backend::<PosixShmMmap>(BACKEND, name, 16 << 20).unwrap();
    manager.create_allocator(BACKEND, ID, &InitOptions::default()).unwrap()
}

#[test]
fn what_one_manager_created_another_attaches_to() {
    let name = name("attach");
    let (first, second) = (MemoryManager::new(), MemoryManager::new());
    let created = create(&first, &name);
    let object = created.new_object(MemContext::DEFAULT, 42_u64).unwrap();

    second.attach_backend::<PosixShmMmap>(MemoryBackendId::new(8), &name).unwrap();
    let attached =
        second.attach_allocator::<ThreadLocalAllocator>(MemoryBackendId::new(8)).unwrap();
    assert_eq!(attached.id(), ID);
    let seen = second.full_ptr::<u64>(object.shared).unwrap();
    assert_ne!(seen.address, object.address);
    // SAFETY: [owned] the object is initialised, and nobody writes it.
    assert_eq!(unsafe { *seen.address.as_ref() }, 42);
    // SAFETY: [owned] it is deleted once, through the other mapping.
    unsafe { attached.delete_object(MemContext::DEFAULT, seen) }.unwrap();
    assert_eq!(created.allocated_bytes(), 0);

    second.unregister_allocator(ID).unwrap();
    second.detach_backend(MemoryBackendId::new(8)).unwrap();
    first.unregister_allocator(ID).unwrap();
    first.destroy_backend(BACKEND).unwrap();
    // On Windows the name goes with the last who has the memory.
    drop((created, attached));
    let gone = second.attach_backend::<PosixShmMmap>(BACKEND, &name);
    assert!(matches!(gone, Err(ManagerError::Backend(BackendError::NotFound { .. }))));
}

#[test]
fn numbers_are_given_once_and_nothing_in_use_is_removed() {
    let name = name("numbers");
    let manager = MemoryManager::new();
    create(&manager, &name);
    let again = manager.create_backend::<PosixShmMmap>(BACKEND, "never-made", 1 << 20);
    assert!(matches!(again, Err(ManagerError::BackendExists { .. })));
    let again =
        manager.create_allocator::<ThreadLocalAllocator>(BACKEND, ID, &InitOptions::default());
    assert!(matches!(again, Err(ManagerError::AllocatorExists { .. })));
    let other = AllocatorId::new(3, 2);
    let occupied =
        manager.create_allocator::<ThreadLocalAllocator>(BACKEND, other, &InitOptions::default());
    assert!(matches!(occupied, Err(ManagerError::Segment(_))));
    assert!(matches!(manager.destroy_backend(BACKEND), Err(ManagerError::InUse { by: ID, .. })));
    manager.unregister_allocator(ID).unwrap();
    assert!(matches!(manager.allocator(ID), Err(ManagerError::NoSuchAllocator { .. })));
    manager.destroy_backend(BACKEND).unwrap();
    assert!(matches!(manager.backend(BACKEND), Err(ManagerError::NoSuchBackend { .. })));
    assert!(matches!(manager.destroy_backend(BACKEND), Err(ManagerError::NoSuchBackend { .. })));
}

#[test]
fn addresses_lead_to_their_allocator_and_pointers_to_addresses() {
    let (one, two) = (name("one"), name("two"));
    let manager = MemoryManager::new();
    let first = create(&manager, &one);
    let backend = MemoryBackendId::new(4);
    manager.create_backend::<PosixShmMmap>(backend, &two, 16 << 20).unwrap();
    let second: Arc<ThreadLocalAllocator> =
        manager.create_allocator(backend, AllocatorId::new(4, 1), &InitOptions::default()).unwrap();
    for heap in [&first, &second] {
        let object = heap.new_object(MemContext::DEFAULT, [7_u8; 100]).unwrap();
        assert_eq!(manager.find(object.address.cast()), Some(object.shared));
        assert_eq!(manager.resolve(object.shared, 100).unwrap(), object.address.cast());
    }
    assert_eq!(manager.find(NonNull::from(&one).cast()), None);
    let unknown = Pointer { allocator: AllocatorId::new(9, 9), offset: OffsetPointer::new(64) };
    assert!(matches!(manager.resolve(unknown, 1), Err(ManagerError::NoSuchAllocator { .. })));

    assert!(matches!(manager.default_allocator(), Err(ManagerError::NoDefault)));
    manager.set_default_allocator(second.id()).unwrap();
    assert_eq!(manager.default_allocator().unwrap().id(), second.id());
    assert_eq!(manager.allocators().len(), 2);
    manager.unregister_allocator(second.id()).unwrap();
    assert!(matches!(manager.default_allocator(), Err(ManagerError::NoDefault)));
    manager.unregister_allocator(ID).unwrap();
    manager.destroy_backend(backend).unwrap();
    manager.destroy_backend(BACKEND).unwrap();
}

#[test]
fn threads_that_register_at_once_lose_nothing() {
    let manager = MemoryManager::new();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let manager = &manager;
            scope.spawn(move || {
                for number in 0..50 {
                    let id = MemoryBackendId::new(thread * 50 + number);
                    let memory = crate::backend::scratch("manager", 4096, 4096).unwrap();
                    manager.register_backend(id, Arc::new(memory)).unwrap();
                    assert!(manager.backend(id).is_ok());
                    if number % 2 == 0 {
                        manager.detach_backend(id).unwrap();
                    }
                }
            });
        }
    });
    let left = (0..200).filter(|&id| manager.backend(MemoryBackendId::new(id)).is_ok()).count();
    assert_eq!(left, 100);
}

#[test]
fn an_allocator_stands_in_a_block_of_another_and_on_parts_of_one_backend() {
    use crate::{BackendSlice, HeapOptions, ScalablePageAllocator};

    let manager = MemoryManager::new();
    let name = name("parts");
    let whole = manager.create_backend::<PosixShmMmap>(BACKEND, &name, 32 << 20).unwrap();
    // Two allocators over disjoint parts of one backend.
    let part = |range| Arc::new(BackendSlice::new(whole.clone(), range).unwrap());
    manager.register_backend(MemoryBackendId::new(11), part(0..16 << 20)).unwrap();
    manager.register_backend(MemoryBackendId::new(12), part(16 << 20..32 << 20)).unwrap();
    let outer: Arc<ThreadLocalAllocator> =
        manager.create_allocator(MemoryBackendId::new(11), ID, &InitOptions::default()).unwrap();
    let other = AllocatorId::new(12, 1);
    let page: Arc<ScalablePageAllocator> =
        manager.create_allocator(MemoryBackendId::new(12), other, &HeapOptions::default()).unwrap();
    // And one inside a block of the first, whose blocks were used before.
    let dirty = outer.new_slice(MemContext::DEFAULT, 2 << 20, |_| 0xFF_u8).unwrap();
    // SAFETY: [owned] it was just made.
    unsafe { outer.delete_slice(MemContext::DEFAULT, dirty) }.unwrap();
    let inner_id = AllocatorId::new(11, 2);
    let inner = manager
        .create_sub_allocator::<ThreadLocalAllocator>(
            ID,
            inner_id,
            4 << 20,
            &InitOptions { worker_slots: 8, ..InitOptions::default() },
        )
        .unwrap();
    for (heap, id) in
        [(&*outer as &dyn Allocator, ID), (&*page, other), (&*inner as &dyn Allocator, inner_id)]
    {
        let object = heap.new_object(MemContext::DEFAULT, 7_u64).unwrap();
        assert_eq!(manager.find(object.address.cast()), Some(object.shared));
        assert_eq!(object.shared.allocator, id);
    }
    assert!(matches!(
        manager.unregister_allocator(ID),
        Err(ManagerError::InUse { by, .. }) if by == inner_id
    ));
    // Whoever is told where it stands attaches to it.
    let (parent, offset) = manager.place_in_parent(inner_id).unwrap().unwrap();
    assert_eq!(parent, ID);
    let second = MemoryManager::new();
    second.register_allocator(outer.clone()).unwrap();
    let again = second.attach_sub_allocator::<ThreadLocalAllocator>(ID, offset, 4 << 20).unwrap();
    assert_eq!(again.allocated_bytes(), inner.allocated_bytes());
    drop((again, second));

    assert!(inner.check().is_clean() && outer.check().is_clean());
    let before = outer.allocated_bytes();
    drop(inner);
    // SAFETY: nobody uses it.
    unsafe { manager.destroy_sub_allocator(inner_id) }.unwrap();
    assert!(outer.allocated_bytes() + (4 << 20) <= before);
    let taken = manager.create_sub_allocator::<ThreadLocalAllocator>(
        ID,
        other,
        1 << 20,
        &InitOptions::default(),
    );
    assert!(matches!(taken, Err(ManagerError::AllocatorExists { .. })));
    PosixShmMmap::unlink(&name).unwrap();
}
