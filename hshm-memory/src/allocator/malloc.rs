//! The process's own malloc, under the interface of the others: for tests, for memory that need not
//! be shared, and to compare with.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::contexts::Contexts;
use super::{Allocator, AllocatorKind, ShmAllocator};
use crate::backend::{BASE_ALIGN, Backend};
use crate::context::MemContext;
use crate::error::{AllocError, SegmentError};
use crate::options::HeapOptions;
use crate::platform;
use crate::pointer::{AllocatorId, OffsetPointer};
use crate::report::CheckReport;

/// The least alignment.
const GRANULE_BYTES: usize = 16;

/// Allocates with the process's malloc, and ignores the backend.
///
/// An offset is the block's address in this process. Nobody else can use it, and nobody can attach:
/// [`MallocAllocator::shm_deserialize`] always refuses.
///
/// A private table knows every block. So the allocator can tell of any pointer at all whether a block
/// of it begins there: a second free, a foreign pointer and one into a block are reported, always;
/// unless malloc has handed out the same address again, which makes it another block's. What is
/// allocated is counted exactly, as the bytes that were asked for, rounded up to 16.
///
/// A forked child has copies of its parent's blocks, and may use and free them as its own. When the
/// last clone is dropped, the blocks that are left are freed.
///
/// # Examples
/// ```
/// use hshm_memory::{Allocator, AllocatorId, HeapOptions, MallocAllocator, MemContext};
///
/// let heap = MallocAllocator::new(AllocatorId::new(0, 1), &HeapOptions::default())?;
/// let block = heap.aligned_allocate_offset(MemContext::DEFAULT, 100, 4096)?;
/// assert!(heap.resolve(block, 100)?.addr().get().is_multiple_of(4096));
/// // SAFETY: nobody uses the block.
/// let block = unsafe { heap.reallocate_offset_no_null_check(MemContext::DEFAULT, block, 200)? };
/// assert_eq!(heap.allocated_bytes(), 208);
/// // SAFETY: nobody uses the block.
/// unsafe { heap.free_offset_no_null_check(MemContext::DEFAULT, block)? };
/// // SAFETY: the block is not one any more, which is found out.
/// unsafe { heap.free_offset_no_null_check(MemContext::DEFAULT, block).unwrap_err() };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MallocAllocator {
    inner: Arc<Inner>,
}

struct Inner {
    /// Unique among all that this process ever made.
    key: u64,
    id: AllocatorId,
    header: Option<(usize, Layout)>,
    contexts: Contexts,
}

/// All blocks of all malloc allocators of this process, by allocator and address. One table, so that
/// one pair of handlers sees it through a fork.
static BLOCKS: Mutex<Blocks> =
    Mutex::new(Blocks { blocks: BTreeMap::new(), bytes: BTreeMap::new() });

struct Blocks {
    blocks: BTreeMap<(u64, usize), Layout>,
    /// For each allocator with blocks, how many bytes they have.
    bytes: BTreeMap<u64, u64>,
}

thread_local! {
    /// Held from before a fork until after it, on both sides.
    static FORK_GUARD: RefCell<Option<MutexGuard<'static, Blocks>>> =
        const { RefCell::new(None) };
}

fn blocks() -> MutexGuard<'static, Blocks> {
    BLOCKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has no fork happen while the table is being changed. Threads that come at once may register the
/// handlers several times: each does nothing where it has run already.
fn watch_forks() {
    static WATCHED: AtomicBool = AtomicBool::new(false);
    // ORDER: Acquire pairs with the Release below: the handlers are registered.
    if WATCHED.load(Ordering::Acquire) {
        return;
    }
    platform::at_fork(Some(before_fork), Some(after_fork), Some(after_fork));
    WATCHED.store(true, Ordering::Release);
}

extern "C" fn before_fork() {
    let _ = FORK_GUARD.try_with(|held| {
        let mut held = held.borrow_mut();
        if held.is_none() {
            *held = Some(blocks());
        }
    });
}

extern "C" fn after_fork() {
    let _ = FORK_GUARD.try_with(|held| held.borrow_mut().take());
}

impl Blocks {
    fn insert(&mut self, key: u64, address: usize, layout: Layout) {
        self.blocks.insert((key, address), layout);
        *self.bytes.entry(key).or_default() += layout.size() as u64;
    }

    fn remove(&mut self, key: u64, address: usize) -> Option<Layout> {
        let layout = self.blocks.remove(&(key, address))?;
        if let Some(bytes) = self.bytes.get_mut(&key) {
            *bytes -= layout.size() as u64;
        }
        Some(layout)
    }

    /// The block that `address` lies in: where it begins, and its layout.
    fn around(&self, key: u64, address: usize) -> Option<(usize, Layout)> {
        let (&(_, start), &layout) = self.blocks.range((key, 0)..=(key, address)).next_back()?;
        (address - start < layout.size()).then_some((start, layout))
    }
}

