//! How much of anything a message may hold. Both sides enforce them.

/// The longest request packet, in bytes, its id included. The longest there is takes a few hundred;
/// the daemon keeps a buffer of this length for each session.
pub const MAX_REQUEST_BYTES: usize = 8 << 10;

/// The longest reply packet, in bytes, its id included. A Unix socket's send buffer is 208 KiB by
/// default and must take a packet whole, overhead included, so a reply stays well below that.
pub const MAX_REPLY_BYTES: usize = 128 << 10;

/// The longest [`Hello`](crate::Hello), [`Welcome`](crate::Welcome) or [`Refusal`](crate::Refusal),
/// in bytes. Fixed for ever, like their layout.
pub const MAX_HANDSHAKE_BYTES: usize = 4 << 10;

/// The longest name of a segment, in bytes. Shorter than what a shared-memory object may be called
/// ([`hshm_memory::backend::MAX_NAME_BYTES`]), because the daemon puts a prefix before it.
pub const MAX_SEGMENT_NAME_BYTES: usize = 96;

/// The longest name by which a client introduces itself, in bytes.
pub const MAX_CLIENT_NAME_BYTES: usize = 64;

/// The longest text of any kind that the daemon sends (a reason, a message, an advice), in bytes.
pub const MAX_TEXT_BYTES: usize = 512;

/// Segments in one page of a list.
pub const SEGMENTS_PER_PAGE: usize = 128;

/// Sessions in one page of a list.
pub const SESSIONS_PER_PAGE: usize = 64;

/// Names of attached segments shown with each session; the rest is only counted.
pub const SEGMENTS_PER_SESSION_SHOWN: usize = 8;

/// Devices shown of one driver.
pub const DEVICES_SHOWN: usize = 64;

/// Events in one page.
pub const EVENTS_PER_PAGE: usize = 256;

/// The longest that a request for events waits for one, in milliseconds.
pub const MAX_EVENT_WAIT_MS: u32 = 10_000;

/// Worker slots in one page of an inspection.
pub const WORKERS_PER_PAGE: usize = 1024;

/// `text`, cut at a character boundary so that it has at most `limit_bytes` bytes.
#[must_use]
pub fn truncated(text: &str, limit_bytes: usize) -> String {
    if text.len() <= limit_bytes {
        return text.to_owned();
    }
    const ELLIPSIS: &str = "…";
    let room = limit_bytes.saturating_sub(ELLIPSIS.len());
    let end = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let mut short = text.get(..end).unwrap_or_default().to_owned();
    if ELLIPSIS.len() <= limit_bytes {
        short.push_str(ELLIPSIS);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters_and_never_exceeds_the_limit() {
        assert_eq!(truncated("short", 5), "short");
        for limit in 0..12 {
            let cut = truncated("ääääää", limit);
            assert!(cut.len() <= limit, "{cut:?} is longer than {limit}");
        }
        assert_eq!(truncated("abcdefgh", 6), "abc…");
    }
}
