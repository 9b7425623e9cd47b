//! One connection to the daemon: a packet out, a packet in.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use hshm_proto::limits::MAX_REPLY_BYTES;
use hshm_proto::{
    ErrorCode, ErrorReply, Hello, Reply, ReplyBody, Request, RequestBody, Version, VersionMismatch,
    VersionRange, WelcomeOrRefusal, decode_reply, encode_request,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    getsockopt, recv, recvmsg, send, socket, sockopt,
};

use crate::error::Error;

/// The most descriptors that the kernel passes with one packet. With room for all of them, none can
/// arrive that is not seen and closed.
const SCM_MAX_FD: usize = 253;

/// The reply buffer's length, in bytes, until a longer reply comes. Room for any, zeroed at once, would be
/// most of the time that a short-lived process takes to connect.
const FIRST_BUFFER_BYTES: usize = 4 << 10;

/// An open session.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    /// The version of the protocol that both speak.
    version: Version,
    last_id: u64,
    buffer: Vec<u8>,
    control: Vec<u8>,
}

/// What came of one exchange.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The daemon never got the request: it was gone already.
    NotSent,
    /// The daemon went away after it got the request.
    Lost,
    /// Something that another connection would not mend.
    Final(Error),
}

/// A reply and the descriptor that came with it.
pub(crate) type Answer = (Result<ReplyBody, ErrorReply>, Option<OwnedFd>);

impl Connection {
    /// Connects to the daemon at `path` and greets it. `Ok(None)` if nobody listens there.
    ///
    /// A first request, if there is one, follows right behind the greeting, whose answer is not waited for
    /// first. The number is for [`Connection::answer`]; none if the request was not sent.
    pub(crate) fn open_asking(
        path: &Path,
        client_name: &str,
        first: Option<&RequestBody>,
        timeout: Duration,
    ) -> Result<Option<(Self, Option<u64>)>, Error> {
        let deadline = Instant::now() + timeout;
        // Made before the daemon is woken, so that it follows at once.
        let hello = Hello::new(client_name).encode();
        // One that hangs up is about to stop, or to be restarted: its successor may listen already.
        for _ in 0..2 {
            let Some(socket) = connect_to(path, deadline, timeout)? else { return Ok(None) };
            let mut connection = Self {
                socket,
                version: 0,
                last_id: 0,
                buffer: vec![0; FIRST_BUFFER_BYTES],
                control: nix::cmsg_space!([RawFd; SCM_MAX_FD]),
            };
            match connection.greet(&hello, first, deadline, timeout) {
                Ok((answer, asked)) => {
                    connection.version = accepted(answer, path)?;
                    return Ok(Some((connection, asked)));
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::NotSent | Failure::Lost) => {}
            }
        }
        Ok(None)
    }

    /// Whether the daemon may see processes under the numbers that they have here: where it is in a pid
    /// namespace that this process's lies in, the kernel has no number for it. That both have the same
    /// number for this process does not tell, as it happens by chance.
    pub(crate) fn counts_alike(&self) -> bool {
        getsockopt(&self.socket, sockopt::PeerCredentials).is_ok_and(|daemon| daemon.pid() != 0)
    }

