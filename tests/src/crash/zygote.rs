//! A process that stays as it was when it was forked, and forks others, which all begin alike: with
//! the same addresses and the same free lists of `malloc`. What they do can be repeated instruction
//! by instruction.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;

use nix::sys::wait::WaitStatus;
use nix::unistd::{Pid, pipe};

use super::process;

/// What one of the forked processes is asked: numbers, since text would have to be put somewhere.
pub type Request = [u64; WORDS];
const WORDS: usize = 5;

/// Asks for nothing but that the process ends. That the pipe is closed says so too, but only once
/// nobody has it: zygotes that were forked at the same time may have each other's.
const END: Request = [u64::MAX; WORDS];
/// Says that a process ended without a reply.
const NO_REPLY: u64 = u64::MAX;

/// The process, and the pipes to it.
#[derive(Debug)]
pub struct Zygote {
    pid: Pid,
    requests: File,
    replies: File,
}

impl Zygote {
    /// Forks it. Each request is answered by `work` in a process of its own.
    ///
    /// # Errors
    /// If there can be no more processes or pipes.
    pub fn start(work: impl Fn(Request) -> Vec<u8>) -> Result<Self, String> {
        let pair = || pipe().map_err(|errno| format!("cannot make a pipe: {errno}"));
        let ((to_read, to_write), (from_read, from_write)) = (pair()?, pair()?);
        let pid = process::spawn(|| {
            let ours: [&OwnedFd; 2] = [&to_write, &from_read];
            for fd in ours {
                // Or it would never see that nobody asks any more.
                let _ = nix::unistd::close(std::os::fd::AsRawFd::as_raw_fd(fd));
            }
            serve(File::from(to_read), File::from(from_write), &work);
        })?;
        Ok(Self { pid, requests: to_write.into(), replies: from_read.into() })
    }

    /// Asks, and waits for the reply.
    ///
    /// # Errors
    /// If the process that was to answer ended before it did.
    pub fn ask(&mut self, request: Request) -> Result<Vec<u8>, String> {
        let failed = |error: std::io::Error| format!("a process does not answer: {error}");
        self.send(request).map_err(failed)?;
        let mut len = [0; 8];
        self.replies.read_exact(&mut len).map_err(failed)?;
        let len = u64::from_ne_bytes(len);
        if len == NO_REPLY {
            return Err("a process ended before it answered".to_owned());
        }
        let mut reply = vec![0; usize::try_from(len).unwrap_or(0)];
        self.replies.read_exact(&mut reply).map_err(failed)?;
        Ok(reply)
    }

    fn send(&mut self, request: Request) -> std::io::Result<()> {
        let bytes: Vec<u8> = request.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.requests.write_all(&bytes)
    }
}

/// Nothing in here allocates memory, but in the processes that are forked.
fn serve(mut requests: File, mut replies: File, work: &impl Fn(Request) -> Vec<u8>) {
    let mut bytes = [0; WORDS * 8];
    while requests.read_exact(&mut bytes).is_ok() {
        let request = std::array::from_fn(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_ne_bytes(word)
        });
        if request == END {
            return;
        }
        let answering = process::spawn(|| {
            let reply = work(request);
            let len = (reply.len() as u64).to_ne_bytes();
            let sent = replies.write_all(&len).and_then(|()| replies.write_all(&reply));
            sent.expect("somebody waits for the reply");
        });
        if !matches!(answering.and_then(process::wait), Ok(WaitStatus::Exited(_, 0)))
            && replies.write_all(&NO_REPLY.to_ne_bytes()).is_err()
        {
            return;
        }
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        let _ = self.send(END);
        let _ = process::wait(self.pid);
    }
}
