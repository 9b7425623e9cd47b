//! Models of sleeping for an event: nobody sleeps on who has been told, or would have been.
//!
//! A model has no kernel that would put anybody to sleep. Who would sleep notes the word that it would
//! sleep on; if the word is another in the end, it does not sleep, or was woken.

use std::sync::Arc;

use super::waiting::Event;
use crate::sync::model::explore;
use crate::sync::{AtomicU64, Ordering};

struct World {
    event: Event,
    /// What is waited for.
    messages: AtomicU64,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { event: Event::for_model(), messages: AtomicU64::new(0) })
    }

    /// What [`super::ShmQueue::push`] does.
    fn push(&self) {
        // ORDER: SeqCst, as the ring's places.
        self.messages.fetch_add(1, Ordering::SeqCst);
        self.event.came_about();
    }

    /// What [`super::ShmQueue::pop`] does. The word that it sleeps on, if it finds no message.
    fn pop(&self) -> Option<u32> {
        let seen = self.event.announce_sleep();
        let order = Ordering::SeqCst;
        loop {
            let count = self.messages.load(order);
            if count == 0 {
                return Some(seen);
            }
            if self.messages.compare_exchange(count, count - 1, order, order).is_ok() {
                return None;
            }
        }
    }

    fn assert_nobody_sleeps(&self, slept_on: impl IntoIterator<Item = Option<u32>>) {
        let now = self.event.announce_sleep();
        for seen in slept_on.into_iter().flatten() {
            assert_ne!(seen, now, "somebody sleeps");
        }
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
fn who_finds_nothing_is_told_of_what_comes() {
    explore(4, || {
        let world = World::new();
        let popper = spawn(&world, World::pop);
        let pusher = spawn(&world, World::push);
        pusher.join().unwrap();
        world.assert_nobody_sleeps([popper.join().unwrap()]);
    });
}

/// The first finds nobody asleep and takes the note of sleepers away, while another goes to sleep.
#[test]
fn a_note_that_is_taken_away_was_nobodys() {
    explore(3, || {
        let world = World::new();
        let poppers = [(); 2].map(|()| spawn(&world, World::pop));
        let pushers = [(); 2].map(|()| spawn(&world, World::push));
        for pusher in pushers {
            pusher.join().unwrap();
        }
        world.assert_nobody_sleeps(poppers.map(|popper| popper.join().unwrap()));
    });
}
