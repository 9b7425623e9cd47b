//! Requests and replies to bytes and back. The only place that knows of bincode.
//!
//! bincode's own limit does not bound what it decodes from a slice, and it accepts bytes after the
//! value: so the frame is measured first, and everything in it must have been consumed.

use bincode::config::{self, Config};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::limits::{MAX_REPLY_BYTES, MAX_REQUEST_BYTES};
use crate::message::{Reply, Request};

/// Bytes of the id before each body.
const ID_BYTES: usize = size_of::<u64>();

/// Why a packet could not be made or understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// It is longer than any packet may be.
    #[error("a {what} of {found_bytes} bytes is longer than the {limit_bytes} that one may have")]
    TooLong {
        /// Request, reply or handshake.
        what: &'static str,
        /// Its length.
        found_bytes: usize,
        /// The most it may have.
        limit_bytes: usize,
    },
    /// The bytes are no message of this version.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// Request, reply or handshake.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// There are bytes after the message's end.
    #[error("malformed {what}: {extra_bytes} bytes follow its end")]
    Trailing {
        /// Request or reply.
        what: &'static str,
        /// How many.
        extra_bytes: usize,
    },
}

/// Little-endian, variable-length integers.
fn wire_config() -> impl Config {
    config::standard()
        .with_little_endian()
        .with_variable_int_encoding()
        .with_limit::<MAX_REPLY_BYTES>()
}

fn encode<T: Serialize>(
    what: &'static str,
    limit_bytes: usize,
    id: u64,
    body: &T,
) -> Result<Vec<u8>, CodecError> {
    let mut packet = id.to_le_bytes().to_vec();
    bincode::serde::encode_into_std_write(body, &mut packet, wire_config())
        .map_err(|error| CodecError::Malformed { what, why: error.to_string() })?;
    if packet.len() > limit_bytes {
        return Err(CodecError::TooLong { what, found_bytes: packet.len(), limit_bytes });
    }
    Ok(packet)
}

fn decode<T: DeserializeOwned>(
    what: &'static str,
    limit_bytes: usize,
    packet: &[u8],
) -> Result<(u64, T), CodecError> {
    if packet.len() > limit_bytes {
        return Err(CodecError::TooLong { what, found_bytes: packet.len(), limit_bytes });
    }
    let (id, body) = packet
        .split_first_chunk::<ID_BYTES>()
        .ok_or_else(|| CodecError::Malformed { what, why: "it is too short for an id".into() })?;
    let (value, consumed) = bincode::serde::decode_from_slice(body, wire_config())
        .map_err(|error| CodecError::Malformed { what, why: error.to_string() })?;
    match body.len().saturating_sub(consumed) {
        0 => Ok((u64::from_le_bytes(*id), value)),
        extra_bytes => Err(CodecError::Trailing { what, extra_bytes }),
    }
}

/// The packet for a request.
///
/// # Errors
/// [`CodecError::TooLong`].
pub fn encode_request(request: &Request) -> Result<Vec<u8>, CodecError> {
    encode("request", MAX_REQUEST_BYTES, request.id, &request.body)
}

/// The request in a packet. Any bytes may be given.
///
/// # Errors
/// [`CodecError`], if they are no request.
pub fn decode_request(packet: &[u8]) -> Result<Request, CodecError> {
    let (id, body) = decode("request", MAX_REQUEST_BYTES, packet)?;
    Ok(Request { id, body })
}

/// The packet for a reply.
///
/// # Errors
/// [`CodecError::TooLong`].
pub fn encode_reply(reply: &Reply) -> Result<Vec<u8>, CodecError> {
    encode("reply", MAX_REPLY_BYTES, reply.id, &reply.body)
}

/// The reply in a packet. Any bytes may be given.
///
/// # Errors
/// [`CodecError`], if they are no reply.
pub fn decode_reply(packet: &[u8]) -> Result<Reply, CodecError> {
    let (id, body) = decode("reply", MAX_REPLY_BYTES, packet)?;
    Ok(Reply { id, body })
}

/// The id of a request whose body cannot be understood, for the reply that says so; 0 if it is too
/// short to have one.
#[must_use]
pub fn peek_id(packet: &[u8]) -> u64 {
    packet.first_chunk::<ID_BYTES>().map_or(0, |id| u64::from_le_bytes(*id))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
