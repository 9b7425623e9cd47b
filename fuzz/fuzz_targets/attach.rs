//! Attaching to whatever a file holds: an error, or an allocator that works within the file.
//!
//! The checksum of the header is not compared when built for fuzzing: anybody can compute it, and the
//! fuzzer cannot guess it.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use hshm_memory::{
    AllocatorId, BackendKind, InitOptions, MemfdMmap, OffsetPointer, ThreadLocalAllocator,
};
use libfuzzer_sys::fuzz_target;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SIZE: u64 = 1 << 20;
const CAPACITY: u64 = 2 << 20;
/// Bytes of input for each change of the file: where, and what.
const CHANGE: usize = 11;

/// The bytes of a segment in which blocks were allocated and freed.
fn template() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let backend = Arc::new(MemfdMmap::create("fuzz", SIZE, CAPACITY).unwrap());
        let options =
            InitOptions { custom_header_bytes: 64, worker_slots: 4, ..InitOptions::default() };
        let heap =
            ThreadLocalAllocator::shm_init(AllocatorId::new(1, 2), backend, &options).unwrap();
        let blocks: Vec<_> = (1..60).map(|n| heap.allocate(16 << (n % 8)).unwrap()).collect();
        for block in blocks.into_iter().step_by(2) {
            // SAFETY: [owned] it was just allocated, and nobody uses it.
            unsafe { heap.free(block) }.unwrap();
        }
        let file = File::from(heap.backend().fd().unwrap().try_clone_to_owned().unwrap());
        let mut bytes = vec![0; usize::try_from(heap.committed_bytes()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    })
}

fn use_it(heap: &ThreadLocalAllocator) {
    let cell = heap.custom_header().0;
    let mut blocks = Vec::new();
    for bytes in [1, 100, 5000, 60_000, 100_000, 1 << 20] {
        if let Ok(block) = heap.allocate(bytes) {
            if let Ok(address) = heap.resolve(block, bytes) {
                // SAFETY: [mapped] it was resolved; nobody has a reference to what stands there.
                unsafe { address.write_bytes(7, bytes) };
            }
            blocks.push(block);
        }
    }
    let _ = heap.allocate_into(cell, 50);
    // SAFETY: [owned] nobody uses any block of this segment.
    let _ = unsafe { heap.free_from(cell) };
    let _ = (heap.check(), heap.report(), heap.holders());
    for process in heap.holders() {
        let _ = heap.recover(process);
    }
    for block in blocks.into_iter().chain([OffsetPointer::new(1 << 16)]) {
        // SAFETY: as above.
        let _ = unsafe { heap.free(block) };
    }
    let _ = heap.grow(heap.committed_bytes() + (64 << 10));
    let _ = heap.check();
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let mut bytes;
    if *mode == 0 {
        bytes = rest.to_vec();
    } else {
        bytes = template().to_vec();
        for change in rest.chunks_exact(CHANGE) {
            let mut at = [0; 4];
            at[..3].copy_from_slice(&change[..3]);
            // The header and the tables behind it more often than the rest.
            let most = if at[2] & 1 == 0 { 256 } else { bytes.len() };
            let at = (u32::from_le_bytes(at) >> 1) as usize % most;
            let end = (at + 8).min(bytes.len());
            bytes[at..end].copy_from_slice(&change[3..3 + end - at]);
        }
        if mode & 0x80 != 0 {
            // Within the tables, or behind them.
            let step = if mode & 0x20 == 0 { 4096 } else { bytes.len() / 64 };
            bytes.truncate(step * usize::from(mode & 0x3f));
        }
    }
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(c"fuzz", flags).unwrap());
    file.write_all_at(&bytes, 0).unwrap();
    // Not a bit that says how long the file is.
    let kind = if mode & 0x40 == 0 { BackendKind::PosixShm } else { BackendKind::Memfd };
    if kind == BackendKind::Memfd {
        // Another is refused before anything of it is read.
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).unwrap();
    }
    if let Ok(heap) = ThreadLocalAllocator::open_fd(kind, file.into()) {
        use_it(&heap);
    }
});
