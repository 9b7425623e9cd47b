//! The log as the journal of systemd has it natively: each event with its fields, by which it can be searched
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::env;
use std::fmt::{self, Write as _};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::config::LogFormat;
use crate::stderr::LogStderr;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// What the names of our fields begin with, so that they are nobody else's.
const PREFIX: &str = "HSHM_";

/// The longest entry: a datagram must fit a socket's buffer whole. The longest that the daemon writes takes a
/// few kilobytes.
const MAX_ENTRY_BYTES: usize = 64 << 10;

/// Passes events to the journal.
#[derive(Debug)]
pub(crate) struct LogJournal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl LogJournal {
    /// The journal that standard error goes to, if it does.
    pub(crate) fn of_stderr() -> Option<Self> {
        let stream = env::var("JOURNAL_STREAM").ok()?;
        if !is_stream(&stream, io::stderr()) {
            return None;
        }
        Self::connect(Path::new(SOCKET)).ok()
    }

    fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // Sessions wait for nobody, and not for the journal either.
        socket.set_nonblocking(true)?;
        // The journal ignores an entry that is empty.
        socket.send_to(&[], path)?;
        Ok(Self { socket, path: path.to_path_buf() })
    }

    fn send(&self, entry: &Entry, priority: u8) {
        let packet = entry.packet(priority);
        if packet.len() <= MAX_ENTRY_BYTES && self.socket.send_to(&packet, &self.path).is_ok() {
            return;
        }
        // The journal is about to be restarted, or full: it reads standard error, too, at the price of the fields.
        let line = format!("<{priority}>{}\n", entry.text());
        LogStderr::new(LogFormat::Human).put(line.as_bytes());
    }
}

/// Whether `stream`, the device and number of a file, is `file`: what a service manager sets is inherited by
/// children whose output goes elsewhere.
fn is_stream(stream: &str, file: impl AsFd) -> bool {
    let Some((device, number)) = stream.split_once(':') else { return false };
    fstat(file)
        .is_ok_and(|found| device.parse() == Ok(found.st_dev) && number.parse() == Ok(found.st_ino))
}

impl<S: Subscriber> Layer<S> for LogJournal {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        entry.field("TARGET", event.metadata().target().to_owned());
        self.send(&entry, priority(*event.metadata().level()));
    }
}

/// Of syslog's levels, the one that means the same.
const fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// An event.
#[derive(Debug, Default)]
struct Entry {
    message: String,
    /// The message's fields as text, for people.
    details: String,
    fields: Vec<(String, String)>,
}

impl Entry {
    /// Notes a field by its name in the journal: capital letters, digits and underscores.
    fn field(&mut self, name: &str, value: String) {
        let upper = name.chars().map(|c| c.to_ascii_uppercase());
        let upper = upper.map(|c| if c.is_ascii_alphanumeric() { c } else { '_' });
        self.fields.push((PREFIX.chars().chain(upper).collect(), value));
    }

    fn note(&mut self, field: &Field, value: String, quoted: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = value;
            return;
        }
        // Writing to a string does not fail.
        let _ = write!(self.details, " {}={quoted:?}", field.name());
        self.field(field.name(), value);
    }

    fn text(&self) -> String {
        let text = format!("{}{}", self.message, self.details);
        text.replace(['\n', '\r'], " ")
    }

    fn packet(&self, priority: u8) -> Vec<u8> {
        let mut packet = Vec::new();
        put(&mut packet, "PRIORITY", &priority.to_string());
        put(&mut packet, "SYSLOG_IDENTIFIER", "hshmd");
        put(&mut packet, "MESSAGE", &self.text());
        for (name, value) in &self.fields {
            put(&mut packet, name, value);
        }
        packet
    }
}

/// Appends a field. A value of several lines has its length before it.
fn put(packet: &mut Vec<u8>, name: &str, value: &str) {
    packet.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        packet.push(b'\n');
        packet.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        packet.push(b'=');
    }
    packet.extend_from_slice(value.as_bytes());
    packet.push(b'\n');
}

impl Visit for Entry {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field, value.to_owned(), &value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.note(field, format!("{value:?}"), value);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The fields of the next entry, and the end of the packet that could not be read as such.
    fn next(journal: &UnixDatagram) -> Vec<(String, String)> {
        let mut buffer = vec![0; MAX_ENTRY_BYTES];
        let len = journal.recv(&mut buffer).unwrap();
        let mut rest = &buffer[..len];
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
            let line = String::from_utf8(rest[..end].to_vec()).unwrap();
            rest = &rest[end + 1..];
            if let Some((name, value)) = line.split_once('=') {
                fields.push((name.to_owned(), value.to_owned()));
                continue;
            }
            let (len, more) = rest.split_first_chunk::<8>().unwrap();
            let (value, more) = more.split_at(usize::try_from(u64::from_le_bytes(*len)).unwrap());
            fields.push((line, String::from_utf8(value.to_vec()).unwrap()));
            rest = more.strip_prefix(b"\n").unwrap();
        }
        fields
    }

    #[test]
    fn an_event_has_its_fields_and_cannot_forge_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listening = UnixDatagram::bind(&path).unwrap();
        let journal = LogJournal::connect(&path).unwrap();
        assert!(next(&listening).is_empty());
        let forged = "a\nPRIORITY=0\nMESSAGE=all is well";
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            tracing::info!(segment = "a", uid = 7, "created");
            tracing::warn!(client.name = forged, error = %forged, "refused");
        });
        let found = next(&listening);
        let has = |found: &[(String, String)], name: &str, value: &str| {
            let values: Vec<_> = found.iter().filter(|field| field.0 == name).collect();
            assert_eq!(values.len(), 1, "{name} in {found:?}");
            assert_eq!(values[0].1, value);
        };
        has(&found, "PRIORITY", "6");
        has(&found, "SYSLOG_IDENTIFIER", "hshmd");
        has(&found, "MESSAGE", "created segment=\"a\" uid=7");
        has(&found, "HSHM_SEGMENT", "a");
        has(&found, "HSHM_UID", "7");
        has(&found, "HSHM_TARGET", "hshmd::journal::tests");
        let found = next(&listening);
        has(&found, "PRIORITY", "4");
        has(&found, "HSHM_CLIENT_NAME", forged);
        has(&found, "HSHM_ERROR", forged);
        let message = found.iter().find(|field| field.0 == "MESSAGE").unwrap();
        assert!(message.1.starts_with("refused ") && !message.1.contains('\n'), "{message:?}");
    }

    #[test]
    fn only_the_stream_that_was_named_is_the_journal() {
        let file = File::open("/dev/null").unwrap();
        let found = file.metadata().unwrap();
        assert!(is_stream(&format!("{}:{}", found.dev(), found.ino()), &file));
        assert!(!is_stream(&format!("{}:{}", found.dev(), found.ino() + 1), &file));
        for nonsense in ["", ":", "1", "1:x", "-1:2", "99999999999999999999:1"] {
            assert!(!is_stream(nonsense, &file), "{nonsense:?}");
        }
    }

    #[test]
    fn without_a_journal_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        LogJournal::connect(&dir.path().join("nobody")).unwrap_err();
    }
}
