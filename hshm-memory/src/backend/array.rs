//! Memory that the caller has already.

use std::ops::Range;
use std::ptr::NonNull;

use super::range::{MAX_CAPACITY_BYTES, inside, validate_grow, zero};
use super::{BASE_ALIGN, Backend, BackendError, BackendKind, MIN_ALIGN};

/// Memory that the caller has already, such as a static array or the block of another allocator, for
/// use by one process.
///
/// The caller may have the memory back as soon as the backend is dropped, and every allocator that
/// stands on it before. What of it lies before its first and after its last multiple of
/// [`MIN_ALIGN`] is not used.
///
/// # Examples
/// ```
/// use std::ptr::NonNull;
/// use hshm_memory::{ArrayBackend, Backend};
///
/// let mut memory = vec![1_u8; 1 << 20];
/// let start = NonNull::from(memory.as_mut_slice()).cast();
/// // SAFETY: nobody uses the vector before the backend is dropped.
/// let backend = unsafe { ArrayBackend::create(start, memory.len())? };
/// assert!(backend.capacity_bytes() >= (1 << 20) - 2 * 4096);
/// // SAFETY: the first byte is mapped, and nobody writes it.
/// assert_eq!(unsafe { backend.base().read() }, 0);
/// drop(backend);
/// memory.clear();
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Debug)]
pub struct ArrayBackend {
    base: NonNull<u8>,
    len: u64,
}

// SAFETY: [owned] the caller gave the memory away for as long as the value lives, to all threads.
unsafe impl Send for ArrayBackend {}
// SAFETY: [owned] as above; all methods take `&self` and write zeros atomically at most.
unsafe impl Sync for ArrayBackend {}

impl ArrayBackend {
    /// Takes `len_bytes` bytes at `memory`, and fills them with zeros, for an allocator to be laid
    /// out in them.
    ///
    /// # Safety
    /// Until the value is dropped the memory stays mapped for reading and writing, by any thread and
    /// without a signal, and nobody uses it but through the value.
    ///
    /// # Errors
    /// [`BackendError::BadSize`] if not a whole page of 4 KiB lies in it, or it is beyond 64 TiB.
    pub unsafe fn create(memory: NonNull<u8>, len_bytes: usize) -> Result<Self, BackendError> {
        // SAFETY: the caller promises the same.
        let backend = unsafe { Self::attach(memory, len_bytes) }?;
        // SAFETY: [owned] the memory was just given away, and the range is what there is of it.
        unsafe { zero(backend.base, 0..backend.len) };
        Ok(backend)
    }

    /// Takes `len_bytes` bytes at `memory` as they are, for the allocator that stands in them. It is
    /// found again if the memory begins at the same multiple of 4 KiB as when it was laid out.
    ///
    /// # Examples
    /// ```
    /// use std::ptr::NonNull;
    /// use std::sync::Arc;
    /// use hshm_memory::{AllocatorId, ArrayBackend, InitOptions, ThreadLocalAllocator};
    ///
    /// let mut memory = vec![0_u8; 8 << 20];
    /// let (start, len) = (NonNull::from(memory.as_mut_slice()).cast(), memory.len());
    /// // SAFETY: nobody uses the vector but this backend, and the next after it.
    /// let backend = Arc::new(unsafe { ArrayBackend::create(start, len)? });
    /// let id = AllocatorId::new(0, 0);
    /// let heap = ThreadLocalAllocator::shm_init(id, backend, &InitOptions::default())?;
    /// let block = heap.allocate(100)?;
    /// drop(heap);
    ///
    /// // SAFETY: as above.
    /// let backend = Arc::new(unsafe { ArrayBackend::attach(start, len)? });
    /// let heap = ThreadLocalAllocator::shm_deserialize(backend)?;
    /// // SAFETY: the block is allocated, and nobody uses it.
    /// unsafe { heap.free(block)? };
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// As for [`ArrayBackend::create`].
    ///
    /// # Errors
    /// As for [`ArrayBackend::create`].
    pub unsafe fn attach(memory: NonNull<u8>, len_bytes: usize) -> Result<Self, BackendError> {
        let bad = |why| BackendError::BadSize {
            size_bytes: len_bytes as u64,
            capacity_bytes: len_bytes as u64,
            why,
        };
        let skipped = memory.addr().get().wrapping_neg() % MIN_ALIGN;
        let len = len_bytes.checked_sub(skipped).map_or(0, |rest| rest / MIN_ALIGN * MIN_ALIGN);
        if len == 0 {
            return Err(bad("no whole page of 4096 bytes lies in it"));
        }
        if len as u64 > MAX_CAPACITY_BYTES {
            return Err(bad("the capacity is beyond 64 TiB"));
        }
        // SAFETY: [owned] `skipped` is less than the length of the memory.
        let base = unsafe { memory.add(skipped) };
        Ok(Self { base, len: len as u64 })
    }
}

// SAFETY: [mapped] the caller promised that the memory is there, and nobody else's, until the value
// is dropped; it begins where its own address says.
unsafe impl Backend for ArrayBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Array
    }

    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn alignment(&self) -> usize {
        (1 << self.base.addr().get().trailing_zeros()).min(BASE_ALIGN)
    }

    fn capacity_bytes(&self) -> u64 {
        self.len
    }

    fn committed_bytes(&self) -> u64 {
        self.len
    }

    /// Does nothing: the caller promised that the memory is there.
    fn populate(&self, _: Range<u64>) -> Result<(), BackendError> {
        Ok(())
    }

    /// Fills the range with zeros. How the caller came by the memory is not known here, and so not
    /// how it could be given back.
    fn punch(&self, range: Range<u64>) -> Result<(), BackendError> {
        if inside(&range, self.len).is_some() {
            // SAFETY: [mapped] the range lies inside; the caller of this gives its contents up.
            unsafe { zero(self.base, range) };
        }
        Ok(())
    }

    fn grow(&self, bytes: u64) -> Result<(), BackendError> {
        validate_grow(bytes, self.len)
    }
}
