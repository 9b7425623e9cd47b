//! `control`: clients ask the daemon for the list of its segments, each as often as it can.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::case::Measurement;
use crate::daemon::{Daemon, connect, text};
use crate::team::Job;

/// The length of the one segment, in bytes.
const BYTES: usize = 64 << 20;

pub(super) fn measure(job: &Job) -> Result<Measurement, String> {
    let daemon = Daemon::start(&job.segment, BYTES)?;
    let clients = job.case.threads;
    let barrier = Barrier::new(clients);
    let run = Duration::from_millis(job.settings.run_ms);
    let counts: Result<Vec<_>, String> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..clients).map(|_| scope.spawn(|| ask(&job.segment, &barrier, run))).collect();
        asking.into_iter().map(|client| client.join().map_err(|_| "a client panicked")?).collect()
    });
    drop(daemon);
    let counts = counts?;
    let requests: u32 = counts.iter().map(|(requests, _)| requests).sum();
    let longest = counts.iter().map(|(_, taken)| *taken).max().unwrap_or(run);
    let per_second = f64::from(requests) / longest.as_secs_f64();
    Ok(Measurement::of(1e9 / per_second).with("requests_per_second", per_second))
}

/// How many requests were answered, in which time.
fn ask(segment: &str, barrier: &Barrier, run: Duration) -> Result<(u32, Duration), String> {
    let client = connect(segment).map_err(text);
    // Whether or not there is a client: the others wait for this one.
    barrier.wait();
    let client = client?;
    let begin = Instant::now();
    let mut requests = 0;
    while begin.elapsed() < run {
        let segments = client.list().map_err(text)?;
        if segments.len() != 1 {
            return Err(format!("{} segments where there is one", segments.len()));
        }
        requests += 1;
    }
    Ok((requests, begin.elapsed()))
}
