//! A process that reads files into shared blocks.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use hshm_client::{OffsetPointer, Segment};
use nix::errno::Errno;
use nix::libc;

use super::board::{Board, Claim, Kind, Row};
use super::patience::{Patience, is_shortage};
use super::shared;

/// Which piece of which file is to be read, as it stands in a job block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) from: u64,
    pub(super) len: u64,
    pub(super) path: PathBuf,
}

impl Job {
    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = self.from.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.len.to_le_bytes());
        bytes.append(&mut self.path.into_os_string().into_vec());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (from, rest) = bytes.split_first_chunk()?;
        let (len, path) = rest.split_first_chunk()?;
        let path = std::ffi::OsString::from_vec(path.to_vec()).into();
        Some(Self { from: u64::from_le_bytes(*from), len: u64::from_le_bytes(*len), path })
    }

    fn of(segment: &Segment, row: &Row<'_>) -> Result<Self> {
        let mut bytes = vec![0; usize::try_from(row.job_bytes.load(Ordering::Relaxed))?];
        segment.read_bytes(row.job.block()?, &mut bytes)?;
        Self::decode(&bytes).context("a job block is too short")
    }
}

/// Reads what is queued until there is no more.
pub(super) fn produce(segment: &Segment, part: u32) -> Result<()> {
    let board = Board::open(segment)?;
    let (mut patience, mut cursor) = (Patience::new(), 0);
    loop {
        match board.claim_next(&mut cursor, Kind::Queued, Kind::Reading, part)? {
            Some(claim) => {
                patience.renew();
                read(segment, claim)?;
            }
            None if board.is_finished() => return Ok(()),
            None => patience.pause(),
        }
    }
}

fn read(segment: &Segment, mut claim: Claim<'_, '_>) -> Result<()> {
    let row = claim.row();
    let job = Job::of(segment, row)?;
    let file = match open(&job.path) {
        Ok(file) => file,
        Err(error) => return claim.pass_on_unreadable(error.raw_os_error().unwrap_or(0)),
    };
    // Died here: nothing is allocated yet, and the row goes back to the queue.
    let len = usize::try_from(job.len)?;
    let block = allocate(row, len)?;
    // Died here: the block is in the row's cell; it is freed, and the row goes back to the queue.
    match shared::read_file(segment, block, len, &file, job.from)? {
        Ok(bytes) => row.input_bytes.store(bytes as u64, Ordering::Relaxed),
        Err(error) => return claim.pass_on_unreadable(error.raw_os_error().unwrap_or(0)),
    }
    claim.mark(Kind::Read)?;
    // Died here: the input is complete; what is left is to free the job.
    claim.free(|row| row.job)?;
    claim.pass_on(Kind::Filled)
}

/// Opens a regular file, and nothing that took its place since the walk.
fn open(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::EINVAL.into()) }
}

/// A block for a row's input. While there is no room, others are at work on what fills it.
fn allocate(row: &Row<'_>, len: usize) -> Result<OffsetPointer> {
    let mut patience = Patience::new();
    loop {
        match row.input.allocate(len) {
            Err(error) if is_shortage(&error) => patience.pause(),
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_survives_its_bytes_whatever_the_file_is_called() {
        let path = PathBuf::from(std::ffi::OsString::from_vec(b"/a \xff\n/b".to_vec()));
        let job = Job { from: 1 << 40, len: 7, path };
        assert_eq!(Job::decode(&job.clone().encode()), Some(job));
        assert_eq!(Job::decode(&[0; 15]), None);
    }
}
