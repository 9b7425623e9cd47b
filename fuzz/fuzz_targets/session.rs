//! Clients of three users, honest, broken and hostile, at the daemon's own sessions: each request has one
//! reply, in order; nobody gets a segment that is not theirs; limits hold; and when the clients are gone
//! nothing of them is left.
//!
//! To be several users it must run as root; otherwise all are the daemon's own, whom no limits hold.
#![no_main]

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use hshm_memory::backend::{HugePages, NodeSet, NumaPolicy};
use hshm_memory::{AllocatorKind, BackendKind, BackendOptions, OnExit};
use hshm_proto::{
    CreateSegment, ErrorCode, EventCursor, Hello, Reply, ReplyBody, Request, RequestBody,
    VersionRange, WelcomeOrRefusal,
};
use hshmd::config::Limits;
use hshmd::fuzzing::Rehearsal;
use libfuzzer_sys::fuzz_target;
use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// Users that the daemon knows nothing of.
const STRANGERS: [u32; 2] = [4_000_001, 4_000_002];
const NAMES: [&str; 6] = ["a", "b", "c.d", "", "a/b", "."];
const MOST_CONNECTIONS: usize = 9;
const TICK: Duration = Duration::from_millis(1);
const LIMITS: Limits = Limits {
    max_segments: 6,
    max_segment_bytes: Some(4 << 20),
    max_total_bytes: Some(12 << 20),
    max_sessions: 8,
    max_user_segments: Some(3),
    max_user_bytes: Some(6 << 20),
    max_user_sessions: Some(3),
};

/// The input, as the numbers that it is read as.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let len = N.min(self.0.len());
        let (head, rest) = self.0.split_at(len);
        bytes[..len].copy_from_slice(head);
        self.0 = rest;
        bytes
    }

    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    /// Of each order of magnitude, and nothing, and the most there is.
    fn word(&mut self) -> u64 {
        let [low, high] = self.bytes();
        match high {
            0xff => u64::MAX - u64::from(low),
            _ => u64::from(low) << (high % 56),
        }
    }

    fn some<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.byte() & 3 == 0).then(|| value(self))
    }

    fn take(&mut self, most: usize) -> Vec<u8> {
        let len = usize::from(self.byte()).min(most).min(self.0.len());
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        head.to_vec()
    }

    fn name(&mut self) -> String {
        let at = usize::from(self.byte()) % 16;
        // The first ones mostly.
        NAMES.get(at).copied().unwrap_or(NAMES[at % 3]).to_owned()
    }

    fn create(&mut self) -> CreateSegment {
        let kinds =
            [BackendKind::Memfd, BackendKind::PosixShm, BackendKind::CudaShm, BackendKind::Array];
        let allocators = [
            AllocatorKind::ThreadLocal,
            AllocatorKind::ScalablePage,
            AllocatorKind::Stack,
            AllocatorKind::Malloc,
        ];
        let (what, more) = (self.byte(), self.byte());
        // Mostly of memory that has no name, and with the usual allocator.
        let backend = kinds[usize::from(what & 15).saturating_sub(11).min(3)];
        let allocator = allocators[usize::from(what >> 4).saturating_sub(11).min(3)];
        CreateSegment {
            backend,
            allocator,
            on_exit: if more & 1 == 0 { OnExit::Keep } else { OnExit::Reclaim },
            capacity_bytes: self.some(Self::word),
            custom_header_bytes: if more & 0x30 == 0 { self.word() } else { 0 },
            worker_slots: self.some(|input| input.word() as u32),
            mode: if more & 0xc == 0 {
                self.word() as u32
            } else {
                0o600 | u32::from(more >> 6) * 0o22
            },
            ..CreateSegment::new(self.name(), self.word())
        }
    }

    fn memory(&mut self) -> BackendOptions {
        let what = self.byte();
        let nodes = NodeSet::new([u16::from(self.byte()) % 4]).unwrap();
        BackendOptions {
            huge_pages: [HugePages::System, HugePages::Never, HugePages::Try, HugePages::Require]
                [usize::from(what & 3)],
            huge_page_bytes: self.some(Self::word),
            numa: match what >> 2 & 3 {
                0 => NumaPolicy::Bind(nodes),
                1 => NumaPolicy::Interleave(nodes),
                2 => NumaPolicy::Preferred(nodes),
                _ => NumaPolicy::Default,
            },
            lock: what & 0x40 != 0,
            populate: what & 0x80 != 0,
        }
    }

    fn request(&mut self) -> RequestBody {
        match self.byte() % 25 {
            0 => RequestBody::Ping,
            1 => RequestBody::Status,
            2..6 => RequestBody::Create(self.create()),
            6 => RequestBody::CreateWith { segment: self.create(), memory: self.memory() },
            7..10 => RequestBody::Attach { name: self.name() },
            10 => RequestBody::Detach { name: self.name() },
            11 | 12 => RequestBody::Destroy { name: self.name(), force: self.byte() & 1 == 0 },
            13 => RequestBody::Grow { name: self.name(), size_bytes: self.word() },
            14 => RequestBody::List { after: self.some(Self::name) },
            15 => RequestBody::Inspect { name: self.name(), after_slot: self.word() as u32 },
            16 => RequestBody::Check { name: self.name() },
            17 => RequestBody::Sessions { after: self.some(Self::word) },
            18 => RequestBody::Repair { name: self.name() },
            19 => RequestBody::Memory { name: self.name() },
            20 => RequestBody::Events {
                name: self.some(Self::name),
                after: self.some(|input| EventCursor { run: input.word(), sequence: input.word() }),
                wait_ms: self.word() as u32,
            },
            21 => match self.byte() % 3 {
                0 => RequestBody::Drivers,
                1 => RequestBody::Device { name: self.name() },
                _ => RequestBody::DevicePool { name: self.name() },
            },
            22 => RequestBody::DeviceMemory { name: self.name() },
            24 => RequestBody::AttachReadOnly { name: self.name() },
            _ => RequestBody::AddDeviceMemory {
                name: self.name(),
                device: self.byte().into(),
                bytes: self.word(),
            },
        }
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Greeted,
    Open,
    /// The daemon closes it, or did.
    Over,
}

