//! The hostile client, in each of its kinds.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hshm_client::{BackendKind, Client, CreateOptions, Error};
use hshm_proto::{ErrorCode, Hello, RequestBody};
use hshm_tests::random::Random;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::wire::Line;

/// What a hostile client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Silence,
    HalfMessages,
    SlowReader,
    Flood,
    Connections,
    GiantCounts,
    Descriptors,
    Creations,
    Scribble,
    Truncate,
    TruncateNamed,
    FewDescriptors,
}

impl Kind {
    /// For the table.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Silence => "2000 connections without a greeting",
            Self::HalfMessages => "greetings and requests cut short, and noise",
            Self::SlowReader => "200 connections that ask and do not read",
            Self::Flood => "requests as fast as they go, on 8 connections",
            Self::Connections => "3000 connections with a greeting",
            Self::GiantCounts => "sizes, lengths and pages as large as they can be said",
            Self::Descriptors => "200 descriptors with every packet",
            Self::Creations => "segments created and destroyed without pause, on 4 connections",
            Self::Scribble => "noise over the whole of its own segment",
            Self::Truncate => "truncates the file of its segment, a memfd",
            Self::TruncateNamed => "truncates the file of its segment in /dev/shm",
            Self::FewDescriptors => "500 connections to a daemon that may open 100 files",
        }
    }
}

/// What came of it: how often, by what.
#[derive(Debug, Default)]
struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    fn refused(&mut self, code: u32) {
        match ErrorCode::try_from(code) {
            Ok(code) => self.count(format!("refused ({code:?})")),
            Err(_) => self.count("no answer"),
        }
    }

    fn answer(&mut self, line: &Line) {
        match line.reply() {
            Some(reply) => match reply.body {
                Ok(_) => self.count("answered"),
                Err(error) => self.refused(error.code),
            },
            None => self.count("closed"),
        }
    }

    fn outcome<T>(&mut self, what: &str, done: Result<T, Error>) -> Option<T> {
        match done {
            Ok(value) => {
                self.count(what);
                return Some(value);
            }
            Err(Error::Daemon(error)) => self.refused(error.code),
            Err(_) => self.count("broken off"),
        }
        None
    }
}

/// Behaves badly for `duration`, and says on standard output what came of it.
pub(crate) fn run(
    kind: Kind,
    socket: &Path,
    duration: Duration,
    uid: Option<u32>,
) -> Result<(), String> {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    if let Some(uid) = uid {
        setgroups(&[])
            .and_then(|()| setgid(Gid::from_raw(uid)))
            .and_then(|()| setuid(Uid::from_raw(uid)))
            .map_err(|errno| format!("cannot become user {uid}: {errno}"))?;
    }
    let end = Instant::now() + duration;
    let mut tally = Tally::default();
    match kind {
        Kind::Silence => hold(&mut tally, end, 2000, || Line::dial(socket).map_err(|_| 0)),
        Kind::Connections => hold(&mut tally, end, 3000, || Line::greeted(socket)),
        Kind::FewDescriptors => hold(&mut tally, end, 500, || Line::greeted(socket)),
        Kind::HalfMessages => half(&mut tally, end, socket),
        Kind::SlowReader => slow(&mut tally, end, socket),
        Kind::Flood => tally = threads(8, |tally| flood(tally, end, socket)),
        Kind::GiantCounts => giant(&mut tally, end, socket),
        Kind::Descriptors => descriptors(&mut tally, end, socket),
        Kind::Creations => tally = threads(4, |tally| creations(tally, end, socket)),
        Kind::Scribble => own_segment(&mut tally, end, socket, BackendKind::Memfd, scribble)?,
        Kind::Truncate => own_segment(&mut tally, end, socket, BackendKind::Memfd, truncate)?,
        Kind::TruncateNamed => {
            own_segment(&mut tally, end, socket, BackendKind::PosixShm, truncate)?;
        }
    }
    let said: Vec<_> = tally.0.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let _ = writeln!(std::io::stdout(), "{}", said.join(", "));
    Ok(())
}

