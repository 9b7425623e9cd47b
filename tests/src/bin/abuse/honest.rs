//! A client that asks for little, and waits for its answers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hshm_client::{Client, CreateOptions};

/// Its segment.
pub(crate) const SEGMENT: &str = "honest";

/// How long it waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(120);

/// What it saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How long each request took: pings, and attaching and letting go.
    pub(crate) requests: Vec<Duration>,
    /// How long it took to connect anew.
    pub(crate) newcomers: Vec<Duration>,
    /// How often that failed.
    pub(crate) failed: usize,
}

/// A connection for it.
pub(crate) fn connect(socket: &Path) -> Result<Client, String> {
    let client = Client::builder().socket(socket).timeout(TIMEOUT).connect();
    client.map_err(|error| error.to_string())
}

/// Asks until `stop`. Every request must be answered.
pub(crate) fn ask(client: &Client, socket: &Path, stop: &AtomicBool) -> Result<Seen, String> {
    let mut seen = Seen::default();
    let created = client.create(&CreateOptions::new(SEGMENT, 8 << 20));
    created.map_err(|error| format!("the honest client cannot create: {error}"))?;
    let mut round = 0_u32;
    // ORDER: Relaxed: nothing else is read after it.
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let begin = Instant::now();
        let answered =
            if round.is_multiple_of(8) { client.attach(SEGMENT).map(drop) } else { client.ping() };
        answered.map_err(|error| format!("the honest client got no answer: {error}"))?;
        seen.requests.push(begin.elapsed());
        if round.is_multiple_of(16) {
            let begin = Instant::now();
            match Client::builder().socket(socket).timeout(TIMEOUT).connect() {
                Ok(_) => seen.newcomers.push(begin.elapsed()),
                Err(_) => seen.failed += 1,
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(seen)
}

/// The percentile of some durations, for people.
pub(crate) fn percentile(durations: &mut [Duration], percent: usize) -> String {
    durations.sort_unstable();
    let place = (durations.len() * percent / 100).min(durations.len().saturating_sub(1));
    match durations.get(place) {
        Some(found) => format!("{:.2} ms", found.as_secs_f64() * 1e3),
        None => "-".to_owned(),
    }
}