struct Connection {
    socket: OwnedFd,
    uid: u32,
    stage: Stage,
    /// Does not read before the end.
    deaf: bool,
    /// The ids of what is to be answered, and whether the answer is the last.
    due: VecDeque<(u64, bool)>,
}

/// Makes a pair of sockets as another user, who is then at both ends of it. Whether it came about.
fn socket_pair(uid: u32) -> (OwnedFd, OwnedFd, u32) {
    // By the system call itself: the library's function would change all threads.
    let become_user = |uid: u32| {
        let kept = u32::MAX;
        // SAFETY: [ffi] it takes numbers.
        unsafe { libc::syscall(libc::SYS_setresuid, kept, uid, kept) == 0 }
    };
    let me = nix::unistd::geteuid().as_raw();
    let other = uid != me && me == 0 && become_user(uid);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
    assert!(!other || become_user(me));
    let (ours, theirs) = pair.unwrap();
    (ours, theirs, if other { uid } else { me })
}

struct World {
    daemon: Rehearsal,
    connections: Vec<Connection>,
    /// Of segments that were handed over.
    files: Vec<File>,
}

impl World {
    fn connect(&mut self, input: &mut Input<'_>) {
        let what = input.byte();
        if self.connections.len() == MOST_CONNECTIONS {
            self.connections.remove(usize::from(what) % MOST_CONNECTIONS);
        }
        let uid = STRANGERS.get(usize::from(what & 3)).copied();
        let (socket, theirs, uid) = socket_pair(uid.unwrap_or(nix::unistd::geteuid().as_raw()));
        self.daemon.serve(theirs);
        let deaf = what & 0x70 == 0x70;
        let mut connection =
            Connection { socket, uid, stage: Stage::New, deaf, due: VecDeque::new() };
        if what & 0x80 == 0 {
            connection.send(&Hello::new("fuzz").encode(), &[]);
        }
        self.connections.push(connection);
    }

