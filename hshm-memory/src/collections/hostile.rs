//! Vectors, strings and maps whose bytes another process overwrote: their operations end, with an
//! error or a wrong value, and touch nothing outside the segment.

use std::time::Duration;

use super::tests::Random;
use super::*;
use crate::sync::{AtomicU64, Ordering};
use crate::{OffsetPointer, ThreadLocalAllocator, doc_heap};

/// Words of the first block, but for its scratch area.
const ROOT: u64 = 16;
/// Those of the lock. A lock that names somebody who lives is waited for, which others test.
const LOCK: std::ops::Range<u64> = 4..6;
/// Where the cells begin.
const CELLS: u64 = 7;

fn word(heap: &ThreadLocalAllocator, place: u64, index: u64) -> Option<&AtomicU64> {
    let place = OffsetPointer::new(place.wrapping_add(index * 8) / 8 * 8);
    let address = heap.resolve(place, 8).ok()?;
    // SAFETY: [mapped] it was resolved and is aligned; [atomic] so are all of a collection's words.
    Some(unsafe { AtomicU64::from_ptr(address.cast().as_ptr()) })
}

/// Overwrites some words of the collection at `place`, in both of its blocks.
fn scribble(heap: &ThreadLocalAllocator, place: OffsetPointer, random: &mut Random) {
    let root = place.offset_bytes();
    let blocks: Vec<u64> = (0..4)
        .map(|cell| word(heap, root, CELLS + cell).unwrap().load(Ordering::Relaxed))
        .filter(|&block| block != 0)
        .collect();
    for _ in 0..=random.below(6) {
        let (from, most) = match (random.below(2), blocks.first()) {
            (0, Some(&block)) => (block, 40),
            _ => (root, ROOT + 4),
        };
        let index = random.next() % most;
        if from == root && LOCK.contains(&index) {
            continue;
        }
        let value = match random.below(6) {
            0 => random.next(),
            1 => u64::MAX,
            2 => random.next() % 64,
            3 => 1 << (random.next() % 64),
            4 => heap.committed_bytes() - random.next() % 256,
            _ => root + random.next() % 256,
        };
        if let Some(word) = word(heap, from, index) {
            word.store(value, Ordering::Relaxed);
        }
    }
    // Often as if a holder had died, so that the next one mends.
    if random.below(2) == 0 {
        word(heap, root, LOCK.start).unwrap().store(1 << 56, Ordering::Relaxed);
    }
}

/// How often operations failed, and how often not.
#[derive(Debug, Default)]
struct Score {
    failed: u32,
    passed: u32,
}

impl Score {
    fn note<R>(&mut self, result: Result<R, CollectionError>) {
        match result {
            Ok(_) => self.passed += 1,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                self.failed += 1;
            }
        }
    }
}

/// A heap for each round: what a scribbled cell frees may be somebody else's.
fn rounds(mut round: impl FnMut(&ThreadLocalAllocator, &mut Random, &mut Score)) {
    let (mut random, mut score) = (Random(4711), Score::default());
    for _ in 0..400 {
        round(&doc_heap(), &mut random, &mut score);
    }
    assert!(score.failed > 100 && score.passed > 100, "{score:?}");
}

const SHORT: Duration = Duration::from_millis(1);

#[test]
fn a_scribbled_vector_makes_errors_or_wrong_values() {
    rounds(|heap, random, score| {
        let vector = ShmVec::<[u8; 12]>::create_in(heap).unwrap();
        vector.extend_from_slice(&vec![[7; 12]; random.below(20)]).unwrap();
        scribble(heap, vector.place(), random);
        score.note(ShmVec::<[u8; 12]>::attach(heap, vector.place()));
        let vector = vector.with_patience(SHORT);
        for _ in 0..4 {
            let index = random.below(30);
            score.note(vector.push([1; 12]));
            score.note(vector.get(index));
            score.note(vector.set(index, [2; 12]));
            score.note(vector.to_vec());
            score.note(vector.insert(index, [3; 12]));
            score.note(vector.remove(index));
            score.note(vector.swap_remove(index));
            score.note(vector.pop());
            score.note(vector.extend_from_slice(&[[9; 12]; 9]));
            score.note(vector.shrink_to_fit());
            score.note(vector.truncate(index));
            score.note(vector.reserve(index));
            score.note(vector.assign(&[[4; 12]; 3]));
        }
        // SAFETY: it is used no more.
        score.note(unsafe { vector.destroy() });
    });
}

#[test]
fn a_scribbled_string_makes_errors_or_wrong_texts() {
    rounds(|heap, random, score| {
        let text = ShmString::create_in(heap).unwrap();
        text.set("to be or not to be").unwrap();
        scribble(heap, text.place(), random);
        score.note(ShmString::attach(heap, text.place()));
        let text = text.with_patience(SHORT);
        for _ in 0..4 {
            score.note(text.get());
            score.note(text.push_str("that is the question"));
            score.note(text.get());
            score.note(text.len());
            score.note(text.set("whether 'tis nobler"));
        }
        // SAFETY: it is used no more.
        score.note(unsafe { text.destroy() });
    });
}

#[test]
fn a_scribbled_map_makes_errors_or_wrong_values() {
    rounds(|heap, random, score| {
        let map = ShmHashMap::<u64, [u8; 9]>::create_in(heap).unwrap();
        for _ in 0..random.below(20) {
            map.insert(random.next() % 30, [7; 9]).unwrap();
        }
        scribble(heap, map.place(), random);
        score.note(ShmHashMap::<u64, [u8; 9]>::attach(heap, map.place()));
        let map = map.with_patience(SHORT);
        for _ in 0..4 {
            let key = random.next() % 30;
            score.note(map.insert(key, [1; 9]));
            score.note(map.get(&(key ^ 1)));
            score.note(map.remove(&(key ^ 2)));
            score.note(map.update(&key, |value| value));
            score.note(map.to_vec());
            score.note(map.len());
            score.note(map.reserve(random.below(60)));
            (0..8).for_each(|more| score.note(map.insert(key + more, [2; 9])));
            if random.below(3) == 0 {
                score.note(map.clear());
            }
        }
        // SAFETY: it is used no more.
        score.note(unsafe { map.destroy() });
    });
}
