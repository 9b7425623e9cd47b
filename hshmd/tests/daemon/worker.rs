//! Processes that attach a segment, allocate, and wait to be killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::{Allocator as _, OffsetPointer, ThreadLocalAllocator};

use crate::wire::Client;

const ROLE: &str = "HSHMD_TEST_WORKER";

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Keeps its connection.
    Connected,
    /// Closes it once it has attached.
    Disconnected,
    /// Allocates and frees until it is told to end.
    Busy,
    /// Holds more worker slots than are recovered in one step.
    Many,
    /// Allocates, and then becomes another program, which is such a busy one.
    Replaced,
    /// Tries to attach, and reports what it is told.
    Attach,
    /// The same for reading.
    AttachToRead,
    /// Attaches for reading, reports what it could do, and when it is told to, writes.
    Read,
}

/// Worker slots that [`Role::Many`] holds.
pub(crate) const MANY_SLOTS: u64 = 100;

/// A worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<std::process::ChildStdout>,
    /// What it said first.
    pub(crate) greeting: String,
}

impl Worker {
    /// Starts one, and waits until it has done what its role asks for first.
    pub(crate) fn start(socket: &Path, segment: &str, role: Role, uid: Option<u32>) -> Self {
        // The test binary plays the worker too: this one "test" alone, which otherwise is skipped.
        // By this name another user may run it, too, from a folder that is closed to others.
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "worker::plays_a_worker", "--ignored", "--nocapture"]);
        command.env(ROLE, format!("{role:?} {segment} {}", socket.display()));
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let greeting = next_line(&mut stdout);
        Self { child, stdin, stdout, greeting }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it with SIGKILL and collects it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9));
    }

    /// Tells it to do what it must die of; the signal that it died of.
    pub(crate) fn perish(mut self) -> Option<i32> {
        drop(self.stdin.take());
        self.child.wait().unwrap().signal()
    }

    /// Tells it to end; the last thing it says.
    pub(crate) fn finish(mut self) -> String {
        drop(self.stdin.take());
        let line = next_line(&mut self.stdout);
        assert!(self.child.wait().unwrap().success());
        line
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next line that the worker, and not the test harness around it, writes.
fn next_line(stdout: &mut impl BufRead) -> String {
    loop {
        let mut line = String::new();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "the worker ended before its time");
        if let Some((_, said)) = line.split_once("worker: ") {
            return said.trim_end().to_owned();
        }
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "worker: {text}").unwrap();
    out.flush().unwrap();
}

/// The first word of a block.
fn word(allocator: &ThreadLocalAllocator, block: OffsetPointer) -> &AtomicU64 {
    let address = allocator.resolve(block, 8).unwrap();
    // SAFETY: [mapped] it was resolved, and blocks are aligned; [atomic] all use it like this.
    unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) }
}

/// What this process writes into a block.
fn stamp(block: OffsetPointer) -> u64 {
    block.offset_bytes() ^ u64::from(std::process::id()) << 40
}

/// Allocates a block and marks it as this process's.
fn stamped(allocator: &ThreadLocalAllocator, bytes: usize) -> OffsetPointer {
    let block = allocator.allocate(bytes).unwrap();
    word(allocator, block).store(stamp(block), Ordering::Relaxed);
    block
}

fn is_stamped(allocator: &ThreadLocalAllocator, block: OffsetPointer) -> bool {
    word(allocator, block).load(Ordering::Relaxed) == stamp(block)
}

#[test]
#[ignore = "a part that other tests start in a process of its own"]
fn plays_a_worker() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.splitn(3, ' ');
    let (role, segment) = (words.next().unwrap(), words.next().unwrap());
    let socket = Path::new(words.next().unwrap());
    if role == "Attach" {
        if let Err(errno) = Client::dial(socket) {
            say(&format!("cannot connect: {errno}"));
            return;
        }
        let said = Client::connect(socket).attach(segment);
        say(&said.map_or_else(|error| error.to_string(), |_| "attached".into()));
        return;
    }
    if role == "AttachToRead" {
        let body = hshm_proto::RequestBody::AttachReadOnly { name: segment.to_owned() };
        let (said, _) = Client::connect(socket).ask_with_fds(body);
        say(&said.map_or_else(|error| error.to_string(), |_| "attached".into()));
        return;
    }
    if role == "Read" {
        let (said, write) = crate::read_only::attempts(socket, segment);
        say(&said);
        let _ = std::io::stdin().read(&mut [0]);
        write();
        say("wrote");
        return;
    }
    let mut client = Client::connect(socket);
    let allocator = client.allocator(segment);
    let mut blocks: Vec<OffsetPointer> =
        (0..100).map(|n| stamped(&allocator, 16 + n * 8)).collect();
    if role == "Replaced" {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.args(std::env::args_os().skip(1));
        let error = program.env(ROLE, format!("Busy {segment} {}", socket.display())).exec();
        panic!("{error}");
    }
    if role == "Disconnected" {
        drop(client);
    }
    if role == "Many" {
        for _ in 1..MANY_SLOTS {
            let _ = allocator.create_tls().unwrap();
        }
    }
    say("ready");
    let mut rounds = 0_u64;
    if role == "Busy" {
        let (ended, end) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let _ = std::io::stdin().read(&mut [0]);
            drop(ended);
        });
        while end.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            for block in &mut blocks {
                assert!(is_stamped(&allocator, *block), "{block} was handed out twice");
                // SAFETY: [owned] this worker allocated the block and told nobody of it.
                unsafe { allocator.free(*block) }.unwrap();
                *block = stamped(&allocator, 64);
            }
            rounds += 1;
        }
    } else {
        let _ = std::io::stdin().read(&mut [0]);
    }
    say(&format!("did {rounds} rounds"));
}
