//! The control plane's language: what a client and `hshmd` say to each other.
//!
//! This crate holds types, versions, limits and the codec, and does no I/O.
//!
//! # On the wire
//!
//! The transport is a Unix socket of type `SOCK_SEQPACKET`: the kernel keeps message boundaries, and
//! one packet is one message. A connection goes like this:
//!
//! 1. The client sends a [`Hello`]. The daemon answers with a [`Welcome`] or a [`Refusal`] (and
//!    closes). These three have a layout of their own that is the same in every version for ever,
//!    so that any two releases can at least tell each other which of them is too old.
//! 2. From then on the client sends [`Request`]s and gets one [`Reply`] for each, in order, with the
//!    request's `id` in it; the daemon reads the next request when it has sent the reply. The reply to [`RequestBody::Attach`] or [`RequestBody::AttachReadOnly`] carries one
//!    file descriptor (`SCM_RIGHTS`). The daemon accepts no descriptors.
//!
//! A request or reply is its `id`, a little-endian `u64`, followed by the body in the encoding of the
//! negotiated version. Nothing longer than [`limits::MAX_REQUEST_BYTES`] or
//! [`limits::MAX_REPLY_BYTES`] is ever sent or accepted, and every list is paged so that it fits.
#![forbid(unsafe_code)]

mod codec;
mod error;
mod event;
mod handshake;
pub mod limits;
mod message;
mod paths;
mod validate;
mod wire;

pub use codec::{CodecError, decode_reply, decode_request, encode_reply, encode_request, peek_id};
pub use error::{ErrorCode, ErrorReply};
pub use event::{Event, EventCursor, EventKind, EventPage};
pub use handshake::{
    Hello, Refusal, Version, VersionMismatch, VersionRange, Welcome, WelcomeOrRefusal,
};
pub use message::{
    CreateSegment, DeviceMemoryInfo, DriverStatus, HeapPage, Reply, ReplyBody, Request,
    RequestBody, SegmentDescriptor, SegmentDevice, SegmentInfo, SessionInfo, SessionState,
    StatusInfo,
};
pub use paths::{Environment, SYSTEM_SOCKET, SYSTEM_STATE_DIR};
pub use validate::{validate_client_name, validate_segment_name};

pub use hshm_memory::{AllocatorKind, LAYOUT_VERSION};
