//! Descriptors that can be awaited.
#![allow(unsafe_code, reason = "tokio's registration of a descriptor is an unsafe function")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch `fd`, for `interest` alone: whoever watches for more is woken for more. A
/// connection, for one, becomes writable anew with every packet that the other side reads.
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: [owned] an OwnedFd is the same open descriptor until it is dropped, which AsyncFd does
    // after it has deregistered it, and nothing takes it out.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(registered?)
}
