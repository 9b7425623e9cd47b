//! Models of the ring: each message comes out once and whole, in the order of its pusher, and each
//! node is in one place, whoever stops for ever.

use std::sync::Arc;

use super::ring::{NotPushed, Pusher, Ring};
use crate::sync::AtomicU64;
use crate::sync::model::{Death, explore, explore_deaths};

/// Two words, so that a message can be torn.
type Message = [u64; 2];
const NODE_WORDS: usize = 3;

struct World {
    tail: AtomicU64,
    head: AtomicU64,
    cells: Vec<AtomicU64>,
    pushers: Vec<Pusher>,
    nodes: Vec<AtomicU64>,
}

impl World {
    fn new(capacity: usize, pushers: usize) -> Arc<Self> {
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let world = Self {
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            cells: words(capacity),
            pushers: (0..pushers).map(|_| Pusher::for_model()).collect(),
            nodes: words((capacity + pushers) * NODE_WORDS),
        };
        world.ring().initialise();
        Arc::new(world)
    }

    fn ring(&self) -> Ring<'_> {
        Ring {
            tail: &self.tail,
            head: &self.head,
            cells: &self.cells,
            pushers: &self.pushers,
            nodes: &self.nodes,
            node_words: NODE_WORDS,
        }
    }

    /// As thread `me`, which knows who is dead. False if the queue is full.
    fn push(&self, me: u64, number: u64, dead: &[u64]) -> bool {
        let message = [number, !number];
        let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
        match self.ring().push(me, &bytes, |holder| dead.contains(&holder)) {
            Ok(()) => true,
            Err(NotPushed::Full) => false,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn pop(&self) -> Option<u64> {
        let mut bytes = [0; size_of::<Message>()];
        if !self.ring().pop(&mut bytes).unwrap() {
            return None;
        }
        let [first, second] =
            [0, 8].map(|at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap()));
        assert_eq!(first, !second, "a torn message");
        Some(first)
    }

    /// Takes out what is left, and looks after all nodes. To be called when nobody else is at work.
    fn drain(&self) -> Vec<u64> {
        let left = std::iter::from_fn(|| self.pop()).collect();
        let nodes = self.cells.len() + self.pushers.len();
        let all: Vec<u32> = (0..).take(nodes).collect();
        assert_eq!(self.ring().all_nodes(), all, "each node is in one place");
        left
    }
}

fn spawn<R: Send + 'static>(
    world: &Arc<World>,
    work: impl FnOnce(&World) -> R + Send + 'static,
) -> loom::thread::JoinHandle<R> {
    let world = Arc::clone(world);
    loom::thread::spawn(move || work(&world))
}

#[test]
fn two_pushers_and_a_popper_lose_nothing() {
    explore(3, || {
        let world = World::new(1, 2);
        let pushers = [1, 2].map(|me| spawn(&world, move |world| world.push(me, me * 10, &[])));
        let popper = spawn(&world, |world| [world.pop(), world.pop()]);
        let pushed = pushers.map(|pusher| pusher.join().unwrap());
        let mut seen: Vec<u64> = popper.join().unwrap().into_iter().flatten().collect();
        seen.extend(world.drain());
        seen.sort_unstable();
        let expected = [10, 20].into_iter().zip(pushed).filter(|(_, pushed)| *pushed);
        assert_eq!(seen, expected.map(|(number, _)| number).collect::<Vec<_>>());
        assert_ne!(pushed, [false, false]);
    });
}

#[test]
fn messages_of_a_pusher_come_in_order_to_two_poppers() {
    explore(3, || {
        let world = World::new(2, 1);
        let pusher = spawn(&world, |world| [10, 11, 12].map(|number| world.push(1, number, &[])));
        let poppers = [(); 2].map(|()| spawn(&world, |world| [world.pop(), world.pop()]));
        let pushed = pusher.join().unwrap();
        assert_eq!(pushed[..2], [true, true]);
        let mut seen = Vec::new();
        for popper in poppers {
            let popped: Vec<u64> = popper.join().unwrap().into_iter().flatten().collect();
            assert!(popped.is_sorted(), "{popped:?}");
            seen.extend(popped);
        }
        seen.extend(world.drain());
        seen.sort_unstable();
        assert_eq!(seen, &[10, 11, 12][..if pushed[2] { 3 } else { 2 }]);
    });
}

/// The dead's pusher is taken over while another pushes and pops, and its node is at its place, or was
/// taken out of there, or never got there.
#[test]
fn who_dies_pushing_has_pushed_or_not() {
    explore_deaths(3, |death: Death| {
        let world = World::new(1, 2);
        let victim = spawn(&world, move |world| death.await_in(|| world.push(1, 10, &[])));
        let other = spawn(&world, |world| (world.pop(), world.push(2, 20, &[])));
        let victim = victim.join().unwrap();
        let (popped, pushed) = other.join().unwrap();
        let mut seen: Vec<u64> = popped.into_iter().collect();
        // Both pushers come into use, one of them the dead's.
        let heirs = [3, 4]
            .map(|me| spawn(&world, move |world| (world.pop(), world.push(me, me * 10, &[1]))));
        let heirs = heirs.map(|heir| heir.join().unwrap());
        seen.extend(heirs.iter().filter_map(|(popped, _)| *popped));
        seen.extend(world.drain());
        let all =
            [(10, victim), (20, Some(pushed)), (30, Some(heirs[0].1)), (40, Some(heirs[1].1))];
        for (number, pushed) in all {
            let count = seen.iter().filter(|&&seen| seen == number).count();
            let fits = pushed.map_or(count <= 1, |pushed| count == usize::from(pushed));
            assert!(fits, "{number}, pushed {pushed:?}, in {seen:?}");
        }
    });
}

/// One dies pushing, while two others use its place again and again.
#[test]
fn the_node_of_a_dead_is_taken_away_by_others() {
    explore_deaths(3, |death: Death| {
        let world = World::new(1, 2);
        let victim = spawn(&world, move |world| death.await_in(|| world.push(1, 10, &[])));
        let other = spawn(&world, |world| {
            let mut seen = Vec::new();
            for number in [20, 21, 22] {
                seen.extend(world.pop());
                world.push(2, number, &[]);
            }
            seen
        });
        let ended = victim.join().unwrap();
        let mut seen = other.join().unwrap();
        seen.extend(world.pop());
        let heir = spawn(&world, move |world| world.push(3, 30, &[1]));
        assert!(heir.join().unwrap());
        seen.extend(world.drain());
        let dead_ones = seen.iter().filter(|&&number| number == 10).count();
        assert!(ended.is_none() && dead_ones <= 1 || ended == Some(dead_ones == 1), "{seen:?}");
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count, "none twice");
        assert!(seen.contains(&30));
    });
}

#[test]
fn who_dies_popping_takes_one_message_at_most() {
    explore_deaths(3, |death: Death| {
        let world = World::new(2, 1);
        assert!(world.push(1, 10, &[]) && world.push(1, 11, &[]));
        let victim = spawn(&world, move |world| death.await_in(|| world.pop()));
        let other = spawn(&world, |world| world.pop());
        let taken = victim.join().unwrap();
        let mut seen: Vec<u64> = other.join().unwrap().into_iter().collect();
        assert!(world.push(2, 12, &[]), "a place is free");
        seen.extend(taken.flatten());
        seen.extend(world.drain());
        seen.sort_unstable();
        if taken.is_some() {
            assert_eq!(seen, [10, 11, 12]);
        } else {
            assert!(seen == [10, 11, 12] || seen == [11, 12] || seen == [10, 12], "{seen:?}");
        }
    });
}
