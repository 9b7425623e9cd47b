//! What is computed of a file, and how the pieces' results make up the file's.

use serde::Serialize;

/// Of a stretch of bytes.
///
/// A word is a longest run of bytes that are not ASCII white space, as `wc -w` counts them in the C
/// locale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub(super) struct Counts {
    pub(super) bytes: u64,
    pub(super) words: u64,
    /// As of gzip and zip (CRC-32/ISO-HDLC).
    pub(super) crc32: u32,
    /// Whether the first byte belongs to a word, and perhaps to one that began earlier.
    #[serde(skip)]
    pub(super) begins_in_word: bool,
    /// Whether the last byte belongs to a word, and perhaps to one that goes on.
    #[serde(skip)]
    pub(super) ends_in_word: bool,
}

/// Blank, tab, line feed, vertical tab, form feed and carriage return.
pub(super) const fn is_space(byte: u8) -> bool {
    byte == b' ' || byte.wrapping_sub(9) < 5
}

impl Counts {
    /// Counts a stretch that is whole in memory.
    pub(super) fn of(bytes: &[u8]) -> Self {
        let in_word = |byte: Option<&u8>| byte.is_some_and(|byte| !is_space(*byte));
        let begins_in_word = in_word(bytes.first());
        // A word begins where white space is followed by something else. In this form the compiler
        // makes vector instructions of it.
        let begin = |pair: &[u8; 2]| u64::from(is_space(pair[0]) & !is_space(pair[1]));
        let words: u64 = bytes.array_windows().map(begin).sum();
        Self {
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            words: words + u64::from(begins_in_word),
            crc32: crc32fast::hash(bytes),
            begins_in_word,
            ends_in_word: in_word(bytes.last()),
        }
    }

    /// What the two stretches would count as one, `next` following this.
    pub(super) fn followed_by(self, next: Self) -> Self {
        if self.bytes == 0 {
            return next;
        }
        if next.bytes == 0 {
            return self;
        }
        // A word that lies across the border was counted on both sides.
        let shared = u64::from(self.ends_in_word && next.begins_in_word);
        let mut crc = crc32fast::Hasher::new_with_initial_len(self.crc32, self.bytes);
        crc.combine(&crc32fast::Hasher::new_with_initial_len(next.crc32, next.bytes));
        Self {
            bytes: self.bytes + next.bytes,
            words: self.words + next.words - shared,
            crc32: crc.finalize(),
            begins_in_word: self.begins_in_word,
            ends_in_word: next.ends_in_word,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_what_wc_counts() {
        let words = |text: &str| Counts::of(text.as_bytes()).words;
        assert_eq!(words(""), 0);
        assert_eq!(words(" \t\n\x0b\x0c\r"), 0);
        assert_eq!(words("one"), 1);
        assert_eq!(words(" to be\nor  not "), 4);
        assert_eq!(words("a\0b \u{a0}c"), 2, "only ASCII white space separates");
        assert_eq!(Counts::of(b"123456789").crc32, 0xcbf4_3926, "the CRC's check value");
    }

    proptest! {
        /// Wherever a file is cut, and into however many pieces.
        #[test]
        fn pieces_count_as_the_whole(
            bytes in proptest::collection::vec(prop_oneof![Just(b' '), Just(b'x'), any::<u8>()], 0..200),
            piece in 1_usize..50,
        ) {
            let pieces = bytes.chunks(piece).map(Counts::of);
            let joined = pieces.fold(Counts::default(), Counts::followed_by);
            prop_assert_eq!(joined, Counts::of(&bytes));
        }
    }
}
