use hshm_memory::{
    AllocatorId, BackendError, BackendKind, FileMmap, InitBackend, InitOptions, MallocBackend,
    ManagerError, MemContext, MemfdMmap, MemoryBackendId, MemoryManager, PosixMmapBackend,
    PosixShmMmap, ThreadLocalAllocator, TypedAllocator,
};

const ID: MemoryBackendId = MemoryBackendId::new(3);

/// Makes a backend of one kind and uses an allocator on it; whether another can attach by name.
fn is_shared<B: InitBackend>(kind: BackendKind, name: &str) -> bool {
    let manager = MemoryManager::new();
    let backend = manager.create_backend::<B>(ID, name, 8 << 20).unwrap();
    assert_eq!(backend.kind(), kind);
    drop(backend);
    let (allocator_id, options) = (AllocatorId::new(0, 7), InitOptions::default());
    let allocator =
        manager.create_allocator::<ThreadLocalAllocator>(ID, allocator_id, &options).unwrap();
    let number = allocator.new_object(MemContext::DEFAULT, 42_u64).unwrap();
    let other = MemoryManager::new();
    let shared = match other.attach_backend::<B>(ID, name) {
        Ok(_) => {
            let again = other.attach_allocator::<ThreadLocalAllocator>(ID).unwrap();
            assert_eq!(again.report().allocated_blocks, 1);
            true
        }
        Err(ManagerError::Backend(BackendError::NotShared { kind: said })) => {
            assert_eq!(said, kind);
            false
        }
        Err(error) => panic!("{error}"),
    };
    // SAFETY: [owned] the object was made here, and nobody uses it.
    unsafe { allocator.delete_object(MemContext::DEFAULT, number) }.unwrap();
    manager.unregister_allocator(allocator_id).unwrap();
    manager.destroy_backend(ID).unwrap();
    assert!(MemoryManager::new().attach_backend::<B>(ID, name).is_err(), "it is gone");
    shared
}

#[test]
fn a_manager_makes_every_backend_that_a_size_and_a_name_suffice_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("segment");
    let name = format!("hshm-manager.{}", std::process::id());
    assert!(is_shared::<PosixShmMmap>(BackendKind::PosixShm, &name));
    assert!(is_shared::<FileMmap>(BackendKind::File, path.to_str().unwrap()));
    assert!(!is_shared::<MemfdMmap>(BackendKind::Memfd, &name));
    assert!(!is_shared::<PosixMmapBackend>(BackendKind::PosixMmap, &name));
    assert!(!is_shared::<MallocBackend>(BackendKind::Malloc, &name));
}