    fn greet(
        &mut self,
        hello: &[u8],
        first: Option<&RequestBody>,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(WelcomeOrRefusal, Option<u64>), Failure> {
        let verb = "connect";
        self.send(hello, verb, deadline, timeout)?;
        // Which version will be spoken the daemon has not said yet. What the oldest of them has is encoded the same
        // in all. A daemon that speaks none of them refuses the greeting and reads no further.
        let first = first.filter(|body| body.since() <= VersionRange::SUPPORTED.min);
        let asked = match first.map(|body| self.ask(body, deadline, timeout)).transpose() {
            Ok(asked) => asked,
            // Why it hung up, it may have said.
            Err(Failure::NotSent) => None,
            Err(failure) => return Err(failure),
        };
        let (packet, fds) = self.receive(verb, deadline, timeout)?;
        let answer = WelcomeOrRefusal::decode(packet);
        drop(fds);
        answer.map(|answer| (answer, asked)).map_err(|error| protocol(verb, error))
    }

    /// Sends a request and waits for its reply, at most `timeout` for both.
    pub(crate) fn call(
        &mut self,
        body: &RequestBody,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let verb = body.verb();
        if self.version < body.since() {
            return Ok((Err(too_old(verb, self.version)), None));
        }
        let deadline = Instant::now() + timeout;
        let id = self.ask(body, deadline, timeout)?;
        self.answer_by(verb, id, deadline, timeout)
    }

    /// Waits for the reply to the request that was sent as number `id`.
    pub(crate) fn answer(
        &mut self,
        verb: &'static str,
        id: u64,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        self.answer_by(verb, id, Instant::now() + timeout, timeout)
    }

    /// Sends a request and returns its number.
    fn ask(
        &mut self,
        body: &RequestBody,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<u64, Failure> {
        let verb = body.verb();
        self.last_id += 1;
        let id = self.last_id;
        let packet = encode_request(&Request { id, body: body.clone() })
            .map_err(|error| protocol(verb, error))?;
        self.send(&packet, verb, deadline, timeout)?;
        Ok(id)
    }

    fn answer_by(
        &mut self,
        verb: &'static str,
        id: u64,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let (packet, mut fds) = self.receive(verb, deadline, timeout)?;
        let Reply { id: found, body: answer } =
            decode_reply(packet).map_err(|error| protocol(verb, error))?;
        // Id 0 stands for a request too mangled to have one; there is only one under way.
        if found != id && found != 0 {
            return Err(protocol(verb, format_args!("reply {found} where {id} was due")));
        }
        let has_descriptor =
            matches!(answer, Ok(ReplyBody::Attached(_) | ReplyBody::DeviceMemory(_)));
        let expected = usize::from(has_descriptor);
        if fds.len() != expected {
            let why = format!("{} file descriptors where {expected} belong", fds.len());
            return Err(protocol(verb, why));
        }
        Ok((answer, fds.pop()))
    }

    fn send(
        &self,
        packet: &[u8],
        verb: &'static str,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(), Failure> {
        loop {
            match send(self.socket.as_raw_fd(), packet, MsgFlags::MSG_NOSIGNAL) {
                // A packet goes whole or not at all.
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    wait(&self.socket, PollFlags::POLLOUT, verb, deadline, timeout)?;
                }
                Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ENOTCONN) => {
                    return Err(Failure::NotSent);
                }
                Err(errno) => return Err(system("cannot send to the daemon", errno)),
            }
        }
    }

    /// Sees to it that the packet that waits fits the buffer, unless it is longer than any may be.
    fn make_room(&mut self) {
        if self.buffer.len() > MAX_REPLY_BYTES {
            return;
        }
        // Nothing is taken out, and descriptors that come with it are not installed. What goes wrong, goes wrong
        // again when it is received.
        let look = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT;
        let len = recv(self.socket.as_raw_fd(), &mut [], look).unwrap_or(0);
        if len > self.buffer.len() {
            self.buffer.resize(MAX_REPLY_BYTES + 1, 0);
        }
    }

    /// The next packet, and the descriptors that came with it.
    fn receive(
        &mut self,
        verb: &'static str,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<(&[u8], Vec<OwnedFd>), Failure> {
        let mut was_reset = false;
        loop {
            wait(&self.socket, PollFlags::POLLIN, verb, deadline, timeout)?;
            self.make_room();
            let mut fds = Vec::new();
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            let received = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut self.control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            );
            let received = match received {
                Ok(received) => received,
                Err(Errno::EINTR | Errno::EAGAIN) => continue,
                // It hung up with a request of ours unread. What it said before still waits behind this.
                Err(Errno::ECONNRESET) if !was_reset => {
                    was_reset = true;
                    continue;
                }
                Err(Errno::ECONNRESET | Errno::EPIPE) => return Err(Failure::Lost),
                Err(errno) => return Err(system("cannot receive from the daemon", errno)),
            };
            // There is room for every descriptor the kernel could pass, so the list is cut only
            // if this process may not have another one open; then none was passed.
            let messages = received.cmsgs().map_err(|_| {
                system("cannot take the descriptor that the daemon passed", Errno::EMFILE)
            })?;
            for message in messages {
                if let ControlMessageOwned::ScmRights(raw) = message {
                    fds.extend(raw.into_iter().map(own));
                }
            }
            let (bytes, flags) = (received.bytes, received.flags);
            if bytes == 0 {
                return Err(Failure::Lost);
            }
            if flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(protocol(verb, "a packet longer than any may be"));
            }
            return Ok((self.buffer.get(..bytes).unwrap_or_default(), fds));
        }
    }
}

