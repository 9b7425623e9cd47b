//! What happens to segments, as it happens.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hshm_proto::limits::MAX_EVENT_WAIT_MS;
use hshm_proto::{Event, EventCursor, EventPage, ReplyBody, RequestBody};

use crate::client::{Client, unexpected};
use crate::error::Error;

/// What a watcher learns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Watched {
    /// Something happened to a segment.
    Event(Event),
    /// So many events, of whichever segments, came faster than they were read, and are lost.
    Missed(u64),
    /// The daemon is another than before: what happened between is not known, and what follows begins
    /// with the first event of the new one.
    Restarted,
}

/// What happens to the segments that this user may see, from the call of [`Client::events`] on.
///
/// The iterator waits for what it returns, and has no end of its own; after an error it ends. A daemon
/// that was restarted meanwhile is connected to anew, which [`Watched::Restarted`] tells.
///
/// ```no_run
/// use hshm_client::{Client, Watched};
///
/// let client = Client::connect()?;
/// for watched in client.events(Some("jobs"))? {
///     if let Watched::Event(event) = watched? {
///         println!("{} {}", event.segment, event.what.name());
///     }
/// }
/// # Ok::<(), hshm_client::Error>(())
/// ```
#[derive(Debug)]
pub struct Events {
    /// With a connection of its own, which waits for events rather than for answers.
    client: Client,
    name: Option<String>,
    cursor: EventCursor,
    read: VecDeque<Watched>,
    failed: bool,
}

impl Events {
    pub(crate) fn begin(client: Client, name: Option<&str>) -> Result<Self, Error> {
        let name = name.map(str::to_owned);
        let page = ask(&client, name.clone(), None, 0)?;
        Ok(Self { client, name, cursor: page.cursor, read: VecDeque::new(), failed: false })
    }

    /// The next thing to learn, if there is one within `wait`. Several threads, or a caller that has
    /// other things to look after, use this rather than the iterator.
    ///
    /// # Errors
    /// [`Error::NoDaemon`] if the daemon is gone, or as for any request.
    pub fn next_within(&mut self, wait: Duration) -> Result<Option<Watched>, Error> {
        let deadline = Instant::now() + wait;
        loop {
            if let Some(watched) = self.read.pop_front() {
                return Ok(Some(watched));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let most = Duration::from_millis(MAX_EVENT_WAIT_MS.into());
            // The answer itself takes time too.
            let wait = left.min(most).min(self.client.timeout() / 2);
            let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(MAX_EVENT_WAIT_MS);
            let page = ask(&self.client, self.name.clone(), Some(self.cursor), wait_ms)?;
            self.take(page);
            if self.read.is_empty() && left.is_zero() {
                return Ok(None);
            }
        }
    }

    fn take(&mut self, page: EventPage) {
        self.cursor = page.cursor;
        self.read.extend(page.restarted.then_some(Watched::Restarted));
        self.read.extend((page.missed > 0).then_some(Watched::Missed(page.missed)));
        self.read.extend(page.events.into_iter().map(Watched::Event));
    }
}

impl Iterator for Events {
    type Item = Result<Watched, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            match self.next_within(Duration::from_millis(MAX_EVENT_WAIT_MS.into())) {
                Ok(Some(watched)) => return Some(Ok(watched)),
                Ok(None) => {}
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

fn ask(
    client: &Client,
    name: Option<String>,
    after: Option<EventCursor>,
    wait_ms: u32,
) -> Result<EventPage, Error> {
    let reply = client.request(RequestBody::Events { name, after, wait_ms })?;
    let ReplyBody::Events(page) = reply else { return Err(unexpected("watch")) };
    Ok(page)
}
