//! The words of a queue that hold several things at once.

/// Bits of a node's number.
const NODE_BITS: u32 = 21;
const NODE_MASK: u64 = (1 << NODE_BITS) - 1;
/// Nodes that can be told apart.
pub(super) const MOST_NODES: u64 = 1 << NODE_BITS;

/// What stands at a place of the ring: bits 0-20 the node that belongs to the place, 21 whether it
/// holds a message, 22-63 the lap: how often the place was filled and emptied before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell(pub(super) u64);

/// How a place stands to a position in the sequence of all messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Earlier than the message one lap before, where nobody should look.
    LongBefore,
    /// The message one lap before is still there.
    LapBefore,
    /// It waits for the message.
    Free,
    /// It holds it.
    Full,
    /// The message was taken out, and no other has come since.
    Emptied,
    /// Later messages have been there.
    LongAfter,
}

impl Cell {
    const FULL: u64 = 1 << NODE_BITS;
    const LAP_SHIFT: u32 = NODE_BITS + 1;

    pub(super) const fn free(lap: u64, node: u32) -> Self {
        Self(lap << Self::LAP_SHIFT | node as u64 & NODE_MASK)
    }

    pub(super) const fn full(lap: u64, node: u32) -> Self {
        Self(Self::free(lap, node).0 | Self::FULL)
    }

    pub(super) const fn node(self) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "masked to 21 bits")]
        let node = (self.0 & NODE_MASK) as u32;
        node
    }

    /// How it stands to the message of lap `lap`. Laps count modulo 2^42.
    pub(super) const fn stage(self, lap: u64) -> Stage {
        // Lap and full bit together count up with each change; the shift drops what is beyond.
        let steps = (self.0 >> NODE_BITS).wrapping_sub(lap << 1) << NODE_BITS;
        match steps.cast_signed() >> NODE_BITS {
            -1 => Stage::LapBefore,
            0 => Stage::Free,
            1 => Stage::Full,
            2 => Stage::Emptied,
            steps if steps < 0 => Stage::LongBefore,
            _ => Stage::LongAfter,
        }
    }
}

/// What a pusher is about: bits 0-20 the node that is its own, 21-41 the node that it gets for it,
/// 42 whether the exchange is under way, 43-63 a count, so that no exchange is taken for an earlier
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exchange(pub(super) u64);

impl Exchange {
    const PENDING: u64 = 1 << (2 * NODE_BITS);
    const COUNT_SHIFT: u32 = 2 * NODE_BITS + 1;

    /// None is under way, and `own` is the pusher's.
    pub(super) const fn idle(own: u32) -> Self {
        Self(own as u64 & NODE_MASK)
    }

    /// The next one: the pusher's own node for `wanted`.
    pub(super) const fn begin(self, wanted: u32) -> Self {
        let count = (self.0 >> Self::COUNT_SHIFT).wrapping_add(1) << Self::COUNT_SHIFT;
        let wanted = (wanted as u64 & NODE_MASK) << NODE_BITS;
        Self(count | Self::PENDING | wanted | self.own() as u64)
    }

    /// It has come about, or has not.
    pub(super) const fn settled(self, happened: bool) -> Self {
        let own = if happened { self.wanted() } else { self.own() };
        Self(self.0 >> Self::COUNT_SHIFT << Self::COUNT_SHIFT | own as u64)
    }

    pub(super) const fn is_pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    pub(super) const fn own(self) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "masked to 21 bits")]
        let own = (self.0 & NODE_MASK) as u32;
        own
    }

    pub(super) const fn wanted(self) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "masked to 21 bits")]
        let wanted = (self.0 >> NODE_BITS & NODE_MASK) as u32;
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_goes_through_its_stages() {
        for lap in [0, 1, 77, (1 << 42) - 1, 1 << 42, u64::MAX >> 3] {
            let (free, full) = (Cell::free(lap, 0x1f_ffff), Cell::full(lap, 5));
            assert_eq!((free.node(), full.node()), (0x1f_ffff, 5));
            assert_eq!((free.stage(lap), full.stage(lap)), (Stage::Free, Stage::Full));
            let next = lap.wrapping_add(1);
            assert_eq!((free.stage(next), full.stage(next)), (Stage::LongBefore, Stage::LapBefore));
            let before = lap.wrapping_sub(1);
            assert_eq!(
                (free.stage(before), full.stage(before)),
                (Stage::Emptied, Stage::LongAfter)
            );
        }
    }

    #[test]
    fn an_exchange_keeps_its_parts() {
        let mut exchange = Exchange::idle(3);
        for round in 0..10_u32 {
            let pending = exchange.begin(100 + round);
            assert!(pending.is_pending() && !exchange.is_pending());
            assert_eq!((pending.own(), pending.wanted()), (exchange.own(), 100 + round));
            assert_eq!(pending.settled(false).own(), exchange.own());
            assert_ne!(exchange.begin(100 + round), pending.settled(true).begin(100 + round));
            exchange = pending.settled(true);
            assert_eq!(exchange.own(), 100 + round);
        }
        assert_eq!(Exchange(u64::MAX).begin(0x1f_ffff).wanted(), 0x1f_ffff);
    }
}
