//! Operations on shared collections beside plain ones, so that after a death it can be told whether
//! the last one happened.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use hshm_memory::collections::{CollectionError, ShmHashMap, ShmString, ShmVec};
use hshm_memory::{OffsetPointer, ThreadLocalAllocator};

use crate::random::Random;
use crate::ring::shared_word;

/// A value of several words, so that it can be torn.
pub type Value = [u64; 5];
/// Words of the custom header: a cell for each collection, one more, and the progress.
const WORDS: u64 = 5;
/// Bytes that the custom header must have.
pub const HEADER_BYTES: u64 = WORDS * 8;

fn value(number: u64) -> Value {
    std::array::from_fn(|index| number ^ (index as u64 * 0x1111))
}

/// One step on one of the collections.
#[derive(Clone, Debug)]
enum Step {
    Push(Value),
    Extend(Vec<Value>),
    Pop,
    Set(usize, Value),
    Insert(usize, Value),
    Remove(usize),
    SwapRemove(usize),
    Shrink,
    Text(String),
    MoreText(String),
    Put(u64, Value),
    Change(u64),
    Take(u64),
    ClearMap,
}

/// What the shared collections should be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plain {
    values: Vec<Value>,
    text: String,
    map: BTreeMap<u64, Value>,
}

impl Plain {
    /// What they are like after the first `steps` steps.
    #[must_use]
    pub fn after(steps: u64) -> Self {
        let mut plain = Self::default();
        for number in 0..steps {
            let step = plain.step(number);
            plain.apply(&step);
        }
        plain
    }

    /// The step that follows when there were `number`.
    fn step(&self, number: u64) -> Step {
        let mut random = Random::new(number);
        let fresh = value(random.next());
        let index = random.index(self.values.len().max(1));
        let key = random.below(40);
        let some = !self.values.is_empty();
        match random.below(16) {
            0 if self.values.len() < 30 => Step::Extend(vec![fresh; random.index(12)]),
            1 => Step::Pop,
            2 | 3 if some => Step::Set(index, fresh),
            4 => Step::Insert(index, fresh),
            5 if some => Step::Remove(index),
            6 | 7 if some => Step::SwapRemove(index),
            8 if random.below(3) == 0 => Step::Shrink,
            9 => Step::Text(format!("text {number}, {key}")),
            10 => Step::MoreText(format!("; more {number}")),
            11 | 12 => Step::Put(key, fresh),
            13 => Step::Change(key),
            14 => Step::Take(key),
            15 if random.below(8) == 0 => Step::ClearMap,
            _ => Step::Push(fresh),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Push(value) => self.values.push(*value),
            Step::Extend(values) => self.values.extend_from_slice(values),
            Step::Pop => drop(self.values.pop()),
            Step::Set(index, value) => self.values[*index] = *value,
            Step::Insert(index, value) => self.values.insert(*index, *value),
            Step::Remove(index) => drop(self.values.remove(*index)),
            Step::SwapRemove(index) => drop(self.values.swap_remove(*index)),
            Step::Shrink => {}
            Step::Text(text) => self.text.clone_from(text),
            Step::MoreText(text) => self.text.push_str(text),
            Step::Put(key, value) => drop(self.map.insert(*key, *value)),
            Step::Change(key) => {
                let old = self.map.get(key).copied();
                self.map.insert(*key, changed(old));
            }
            Step::Take(key) => drop(self.map.remove(key)),
            Step::ClearMap => self.map.clear(),
        }
    }
}

fn changed(old: Option<Value>) -> Value {
    old.map_or([1; 5], |old| old.map(|word| word.wrapping_mul(3)))
}

/// A vector, a string and a map in one segment, which the cells of its custom header name.
#[derive(Debug)]
pub struct Shared<'a> {
    /// The vector.
    pub values: ShmVec<'a, Value>,
    /// The string.
    pub text: ShmString<'a>,
    /// The map.
    pub map: ShmHashMap<'a, u64, Value>,
    heap: &'a ThreadLocalAllocator,
}

