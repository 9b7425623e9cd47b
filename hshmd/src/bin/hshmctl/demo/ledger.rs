//! What came of each file. The coordinator keeps it in its own memory.

use anyhow::{Result, ensure};

use super::counts::Counts;
use super::pieces::{Piece, pieces_of};
use super::walk::Tree;

/// The files' results, in the order of the tree.
#[derive(Debug)]
pub(super) struct Ledger {
    files: Vec<Entry>,
    open: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Results of the pieces so far; dropped when the last has come.
    pieces: Vec<Option<Piecewise>>,
    missing: usize,
    outcome: Outcome,
}

/// What came of a piece.
type Piecewise = Result<Counts, i32>;

/// What came of a file: its counts, or the number of the error that kept it from being read.
pub(super) type Outcome = Result<Counts, i32>;

impl Ledger {
    /// A ledger in which every piece of `tree` is open. Empty files are done.
    pub(super) fn new(tree: &Tree, longest_piece: u64) -> Result<Self> {
        let entry = |file| {
            let missing = usize::try_from(pieces_of(file, longest_piece))?;
            Ok(Entry { pieces: Vec::new(), missing, outcome: Ok(Counts::default()) })
        };
        let files = tree.files.iter().map(entry).collect::<Result<Vec<Entry>>>()?;
        let open = files.iter().filter(|entry| entry.missing > 0).count();
        Ok(Self { files, open })
    }

    /// Enters the result of a piece.
    ///
    /// # Errors
    /// If it has one already: each item must yield one result.
    pub(super) fn enter(&mut self, piece: Piece, result: Outcome) -> Result<()> {
        let Some(entry) = self.files.get_mut(piece.file) else { return Ok(()) };
        if entry.pieces.is_empty() {
            entry.pieces = vec![None; entry.missing];
        }
        let place = entry.pieces.get_mut(piece.index).filter(|place| place.is_none());
        ensure!(place.is_some() && entry.missing > 0, "a second result for {piece:?}");
        if let Some(place) = place {
            *place = Some(result);
        }
        entry.missing -= 1;
        if entry.missing == 0 {
            let pieces = std::mem::take(&mut entry.pieces);
            let join = |sum: Counts, piece: Piecewise| Ok(sum.followed_by(piece?));
            entry.outcome = pieces.into_iter().flatten().try_fold(Counts::default(), join);
            self.open -= 1;
        }
        Ok(())
    }

    /// Whether every piece has its result.
    pub(super) fn is_complete(&self) -> bool {
        self.open == 0
    }

    /// What came of each file.
    pub(super) fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.files.iter().map(|entry| entry.outcome)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::pieces::Pieces;
    use super::super::walk::FoundFile;
    use super::*;

    fn tree(lengths: &[u64]) -> Tree {
        let metadata = std::fs::metadata("/").unwrap();
        let file = |len: &u64| {
            let mut stamp = super::super::walk::Stamp::from(&metadata);
            stamp.len = *len;
            FoundFile { path: PathBuf::new(), stamp }
        };
        Tree { files: lengths.iter().map(file).collect(), ..Tree::default() }
    }

    #[test]
    fn pieces_cover_each_file_once_and_pass_over_empty_ones() {
        let tree = tree(&[0, 25, 0, 10, 0]);
        let mut pieces = Pieces::new(&tree, 10);
        assert_eq!(pieces.left(), 4);
        let mut seen = Vec::new();
        while let Some(Piece { file, index, from, len }) = pieces.peek() {
            seen.push((file, index, from, len));
            pieces.advance();
        }
        assert_eq!(seen, [(1, 0, 0, 10), (1, 1, 10, 10), (1, 2, 20, 5), (3, 0, 0, 10)]);
        assert_eq!(pieces.left(), 0);
        pieces.advance();
        assert_eq!(pieces.peek(), None);
    }

    #[test]
    fn results_may_come_in_any_order_but_only_once() {
        let tree = tree(&[25]);
        let mut ledger = Ledger::new(&tree, 10).unwrap();
        let piece = |index| Piece { file: 0, index, from: 0, len: 10 };
        let text = b"some words, of which several go across borders";
        for index in [2, 0] {
            ledger.enter(piece(index), Ok(Counts::of(&text[index * 10..index * 10 + 10]))).unwrap();
            assert!(!ledger.is_complete());
        }
        assert!(ledger.enter(piece(2), Ok(Counts::default())).is_err());
        ledger.enter(piece(1), Ok(Counts::of(&text[10..20]))).unwrap();
        assert!(ledger.is_complete());
        assert!(ledger.enter(piece(1), Ok(Counts::default())).is_err());
        assert_eq!(ledger.outcomes().next().unwrap(), Ok(Counts::of(&text[..30])));
    }

    #[test]
    fn one_unreadable_piece_makes_the_file_unreadable() {
        let mut ledger = Ledger::new(&tree(&[20, 0]), 10).unwrap();
        let piece = |index| Piece { file: 0, index, from: 0, len: 10 };
        ledger.enter(piece(0), Err(5)).unwrap();
        ledger.enter(piece(1), Ok(Counts::of(b"x"))).unwrap();
        assert_eq!(ledger.outcomes().collect::<Vec<_>>(), [Err(5), Ok(Counts::default())]);
    }
}
