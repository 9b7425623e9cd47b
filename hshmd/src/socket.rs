//! Packets over a connected Unix socket, without blocking the thread.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// A connection whose packets keep their boundaries.
///
/// Tokio's type is that of a stream, but what is used of it, waiting, is the same for both.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: UnixStream,
}

/// What came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A packet of this many bytes.
    Packet(usize),
    /// A packet that does not fit the buffer; the rest of it is lost.
    TooLong,
    /// A packet with file descriptors, which are closed already. None are ever accepted.
    Descriptors,
    /// The other side closed the connection, or sent an empty packet.
    Closed,
}

impl PacketSocket {
    pub(crate) fn new(socket: UnixStream) -> Self {
        Self { socket }
    }

    /// Waits for a packet. May be cancelled without losing one.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket
            .async_io(Interest::READABLE, || {
                let mut parts = [IoSliceMut::new(buffer)];
                // Without room for control messages, the kernel closes descriptors that come along.
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
                let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, None, flags)?;
                Ok(if received.flags.contains(MsgFlags::MSG_CTRUNC) {
                    Received::Descriptors
                } else if received.flags.contains(MsgFlags::MSG_TRUNC) {
                    Received::TooLong
                } else if received.bytes == 0 {
                    Received::Closed
                } else {
                    Received::Packet(received.bytes)
                })
            })
            .await
    }

    /// Waits until the packet, and a descriptor with it if given, is on its way.
    pub(crate) async fn send(
        &self,
        packet: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let descriptor = descriptor.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> =
            descriptor.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        self.socket
            .async_io(Interest::WRITABLE, || {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let parts = [IoSlice::new(packet)];
                sendmsg::<()>(self.socket.as_raw_fd(), &parts, &control, flags, None)?;
                Ok(())
            })
            .await
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
