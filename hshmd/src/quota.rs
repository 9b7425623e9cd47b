//! How much may be created: what the administrator set, and what the machine has.

use std::fs;

use hshm_memory::BackendKind;
use hshm_proto::{ErrorCode, ErrorReply};
use nix::sys::statvfs::statvfs;

use crate::config::Limits;
use crate::paths::SHM_DIR;
use crate::segment::SharedSegment;
use crate::size::format_size;

/// What there is already.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

impl<'s> FromIterator<&'s SharedSegment> for Usage {
    fn from_iter<I: IntoIterator<Item = &'s SharedSegment>>(segments: I) -> Self {
        segments.into_iter().fold(Self::default(), |sum, segment| Self {
            segments: sum.segments + 1,
            bytes: sum.bytes.saturating_add(segment.committed_bytes()),
        })
    }
}

/// Whether the limits for single users hold for this one: they do not for root, nor for the daemon's
/// own user, who could change them.
pub(crate) fn is_limited(uid: u32) -> bool {
    uid != 0 && uid != nix::unistd::geteuid().as_raw()
}

/// What is to come: a new segment, or one that grows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand<'a> {
    pub(crate) verb: &'a str,
    pub(crate) name: &'a str,
    pub(crate) backend: BackendKind,
    /// How long the segment is to be.
    pub(crate) size_bytes: u64,
    /// How much of that is there already.
    pub(crate) present_bytes: u64,
}

impl Demand<'_> {
    fn refused(&self, code: ErrorCode, why: &str, advice: &str) -> ErrorReply {
        let message = format_args!("cannot {} segment {:?}: {why}", self.verb, self.name);
        ErrorReply::new(code, message, advice)
    }

    /// Whether the administrator's limits for the segment's owner allow it.
    pub(crate) fn check_user_limits(
        &self,
        limits: &Limits,
        owner: u32,
        usage: Usage,
    ) -> Result<(), ErrorReply> {
        if !is_limited(owner) {
            return Ok(());
        }
        let over = |why: String, advice| Err(self.refused(ErrorCode::Quota, &why, advice));
        if self.present_bytes == 0
            && limits.max_user_segments.is_some_and(|most| usage.segments >= most)
        {
            return over(
                format!("user {owner} has {} segments, and may have no more", usage.segments),
                "destroy one, or have limits.max_user_segments raised in the daemon's configuration",
            );
        }
        let total = usage.bytes.saturating_add(self.added_bytes());
        if let Some(most) = limits.max_user_bytes.filter(|most| total > *most) {
            return over(
                format!(
                    "user {owner} would have {} in all, more than the {} allowed",
                    format_size(total),
                    format_size(most)
                ),
                "destroy a segment, or have limits.max_user_bytes raised in the daemon's configuration",
            );
        }
        Ok(())
    }

    fn added_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.present_bytes)
    }

    /// Whether the administrator's limits allow it.
    pub(crate) fn check_limits(&self, limits: &Limits, usage: Usage) -> Result<(), ErrorReply> {
        let over = |why: String, advice| Err(self.refused(ErrorCode::Quota, &why, advice));
        if self.present_bytes == 0 && usage.segments >= limits.max_segments {
            return over(
                format!("there are {} segments, and no more are allowed", usage.segments),
                "destroy one, or raise limits.max_segments in the daemon's configuration",
            );
        }
        if let Some(most) = limits.max_segment_bytes.filter(|most| self.size_bytes > *most) {
            return over(
                format!(
                    "{} is more than the {} that a segment may have",
                    format_size(self.size_bytes),
                    format_size(most)
                ),
                "ask for less, or raise limits.max_segment_bytes in the daemon's configuration",
            );
        }
        let total = usage.bytes.saturating_add(self.added_bytes());
        if let Some(most) = limits.max_total_bytes.filter(|most| total > *most) {
            return over(
                format!(
                    "all segments would have {}, more than the {} that are allowed",
                    format_size(total),
                    format_size(most)
                ),
                "destroy a segment, or raise limits.max_total_bytes in the daemon's configuration",
            );
        }
        Ok(())
    }

    /// Whether the machine can hold it. Asked before anything is created, since the kernel lets a
    /// file be longer than there is memory, and says so only when it is touched.
    pub(crate) fn check_machine(&self) -> Result<(), ErrorReply> {
        let added = self.added_bytes();
        let short = |have: u64, of: &str, advice: &str| {
            let why = format!(
                "{} more were asked for, and {of} {}",
                format_size(added),
                format_size(have)
            );
            Err(self.refused(ErrorCode::NoMemory, &why, advice))
        };
        // Unknown limits refuse nothing; population will tell.
        if let Some(memory) = memory_bytes().filter(|memory| added > *memory) {
            return short(memory, "the machine's memory and swap are", "ask for less");
        }
        if self.backend.is_named()
            && let Some(free) = shm_free_bytes().filter(|free| added > *free)
        {
            return short(
                free,
                "the free space in /dev/shm is",
                "ask for less, free some, enlarge it (mount -o remount,size=... /dev/shm; docker run --shm-size), or use the backend memfd",
            );
        }
        Ok(())
    }
}

