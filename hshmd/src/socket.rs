//! Packets over a connected Unix socket, without blocking the thread.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::awaited;

/// A connection whose packets keep their boundaries.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    /// Watched for packets alone, except while a reply does not fit its queue. None if the wait for that
    /// was given up.
    socket: Option<AsyncFd<OwnedFd>>,
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
    /// The socket must not block.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = awaited::register(socket, Interest::READABLE)?;
        Ok(Self { socket: Some(socket) })
    }

    fn open(&self) -> io::Result<&AsyncFd<OwnedFd>> {
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The connection's descriptor, for questions about it.
    pub(crate) fn fd(&self) -> io::Result<BorrowedFd<'_>> {
        self.open().map(AsFd::as_fd)
    }

    /// Waits for a packet. May be cancelled without losing one.
    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.open()?.async_io(Interest::READABLE, |socket| receive(socket, buffer)).await
    }

    /// The same for a packet that has most likely come, which is looked for before it is waited for.
    pub(crate) async fn receive_expected(&self, buffer: &mut [u8]) -> io::Result<Received> {
        match receive(self.open()?.get_ref(), buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.receive(buffer).await,
            received => received,
        }
    }

    /// Waits until the packet, and a descriptor with it if given, is on its way. If this is cancelled, the
    /// connection is closed.
    pub(crate) async fn send(
        &mut self,
        packet: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let descriptor = descriptor.map(|fd| [fd.as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> =
            descriptor.iter().map(|fds| ControlMessage::ScmRights(fds)).collect();
        let send = |socket: &OwnedFd| -> io::Result<()> {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            let parts = [IoSlice::new(packet)];
            sendmsg::<()>(socket.as_raw_fd(), &parts, &control, flags, None)?;
            Ok(())
        };
        match send(self.open()?.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
        let Some(socket) = self.socket.take() else { return Ok(()) };
        let full = awaited::register(socket.into_inner(), Interest::WRITABLE)?;
        full.async_io(Interest::WRITABLE, send).await?;
        self.socket = Some(awaited::register(full.into_inner(), Interest::READABLE)?);
        Ok(())
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut parts = [IoSliceMut::new(buffer)];
    // Without room for control messages, the kernel closes descriptors that come along.
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, None, flags)?;
    Ok(if received.flags.contains(MsgFlags::MSG_CTRUNC) {
        Received::Descriptors
    } else if received.flags.contains(MsgFlags::MSG_TRUNC) {
        Received::TooLong
    } else if received.bytes == 0 {
        Received::Closed
    } else {
        Received::Packet(received.bytes)
    })
}
