//! The ring itself: who puts a message where, and who takes it out.
//!
//! It is Dmitry Vyukov's bounded queue (1024cores.net, "Bounded MPMC queue") turned inside out. There
//! a ticket is drawn from a counter and then a place is filled, and everybody waits for whoever
//! died or was stopped between the two. Here a message is first written to a *node* that belongs to
//! its pusher alone, and one compare-and-swap on the place exchanges that node for the one that the
//! place had. So a message is in the queue, whole, or it is not; the counters only say where to begin
//! looking, and whoever finds one behind moves it on. Taking out is one compare-and-swap too: the
//! message is copied first, and what was copied counts if the place has not changed.
//!
//! There are as many nodes as places and pushers. Each is at one place, or one pusher's. The pusher
//! notes an exchange before it tries it, so that after its death it can be told which of both nodes
//! is its own: the place shows it, or whoever took the dead's node out of there has settled it.

use super::words::{Cell, Exchange, Stage};
use crate::collections::bytes;
use crate::crash_point;
use crate::sync::{AtomicU64, Ordering};

/// Tries after which the ring counts as scribbled on: each failure means that another succeeded.
const MOST_TRIES: u32 = 100_000;

/// One that can push: a thread has it for as long as a push takes.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Pusher {
    /// Who has it, by [`crate::process::ProcessId`]; 0 for nobody.
    holder: AtomicU64,
    /// See [`Exchange`].
    exchange: AtomicU64,
    /// The position that the exchange under way is for.
    position: AtomicU64,
}

#[cfg(not(hshm_loom))]
const _: () = {
    assert!(size_of::<Pusher>() == 64);
    assert!(std::mem::offset_of!(Pusher, exchange) == 8);
    assert!(std::mem::offset_of!(Pusher, position) == 16);
};

/// What is found where no process that keeps to the rules puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scribbled(pub(super) &'static str);

/// Why nothing was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotPushed {
    Full,
    /// All pushers are in others' hands.
    NoPusher,
    Scribbled(Scribbled),
}

impl From<Scribbled> for NotPushed {
    fn from(what: Scribbled) -> Self {
        Self::Scribbled(what)
    }
}

/// A ring, wherever its parts are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring<'m> {
    /// The position of the next message: it, or one before it.
    pub(super) tail: &'m AtomicU64,
    /// The position of the oldest message: it, or one before it.
    pub(super) head: &'m AtomicU64,
    /// See [`Cell`]. As many as a power of two.
    pub(super) cells: &'m [AtomicU64],
    pub(super) pushers: &'m [Pusher],
    /// Of each node, who last pushed it, as a pusher's number from 1; then the message.
    pub(super) nodes: &'m [AtomicU64],
    /// Words of a node.
    pub(super) node_words: usize,
}

