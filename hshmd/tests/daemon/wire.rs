//! A client that speaks the protocol and nothing else.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use hshm_memory::ThreadLocalAllocator;
use hshm_proto::limits::{MAX_HANDSHAKE_BYTES, MAX_REPLY_BYTES};
use hshm_proto::{
    CreateSegment, ErrorCode, ErrorReply, Hello, ReplyBody, Request, RequestBody,
    SegmentDescriptor, SegmentInfo, SessionInfo, StatusInfo, Welcome, WelcomeOrRefusal,
    decode_reply, encode_request,
};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// How long anything may take on a machine that is busy.
const DEADLINE_SECONDS: i64 = 120;

/// A connection.
#[derive(Debug)]
pub(crate) struct Client {
    socket: OwnedFd,
    last_id: u64,
    pub(crate) welcome: Option<Welcome>,
}

impl Client {
    /// Connects without a greeting.
    pub(crate) fn dial(path: &Path) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let deadline = TimeVal::seconds(DEADLINE_SECONDS);
        setsockopt(&socket, sockopt::ReceiveTimeout, &deadline)?;
        setsockopt(&socket, sockopt::SendTimeout, &deadline)?;
        connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { socket, last_id: 0, welcome: None })
    }

    /// Connects and greets.
    pub(crate) fn connect(path: &Path) -> Self {
        let mut client = Self::dial(path).expect("the daemon listens");
        match client.greet(&Hello::new("test client")) {
            WelcomeOrRefusal::Welcome(welcome) => client.welcome = Some(welcome),
            WelcomeOrRefusal::Refusal(refusal) => panic!("refused: {refusal:?}"),
        }
        client
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(crate) fn greet(&self, hello: &Hello) -> WelcomeOrRefusal {
        self.send(&hello.encode()).unwrap();
        let (packet, _) = self.receive(MAX_HANDSHAKE_BYTES);
        WelcomeOrRefusal::decode(&packet).unwrap()
    }

    pub(crate) fn send(&self, packet: &[u8]) -> nix::Result<()> {
        self.send_with(packet, &[])
    }

    pub(crate) fn send_with(&self, packet: &[u8], fds: &[RawFd]) -> nix::Result<()> {
        let control = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        let parts = [IoSlice::new(packet)];
        sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// A packet and the descriptors with it; an empty packet if the daemon closed the connection.
    pub(crate) fn receive(&self, limit_bytes: usize) -> (Vec<u8>, Vec<OwnedFd>) {
        let mut buffer = vec![0; limit_bytes];
        let mut control = nix::cmsg_space!([RawFd; 8]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = loop {
            let fd = self.socket.as_raw_fd();
            match recvmsg::<()>(fd, &mut parts, Some(&mut control), flags) {
                // Receiving with a timeout is interrupted even when the process is merely stopped
                // and goes on.
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::ECONNRESET) => return (Vec::new(), Vec::new()),
                Err(errno) => panic!("no packet from the daemon: {errno}"),
                Ok(received) => break received,
            }
        };
        let bad = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC;
        assert!(!received.flags.intersects(bad), "a packet was cut: {:?}", received.flags);
        let mut fds = Vec::new();
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                for fd in raw {
                    // SAFETY: [owned] the kernel has just made this descriptor for this process.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
        }
        let len = received.bytes;
        buffer.truncate(len);
        (buffer, fds)
    }

    /// Whether the daemon has closed the connection, when everything it sent was read.
    pub(crate) fn is_closed(&self) -> bool {
        self.receive(MAX_REPLY_BYTES).0.is_empty()
    }

    /// Asks; none if there is no daemon any more.
    pub(crate) fn try_ask(
        &mut self,
        body: RequestBody,
    ) -> Option<(Result<ReplyBody, ErrorReply>, Vec<OwnedFd>)> {
        self.last_id += 1;
        let id = self.last_id;
        self.send(&encode_request(&Request { id, body }).unwrap()).ok()?;
        let (packet, fds) = self.receive(MAX_REPLY_BYTES);
        if packet.is_empty() {
            return None;
        }
        let reply = decode_reply(&packet).unwrap();
        assert_eq!(reply.id, id);
        Some((reply.body, fds))
    }

    pub(crate) fn ask_with_fds(
        &mut self,
        body: RequestBody,
    ) -> (Result<ReplyBody, ErrorReply>, Vec<OwnedFd>) {
        self.try_ask(body).expect("the daemon answers")
    }

    pub(crate) fn ask(&mut self, body: RequestBody) -> Result<ReplyBody, ErrorReply> {
        let (body, fds) = self.ask_with_fds(body);
        assert!(fds.is_empty(), "only attaching hands over descriptors");
        body
    }

    /// Asks, and returns the error that must come.
    pub(crate) fn refused(&mut self, body: RequestBody, code: ErrorCode) -> ErrorReply {
        let error = self.ask(body).expect_err("this must be refused");
        assert_eq!(error.kind(), Some(code), "{error}");
        assert!(
            !error.message.is_empty() && !error.to_string().contains('\n'),
            "one line: {error}"
        );
        error
    }

    pub(crate) fn create(&mut self, request: CreateSegment) -> SegmentInfo {
        match self.ask(RequestBody::Create(request)).unwrap() {
            ReplyBody::Created(info) => info,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn attach(&mut self, name: &str) -> Result<(SegmentDescriptor, File), ErrorReply> {
        let (body, mut fds) = self.ask_with_fds(RequestBody::Attach { name: name.into() });
        match body? {
            ReplyBody::Attached(descriptor) => {
                assert_eq!(fds.len(), 1);
                Ok((descriptor, fds.remove(0).into()))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Attaches and takes the allocator into use, as a client library does.
    pub(crate) fn allocator(&mut self, name: &str) -> ThreadLocalAllocator {
        let (descriptor, file) = self.attach(name).unwrap();
        let allocator = ThreadLocalAllocator::open_fd(descriptor.backend, file.into()).unwrap();
        allocator.set_identity(descriptor.identity);
        allocator
    }

    pub(crate) fn destroy(&mut self, name: &str, force: bool) -> Result<ReplyBody, ErrorReply> {
        self.ask(RequestBody::Destroy { name: name.into(), force })
    }

    pub(crate) fn list(&mut self) -> Vec<SegmentInfo> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            match self.ask(RequestBody::List { after: after.take() }).unwrap() {
                ReplyBody::Segments { segments, more } => {
                    assert!(!more || !segments.is_empty(), "an empty page is the last one");
                    after = segments.last().map(|last| last.name.clone());
                    all.extend(segments);
                    if !more {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn names(&mut self) -> Vec<String> {
        self.list().into_iter().map(|segment| segment.name).collect()
    }

    pub(crate) fn sessions(&mut self) -> Vec<SessionInfo> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            match self.ask(RequestBody::Sessions { after }).unwrap() {
                ReplyBody::Sessions { sessions, more } => {
                    after = sessions.last().map(|last| last.session);
                    all.extend(sessions);
                    if !more {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn status(&mut self) -> StatusInfo {
        match self.ask(RequestBody::Status).unwrap() {
            ReplyBody::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }
}
