//! A connection that sends whatever it is told to.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use hshm_proto::limits::MAX_REPLY_BYTES;
use hshm_proto::{
    Hello, Reply, Request, RequestBody, WelcomeOrRefusal, decode_reply, encode_request,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, sendmsg,
    socket,
};

/// How long to wait for an answer before it counts as none, in milliseconds.
const PATIENCE_MS: u16 = 2000;

/// A connection to the daemon.
pub(crate) struct Line {
    socket: OwnedFd,
}

impl Line {
    /// Connects, and says nothing yet.
    pub(crate) fn dial(path: &Path) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { socket })
    }

    /// Connects and greets. The refusal's code if that is the answer, zero if there is none.
    pub(crate) fn greeted(path: &Path) -> Result<Self, u32> {
        let line = Self::dial(path).map_err(|_| 0_u32)?;
        line.send(&Hello::new("hostile").encode(), &[]).map_err(|_| 0_u32)?;
        match WelcomeOrRefusal::decode(&line.receive().ok_or(0_u32)?) {
            Ok(WelcomeOrRefusal::Welcome(_)) => Ok(line),
            Ok(WelcomeOrRefusal::Refusal(refusal)) => Err(refusal.code),
            Err(_) => Err(0),
        }
    }

    /// Sends a packet with descriptors, if the kernel takes it now.
    pub(crate) fn send(&self, packet: &[u8], fds: &[RawFd]) -> nix::Result<()> {
        let control = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        let parts = [IoSlice::new(packet)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, flags, None).map(drop)
    }

    pub(crate) fn ask(&self, id: u64, body: RequestBody) -> nix::Result<()> {
        let packet = encode_request(&Request { id, body }).map_err(|_| Errno::EMSGSIZE)?;
        self.send(&packet, &[])
    }

    /// The next packet; none if there is no other, or none for a while.
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let ready = poll(
            &mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(PATIENCE_MS),
        );
        let mut packet = vec![0; MAX_REPLY_BYTES];
        // Descriptors that come along are closed by the kernel, since there is no room for them.
        let len = ready
            .ok()
            .and_then(|_| recv(self.socket.as_raw_fd(), &mut packet, MsgFlags::empty()).ok());
        packet.truncate(len.filter(|len| *len > 0)?);
        Some(packet)
    }

    /// The next reply.
    pub(crate) fn reply(&self) -> Option<Reply> {
        decode_reply(&self.receive()?).ok()
    }

    /// Whether the daemon has refused or closed it, if nothing was asked on it.
    pub(crate) fn is_over(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        recv(self.socket.as_raw_fd(), &mut [0], flags) != Err(Errno::EAGAIN)
    }

    /// Whether the daemon has closed it, as far as can be seen without waiting.
    pub(crate) fn is_closed(&self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        !matches!(recv(self.socket.as_raw_fd(), &mut byte, flags), Ok(1..) | Err(Errno::EAGAIN))
    }
}