impl<'m> Ring<'m> {
    /// Makes everything as it is in an empty ring.
    pub(super) fn initialise(&self) {
        // ORDER: Relaxed: who makes the ring known publishes all of this.
        let mut nodes = 0..;
        let mut next = || nodes.next().unwrap_or(0);
        self.tail.store(0, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        for cell in self.cells {
            cell.store(Cell::free(0, next()).0, Ordering::Relaxed);
        }
        for pusher in self.pushers {
            pusher.exchange.store(Exchange::idle(next()).0, Ordering::Relaxed);
            pusher.position.store(0, Ordering::Relaxed);
            pusher.holder.store(0, Ordering::Relaxed);
        }
        for word in self.nodes {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// The place of a position, and the lap.
    fn place(&self, position: u64) -> (&'m AtomicU64, u64) {
        let mask = self.cells.len() as u64 - 1;
        #[allow(clippy::cast_possible_truncation, reason = "below the number of cells")]
        let index = (position & mask) as usize;
        (&self.cells[index], position >> mask.count_ones())
    }

    fn node(&self, number: u32) -> Result<&'m [AtomicU64], Scribbled> {
        let start = number as usize * self.node_words;
        let node = self.nodes.get(start..start + self.node_words);
        node.ok_or(Scribbled("a place names a node that there is not"))
    }

    /// Puts a message in, as the thread `me`.
    #[inline]
    pub(super) fn push(
        &self,
        me: u64,
        message: &[u8],
        is_dead: impl Fn(u64) -> bool,
    ) -> Result<(), NotPushed> {
        let number = match self.claim(me) {
            Some(number) => number,
            None => self.claim_from_dead(me, is_dead).ok_or(NotPushed::NoPusher)?,
        };
        let pusher = &self.pushers[number];
        let pushed = self.push_as(pusher, number, message);
        // ORDER: Release pairs with the Acquire of the next claim.
        pusher.holder.store(0, Ordering::Release);
        pushed
    }

    fn push_as(&self, pusher: &Pusher, number: usize, message: &[u8]) -> Result<(), NotPushed> {
        let mut exchange = Exchange(pusher.exchange.load(Ordering::Relaxed));
        let own = exchange.own();
        let node = self.node(own)?;
        // ORDER: Relaxed, for the message too: the exchange publishes them.
        node[0].store(number as u64 + 1, Ordering::Relaxed);
        bytes::store(&node[1..], message);
        let mut position = self.tail.load(Ordering::Acquire);
        for _ in 0..MOST_TRIES {
            let (place, lap) = self.place(position);
            // ORDER: SeqCst, of which Acquire pairs with the exchange that put the node there; and
            // see `super::waiting`.
            let seen = Cell(place.load(Ordering::SeqCst));
            match seen.stage(lap) {
                Stage::Free => {
                    self.settle(place, seen)?;
                    exchange = exchange.begin(seen.node());
                    // ORDER: Release: the position that stands there when the exchange does is its
                    // own, and both stand before the exchange happens.
                    pusher.position.store(position, Ordering::Release);
                    pusher.exchange.store(exchange.0, Ordering::Release);
                    crash_point!("queue.announced");
                    let full = Cell::full(lap, own).0;
                    // ORDER: SeqCst, of which Release publishes the message.
                    let (order, relaxed) = (Ordering::SeqCst, Ordering::Relaxed);
                    let pushed = place.compare_exchange(seen.0, full, order, relaxed).is_ok();
                    // Died here: the message is in the queue, or it is not; who next needs a
                    // pusher finds out.
                    crash_point!("queue.exchanged");
                    exchange = exchange.settled(pushed);
                    pusher.exchange.store(exchange.0, Ordering::Release);
                    if pushed {
                        // Died here: who next looks at this position moves the tail on.
                        crash_point!("queue.pushed");
                        advance(self.tail, position);
                        return Ok(());
                    }
                }
                Stage::Full | Stage::Emptied | Stage::LongAfter => {
                    position = advance(self.tail, position);
                }
                Stage::LapBefore => return Err(NotPushed::Full),
                Stage::LongBefore => return Err(Scribbled("its tail is too far on").into()),
            }
        }
        Err(Scribbled("its places do not hold still").into())
    }

    /// Takes the oldest message out. False if there is none.
    #[inline]
    pub(super) fn pop(&self, message: &mut [u8]) -> Result<bool, Scribbled> {
        let mut position = self.head.load(Ordering::Acquire);
        for _ in 0..MOST_TRIES {
            let (place, lap) = self.place(position);
            // ORDER: SeqCst, of which Acquire pairs with the push; and see `super::waiting`.
            let seen = Cell(place.load(Ordering::SeqCst));
            match seen.stage(lap) {
                Stage::Full => {
                    let number = seen.node();
                    bytes::load(&self.node(number)?[1..], message);
                    let emptied = Cell::free(lap.wrapping_add(1), number).0;
                    // ORDER: SeqCst, of which Release: the message was read before somebody else
                    // gets the node.
                    let (order, relaxed) = (Ordering::SeqCst, Ordering::Relaxed);
                    if place.compare_exchange(seen.0, emptied, order, relaxed).is_ok() {
                        // Died here: the message is out, and goes with the dead.
                        crash_point!("queue.popped");
                        advance(self.head, position);
                        return Ok(true);
                    }
                }
                Stage::Free => return Ok(false),
                Stage::Emptied | Stage::LongAfter => position = advance(self.head, position),
                Stage::LapBefore | Stage::LongBefore => {
                    return Err(Scribbled("its head is too far on"));
                }
            }
        }
        Err(Scribbled("its places do not hold still"))
    }

    /// How many messages there are, about.
    pub(super) fn len(&self) -> usize {
        // The head first: it does not overtake the tail that is read after it.
        let head = self.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        let len = tail.wrapping_sub(head).min(self.cells.len() as u64);
        usize::try_from(len).unwrap_or(0)
    }

    /// Makes sure that whoever pushed the node that is at `place` need not look for it there any more,
    /// even if it died: the caller is about to take the node away.
    fn settle(&self, place: &AtomicU64, seen: Cell) -> Result<(), Scribbled> {
        let number = seen.node();
        let pusher = self.node(number)?[0].load(Ordering::Relaxed);
        let pusher = usize::try_from(pusher).ok().and_then(|number| number.checked_sub(1));
        let Some(pusher) = pusher.and_then(|number| self.pushers.get(number)) else {
            return Ok(());
        };
        // ORDER: Acquire pairs with the Release in `push_as`.
        let exchange = Exchange(pusher.exchange.load(Ordering::Acquire));
        if !exchange.is_pending() || exchange.own() != number {
            return Ok(());
        }
        // If the node is at its place still, it was when the exchange was read, and therefore that
        // exchange happened. Otherwise it may be a later one, of somebody who took the node, and the
        // caller will not get it anyway.
        if place.load(Ordering::SeqCst) == seen.0 {
            let settled = exchange.settled(true).0;
            // ORDER: AcqRel: it stands before the node is taken away.
            let (order, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
            // The pusher itself, or another, may have been quicker.
            let _ = pusher.exchange.compare_exchange(exchange.0, settled, order, relaxed);
        }
        Ok(())
    }

    /// A pusher that nobody has.
    #[inline]
    fn claim(&self, me: u64) -> Option<usize> {
        self.claim_if(me, |holder| holder == 0)
    }

    /// One whose holder died.
    #[cold]
    fn claim_from_dead(&self, me: u64, is_dead: impl Fn(u64) -> bool) -> Option<usize> {
        self.claim_if(me, |holder| holder != 0 && is_dead(holder))
    }

    fn claim_if(&self, me: u64, can_have: impl Fn(u64) -> bool) -> Option<usize> {
        let count = self.pushers.len();
        // Each thread begins at one of its own, as far as they reach.
        let hash = me.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let first = usize::try_from(hash).unwrap_or(0) % count;
        for number in (first..count).chain(0..first) {
            let pusher = &self.pushers[number];
            let holder = pusher.holder.load(Ordering::Relaxed);
            if can_have(holder) && pusher.transition_claim(holder, me) {
                // Died here: the pusher is the dead's, until somebody needs it.
                crash_point!("queue.claimed");
                self.resolve(pusher);
                return Some(number);
            }
        }
        None
    }

    /// Finds out which node is the caller's pusher's, if the one who had it before died.
    #[inline]
    fn resolve(&self, pusher: &Pusher) {
        // ORDER: Acquire pairs with the Release of a settler.
        let exchange = Exchange(pusher.exchange.load(Ordering::Acquire));
        if exchange.is_pending() {
            self.resolve_pending(pusher, exchange);
        }
    }

    #[cold]
    fn resolve_pending(&self, pusher: &Pusher, exchange: Exchange) {
        let (place, lap) = self.place(pusher.position.load(Ordering::Acquire));
        let seen = Cell(place.load(Ordering::SeqCst));
        let happened = match seen.stage(lap) {
            Stage::Full | Stage::Emptied => seen.node() == exchange.own(),
            // If it happened, the node was taken away since, and who did that settled it before: then
            // the exchange is not pending any more, and what follows has no effect.
            Stage::LongAfter => false,
            // Died before it, and nobody else has come either.
            Stage::Free | Stage::LapBefore | Stage::LongBefore => false,
        };
        let settled = exchange.settled(happened).0;
        let (order, relaxed) = (Ordering::AcqRel, Ordering::Relaxed);
        let _ = pusher.exchange.compare_exchange(exchange.0, settled, order, relaxed);
    }

    #[cfg(test)]
    #[cfg(not(hshm_loom))]
    pub(super) fn claim_for_test(&self, me: u64) -> Option<usize> {
        self.claim(me)
    }

    /// Gives back what `holder` has.
    #[cfg(test)]
    #[cfg(not(hshm_loom))]
    pub(super) fn release_for_test(&self, holder: u64) {
        for pusher in self.pushers {
            let (order, relaxed) = (Ordering::SeqCst, Ordering::Relaxed);
            let _ = pusher.holder.compare_exchange(holder, 0, order, relaxed);
        }
    }

    /// The numbers of all nodes, by where they are. To be called when nobody pushes.
    #[cfg(test)]
    pub(super) fn all_nodes(&self) -> Vec<u32> {
        let at_places = self.cells.iter().map(|cell| Cell(cell.load(Ordering::SeqCst)).node());
        let pushers = self.pushers.iter().map(|pusher| {
            self.resolve(pusher);
            Exchange(pusher.exchange.load(Ordering::SeqCst)).own()
        });
        let mut all: Vec<_> = at_places.chain(pushers).collect();
        all.sort_unstable();
        all
    }
}

impl Pusher {
    /// From `holder`, nobody or a dead, to the caller's. False if somebody else has it.
    #[must_use]
    fn transition_claim(&self, holder: u64, me: u64) -> bool {
        // ORDER: Acquire pairs with the Release of the one before. A dead one released nothing, but
        // the kernel ended it before it told us so. Its name does not come again.
        self.holder.compare_exchange(holder, me, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cfg(test)]
    #[cfg(hshm_loom)]
    pub(super) fn for_model() -> Self {
        let new = || AtomicU64::new(0);
        Self { holder: new(), exchange: new(), position: new() }
    }
}

/// Moves a counter past `position`, which is done with, and returns where to look next.
fn advance(counter: &AtomicU64, position: u64) -> u64 {
    let next = position.wrapping_add(1);
    // ORDER: AcqRel: who begins at the next position sees that this one is done with.
    match counter.compare_exchange(position, next, Ordering::AcqRel, Ordering::Acquire) {
        // Somebody else has; further, if this is an old position.
        Err(now) if now.wrapping_sub(next).cast_signed() > 0 => now,
        Ok(_) | Err(_) => next,
    }
}
