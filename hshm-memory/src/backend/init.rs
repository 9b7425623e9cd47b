//! What the memory manager makes of a name and a size, for backends that have no better place for it.

use super::{BackendError, BackendKind, MallocBackend, MemfdMmap, PosixMmapBackend};
use crate::manager::{InitBackend, roomy};

impl InitBackend for PosixMmapBackend {
    /// The name is not used.
    fn shm_init(_: &str, size_bytes: u64) -> Result<Self, BackendError> {
        Self::create(size_bytes, roomy(size_bytes))
    }

    fn shm_attach(_: &str) -> Result<Self, BackendError> {
        Err(BackendError::NotShared { kind: BackendKind::PosixMmap })
    }

    fn shm_destroy(_: &str) -> Result<(), BackendError> {
        Ok(())
    }
}

impl InitBackend for MallocBackend {
    /// The name is not used. Since it cannot grow, it is made as long as it will ever be.
    fn shm_init(_: &str, size_bytes: u64) -> Result<Self, BackendError> {
        Self::create(size_bytes)
    }

    fn shm_attach(_: &str) -> Result<Self, BackendError> {
        Err(BackendError::NotShared { kind: BackendKind::Malloc })
    }

    fn shm_destroy(_: &str) -> Result<(), BackendError> {
        Ok(())
    }
}

impl InitBackend for MemfdMmap {
    /// The name is a label.
    fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError> {
        Self::create(name, size_bytes, roomy(size_bytes))
    }

    /// Always an error: it is found by its descriptor alone, for which there is
    /// `MemfdMmap::from_fd`.
    fn shm_attach(_: &str) -> Result<Self, BackendError> {
        Err(BackendError::NotShared { kind: BackendKind::Memfd })
    }

    fn shm_destroy(_: &str) -> Result<(), BackendError> {
        Ok(())
    }
}

#[cfg(unix)]
mod unix {
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::super::segment_file::file_len;
    use super::{BackendError, InitBackend, roomy};
    use crate::allocator::segment_capacity;
    use crate::backend::FileMmap;

    impl InitBackend for FileMmap {
        /// The name is a path.
        fn shm_init(name: &str, size_bytes: u64) -> Result<Self, BackendError> {
            Self::create(Path::new(name), size_bytes, roomy(size_bytes), 0o600)
        }

        fn shm_attach(name: &str) -> Result<Self, BackendError> {
            let file = Self::open(Path::new(name))?;
            let capacity = match segment_capacity(&file) {
                Ok(capacity) => capacity,
                // Of a device, as much as there is.
                Err(_) => match Self::device_bytes(&file)? {
                    Some(bytes) => bytes,
                    None => roomy(file_len(file.as_fd())?),
                },
            };
            Self::from_fd(file, capacity)
        }

        fn shm_destroy(name: &str) -> Result<(), BackendError> {
            Self::unlink(Path::new(name))
        }
    }
}
