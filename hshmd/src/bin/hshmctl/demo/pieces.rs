//! The files in pieces that fit the segment, one after another.

use super::walk::{FoundFile, Tree};

/// A stretch of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Index of the file in the tree.
    pub(super) file: usize,
    /// Which of the file's pieces it is.
    pub(super) index: usize,
    /// Where it begins in the file.
    pub(super) from: u64,
    pub(super) len: u64,
}

/// Goes through all pieces of a tree.
#[derive(Debug)]
pub(super) struct Pieces<'t> {
    tree: &'t Tree,
    longest: u64,
    next: Option<Piece>,
    left: u64,
}

/// How many pieces a file makes; an empty one none.
pub(super) fn pieces_of(file: &FoundFile, longest: u64) -> u64 {
    file.stamp.len.div_ceil(longest)
}

impl<'t> Pieces<'t> {
    pub(super) fn new(tree: &'t Tree, longest: u64) -> Self {
        let left = tree.files.iter().map(|file| pieces_of(file, longest)).sum();
        let mut pieces = Self { tree, longest, next: None, left };
        pieces.next = pieces.first_of(0);
        pieces
    }

    /// How many are still to come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next one, which stays the next one.
    pub(super) fn peek(&self) -> Option<Piece> {
        self.next
    }

    /// Goes on to the one after it.
    pub(super) fn advance(&mut self) {
        let Some(Piece { file, index, from, len }) = self.next else { return };
        self.left -= 1;
        let whole = self.tree.files.get(file).map_or(0, |file| file.stamp.len);
        let from = from + len;
        self.next = if from < whole {
            Some(Piece { file, index: index + 1, from, len: self.longest.min(whole - from) })
        } else {
            self.first_of(file + 1)
        };
    }

    /// The first piece of `file`, or of the first file after it that is not empty.
    fn first_of(&self, file: usize) -> Option<Piece> {
        let files = self.tree.files.iter().enumerate().skip(file);
        let (file, found) = files.into_iter().find(|(_, file)| file.stamp.len > 0)?;
        Some(Piece { file, index: 0, from: 0, len: self.longest.min(found.stamp.len) })
    }
}
