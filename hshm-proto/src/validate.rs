//! Checks of what a message says, beyond its form. Clients make them before they send, and the
//! daemon again on what it receives.

use hshm_memory::backend::validate_name;
use hshm_memory::{AllocatorKind, BackendKind, BackendOptions, InitOptions, OnExit};

use crate::error::{ErrorCode, ErrorReply};
use crate::limits::{MAX_CLIENT_NAME_BYTES, MAX_SEGMENT_NAME_BYTES, truncated};
use crate::message::{CreateSegment, RequestBody};

/// Whether `name` can be a segment's name: one word of letters, digits and `.`, `_`, `-`, not
/// beginning with a dot, at most [`MAX_SEGMENT_NAME_BYTES`] long.
///
/// # Errors
/// [`ErrorCode::BadName`].
pub fn validate_segment_name(name: &str) -> Result<(), ErrorReply> {
    let bad = |why: &str| {
        Err(ErrorReply::new(
            ErrorCode::BadName,
            format_args!("segment name {:?} {why}", truncated(name, 40)),
            format_args!(
                "use 1 to {MAX_SEGMENT_NAME_BYTES} of the characters a-z A-Z 0-9 . _ -, not beginning with a dot"
            ),
        ))
    };
    match validate_name(name) {
        Err(hshm_memory::BackendError::BadName { why, .. }) => bad(why),
        Err(_) => bad("cannot be used"),
        Ok(()) if name.len() > MAX_SEGMENT_NAME_BYTES => bad("is too long"),
        Ok(()) => Ok(()),
    }
}

/// Whether `name` can be a client's name for itself: at most [`MAX_CLIENT_NAME_BYTES`] long, without
/// control characters, since it goes into logs and tables. It may be empty.
///
/// # Errors
/// [`ErrorCode::BadName`].
pub fn validate_client_name(name: &str) -> Result<(), ErrorReply> {
    if name.len() <= MAX_CLIENT_NAME_BYTES && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(ErrorReply::new(
        ErrorCode::BadName,
        format_args!(
            "client name {:?} is too long or holds control characters",
            truncated(name, 40)
        ),
        format_args!("use at most {MAX_CLIENT_NAME_BYTES} bytes of printable text"),
    ))
}

fn bad_argument(message: impl std::fmt::Display, advice: impl std::fmt::Display) -> ErrorReply {
    ErrorReply::new(ErrorCode::BadArgument, message, advice)
}

impl CreateSegment {
    /// Whether the request makes sense in itself; whether the machine can meet it, the daemon finds
    /// out.
    ///
    /// # Errors
    /// [`ErrorCode::BadName`] or [`ErrorCode::BadArgument`].
    pub fn validate(&self) -> Result<(), ErrorReply> {
        let name = &self.name;
        validate_segment_name(name)?;
        if self.size_bytes == 0 {
            return Err(bad_argument(
                format_args!("cannot create segment {name:?}: its size is zero"),
                "give a size of at least 1 MiB",
            ));
        }
        if let Some(capacity) = self.capacity_bytes.filter(|c| *c < self.size_bytes) {
            return Err(bad_argument(
                format_args!(
                    "cannot create segment {name:?}: its size of {} bytes is beyond its capacity of {capacity}",
                    self.size_bytes
                ),
                "give a capacity at least as large as the size, or none",
            ));
        }
        if !(self.backend.is_named() || self.backend == BackendKind::Memfd) {
            return Err(bad_argument(
                format_args!(
                    "cannot create segment {name:?}: a daemon serves no {} backends",
                    self.backend
                ),
                "use posix-shm, memfd, cuda-shm or rocm-shm, or make the segment without a daemon",
            ));
        }
        self.validate_allocator()?;
        let limit = InitOptions::MAX_CUSTOM_HEADER_BYTES;
        if self.custom_header_bytes > limit {
            return Err(bad_argument(
                format_args!(
                    "cannot create segment {name:?}: a custom header of {} bytes is too long",
                    self.custom_header_bytes
                ),
                format_args!("use at most {limit} bytes"),
            ));
        }
        let most = InitOptions::MAX_WORKER_SLOTS;
        if let Some(slots) = self.worker_slots.filter(|n| !(1..=most).contains(n)) {
            return Err(bad_argument(
                format_args!("cannot create segment {name:?} with {slots} worker slots"),
                format_args!("use 1 to {most}"),
            ));
        }
        if self.mode & !0o777 != 0 {
            return Err(bad_argument(
                format_args!("cannot create segment {name:?} with mode {:o}", self.mode),
                "use permission bits only, 0 to 777 (octal)",
            ));
        }
        Ok(())
    }

    /// Whether the allocator is one that others can attach to, and has what is asked of it.
    fn validate_allocator(&self) -> Result<(), ErrorReply> {
        let (name, kind) = (&self.name, self.allocator);
        match kind {
            AllocatorKind::ThreadLocal => return Ok(()),
            AllocatorKind::ScalablePage | AllocatorKind::Stack => {}
            AllocatorKind::Malloc | _ => {
                return Err(bad_argument(
                    format_args!(
                        "cannot create segment {name:?}: a {kind} allocator is one process's own"
                    ),
                    "use thread-local, scalable-page or stack",
                ));
            }
        }
        if self.on_exit == OnExit::Reclaim {
            return Err(bad_argument(
                format_args!(
                    "cannot create segment {name:?}: a {kind} allocator does not know whose a block is"
                ),
                "let it keep the blocks of the dead, or use a thread-local one",
            ));
        }
        if self.worker_slots.is_some() {
            return Err(bad_argument(
                format_args!(
                    "cannot create segment {name:?}: a {kind} allocator has no worker slots"
                ),
                "leave their number out, or use a thread-local one",
            ));
        }
        Ok(())
    }
}

