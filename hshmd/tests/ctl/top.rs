//! `hshmctl top`, as one frame and on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;

use crate::harness::{Daemon, wait_until};

#[test]
fn one_frame_shows_what_there_is_and_its_rates() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    let segment = daemon.client().attach("jobs").unwrap();
    let blocks: Vec<_> = (0..100).map(|_| segment.allocate(1000).unwrap()).collect();
    let frame = daemon.json("top --interval 1");
    assert_eq!(frame["daemon"]["segments"], 1);
    assert!(frame["measured_seconds"].as_f64() >= Some(1.0), "{frame}");
    let row = &frame["segments"][0];
    assert_eq!((&row["name"], &row["workers"]), (&"jobs".into(), &1.into()), "{row}");
    assert!(row["allocated_bytes"].as_u64() >= Some(100_000), "{row}");
    // Nothing was allocated meanwhile.
    assert_eq!(row["rates"]["allocations"], 0.0, "{row}");

    let text = daemon.text("top --once --interval 1");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("hshmd ") && lines[0].contains("1 segment of "), "{text}");
    assert!(lines[2].starts_with("SEGMENT") && lines[3].starts_with("jobs"), "{text}");
    for block in blocks {
        // SAFETY: [owned] nobody else knows of the block.
        unsafe { segment.free(block) }.unwrap();
    }
}

#[test]
fn rates_are_of_what_happens_meanwhile() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    let segment = daemon.client().attach("jobs").unwrap();
    let top = daemon.command().args(["top", "--json", "-i", "1"]).stdout(Stdio::piped()).spawn();
    let mut top = top.unwrap();
    let mut number = 0_u64;
    while top.try_wait().unwrap().is_none() {
        let blocks: Vec<_> = (0..1000).map(|_| segment.allocate(64).unwrap()).collect();
        for block in blocks {
            // SAFETY: [owned] nobody else knows of the block.
            unsafe { segment.free(block) }.unwrap();
        }
        number += 1000;
    }
    let frame: serde_json::Value = serde_json::from_reader(top.stdout.take().unwrap()).unwrap();
    let rates = &frame["segments"][0]["rates"];
    assert!(rates["allocations"].as_f64() > Some(0.0), "{number} allocated, and {frame}");
    assert!(rates["local_frees"].as_f64() > Some(0.0), "{number} freed, and {frame}");
}

/// It runs on a terminal.
struct OnTerminal {
    child: Child,
    keys: File,
    slave: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(mut command: Command) -> Self {
        let size = Winsize { ws_row: 24, ws_col: 110, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
        command.stdin(side(&pty.slave)).stdout(side(&pty.slave)).stderr(side(&pty.slave));
        let child = command.env("TERM", "xterm").spawn().unwrap();
        let keys = File::from(pty.master);
        let mut screen = keys.try_clone().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&seen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Ends with an error when the other side has closed.
            while let Ok(len @ 1..) = screen.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..len]);
            }
        });
        Self { child, keys, slave: pty.slave, seen }
    }

    fn has_seen(&self, what: &str) -> bool {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).contains(what)
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_flags.contains(LocalFlags::ICANON)
    }
}

#[test]
fn on_a_terminal_keys_work_and_it_is_left_as_it_was() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    let start = || {
        let mut command = daemon.command();
        command.arg("top");
        OnTerminal::start(command)
    };
    let mut top = start();
    wait_until("the segment is shown", || top.has_seen("jobs"));
    assert!(top.is_raw());
    top.keys.write_all(b"?").unwrap();
    // Only what changed is drawn: blanks are not.
    wait_until("it helps", || top.has_seen("select"));
    top.keys.write_all(b"sjq").unwrap();
    assert!(top.child.wait().unwrap().success());
    assert!(!top.is_raw());
    wait_until("the screen is left", || top.has_seen("\x1b[?1049l"));

    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let mut top = start();
        wait_until("the segment is shown", || top.has_seen("jobs"));
        kill(Pid::from_raw(top.child.id().cast_signed()), signal).unwrap();
        assert_eq!(top.child.wait().unwrap().code(), Some(code));
        assert!(!top.is_raw());
        wait_until("the screen is left", || top.has_seen("\x1b[?1049l"));
    }
}
