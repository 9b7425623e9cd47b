//! Arenas for devices. The device's header is compiled for the host, as C and as C++, and threads that run it
//! stand in for a device's, at addresses other than the library's own.

#![cfg(all(unix, not(hshm_loom)))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod deaths;
mod device;
mod exchange;
mod parts;

use std::sync::Arc;

use hshm_memory::gpu::arena::{ArenaOptions, DeviceArena};
use hshm_memory::{AllocatorId, BackendKind, InitOptions, MemfdMmap, ThreadLocalAllocator};

/// How a segment for these tests is laid out.
fn options() -> InitOptions {
    InitOptions { custom_header_bytes: 64, ..InitOptions::default() }
}

/// A segment with an arena that this process owns, and both once more at other addresses.
struct Pair {
    heap: ThreadLocalAllocator,
    arena: DeviceArena,
    /// What device code is told of.
    elsewhere: DeviceArena,
}

fn pair(arena: ArenaOptions) -> Pair {
    let backend = Arc::new(MemfdMmap::create("arena", 32 << 20, 32 << 20).unwrap());
    let heap = ThreadLocalAllocator::shm_init(AllocatorId::new(0, 1), backend, &options()).unwrap();
    let (cell, _) = heap.custom_header();
    let arena = DeviceArena::create_into(&heap, cell, arena).unwrap();
    let file = heap.backend().fd().unwrap().try_clone_to_owned().unwrap();
    let again = ThreadLocalAllocator::open_fd(BackendKind::Memfd, file).unwrap();
    assert_ne!(again.backend().base(), heap.backend().base());
    let elsewhere = DeviceArena::open(&again, heap.read_cell(cell).unwrap()).unwrap();
    arena.claim().unwrap();
    Pair { heap, arena, elsewhere }
}

impl Pair {
    /// Nothing is under way, and all is as it should be: in the heap there is the arena and nothing else.
    fn assert_empty(&self) {
        let report = self.arena.report().unwrap();
        assert_eq!((report.allocated_blocks, report.chunks_in_use), (0, 0), "{report:?}");
        let waiting = [report.frees_to_device, report.blocks_to_device];
        assert_eq!(waiting, [0, 0], "{report:?}");
        assert_eq!([report.frees_to_host, report.blocks_to_host], [0, 0], "{report:?}");
        assert_eq!(report.refused_frees, 0, "{report:?}");
        self.assert_sound();
        assert_eq!(self.heap.report().allocated_blocks, 1);
    }

    fn assert_sound(&self) {
        let arena = self.arena.check().unwrap();
        assert!(arena.violations.is_empty(), "{arena:?}");
        let heap = self.heap.check();
        assert!(heap.violations.is_empty(), "{heap:?}");
    }
}