fn shm_free_bytes() -> Option<u64> {
    let found = statvfs(SHM_DIR).ok()?;
    // A tmpfs without size limit says 0 of 0.
    (found.blocks() > 0).then(|| found.blocks_available().saturating_mul(found.fragment_size()))
}

fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name| meminfo_bytes(&text, name);
    Some(field("MemTotal:")?.saturating_add(field("SwapTotal:").unwrap_or(0)))
}

fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(size_bytes: u64, present_bytes: u64) -> Demand<'static> {
        let backend = BackendKind::PosixShm;
        Demand { verb: "create", name: "s", backend, size_bytes, present_bytes }
    }

    #[test]
    fn each_limit_is_told_by_its_name() {
        let limits = Limits {
            max_segments: 2,
            max_segment_bytes: Some(100),
            max_total_bytes: Some(150),
            ..Limits::default()
        };
        let usage = |segments, bytes| Usage { segments, bytes };
        demand(100, 0).check_limits(&limits, usage(1, 50)).unwrap();
        for (demand, usage, named) in [
            (demand(1, 0), usage(2, 0), "max_segments"),
            (demand(101, 0), usage(0, 0), "max_segment_bytes"),
            (demand(100, 0), usage(1, 51), "max_total_bytes"),
            (demand(101, 100), usage(1, 100), "max_segment_bytes"),
        ] {
            let error = demand.check_limits(&limits, usage).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorCode::Quota));
            assert!(error.advice.contains(named), "{error}");
        }
        // A segment that grows is none more, and what it has already counts once.
        demand(100, 60).check_limits(&limits, usage(2, 110)).unwrap();
    }

    #[test]
    fn one_users_limits_are_told_by_their_names_and_do_not_hold_for_root() {
        let limits =
            Limits { max_user_segments: Some(2), max_user_bytes: Some(150), ..Limits::default() };
        let stranger = nix::unistd::geteuid().as_raw() + 1;
        let usage = |segments, bytes| Usage { segments, bytes };
        demand(100, 0).check_user_limits(&limits, stranger, usage(1, 50)).unwrap();
        for (demand, usage, named) in [
            (demand(1, 0), usage(2, 0), "max_user_segments"),
            (demand(100, 0), usage(1, 51), "max_user_bytes"),
        ] {
            let error = demand.check_user_limits(&limits, stranger, usage).unwrap_err();
            assert_eq!(error.kind(), Some(ErrorCode::Quota));
            assert!(error.advice.contains(named), "{error}");
            demand.check_user_limits(&limits, 0, usage).unwrap();
        }
        demand(100, 60).check_user_limits(&limits, stranger, usage(2, 110)).unwrap();
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        demand(1 << 20, 0).check_machine().unwrap();
        let error = demand(1 << 60, 0).check_machine().unwrap_err();
        assert_eq!(error.kind(), Some(ErrorCode::NoMemory));
        let shm = demand(shm_free_bytes().unwrap() + (1 << 30), 0);
        assert!(shm.check_machine().is_err());
    }

    #[test]
    fn meminfo_is_understood() {
        let text = "MemTotal:       16 kB\nSwapTotal:  0 kB\nHugePages_Total: 3\n";
        assert_eq!(meminfo_bytes(text, "MemTotal:"), Some(16384));
        assert_eq!(meminfo_bytes(text, "HugePages_Total:"), None);
        assert_eq!(meminfo_bytes(text, "Nothing:"), None);
    }
}
