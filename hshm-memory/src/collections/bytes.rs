//! Values in shared memory, which everybody reads and writes as atomic words: whatever another
//! process does meanwhile, that is no data race, and at worst a wrong value.

use std::ops::Range;

use crate::sync::{AtomicU64, Ordering};

/// Words that `bytes` bytes take.
pub(super) const fn words_for(bytes: usize) -> usize {
    bytes.div_ceil(8)
}

/// Writes `bytes` to the beginning of `words`; what remains of the last word becomes zero.
#[inline]
pub(super) fn store(words: &[AtomicU64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    let mut words = words.iter();
    for (chunk, word) in whole.iter().zip(words.by_ref()) {
        // ORDER: Relaxed, here and below: whoever hands the words on publishes them.
        word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
    }
    if let (false, Some(word)) = (rest.is_empty(), words.next()) {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        word.store(u64::from_ne_bytes(last), Ordering::Relaxed);
    }
}

/// Reads as many bytes as `bytes` has from the beginning of `words`.
#[inline]
pub(super) fn load(words: &[AtomicU64], bytes: &mut [u8]) {
    let (whole, rest) = bytes.as_chunks_mut::<8>();
    let mut words = words.iter();
    for (chunk, word) in whole.iter_mut().zip(words.by_ref()) {
        *chunk = word.load(Ordering::Relaxed).to_ne_bytes();
    }
    if let (false, Some(word)) = (rest.is_empty(), words.next()) {
        let last = word.load(Ordering::Relaxed).to_ne_bytes();
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Writes `bytes` so that they begin `at` bytes after the beginning of `words`. Neighbours in the first
/// and last word stay as they are, as long as nobody else writes there. What reaches beyond is dropped.
pub(super) fn store_at(words: &[AtomicU64], at: usize, bytes: &[u8]) {
    for (word, range, rest) in parts(words, at, bytes.len()) {
        let part = &bytes[rest..rest + range.len()];
        let mut all = [0; 8];
        if range.len() < 8 {
            all = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        all[range].copy_from_slice(part);
        word.store(u64::from_ne_bytes(all), Ordering::Relaxed);
    }
}

/// Reads as many bytes as `bytes` has from `at` bytes after the beginning of `words`. What would lie
/// beyond stays as it is.
pub(super) fn load_at(words: &[AtomicU64], at: usize, bytes: &mut [u8]) {
    for (word, range, rest) in parts(words, at, bytes.len()) {
        let part = &mut bytes[rest..rest + range.len()];
        part.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[range]);
    }
}

/// The words that `len` bytes from `at` on touch: each with the bytes of it that are meant, and how
/// many come before them.
fn parts(
    words: &[AtomicU64],
    at: usize,
    len: usize,
) -> impl Iterator<Item = (&AtomicU64, Range<usize>, usize)> {
    let skipped = at % 8;
    let touched = words.get(at / 8..).unwrap_or_default().iter().enumerate();
    touched.map_while(move |(index, word)| {
        // From the beginning of the first word touched.
        let from = (index * 8).max(skipped);
        let to = (index * 8 + 8).min(skipped + len);
        (from < to).then(|| (word, from % 8..to - index * 8, from - skipped))
    })
}

#[cfg(test)]
#[cfg(not(hshm_loom))]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_come_back() {
        for len in 0..40_u8 {
            let words: Vec<_> = (0..6).map(|_| AtomicU64::new(u64::MAX)).collect();
            let written: Vec<u8> = (0..len).collect();
            store(&words, &written);
            let mut read = vec![0xaa; len.into()];
            load(&words, &mut read);
            assert_eq!(read, written);
            let untouched = words.iter().skip(words_for(len.into()));
            assert!(
                untouched.map(|word| word.load(Ordering::Relaxed)).all(|word| word == u64::MAX)
            );
        }
    }

    #[test]
    fn bytes_at_any_place_leave_their_neighbours_alone() {
        for at in 0..20_usize {
            for len in 0..20_usize {
                let words: Vec<_> = (0..5).map(|_| AtomicU64::new(u64::MAX)).collect();
                let written: Vec<u8> = (1..).take(len).collect();
                store_at(&words, at, &written);
                let mut all = [0; 40];
                load(&words, &mut all);
                assert_eq!(all[at..at + len], written);
                assert!(all[..at].iter().chain(&all[at + len..]).all(|&byte| byte == 0xff));
                let mut read = vec![0; len];
                load_at(&words, at, &mut read);
                assert_eq!(read, written);
            }
        }
        let words = [AtomicU64::new(7)];
        for at in [4, 8, 9, usize::MAX] {
            store_at(&words, at, &[1; 16]);
            load_at(&words, at, &mut [0; 16]);
        }
    }
}
