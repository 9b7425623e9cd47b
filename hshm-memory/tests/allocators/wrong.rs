//! What every allocator refuses, as far as it can tell.

use hshm_memory::{AllocError, Allocator, OffsetPointer};

use crate::Verdict;
use crate::cases::{AllocatorCase, BackendCase, World};
use crate::properties::{CTX, allocate, assert_empty, free, largest_alignment, resize, try_free};

const SMALL_BLOCKS_UNKNOWN: &str = "it looks at no block's state on its fast path";

/// Freeing and resizing `block` is refused, and changes nothing.
fn assert_refused(heap: &dyn Allocator, block: OffsetPointer) {
    let before = heap.allocated_bytes();
    for result in [try_free(heap, CTX, block), resize(heap, CTX, block, 200).map(drop)] {
        match result {
            Err(AllocError::NotAllocated { offset, .. }) => {
                assert_eq!(offset, block.offset_bytes())
            }
            other => panic!("{block}: {other:?}"),
        }
    }
    assert_eq!(heap.allocated_bytes(), before);
    let report = heap.check();
    assert!(report.is_clean(), "{:?}", report.violations);
}

pub(crate) fn too_large(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    // How much the machine has, malloc finds out.
    let is_told = |error: &AllocError| {
        matches!(error, AllocError::TooLarge { .. })
            || !allocator.is_shared && matches!(error, AllocError::OutOfMemory { .. })
    };
    for bytes in [usize::MAX, usize::MAX - 15, isize::MAX.cast_unsigned(), 1 << 62] {
        let refused = heap.allocate_offset(CTX, bytes).unwrap_err();
        assert!(is_told(&refused), "{bytes}: {refused}");
        let refused = heap.aligned_allocate_offset(CTX, bytes, 4096).unwrap_err();
        assert!(is_told(&refused), "{bytes}: {refused}");
    }
    assert_empty(&**heap);
    Ok(())
}

pub(crate) fn bad_alignments(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let beyond = if allocator.is_shared { 2 * largest_alignment(&**heap) } else { 1 << 40 };
    for align in [0, 3, 48, usize::MAX, beyond, 1 << 63] {
        let refused = heap.aligned_allocate_offset(CTX, 10, align).unwrap_err();
        assert!(matches!(refused, AllocError::BadAlignment { .. }), "{align}: {refused}");
    }
    assert_empty(&**heap);
    Ok(())
}

pub(crate) fn free_of_null(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    assert_refused(&**heap, OffsetPointer::NULL);
    Ok(())
}

pub(crate) fn free_elsewhere(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, memory } = &World::new(allocator, backend);
    let block = allocate(&**heap, 100);
    let end = memory.backend.committed_bytes();
    let header = heap.custom_header().0.offset_bytes();
    for offset in [8, 16, 64, header, header + 16, end - 16, end, end + 16, 1 << 45, u64::MAX - 15]
    {
        assert_refused(&**heap, OffsetPointer::new(offset));
    }
    free(&**heap, block);
    assert_empty(&**heap);
    Ok(())
}

pub(crate) fn second_free(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    // Large ones are known everywhere.
    let known = if allocator.knows_blocks { &[10, 100, 5000, 600_000][..] } else { &[600_000] };
    for &bytes in known {
        let blocks = [(); 5].map(|()| allocate(&**heap, bytes));
        for index in [1, 3, 2, 4, 0] {
            free(&**heap, blocks[index]);
            assert_refused(&**heap, blocks[index]);
        }
        for block in blocks {
            assert_refused(&**heap, block);
        }
        assert_empty(&**heap);
    }
    if allocator.knows_blocks { Ok(()) } else { Err(SMALL_BLOCKS_UNKNOWN) }
}

pub(crate) fn free_inside(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    // Large ones are known everywhere.
    let known = if allocator.knows_blocks { &[10, 100, 5000, 600_000][..] } else { &[600_000] };
    for &bytes in known {
        let block = allocate(&**heap, bytes);
        for distance in [1, 8, 15, 16, 32, bytes as u64 - 1] {
            assert_refused(&**heap, OffsetPointer::new(block.offset_bytes() + distance));
        }
        free(&**heap, block);
    }
    assert_empty(&**heap);
    if allocator.knows_blocks { Ok(()) } else { Err(SMALL_BLOCKS_UNKNOWN) }
}

pub(crate) fn foreign_contexts(allocator: &AllocatorCase, backend: &BackendCase) -> Verdict {
    let World { heap, .. } = &World::new(allocator, backend);
    let World { heap: other, .. } = &World::new(allocator, backend);
    let block = allocate(&**heap, 100);
    let contexts = [(); 3].map(|()| other.create_tls().unwrap());
    for foreign in contexts {
        let is_bad = |error: AllocError| {
            assert!(matches!(error, AllocError::BadContext { slot } if slot == foreign.slot()));
        };
        is_bad(heap.allocate_offset(foreign, 10).unwrap_err());
        is_bad(heap.aligned_allocate_offset(foreign, 10, 64).unwrap_err());
        is_bad(resize(&**heap, foreign, block, 10).unwrap_err());
        is_bad(try_free(&**heap, foreign, block).unwrap_err());
        is_bad(heap.free_tls(foreign).unwrap_err());
        other.free_tls(foreign).unwrap();
    }
    free(&**heap, block);
    assert_empty(&**heap);
    assert_empty(&**other);
    Ok(())
}