fn threads(count: usize, work: impl Fn(&mut Tally) + Sync) -> Tally {
    let mut sum = Tally::default();
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    let mut tally = Tally::default();
                    work(&mut tally);
                    tally
                })
            })
            .collect();
        for thread in started {
            for (what, count) in thread.join().map(|tally| tally.0).unwrap_or_default() {
                *sum.0.entry(what).or_default() += count;
            }
        }
    });
    sum
}

/// Keeps up to `most` connections, and opens those anew that the daemon closes.
fn hold(tally: &mut Tally, end: Instant, most: usize, open: impl Fn() -> Result<Line, u32>) {
    let mut lines = Vec::new();
    let mut highest = 0_u64;
    while Instant::now() < end {
        let before = lines.len();
        lines.retain(|line: &Line| !line.is_over());
        for _ in lines.len()..before {
            tally.count("refused or closed by the daemon");
        }
        let mut failed = 0;
        while lines.len() < most && failed < 20 && Instant::now() < end {
            match open() {
                Ok(line) => {
                    tally.count("opened");
                    lines.push(line);
                }
                Err(code) => {
                    failed += 1;
                    tally.refused(code);
                }
            }
        }
        highest = highest.max(lines.len() as u64);
        std::thread::sleep(Duration::from_millis(2));
    }
    tally.0.insert("held at once".to_owned(), highest);
}

fn half(tally: &mut Tally, end: Instant, socket: &Path) {
    let hello = Hello::new("hostile").encode();
    let mut random = Random::new(7);
    while Instant::now() < end {
        if let Ok(line) = Line::dial(socket) {
            let cut = random.index(hello.len());
            let _ = line.send(hello.get(..cut.max(1)).unwrap_or_default(), &[]);
            tally.count("greetings cut short");
        }
        let Ok(line) = Line::greeted(socket) else {
            tally.count("not let in");
            continue;
        };
        let noise: Vec<u8> = (0..random.index(300) + 1)
            .map(|at| if at == 8 { random.index(24) } else { random.index(256) })
            .map(|byte| byte.to_le_bytes()[0])
            .collect();
        let _ = line.send(&noise, &[]);
        tally.answer(&line);
    }
}

