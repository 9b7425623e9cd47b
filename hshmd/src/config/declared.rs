//! Segments that the configuration declares.

use hshm_memory::BackendOptions;
use hshm_proto::{CreateSegment, RequestBody};

use super::file::FileSegment;
use crate::error::DaemonError;

/// A segment that is to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredSegment {
    /// What a client would ask for.
    pub segment: CreateSegment,
    /// How its memory is to be had.
    pub memory: BackendOptions,
    /// Whose it is, by name or number; the daemon's user's if none.
    pub owner: Option<String>,
    /// Its group; the owner's if none.
    pub group: Option<String>,
}

/// What the files say, checked as far as can be without asking the machine.
pub(super) fn all(segments: Vec<FileSegment>) -> Result<Vec<DeclaredSegment>, DaemonError> {
    let refused = |why| DaemonError::Setting { setting: "[[segment]]", why };
    let mut all = Vec::<DeclaredSegment>::new();
    for declared in segments.into_iter().map(DeclaredSegment::from) {
        let name = &declared.segment.name;
        let request = RequestBody::CreateWith {
            segment: declared.segment.clone(),
            memory: declared.memory.clone(),
        };
        request.validate().map_err(|error| refused(format!("{name:?}: {error}")))?;
        if all.iter().any(|other| other.segment.name == *name) {
            return Err(refused(format!("{name:?} is declared twice in one file")));
        }
        all.push(declared);
    }
    Ok(all)
}

impl From<FileSegment> for DeclaredSegment {
    fn from(file: FileSegment) -> Self {
        let default = CreateSegment::new(file.name, file.size.0);
        Self {
            segment: CreateSegment {
                capacity_bytes: file.capacity.map(|size| size.0),
                backend: file.backend.unwrap_or(default.backend),
                allocator: file.allocator.unwrap_or(default.allocator),
                custom_header_bytes: file.custom_header.map_or(0, |size| size.0),
                on_exit: file.on_exit.unwrap_or(default.on_exit),
                worker_slots: file.worker_slots,
                mode: file.mode.map_or(default.mode, |mode| mode.0),
                ..default
            },
            memory: file.memory,
            owner: file.owner,
            group: file.group,
        }
    }
}