/// Whether the options make sense in themselves. What nodes and pages there are, the daemon finds out.
fn validate_memory(name: &str, memory: &BackendOptions) -> Result<(), ErrorReply> {
    match memory.huge_page_bytes.filter(|bytes| !bytes.is_power_of_two()) {
        None => Ok(()),
        Some(bytes) => Err(bad_argument(
            format_args!("cannot create segment {name:?} with huge pages of {bytes} bytes"),
            "give one of the sizes in /sys/kernel/mm/hugepages, or none",
        )),
    }
}

impl RequestBody {
    /// Whether the request makes sense in itself.
    ///
    /// # Errors
    /// [`ErrorCode::BadName`] or [`ErrorCode::BadArgument`].
    pub fn validate(&self) -> Result<(), ErrorReply> {
        match self {
            Self::Create(segment) => segment.validate(),
            Self::CreateWith { segment, memory } => {
                segment.validate()?;
                validate_memory(&segment.name, memory)
            }
            Self::Grow { name, size_bytes: 0 } => {
                validate_segment_name(name)?;
                Err(bad_argument(
                    format_args!("cannot grow segment {name:?} to a size of zero"),
                    "give the size that the segment is to have afterwards",
                ))
            }
            Self::AddDeviceMemory { name, bytes: 0, .. } => {
                validate_segment_name(name)?;
                Err(bad_argument(
                    format_args!("cannot add no device memory at all to segment {name:?}"),
                    "give a size of at least 2 MiB",
                ))
            }
            Self::Attach { name }
            | Self::AttachReadOnly { name }
            | Self::Detach { name }
            | Self::Destroy { name, .. }
            | Self::Grow { name, .. }
            | Self::Inspect { name, .. }
            | Self::Check { name }
            | Self::Repair { name }
            | Self::Memory { name }
            | Self::Device { name }
            | Self::DeviceMemory { name }
            | Self::DevicePool { name }
            | Self::AddDeviceMemory { name, .. }
            | Self::List { after: Some(name) }
            | Self::Events { name: Some(name), .. } => validate_segment_name(name),
            Self::List { after: None }
            | Self::Events { name: None, .. }
            | Self::Sessions { .. }
            | Self::Status
            | Self::Ping
            | Self::Drivers => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_words() {
        validate_segment_name(&"n".repeat(MAX_SEGMENT_NAME_BYTES)).unwrap();
        for bad in ["", "a/b", ".a", "ä", &"n".repeat(MAX_SEGMENT_NAME_BYTES + 1), &"n".repeat(300)]
        {
            let error = validate_segment_name(bad).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorCode::BadName));
            assert!(error.to_string().len() < 250, "stays one line: {error}");
        }
        validate_client_name("").unwrap();
        validate_client_name("tool ü").unwrap();
        assert!(validate_client_name("a\x1b[31m").is_err());
        assert!(validate_client_name(&"c".repeat(MAX_CLIENT_NAME_BYTES + 1)).is_err());
    }

    #[test]
    fn a_creation_that_makes_no_sense_is_refused() {
        let good = CreateSegment::new("s", 1 << 20);
        good.validate().unwrap();
        let scalable = CreateSegment { allocator: AllocatorKind::ScalablePage, ..good.clone() };
        scalable.validate().unwrap();
        CreateSegment { allocator: AllocatorKind::Stack, ..good.clone() }.validate().unwrap();
        let bad = [
            CreateSegment { size_bytes: 0, ..good.clone() },
            CreateSegment { capacity_bytes: Some(1), ..good.clone() },
            CreateSegment { custom_header_bytes: u64::MAX, ..good.clone() },
            CreateSegment { worker_slots: Some(0), ..good.clone() },
            CreateSegment { worker_slots: Some(4096), ..good.clone() },
            CreateSegment { allocator: AllocatorKind::Malloc, ..good.clone() },
            CreateSegment { backend: BackendKind::Array, ..good.clone() },
            CreateSegment { backend: BackendKind::File, ..good.clone() },
            CreateSegment { on_exit: OnExit::Reclaim, ..scalable.clone() },
            CreateSegment { worker_slots: Some(8), ..scalable.clone() },
            CreateSegment { mode: 0o1777, ..good.clone() },
        ];
        for create in bad {
            let error = RequestBody::Create(create).validate().unwrap_err();
            assert_eq!(error.kind(), Some(ErrorCode::BadArgument), "{error}");
        }
        let with = |memory| RequestBody::CreateWith { segment: good.clone(), memory }.validate();
        with(BackendOptions::default()).unwrap();
        with(BackendOptions { huge_page_bytes: Some(2 << 20), ..Default::default() }).unwrap();
        with(BackendOptions { huge_page_bytes: Some(3), ..Default::default() }).unwrap_err();
        assert!(RequestBody::Grow { name: "s".into(), size_bytes: 0 }.validate().is_err());
        let add = |name: &str, bytes| {
            RequestBody::AddDeviceMemory { name: name.into(), device: 0, bytes }.validate()
        };
        add("s", 1).unwrap();
        assert!(add("s", 0).is_err() && add("a/b", 1).is_err());
        assert!(RequestBody::List { after: Some("a/b".into()) }.validate().is_err());
        RequestBody::List { after: None }.validate().unwrap();
    }
}