/// What a daemon would answer that knows of later versions than its own.
fn too_old(verb: &str, version: Version) -> ErrorReply {
    ErrorReply::new(
        ErrorCode::Unsupported,
        format_args!(
            "cannot {verb} so: the daemon speaks protocol version {version}, which has no such request"
        ),
        "upgrade hshmd",
    )
}

fn own(raw: RawFd) -> OwnedFd {
    // SAFETY: [ffi] the kernel just installed this descriptor for us, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

fn protocol(verb: &'static str, why: impl std::fmt::Display) -> Failure {
    Failure::Final(Error::Protocol { verb, why: why.to_string() })
}

fn system(what: &'static str, errno: Errno) -> Failure {
    Failure::Final(Error::system(what, errno))
}

/// Waits until the socket can be used, was closed by the other side, or the time is over.
fn wait(
    socket: &OwnedFd,
    what: PollFlags,
    verb: &'static str,
    deadline: Instant,
    timeout: Duration,
) -> Result<(), Failure> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last wait is not a spin.
        let ms = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(socket.as_fd(), what)], ms) {
            Ok(0) if left.is_zero() => {
                return Err(Failure::Final(Error::Timeout { verb, after: timeout }));
            }
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(system("cannot wait for the daemon", errno)),
        }
    }
}

/// A connected socket, or None if nobody listens at `path`.
fn connect_to(path: &Path, deadline: Instant, timeout: Duration) -> Result<Option<OwnedFd>, Error> {
    let bad = |why: &str| Error::BadSocket { socket: path.to_path_buf(), why: why.into() };
    let address = UnixAddr::new(path).map_err(|_| bad("the path is longer than 107 bytes"))?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
        .map_err(|errno| Error::system("cannot make a socket", errno))?;
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => return Ok(Some(socket)),
            Err(Errno::EINTR) => {}
            // The daemon's queue of newcomers is full.
            Err(Errno::EAGAIN) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(Errno::EAGAIN) => return Err(Error::Timeout { verb: "connect", after: timeout }),
            // So it is for what is no socket, too.
            Err(Errno::ECONNREFUSED) if is_no_socket(path) => {
                return Err(bad("what stands there is no socket"));
            }
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => return Ok(None),
            Err(Errno::ENOTDIR) => return Err(bad("a part of the path is no directory")),
            Err(Errno::EACCES | Errno::EPERM) => {
                return Err(Error::SocketPermission { socket: path.to_path_buf() });
            }
            Err(Errno::EPROTOTYPE) => {
                return Err(bad("the program that listens there is no hshmd"));
            }
            Err(errno) => return Err(bad(errno.desc())),
        }
    }
}

fn is_no_socket(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket())
}

fn accepted(answer: WelcomeOrRefusal, path: &Path) -> Result<Version, Error> {
    let refusal = match answer {
        // The identity in it comes again with every attachment.
        WelcomeOrRefusal::Welcome(welcome) => return Ok(welcome.version),
        WelcomeOrRefusal::Refusal(refusal) => refusal,
    };
    if ErrorCode::try_from(refusal.code) == Ok(ErrorCode::Version) {
        let mismatch = VersionMismatch { ours: VersionRange::SUPPORTED, theirs: refusal.versions };
        return Err(Error::Version { socket: path.to_path_buf(), mismatch });
    }
    Err(Error::Daemon(ErrorReply {
        code: refusal.code,
        message: refusal.message,
        advice: refusal.advice,
    }))
}