/// Where cell `number` of the custom header is.
#[must_use]
pub fn cell(heap: &ThreadLocalAllocator, number: u64) -> OffsetPointer {
    OffsetPointer::new(heap.custom_header().0.offset_bytes() + number * 8)
}

impl<'a> Shared<'a> {
    /// Makes them.
    ///
    /// # Panics
    /// If there is no memory for them.
    #[must_use]
    pub fn create(heap: &'a ThreadLocalAllocator) -> Self {
        Self {
            values: ShmVec::create_into(heap, cell(heap, 0)).expect("a vector"),
            text: ShmString::create_into(heap, cell(heap, 1)).expect("a string"),
            map: ShmHashMap::create_into(heap, cell(heap, 2)).expect("a map"),
            heap,
        }
    }

    /// Finds what another process made.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn attach(heap: &'a ThreadLocalAllocator) -> Self {
        let at = |number| heap.read_cell(cell(heap, number)).expect("a cell");
        Self {
            values: ShmVec::attach(heap, at(0)).expect("a vector"),
            text: ShmString::attach(heap, at(1)).expect("a string"),
            map: ShmHashMap::attach(heap, at(2)).expect("a map"),
            heap,
        }
    }

    /// How many steps came to their end.
    #[must_use]
    pub fn progress(&self) -> &AtomicU64 {
        shared_word(self.heap, cell(self.heap, 4))
    }

    /// Goes `steps` steps on from `plain`, which the collections are like, after as many as the
    /// progress says. Returns what they are like then.
    ///
    /// # Panics
    /// If a step fails.
    #[must_use]
    pub fn go_on(&self, mut plain: Plain, steps: u64) -> Plain {
        let progress = self.progress();
        for _ in 0..steps {
            let number = progress.load(Ordering::SeqCst);
            let step = plain.step(number);
            self.apply(&step).unwrap_or_else(|error| panic!("step {number}, {step:?}: {error}"));
            plain.apply(&step);
            progress.store(number + 1, Ordering::SeqCst);
        }
        plain
    }

    fn apply(&self, step: &Step) -> Result<(), CollectionError> {
        match step {
            Step::Push(value) => self.values.push(*value),
            Step::Extend(values) => self.values.extend_from_slice(values),
            Step::Pop => self.values.pop().map(drop),
            Step::Set(index, value) => self.values.set(*index, *value).map(drop),
            Step::Insert(index, value) => self.values.insert(*index, *value),
            Step::Remove(index) => self.values.remove(*index).map(drop),
            Step::SwapRemove(index) => self.values.swap_remove(*index).map(drop),
            Step::Shrink => self.values.shrink_to_fit(),
            Step::Text(text) => self.text.set(text),
            Step::MoreText(text) => self.text.push_str(text),
            Step::Put(key, value) => self.map.insert(*key, *value).map(drop),
            Step::Change(key) => self.map.update(key, |old| Some(changed(old))).map(drop),
            Step::Take(key) => self.map.remove(key).map(drop),
            Step::ClearMap => self.map.clear(),
        }
    }

    /// What they are like now.
    ///
    /// # Panics
    /// If that cannot be told.
    #[must_use]
    pub fn look(&self) -> Plain {
        let pairs = self.map.to_vec().expect("the map");
        let count = pairs.len();
        let map: BTreeMap<u64, Value> = pairs.into_iter().collect();
        assert_eq!(map.len(), count, "a key is there twice");
        assert_eq!(self.map.len().expect("the map"), count, "pairs, and their count");
        Plain {
            values: self.values.to_vec().expect("the vector"),
            text: self.text.get().expect("the string"),
            map,
        }
    }

    /// Gives everything back.
    ///
    /// # Panics
    /// If the heap refuses a block.
    pub fn destroy(self) {
        // SAFETY: all others have ended.
        unsafe { self.values.destroy_from(cell(self.heap, 0)) }.expect("the vector");
        // SAFETY: as above.
        unsafe { self.text.destroy_from(cell(self.heap, 1)) }.expect("the string");
        // SAFETY: as above.
        unsafe { self.map.destroy_from(cell(self.heap, 2)) }.expect("the map");
    }
}
