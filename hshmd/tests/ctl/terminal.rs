//! With a person at a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};

use nix::pty::{Winsize, openpty};

use crate::harness::Daemon;

/// Runs a command on a terminal of 60 columns where somebody types `input`, and returns what is on
/// the screen.
fn on_terminal(mut command: Command, input: &str) -> (ExitStatus, String) {
    let size = Winsize { ws_row: 24, ws_col: 60, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(&size, None).unwrap();
    let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command.stdin(side(&pty.slave)).stdout(side(&pty.slave)).stderr(side(&pty.slave));
    let mut child = command.env("TERM", "xterm").spawn().unwrap();
    // The command's own copies would keep the terminal open here.
    drop(command);
    drop(pty.slave);
    let mut screen = File::from(pty.master);
    screen.write_all(input.as_bytes()).unwrap();
    let mut seen = Vec::new();
    // Ends with an error when the other side has closed.
    let _ = screen.read_to_end(&mut seen);
    (child.wait().unwrap(), String::from_utf8(seen).unwrap())
}

#[test]
fn destroying_what_is_in_use_asks_first() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    let segment = daemon.client().attach("jobs").unwrap();
    segment.allocate(1).unwrap();
    let destroy = || {
        let mut command = daemon.command();
        command.args(["destroy", "jobs"]);
        command
    };
    for answer in ["n\n", "\n"] {
        let (status, screen) = on_terminal(destroy(), answer);
        assert_eq!(status.code(), Some(1), "{screen}");
        assert!(screen.contains("[y/N]") && screen.contains("left as it is"), "{screen}");
        assert_eq!(daemon.names(), ["jobs"]);
    }
    let (status, screen) = on_terminal(destroy(), "y\n");
    assert!(status.success() && screen.contains("destroyed segment jobs"), "{screen}");
    assert!(daemon.names().is_empty());
}

#[test]
fn colour_is_for_terminals_whose_users_want_it_and_lines_fit() {
    let daemon = Daemon::start();
    daemon.text(&format!("create {} --size 4M", "n".repeat(90)));
    let list = || {
        let mut command = daemon.command();
        command.arg("list").env_remove("NO_COLOR");
        command
    };
    let (_, screen) = on_terminal(list(), "");
    assert!(screen.contains("\x1b[1m"), "{screen:?}");

    let mut plain = list();
    plain.env("NO_COLOR", "1");
    let (_, screen) = on_terminal(plain, "");
    assert!(!screen.contains('\x1b'), "{screen:?}");
    assert!(screen.lines().all(|line| line.chars().count() <= 60), "{screen}");

    let piped = daemon.text("list");
    assert!(!piped.contains('\x1b') && piped.lines().count() == 2, "{piped}");
}
