//! Values in shared memory, which everybody reads and writes as atomic words: whatever another
//! process does meanwhile, that is no data race, and at worst a wrong value.

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
}
