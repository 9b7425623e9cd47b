//! The first packet each way.
//!
//! The layout of these packets never changes, so that releases of any age understand each other this
//! far: eight bytes of magic, then the fields in the order of the struct, integers little-endian,
//! texts as a `u32` length and UTF-8. A later release may append fields; an earlier one ignores
//! what follows those it knows.

use std::fmt;

use hshm_memory::ProcessId;

use crate::codec::CodecError;
use crate::limits::{MAX_CLIENT_NAME_BYTES, MAX_HANDSHAKE_BYTES, MAX_TEXT_BYTES};
use crate::wire::{Reader, put_text};

const HELLO_MAGIC: [u8; 8] = *b"hshmHELO";
const WELCOME_MAGIC: [u8; 8] = *b"hshmWELC";
const REFUSAL_MAGIC: [u8; 8] = *b"hshmREFU";

/// Longest text naming a release.
const MAX_RELEASE_BYTES: usize = 64;

/// A version of the protocol spoken after the handshake.
pub type Version = u32;

/// The protocol versions that a release speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest.
    pub min: Version,
    /// The newest.
    pub max: Version,
}

impl VersionRange {
    /// What this release speaks.
    pub const SUPPORTED: Self = Self { min: 1, max: 3 };

    /// The newest version that both speak.
    ///
    /// # Errors
    /// [`VersionMismatch`], seen from the side that `self` belongs to.
    pub fn negotiate(self, other: Self) -> Result<Version, VersionMismatch> {
        let version = self.max.min(other.max);
        if version >= self.min.max(other.min) {
            return Ok(version);
        }
        Err(VersionMismatch { ours: self, theirs: other })
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.max)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// Two sides have no version in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this side speaks protocol version {ours}, the other side version {theirs}")]
pub struct VersionMismatch {
    /// What this side speaks.
    pub ours: VersionRange,
    /// What the other side speaks.
    pub theirs: VersionRange,
}

impl VersionMismatch {
    /// Whether it is this side that must be upgraded, rather than the other.
    #[must_use]
    pub const fn ours_is_older(&self) -> bool {
        self.ours.max < self.theirs.min
    }
}

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol versions it speaks.
    pub versions: VersionRange,
    /// The segment layout it reads, see [`LAYOUT_VERSION`](crate::LAYOUT_VERSION). A client with
    /// another layout than the daemon's may do everything but attach.
    pub layout_version: u32,
    /// What it calls itself, at most [`MAX_CLIENT_NAME_BYTES`] long.
    pub client_name: String,
}

impl Hello {
    /// The greeting of a client of this release.
    #[must_use]
    pub fn new(client_name: impl Into<String>) -> Self {
        Self {
            versions: VersionRange::SUPPORTED,
            layout_version: crate::LAYOUT_VERSION,
            client_name: client_name.into(),
        }
    }

    /// The packet. A name that is too long is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut packet = HELLO_MAGIC.to_vec();
        for field in [self.versions.min, self.versions.max, self.layout_version] {
            packet.extend_from_slice(&field.to_le_bytes());
        }
        put_text(&mut packet, &self.client_name, MAX_CLIENT_NAME_BYTES);
        packet
    }

    /// The greeting in a packet. Any bytes may be given.
    ///
    /// # Errors
    /// [`CodecError`], if they are no greeting.
    pub fn decode(packet: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(packet, MAX_HANDSHAKE_BYTES)?;
        if reader.magic()? != HELLO_MAGIC {
            return Err(CodecError::Malformed {
                what: "handshake",
                why: "it does not begin with a greeting of hshm".into(),
            });
        }
        let versions = VersionRange { min: reader.u32()?, max: reader.u32()? };
        let layout_version = reader.u32()?;
        let client_name = reader.text(MAX_CLIENT_NAME_BYTES)?;
        Ok(Self { versions, layout_version, client_name })
    }
}

/// What the daemon answers to a [`Hello`] that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version to be spoken from now on.
    pub version: Version,
    /// The segment layout that the daemon writes and reads.
    pub layout_version: u32,
    /// The client's process as the daemon sees it.
    pub identity: ProcessId,
    /// The session's number.
    pub session: u64,
    /// The daemon's release.
    pub server_version: String,
}

/// What the daemon answers to a [`Hello`] that it does not accept, before it closes the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// An [`ErrorCode`](crate::ErrorCode), or one that a later version made.
    pub code: u32,
    /// The protocol versions that the daemon speaks.
    pub versions: VersionRange,
    /// The daemon's release.
    pub server_version: String,
    /// What is wrong, one line.
    pub message: String,
    /// What to do about it, one line.
    pub advice: String,
}

/// What a client gets for its [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WelcomeOrRefusal {
    /// The session is open.
    Welcome(Welcome),
    /// It is not.
    Refusal(Refusal),
}

impl Welcome {
    /// The packet.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut packet = WELCOME_MAGIC.to_vec();
        for field in [self.version, self.layout_version, self.identity.pid] {
            packet.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.identity.start_ticks, self.session] {
            packet.extend_from_slice(&field.to_le_bytes());
        }
        put_text(&mut packet, &self.server_version, MAX_RELEASE_BYTES);
        packet
    }
}

impl Refusal {
    /// The packet. Texts that are too long are cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut packet = REFUSAL_MAGIC.to_vec();
        for field in [self.code, self.versions.min, self.versions.max] {
            packet.extend_from_slice(&field.to_le_bytes());
        }
        put_text(&mut packet, &self.server_version, MAX_RELEASE_BYTES);
        put_text(&mut packet, &self.message, MAX_TEXT_BYTES);
        put_text(&mut packet, &self.advice, MAX_TEXT_BYTES);
        packet
    }
}

impl WelcomeOrRefusal {
    /// The daemon's answer in a packet. Any bytes may be given.
    ///
    /// # Errors
    /// [`CodecError`], if they are neither a welcome nor a refusal.
    pub fn decode(packet: &[u8]) -> Result<Self, CodecError> {
        let mut reader = Reader::new(packet, MAX_HANDSHAKE_BYTES)?;
        match reader.magic()? {
            WELCOME_MAGIC => {
                let (version, layout_version) = (reader.u32()?, reader.u32()?);
                let identity = ProcessId { pid: reader.u32()?, start_ticks: reader.u64()? };
                let session = reader.u64()?;
                let server_version = reader.text(MAX_RELEASE_BYTES)?;
                Ok(Self::Welcome(Welcome {
                    version,
                    layout_version,
                    identity,
                    session,
                    server_version,
                }))
            }
            REFUSAL_MAGIC => {
                let code = reader.u32()?;
                let versions = VersionRange { min: reader.u32()?, max: reader.u32()? };
                let server_version = reader.text(MAX_RELEASE_BYTES)?;
                let (message, advice) =
                    (reader.text(MAX_TEXT_BYTES)?, reader.text(MAX_TEXT_BYTES)?);
                Ok(Self::Refusal(Refusal { code, versions, server_version, message, advice }))
            }
            _ => Err(CodecError::Malformed {
                what: "handshake",
                why: "whoever listens there is no hshmd".into(),
            }),
        }
    }
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