impl MallocAllocator {
    /// An allocator with the identity `id`, and a header for the application.
    ///
    /// # Errors
    /// [`SegmentError::BadOption`] for options out of range.
    pub fn new(id: AllocatorId, options: &HeapOptions) -> Result<Self, SegmentError> {
        static KEYS: AtomicU64 = AtomicU64::new(1);
        let bad = || SegmentError::BadOption {
            what: "the custom header's length",
            found: options.custom_header_bytes,
            expected: format!("at most {} bytes", HeapOptions::MAX_CUSTOM_HEADER_BYTES),
        };
        let fits = options.custom_header_bytes <= HeapOptions::MAX_CUSTOM_HEADER_BYTES;
        let bytes = usize::try_from(options.custom_header_bytes).ok().filter(|_| fits);
        let bytes = bytes.ok_or_else(bad)?;
        let header = match Layout::from_size_align(bytes, 64) {
            Ok(layout) if bytes > 0 => {
                // SAFETY: [ffi] the layout's size is not zero.
                let address = unsafe { System.alloc_zeroed(layout) };
                if address.is_null() {
                    return Err(bad());
                }
                Some((address.expose_provenance(), layout))
            }
            Ok(_) | Err(_) => None,
        };
        watch_forks();
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { inner: Arc::new(Inner { key, id, header, contexts: Contexts::new() }) })
    }

    fn layout(bytes: usize, align: usize) -> Result<Layout, AllocError> {
        if !align.is_power_of_two() || align > BASE_ALIGN {
            return Err(AllocError::BadAlignment { align, limit: BASE_ALIGN });
        }
        let limit = isize::MAX.cast_unsigned() - BASE_ALIGN;
        let too_large = AllocError::TooLarge { bytes: bytes as u64, limit_bytes: limit as u64 };
        let rounded = bytes.max(1).checked_next_multiple_of(GRANULE_BYTES);
        match rounded.filter(|&rounded| rounded <= limit) {
            Some(size) => Layout::from_size_align(size, align.max(GRANULE_BYTES))
                .map_err(|_| AllocError::BadAlignment { align, limit: BASE_ALIGN }),
            None => Err(too_large),
        }
    }

    fn allocate(&self, layout: Layout) -> Result<OffsetPointer, AllocError> {
        // SAFETY: [ffi] the layout's size is not zero.
        let address = unsafe { System.alloc(layout) };
        if address.is_null() {
            return Err(AllocError::OutOfMemory {
                bytes: layout.size() as u64,
                committed_bytes: self.allocated_bytes(),
            });
        }
        let address = address.expose_provenance();
        blocks().insert(self.inner.key, address, layout);
        Ok(OffsetPointer::new(address as u64))
    }

    /// Takes the block that begins at `pointer` out of the table.
    fn take(&self, pointer: OffsetPointer) -> Result<(usize, Layout), AllocError> {
        let offset = pointer.offset_bytes();
        let address = usize::try_from(offset).unwrap_or(0);
        let layout = blocks().remove(self.inner.key, address);
        let why = "no allocated block begins there";
        let layout = layout.ok_or(AllocError::NotAllocated { offset, why })?;
        Ok((address, layout))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut left = blocks();
        let mut mine = left.blocks.split_off(&(self.key, 0));
        let mut others = mine.split_off(&(self.key + 1, 0));
        left.blocks.append(&mut others);
        left.bytes.remove(&self.key);
        drop(left);
        let header = self.header.into_iter();
        for (address, layout) in
            mine.into_iter().map(|((_, at), layout)| (at, layout)).chain(header)
        {
            // SAFETY: [owned] it was allocated with this layout, and nobody can free it any more.
            unsafe { System.dealloc(ptr::with_exposed_provenance_mut(address), layout) };
        }
    }
}

// SAFETY: [owned] malloc hands out each byte once, as long and aligned as its layout says, until it
// gets it back; `resolve` answers for blocks in the table alone, which keeps them until they are freed.
unsafe impl Allocator for MallocAllocator {
    fn kind(&self) -> AllocatorKind {
        AllocatorKind::Malloc
    }

    fn id(&self) -> AllocatorId {
        self.inner.id
    }

    fn backend(&self) -> Option<&Arc<dyn Backend>> {
        None
    }

    fn custom_header(&self) -> (OffsetPointer, usize) {
        self.inner.header.map_or((OffsetPointer::NULL, 0), |(address, layout)| {
            (OffsetPointer::new(address as u64), layout.size())
        })
    }

