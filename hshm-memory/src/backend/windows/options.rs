//! What can be had of the options on Windows.

use std::io;

use crate::backend::{BackendError, BackendOptions, HugePages, NumaPolicy};

/// Refuses what was required and cannot be had, before anything is created.
pub(super) fn require_possible(options: &BackendOptions) -> Result<(), BackendError> {
    let unsupported = || io::Error::new(io::ErrorKind::Unsupported, "not supported on Windows");
    if options.huge_pages == HugePages::Require {
        return Err(BackendError::HugePages {
            bytes: options.huge_page_bytes.unwrap_or(2 << 20),
            why: "not supported on Windows, where they cannot grow".to_owned(),
        });
    }
    if options.numa != NumaPolicy::Default {
        return Err(BackendError::Numa {
            policy: options.numa.to_string(),
            online: "unknown".to_owned(),
            source: unsupported(),
        });
    }
    if options.lock {
        return Err(BackendError::system("cannot lock memory", unsupported()));
    }
    Ok(())
}
