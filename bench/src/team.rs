//! Those at work together: threads of this process, and other processes that run this program.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::allocator::{self, Heap, Name, Setup, Visit};
use crate::board::Board;
use crate::case::{Case, Measurement};
use crate::clock::Clock;
use crate::system;
use crate::workload::{self, Seat};

/// How to measure.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// How long a measurement is to take, in milliseconds.
    pub(crate) run_ms: u64,
    pub(crate) clock: Clock,
    /// How many rounds to do, twice, where they are counted rather than timed.
    pub(crate) rounds: Option<usize>,
}

/// What a process of this program is started for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) case: Case,
    pub(crate) allocator: Name,
    /// The name of the segment, and the beginning of the name of any other shared file.
    pub(crate) segment: String,
    pub(crate) settings: Settings,
    /// 0 for the process that measures; the others help.
    pub(crate) process: usize,
    /// The file of the board, which helpers inherit.
    pub(crate) board: Option<RawFd>,
}

impl Job {
    pub(crate) fn setup(&self) -> Setup<'_> {
        Setup { segment: &self.segment, case: &self.case }
    }

    /// Does the job, and returns what was measured if it was to measure.
    pub(crate) fn run(&self) -> Result<Option<Measurement>, String> {
        // SAFETY: [ffi] whoever started us is to be outlived by none of us.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        allocator::dispatch(self.allocator, RunJob(self))
    }
}

struct RunJob<'a>(&'a Job);

impl Visit for RunJob<'_> {
    type Output = Result<Option<Measurement>, String>;

    fn visit<H: Heap>(self) -> Self::Output {
        match self.0.board {
            None => workload::measure::<H>(self.0).map(Some),
            Some(fd) => workload::help::<H>(self.0, Board::open(fd)).map(|()| None),
        }
    }
}

/// Has the case's threads and processes do their parts, and returns their mean.
pub(crate) fn measure<H: Heap>(heap: &H, job: &Job) -> Result<Measurement, String> {
    let (board, file) = Board::create();
    let helpers: Result<Vec<_>, _> =
        (1..job.case.processes).map(|process| Helper::spawn(job, process, &file)).collect();
    let helpers = helpers?;
    take_seats(heap, job, board);
    for helper in helpers {
        helper.wait()?;
    }
    Ok(Measurement::of(board.mean()))
}

/// Runs the threads of this process.
pub(crate) fn take_seats<H: Heap>(heap: &H, job: &Job, board: &Board) {
    std::thread::scope(|scope| {
        for thread in 0..job.case.threads {
            scope.spawn(move || {
                let number = job.process * job.case.threads + thread;
                system::pin(number);
                heap.begin_thread();
                workload::take_part(&Seat { heap, number, board, job });
                heap.end_thread();
            });
        }
    });
}

/// Another process of this program.
pub(crate) struct Helper {
    child: Child,
}

impl Helper {
    pub(crate) fn spawn(job: &Job, process: usize, board: &OwnedFd) -> Result<Self, String> {
        let job = Job { process, board: Some(board.as_raw_fd()), ..job.clone() };
        spawn(&job).map(|child| Self { child })
    }

    pub(crate) fn wait(mut self) -> Result<(), String> {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut said);
        }
        if status.success() { Ok(()) } else { Err(format!("a helper ended: {status}: {said}")) }
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn kill(mut self) -> Result<(), String> {
        self.child.kill().map_err(|error| error.to_string())?;
        self.child.wait().map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Starts this program for `job`.
pub(crate) fn spawn(job: &Job) -> Result<Child, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let text = serde_json::to_string(job).map_err(|error| error.to_string())?;
    let mut command = if job.settings.rounds.is_some() {
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command
        .args(["--job", &text])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", command.get_program().display()))
}