    /// Does something to a file that was handed over, as its holder may.
    fn meddle(&mut self, input: &mut Input<'_>) {
        let (which, place, word) = (usize::from(input.byte()), input.word(), input.word());
        if self.files.is_empty() {
            return;
        }
        let len = self.files.len();
        let file = &self.files[which % len];
        match which >> 5 {
            // What has a name can be cut short. No longer than it might be: memory is bounded.
            0 => drop(file.set_len(place % (4 << 20))),
            1 => drop(self.files.swap_remove(which % len)),
            _ => {
                let bytes = file.metadata().unwrap().len().min(4 << 20);
                // Its header and tables more often than the rest.
                let most = if which & 0x10 == 0 { bytes.min(1 << 14) } else { bytes };
                if most >= 8 {
                    // Unless it is for reading alone.
                    drop(file.write_at(&word.to_le_bytes(), place % (most - 7)));
                }
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte() % 32;
        match what {
            0..3 => self.connect(input),
            3 => self.daemon.pass(Duration::from_millis(1 << (input.byte() % 16))),
            4 | 5 => self.meddle(input),
            _ if self.connections.is_empty() => self.connect(input),
            _ => {
                let at = usize::from(input.byte()) % self.connections.len();
                if what == 6 {
                    self.connections.remove(at);
                } else {
                    self.connections[at].act(what, input);
                }
            }
        }
        self.daemon.pass(TICK);
        let alone = self.connections.iter().all(|connection| connection.due.len() < 2);
        for at in 0..self.connections.len() {
            if !self.connections[at].deaf {
                self.listen(at, alone);
            }
        }
    }

    /// Reads what a connection was answered.
    fn listen(&mut self, at: usize, alone: bool) {
        while let Some((packet, file)) = self.connections[at].receive() {
            let connection = &mut self.connections[at];
            let handed = connection.answered(&packet, file.is_some());
            let Some((name, minor)) = handed else { continue };
            self.files.push(file.expect("a segment comes with its file").into());
            // What came first where requests wait for one another cannot be told.
            let Some(owner) = self.daemon.ownership(&name).filter(|_| alone) else { continue };
            let mine = connection.uid == owner.uid || !STRANGERS.contains(&connection.uid);
            let open = owner.mode & 0o066 != 0 || owner.minor != minor;
            assert!(mine || open, "user {} has {name:?}, {owner:?}", connection.uid);
        }
    }
}

impl Connection {
    /// Sends a packet, unless the daemon's queue is full or its end closed.
    fn send(&mut self, packet: &[u8], files: &[RawFd]) {
        let rights = [ControlMessage::ScmRights(files)];
        let control = if files.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let parts = [IoSlice::new(packet)];
        match sendmsg::<()>(self.socket.as_raw_fd(), &parts, control, flags, None) {
            Ok(_) => {}
            Err(
                Errno::EAGAIN | Errno::EPIPE | Errno::ECONNRESET | Errno::EMSGSIZE | Errno::ENOBUFS,
            ) => return,
            Err(errno) => panic!("{errno}"),
        }
        match self.stage {
            Stage::New => self.stage = Stage::Greeted,
            // Whether it is let in is not known yet.
            Stage::Greeted | Stage::Open => {
                let request = hshm_proto::decode_request(packet);
                let good = request.is_ok() && files.is_empty();
                // An empty packet means the end.
                if !packet.is_empty() {
                    self.due.push_back((hshm_proto::peek_id(packet), !good));
                }
                if !good {
                    self.stage = if self.stage == Stage::Open { Stage::Over } else { self.stage };
                }
            }
            Stage::Over => {}
        }
    }

    fn act(&mut self, what: u8, input: &mut Input<'_>) {
        match what {
            7 => {
                let versions = VersionRange { min: input.byte().into(), max: input.byte().into() };
                let layout_version = input.byte().into();
                let client_name = String::from_utf8_lossy(&input.take(80)).into_owned();
                self.send(&Hello { versions, layout_version, client_name }.encode(), &[]);
            }
            8 => self.send(&Hello::new("again").encode(), &[]),
            9 => {
                let packet = input.take(64);
                self.send(&packet, &[]);
            }
            10 => {
                let packet = vec![input.byte(); 8000 + usize::from(input.byte()) * 2];
                self.send(&packet, &[]);
            }
            11 => {
                let file = memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).unwrap();
                let files = vec![file.as_raw_fd(); 1 + usize::from(input.byte() % 4)];
                let packet = self.packet(input);
                self.send(&packet, &files);
            }
            12 => {
                let mut packet = self.packet(input);
                let [at, way, byte] = input.bytes();
                let at = usize::from(at) % packet.len();
                match way & 3 {
                    0 => packet.truncate(at),
                    1 => packet.insert(at, byte),
                    _ => packet[at] ^= byte | 1,
                }
                self.send(&packet, &[]);
            }
            _ => {
                let packet = self.packet(input);
                self.send(&packet, &[]);
            }
        }
    }

    fn packet(&self, input: &mut Input<'_>) -> Vec<u8> {
        let request = Request { id: input.byte().into(), body: input.request() };
        hshm_proto::encode_request(&request).unwrap()
    }

    /// A packet, and the file that came with it.
    fn receive(&mut self) -> Option<(Vec<u8>, Option<OwnedFd>)> {
        let mut buffer = vec![0; hshm_proto::limits::MAX_REPLY_BYTES + 1];
        let mut control = nix::cmsg_space!([RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let found = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
        let (len, file) = match found {
            Ok(found) => {
                assert!(!found.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC));
                let rights = found.cmsgs().unwrap().filter_map(|message| match message {
                    ControlMessageOwned::ScmRights(files) => Some(files),
                    _ => None,
                });
                let files: Vec<_> = rights.flatten().collect();
                assert!(files.len() <= 1);
                // SAFETY: [owned] the kernel just made it for this process.
                let file = files.first().map(|file| unsafe { OwnedFd::from_raw_fd(*file) });
                (found.bytes, file)
            }
            Err(Errno::EAGAIN | Errno::ECONNRESET) => return None,
            Err(errno) => panic!("{errno}"),
        };
        if len == 0 {
            self.stage = Stage::Over;
            return None;
        }
        buffer.truncate(len);
        Some((buffer, file))
    }

    /// Looks at an answer. The segment that came with it, and its number.
    fn answered(&mut self, packet: &[u8], file: bool) -> Option<(String, u32)> {
        if self.stage == Stage::Greeted {
            assert!(!file);
            let answer = WelcomeOrRefusal::decode(packet).expect("the daemon speaks its language");
            let broken = self.due.iter().any(|(_, last)| *last);
            self.stage = match answer {
                WelcomeOrRefusal::Welcome(_) if !broken => Stage::Open,
                WelcomeOrRefusal::Welcome(_) => Stage::Over,
                WelcomeOrRefusal::Refusal(refusal) => {
                    assert!(!refusal.message.contains('\n'));
                    self.due.clear();
                    Stage::Over
                }
            };
            return None;
        }
        let Ok(Reply { id, body }) = hshm_proto::decode_reply(packet) else {
            // The greeting's, which crossed with its own complaint, is the only other packet.
            panic!("{packet:?} is no reply, at {:?}", self.stage);
        };
        let (due, last) = self.due.pop_front().expect("an answer to nothing");
        assert_eq!(id, due);
        if last {
            self.due.clear();
        }
        match body {
            Ok(_) if last => panic!("a broken request was answered"),
            Ok(ReplyBody::Attached(found)) => {
                assert!(file);
                Some((found.name, found.id.minor))
            }
            Ok(_) => {
                assert!(!file, "a file comes with what is no segment");
                None
            }
            Err(error) => {
                assert!(!file && !error.to_string().contains('\n'), "{error}");
                assert_eq!(last, error.kind() == Some(ErrorCode::Malformed), "{error}");
                assert_ne!(error.kind(), Some(ErrorCode::Busy));
                None
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut world =
        World { daemon: Rehearsal::new(LIMITS), connections: Vec::new(), files: Vec::new() };
    while !input.0.is_empty() {
        world.step(&mut input);
    }
    // Whoever waits for events has waited long enough then, and the deaf listen.
    if world.connections.iter().any(|connection| !connection.due.is_empty()) {
        world.daemon.pass(Duration::from_secs(60));
    }
    for at in 0..world.connections.len() {
        world.listen(at, false);
        let connection = &world.connections[at];
        let read_all = connection.due.is_empty() || connection.deaf;
        assert!(
            read_all || connection.stage == Stage::Over,
            "{:?} was not answered",
            connection.due
        );
    }
    world.connections.clear();
    world.daemon.finish(&STRANGERS);
});