fn slow(tally: &mut Tally, end: Instant, socket: &Path) {
    let mut lines = Vec::new();
    while Instant::now() < end {
        lines.retain(|line: &Line| !line.is_closed());
        while lines.len() < 200
            && let Ok(line) = Line::greeted(socket)
        {
            lines.push(line);
        }
        for (id, line) in (0_u64..).zip(&lines) {
            // Until neither the daemon nor the kernel takes more.
            while Instant::now() < end
                && line.ask(id, RequestBody::Sessions { after: None }).is_ok()
            {
                tally.count("sent, no answer read");
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn flood(tally: &mut Tally, end: Instant, socket: &Path) {
    let Ok(line) = Line::greeted(socket) else { return };
    let mut id = 0;
    while Instant::now() < end {
        let mut sent = 0;
        for body in [
            RequestBody::Ping,
            RequestBody::Status,
            RequestBody::List { after: None },
            RequestBody::Sessions { after: None },
            RequestBody::Attach { name: "honest".into() },
        ] {
            id += 1;
            sent += u64::from(line.ask(id, body).is_ok());
        }
        for _ in 0..sent {
            tally.answer(&line);
        }
    }
}

fn giant(tally: &mut Tally, end: Instant, socket: &Path) {
    let big = |name: &str, size_bytes, slots| CreateOptions {
        capacity_bytes: None,
        worker_slots: slots,
        ..CreateOptions::new(name, size_bytes)
    };
    while Instant::now() < end {
        let Ok(line) = Line::greeted(socket) else { continue };
        for body in [
            RequestBody::Create(big("big", u64::MAX, None)),
            RequestBody::Create(big("big", 1 << 62, None)),
            RequestBody::Create(big("big", 1 << 20, Some(u32::MAX))),
            RequestBody::Create(CreateOptions {
                capacity_bytes: Some(u64::MAX),
                ..CreateOptions::new("big", 1 << 20)
            }),
            RequestBody::Create(CreateOptions {
                custom_header_bytes: u64::MAX,
                ..CreateOptions::new("big", 1 << 20)
            }),
            RequestBody::Grow { name: "big".into(), size_bytes: u64::MAX },
            RequestBody::Sessions { after: Some(u64::MAX) },
            RequestBody::Inspect { name: "honest".into(), after_slot: u32::MAX },
            RequestBody::Attach { name: "n".repeat(5000) },
        ] {
            if line.ask(1, body).is_ok() {
                tally.answer(&line);
            }
        }
        // A text said to be 2^60 bytes long.
        let mut packet = 1_u64.to_le_bytes().to_vec();
        packet.extend_from_slice(&[3, 253]);
        packet.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        let _ = line.send(&packet, &[]);
        tally.answer(&line);
        if let Ok(line) = Line::greeted(socket) {
            let _ = line.send(&vec![0xff; 100_000], &[]);
            tally.answer(&line);
        }
    }
}

fn descriptors(tally: &mut Tally, end: Instant, socket: &Path) {
    let Ok(file) = File::open("/dev/null") else { return };
    let fds = vec![file.as_raw_fd(); 200];
    while Instant::now() < end {
        if let Ok(line) = Line::dial(socket) {
            let _ = line.send(&Hello::new("hostile").encode(), &fds);
            let _ = line.receive();
            tally.count("greetings with descriptors");
        }
        let Ok(line) = Line::greeted(socket) else { continue };
        let _ = line.send(&[1, 0, 0, 0, 0, 0, 0, 0, 0], &fds);
        tally.answer(&line);
    }
}

fn connect(socket: &Path) -> Result<Client, String> {
    Client::builder().socket(socket).connect().map_err(|error| error.to_string())
}

fn creations(tally: &mut Tally, end: Instant, socket: &Path) {
    let Ok(client) = connect(socket) else { return };
    let own = format!("{:?}", std::thread::current().id()).replace(['(', ')'], "");
    while Instant::now() < end {
        // More than the quota has, and from the first one again.
        for n in 0..20 {
            let options = CreateOptions::new(format!("{own}-{n}"), 1 << 20);
            tally.outcome("created", client.create(&options));
        }
        for n in 0..20 {
            let _ = client.destroy(&format!("{own}-{n}"), true);
        }
    }
}

fn own_segment(
    tally: &mut Tally,
    end: Instant,
    socket: &Path,
    backend: BackendKind,
    harm: fn(&mut Tally, &File, u64, &mut Random),
) -> Result<(), String> {
    let client = connect(socket)?;
    let mut random = Random::new(9);
    while Instant::now() < end {
        let options = CreateOptions { backend, ..CreateOptions::new("own", 4 << 20) };
        let Some(_) = tally.outcome("segments created", client.create(&options)) else {
            return Err("it may not even create a segment".to_owned());
        };
        let segment = client.attach("own").map_err(|error| error.to_string())?;
        let fd = segment.allocator().backend().fd();
        let fd = fd.ok_or("its segment has no file")?.try_clone_to_owned();
        let file = File::from(fd.map_err(|error| error.to_string())?);
        let committed = segment.allocator().committed_bytes();
        for _ in 0..4 {
            harm(tally, &file, committed, &mut random);
            tally.outcome("checks", client.check("own"));
            tally.outcome("inspections", client.inspect("own"));
            tally.outcome("growths", client.grow("own", committed + (1 << 20)));
            tally.outcome("lists", client.list());
        }
        drop(segment);
        let _ = client.destroy("own", true);
    }
    Ok(())
}

/// Writes noise, through the descriptor: nobody could tell it from a store through the mapping.
fn scribble(_: &mut Tally, file: &File, bytes: u64, random: &mut Random) {
    let noise: Vec<u8> = (0..4096).map(|_| random.index(256).to_le_bytes()[0]).collect();
    // Where the header stands now and then only, so that what lies behind it is read too.
    let begin = if random.index(4) == 0 { 0 } else { 16384 };
    for at in (begin..bytes).step_by(noise.len()) {
        let _ = file.write_at(&noise, at);
    }
}

fn truncate(tally: &mut Tally, file: &File, bytes: u64, _: &mut Random) {
    match file.set_len(bytes / 4) {
        Ok(()) => tally.count("truncated"),
        Err(_) => tally.count("truncations forbidden by the kernel"),
    }
}