    fn allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.aligned_allocate_offset(context, bytes, GRANULE_BYTES)
    }

    fn aligned_allocate_offset(
        &self,
        context: MemContext,
        bytes: usize,
        align: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.inner.contexts.validate(context)?;
        self.allocate(Self::layout(bytes, align)?)
    }

    unsafe fn reallocate_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
        bytes: usize,
    ) -> Result<OffsetPointer, AllocError> {
        self.inner.contexts.validate(context)?;
        let new_layout = Self::layout(bytes, GRANULE_BYTES)?;
        // Out of the table meanwhile: nobody frees it at the same time.
        let (address, layout) = self.take(pointer)?;
        let old = ptr::with_exposed_provenance_mut(address);
        // SAFETY: [owned] the block was allocated with this layout, and is the caller's; the new size
        // is not zero and was checked.
        let new = unsafe { System.realloc(old, layout, new_layout.size()) };
        if new.is_null() {
            blocks().insert(self.inner.key, address, layout);
            if new_layout.size() <= layout.size() {
                return Ok(pointer);
            }
            let bytes = new_layout.size() as u64;
            return Err(AllocError::OutOfMemory { bytes, committed_bytes: self.allocated_bytes() });
        }
        // It keeps the alignment that it was allocated with, which malloc is to be told in the end.
        let kept = Layout::from_size_align(new_layout.size(), layout.align()).unwrap_or(new_layout);
        let new = new.expose_provenance();
        blocks().insert(self.inner.key, new, kept);
        Ok(OffsetPointer::new(new as u64))
    }

    unsafe fn free_offset_no_null_check(
        &self,
        context: MemContext,
        pointer: OffsetPointer,
    ) -> Result<(), AllocError> {
        self.inner.contexts.validate(context)?;
        let (address, layout) = self.take(pointer)?;
        // SAFETY: [owned] it was allocated with this layout, and the table gave it to this thread alone.
        unsafe { System.dealloc(ptr::with_exposed_provenance_mut(address), layout) };
        Ok(())
    }

    fn create_tls(&self) -> Result<MemContext, AllocError> {
        static NUMBERS: AtomicU32 = AtomicU32::new(1);
        Ok(self.inner.contexts.create(|| NUMBERS.fetch_add(1, Ordering::Relaxed)))
    }

    fn free_tls(&self, context: MemContext) -> Result<(), AllocError> {
        self.inner.contexts.free(context)
    }

    /// Only addresses in blocks that are allocated now, and in the application's header.
    fn resolve(&self, pointer: OffsetPointer, len: usize) -> Result<NonNull<u8>, AllocError> {
        let offset = pointer.offset_bytes();
        let outside = AllocError::NotAllocated { offset, why: "it lies in no allocated block" };
        let Ok(address) = usize::try_from(offset) else { return Err(outside) };
        let header = self.inner.header.filter(|(start, layout)| {
            address.checked_sub(*start).is_some_and(|distance| distance < layout.size())
        });
        let found = header.or_else(|| blocks().around(self.inner.key, address));
        let fits = found.is_some_and(|(start, layout)| len <= start + layout.size() - address);
        NonNull::new(ptr::with_exposed_provenance_mut(address)).filter(|_| fits).ok_or(outside)
    }

    fn offset_of(&self, address: NonNull<u8>) -> Option<OffsetPointer> {
        let pointer = OffsetPointer::new(address.addr().get() as u64);
        self.resolve(pointer, 1).is_ok().then_some(pointer)
    }

    fn allocated_bytes(&self) -> u64 {
        blocks().bytes.get(&self.inner.key).copied().unwrap_or(0)
    }

    /// Whether the table agrees with itself; malloc's own state is not looked at.
    fn check(&self) -> CheckReport {
        let table = blocks();
        let key = self.inner.key;
        let mine = table.blocks.range((key, 0)..(key + 1, 0));
        let mut report = CheckReport::default();
        let mut end = 0;
        for (&(_, start), layout) in mine {
            report.allocated_blocks += 1;
            report.allocated_bytes += layout.size() as u64;
            if start < end {
                report.violate("M1", start as u64, "two blocks overlap".to_owned());
            }
            end = start + layout.size();
        }
        let counted = table.bytes.get(&key).copied().unwrap_or(0);
        if counted != report.allocated_bytes {
            let what = format!("{counted} bytes are counted, {} are there", report.allocated_bytes);
            report.violate("M2", 0, what);
        }
        report
    }
}

impl ShmAllocator for MallocAllocator {
    type Options = HeapOptions;

    /// Makes an allocator, and leaves the backend alone.
    fn shm_init(
        id: AllocatorId,
        _: Arc<dyn Backend>,
        options: &HeapOptions,
    ) -> Result<Self, SegmentError> {
        Self::new(id, options)
    }

    /// Always [`SegmentError::NotShared`].
    fn shm_deserialize(_: Arc<dyn Backend>) -> Result<Self, SegmentError> {
        Err(SegmentError::NotShared { kind: AllocatorKind::Malloc })
    }
}

impl fmt::Debug for MallocAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MallocAllocator").field("id", &self.inner.id).finish_non_exhaustive()
    }
}
