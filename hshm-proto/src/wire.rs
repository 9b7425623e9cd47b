//! Fixed-layout fields: little-endian integers, and texts with a length before them.

use crate::codec::CodecError;

/// Takes fields off the front of a packet.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

const WHAT: &str = "handshake";

fn malformed(why: impl Into<String>) -> CodecError {
    CodecError::Malformed { what: WHAT, why: why.into() }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(packet: &'a [u8], limit_bytes: usize) -> Result<Self, CodecError> {
        if packet.len() > limit_bytes {
            let found_bytes = packet.len();
            return Err(CodecError::TooLong { what: WHAT, found_bytes, limit_bytes });
        }
        Ok(Self { rest: packet })
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (chunk, rest) =
            self.rest.split_first_chunk::<N>().ok_or_else(|| malformed("it is cut short"))?;
        self.rest = rest;
        Ok(*chunk)
    }

    pub(crate) fn magic(&mut self) -> Result<[u8; 8], CodecError> {
        self.chunk::<8>()
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.chunk::<4>().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.chunk::<8>().map(u64::from_le_bytes)
    }

    /// A text of at most `limit_bytes`.
    pub(crate) fn text(&mut self, limit_bytes: usize) -> Result<String, CodecError> {
        let len = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if len > limit_bytes {
            return Err(malformed(format!("a text of {len} bytes is too long")));
        }
        let (text, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| malformed("it is cut short"))?;
        self.rest = rest;
        let text = std::str::from_utf8(text).map_err(|_| malformed("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }
}

/// Appends a text with its length before it.
pub(crate) fn put_text(packet: &mut Vec<u8>, text: &str, limit_bytes: usize) {
    let text = crate::limits::truncated(text, limit_bytes);
    let len = u32::try_from(text.len()).unwrap_or(0);
    packet.extend_from_slice(&len.to_le_bytes());
    packet.extend_from_slice(text.as_bytes());
}
