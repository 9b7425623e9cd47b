//! The same files again, plainly: one process, private memory, one file after the other.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::counts::{Counts, is_space};
use super::ledger::{Ledger, Outcome};
use super::progress::Progress;
use super::signals::Signals;
use super::walk::{FoundFile, Stamp, Tree};

/// How many files that differ are named.
const NAMED: usize = 5;

/// How the shared results compare with the plain ones.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Comparison {
    /// Files with equal results.
    pub(super) equal: u64,
    /// Files that were changed, replaced or removed while the demo ran, so that nothing can be said.
    pub(super) changed: u64,
    /// Files that could be read neither way.
    pub(super) unreadable: u64,
    /// Files with different results: there must be none.
    pub(super) different: u64,
    /// Some of those.
    pub(super) examples: Vec<String>,
}

/// Reads all files once more and compares.
pub(super) fn compare(
    tree: &Tree,
    ledger: &Ledger,
    signals: &Signals,
    progress: &Progress,
) -> Result<Comparison> {
    progress.begin_bytes("comparing", tree.bytes);
    let mut comparison = Comparison::default();
    let mut buffer = vec![0; 256 << 10];
    for (file, shared) in tree.files.iter().zip(ledger.outcomes()) {
        let plain = count_plainly(&file.path, &mut buffer, signals)?;
        progress.advance(file.stamp.len);
        comparison.add(file, shared, plain);
    }
    Ok(comparison)
}

impl Comparison {
    fn add(&mut self, file: &FoundFile, shared: Outcome, plain: io::Result<Counts>) {
        match (shared, plain) {
            (Ok(shared), Ok(plain)) if is_equal(shared, plain) => self.equal += 1,
            (Err(_), Err(_)) => self.unreadable += 1,
            _ if has_changed(file) => self.changed += 1,
            (shared, plain) => {
                self.different += 1;
                if self.examples.len() < NAMED {
                    let path = file.path.display();
                    let (shared, plain) = (told(shared), told(plain));
                    self.examples.push(format!("{path}: shared {shared}; plain {plain}"));
                }
            }
        }
    }
}

/// Whether the computed values are equal; where words touch the borders was only needed to join
/// pieces.
fn is_equal(a: Counts, b: Counts) -> bool {
    (a.bytes, a.words, a.crc32) == (b.bytes, b.words, b.crc32)
}

/// A file's result, in a mention of it.
fn told(result: Result<Counts, impl Debug>) -> String {
    match result {
        Ok(Counts { bytes, words, crc32, .. }) => {
            format!("{bytes} bytes, {words} words, CRC-32 {crc32:08x}")
        }
        Err(error) => format!("not readable ({error:?})"),
    }
}

/// Whether a file is not what the walk met.
fn has_changed(file: &FoundFile) -> bool {
    match fs::metadata(&file.path) {
        Ok(now) => Stamp::from(&now) != file.stamp,
        Err(_) => true,
    }
}

/// Counts a file from its beginning to its end, byte by byte: on purpose in another way than
/// [`Counts::of`], and knowing nothing of pieces.
fn count_plainly(path: &Path, buffer: &mut [u8], signals: &Signals) -> Result<io::Result<Counts>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let mut crc = crc32fast::Hasher::new();
    let mut counts = Counts::default();
    let mut in_word = false;
    loop {
        signals.check()?;
        let bytes = match file.read(buffer) {
            Ok(0) => break,
            Ok(len) => buffer.get(..len).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Err(error)),
        };
        for byte in bytes {
            if is_space(*byte) {
                in_word = false;
            } else if !in_word {
                in_word = true;
                counts.words += 1;
            }
        }
        crc.update(bytes);
        counts.bytes += bytes.len() as u64;
    }
    counts.crc32 = crc.finalize();
    Ok(Ok(counts))
}
