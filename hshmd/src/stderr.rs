//! Standard error as the log is written to it: whoever reads it may stop reading, and the daemon goes on.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::LogFormat;

/// How long a line waits for room, and the daemon with it. When that was in vain those after it do not wait,
/// until there is room again.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lines that found no room since the last one that did.
static LOST: Mutex<u64> = Mutex::new(0);

/// Takes whole lines, each in one piece, and leaves out those for which there is no room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogStderr {
    format: LogFormat,
}

impl LogStderr {
    pub(crate) const fn new(format: LogFormat) -> Self {
        Self { format }
    }

    /// Writes a line, if there is room for it. That it could not be written is nothing that could be said
    /// anywhere.
    pub(crate) fn put(self, line: &[u8]) {
        let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
        let stderr = io::stderr();
        if !has_room(&stderr, if *lost == 0 { PATIENCE } else { Duration::ZERO }) {
            *lost = lost.saturating_add(1);
            return;
        }
        if *lost > 0 {
            let _ = stderr.lock().write_all(self.note(*lost).as_bytes());
            *lost = 0;
            if !has_room(&stderr, Duration::ZERO) {
                *lost = 1;
                return;
            }
        }
        let _ = stderr.lock().write_all(line);
    }

    fn note(self, lost: u64) -> String {
        match self.format {
            LogFormat::Human => {
                format!(
                    "{lost} lines of the log are lost, since nobody read what was before them\n"
                )
            }
            LogFormat::Json => format!(
                "{{\"level\":\"WARN\",\"message\":\"lines of the log are lost\",\"lost\":{lost}}}\n"
            ),
        }
    }
}

impl Write for LogStderr {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line can be written at once: a pipe has room then for more bytes (`PIPE_BUF`) than a line has. A
/// closed one counts as well, since writing to it does not wait.
fn has_room(stderr: &impl AsFd, patience: Duration) -> bool {
    let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    // An error is none of waiting, such as a signal: the line is worth the risk.
    poll(&mut polled, patience).map_or(true, |ready| ready > 0)
}
