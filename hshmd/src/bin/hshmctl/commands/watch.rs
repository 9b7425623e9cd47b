use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Result;
use hshm_client::{Client, Event, EventKind, Watched};
use hshmd::size::format_size;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use crate::text::{self, counted};
use crate::ui::Ui;

/// How often to look whether anybody still reads.
const PAUSE: Duration = Duration::from_secs(1);

/// A line for a program.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum Line<'a> {
    /// The first line: what happens from now on is told.
    Watching {
        segment: Option<&'a str>,
    },
    Event {
        #[serde(flatten)]
        event: &'a Event,
    },
    Missed {
        events: u64,
    },
    Restarted,
}

pub(super) fn run(client: &Client, name: Option<&str>, ui: &mut Ui) -> Result<()> {
    let mut events = client.events(name)?;
    if ui.is_json() {
        ui.line(serde_json::to_string(&Line::Watching { segment: name })?)?;
    } else if io::stdout().is_terminal() {
        ui.line(format_args!("watching {}; Ctrl-C ends it", name.unwrap_or("all segments")))?;
    }
    ui.finish()?;
    while !is_closed() {
        let Some(watched) = events.next_within(PAUSE)? else { continue };
        if ui.is_json() {
            ui.line(serde_json::to_string(&line(&watched))?)?;
        } else {
            ui.line(words(&watched))?;
        }
        ui.finish()?;
    }
    Ok(())
}

/// Whether standard output is a pipe that nobody reads any more.
fn is_closed() -> bool {
    let stdout = io::stdout();
    let mut polled = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let found = poll(&mut polled, PollTimeout::ZERO);
    let events = polled.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
    found.is_ok() && events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)
}

fn line(watched: &Watched) -> Line<'_> {
    match watched {
        Watched::Event(event) => Line::Event { event },
        Watched::Restarted => Line::Restarted,
        Watched::Missed(events) => Line::Missed { events: *events },
        _ => Line::Missed { events: 0 },
    }
}

fn words(watched: &Watched) -> String {
    match watched {
        Watched::Event(event) => {
            let name = text::printable(&event.segment);
            let (time, kind) = (time(event.unix_ms), event.what.name());
            format!("{time}  {name}  {kind}{}", details(&event.what)).trim_end().to_owned()
        }
        Watched::Missed(events) => {
            format!("{} came too fast and are lost", counted(*events, "event"))
        }
        Watched::Restarted => {
            "the daemon was restarted; what happened meanwhile is not known".to_owned()
        }
        _ => "something that this hshmctl does not know; use that of the daemon's release".into(),
    }
}

fn details(what: &EventKind) -> String {
    match what {
        EventKind::Created { committed_bytes, uid } => {
            format!("  {} by {}", format_size(*committed_bytes), text::user(*uid))
        }
        EventKind::Grown { committed_bytes } => format!("  to {}", format_size(*committed_bytes)),
        EventKind::Attached { session, process } | EventKind::Detached { session, process } => {
            format!("  process {}, session {session}", process.pid)
        }
        EventKind::Died { process } => format!("  process {}", process.pid),
        EventKind::Recovered { process, report, micros } => format!(
            "  process {}: {}, {} completed, {} undone, {} freed, {} left to others, in {}",
            process.pid,
            counted(report.slots.into(), "slot"),
            counted(report.operations_completed.into(), "operation"),
            text::count(report.operations_undone.into()),
            counted(report.pages_freed, "page"),
            text::count(report.pages_abandoned),
            text::duration(Duration::from_micros(*micros)),
        ),
        EventKind::Destroyed | _ => String::new(),
    }
}

/// The time of day in UTC, to the millisecond.
fn time(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_of_the_day() {
        assert_eq!(super::time(0), "00:00:00.000Z");
        assert_eq!(super::time(86_400_000 * 3 + 45_296_789), "12:34:56.789Z");
    }
}
