//! Words and bytes in the segment: all of the demo's `unsafe` but for frees.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, ensure};
use hshm_client::{OffsetPointer, Segment};
use nix::errno::Errno;
use nix::libc;

/// Length of a word.
pub(super) const WORD_BYTES: u64 = 8;

/// The position `words` words after `start`.
pub(super) fn word_after(start: OffsetPointer, words: u64) -> OffsetPointer {
    OffsetPointer::new(start.offset_bytes().saturating_add(words.saturating_mul(WORD_BYTES)))
}

/// The word at `at`, which all processes read and write as an atomic.
pub(super) fn word(segment: &Segment, at: OffsetPointer) -> Result<&AtomicU64> {
    let address = segment.resolve(at, size_of::<AtomicU64>())?.cast::<u64>();
    ensure!(address.is_aligned(), "the word at {at} is not aligned");
    // SAFETY: [mapped] resolve checked that eight bytes are there, and they stay mapped as long as
    // the segment is borrowed; [atomic] the board's words are never accessed otherwise.
    Ok(unsafe { AtomicU64::from_ptr(address.as_ptr()) })
}

/// Puts words into a block that this process has just allocated or holds.
pub(super) fn write_words(segment: &Segment, block: OffsetPointer, values: &[u64]) -> Result<()> {
    for (i, value) in (0..).zip(values) {
        // Relaxed: the row's change of state publishes them.
        word(segment, word_after(block, i))?.store(*value, Ordering::Relaxed);
    }
    Ok(())
}

/// Takes words out of a block that was published to this process.
pub(super) fn read_words<const N: usize>(
    segment: &Segment,
    block: OffsetPointer,
) -> Result<[u64; N]> {
    let mut values = [0; N];
    for (i, value) in (0..).zip(&mut values) {
        *value = word(segment, word_after(block, i))?.load(Ordering::Relaxed);
    }
    Ok(values)
}

/// Puts bytes into a block that this process has just allocated.
pub(super) fn write_bytes(segment: &Segment, block: OffsetPointer, bytes: &[u8]) -> Result<()> {
    let address = segment.resolve(block, bytes.len())?;
    // SAFETY: [mapped] resolve checked the length; [owned] nobody else has been told of the block
    // yet, and private memory does not overlap it.
    unsafe { address.copy_from_nonoverlapping(std::ptr::NonNull::from(bytes).cast(), bytes.len()) };
    Ok(())
}

/// Reads up to `len` bytes of a file, from `from` on, into a block that this process has just
/// allocated; fewer if the file ends before. The kernel writes them to where they stay: there is no
/// copy in between. Returns how many there were.
pub(super) fn read_file(
    segment: &Segment,
    block: OffsetPointer,
    len: usize,
    file: &File,
    from: u64,
) -> Result<io::Result<usize>> {
    let address = segment.resolve(block, len)?.as_ptr();
    let mut filled = 0;
    while filled < len {
        let Ok(at) = libc::off_t::try_from(from + filled as u64) else {
            return Ok(Err(Errno::EOVERFLOW.into()));
        };
        let to = address.wrapping_add(filled).cast();
        // SAFETY: [mapped] [filled, len) of the block is inside what resolve checked; [owned] nobody
        // else has been told of the block yet.
        let read = unsafe { libc::pread(file.as_raw_fd(), to, len - filled, at) };
        match usize::try_from(read) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(_) if Errno::last() == Errno::EINTR => {}
            Err(_) => return Ok(Err(io::Error::last_os_error())),
        }
    }
    Ok(Ok(filled))
}

#[cfg(test)]
mod tests {
    #[test]
    fn words_are_eight_bytes_apart() {
        let start = hshm_client::OffsetPointer::new(64);
        assert_eq!(super::word_after(start, 3).offset_bytes(), 88);
    }
}
