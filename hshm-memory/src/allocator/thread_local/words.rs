//! The words of a segment that hold several things at once, so that one store or one
//! compare-and-swap changes them together: tags, list words, remote words, slot words, journal
//! operations and cell values.

use super::layout::{OFFSET_BITS, UNIT_SHIFT};
use super::size_class::{CLASSES, GRANULE_BYTES, SMALL_CLASSES};
use crate::process::ProcessId;

/// What a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nobody's.
    Free,
    /// Between free and something: only the owner touches it.
    Claimed,
    /// A page of small blocks.
    Small,
    /// The first unit of a page of medium blocks.
    Medium,
    /// Another unit of such a page.
    MediumBody,
    /// The first unit of a run that is one allocated block.
    Large,
    /// Another unit of a run.
    RunBody,
    /// The first unit of a run that its owner assembles or takes apart; the run's length stands in
    /// the descriptor, and all its units are the owner's.
    Transit,
    /// The unit that holds its owner's cache.
    Cache,
    /// A bit pattern that nobody stores.
    Unknown,
}

/// Who owns a unit and what it is: the one word that decides.
///
/// Bits 0-7 size class, 8-11 kind, 12-14 place within a medium page, 16-27 owner (a worker slot, 0 for
/// none). So the low half is what the unit is, the high half whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) u32);

impl Tag {
    pub(crate) const FREE: Self = Self(0);
    const OWNER_MASK: u32 = 0xfff;
    const OWNER_SHIFT: u32 = 16;
    const KIND_SHIFT: u32 = 8;
    const PLACE_SHIFT: u32 = 12;
    /// The bits that say whose it is.
    pub(crate) const OWNER_BITS: u32 = Self::OWNER_MASK << Self::OWNER_SHIFT;

    const fn new(kind: u32, owner: u32, class: u32, place: u32) -> Self {
        Self(
            class
                | kind << Self::KIND_SHIFT
                | place << Self::PLACE_SHIFT
                | (owner & Self::OWNER_MASK) << Self::OWNER_SHIFT,
        )
    }

    pub(crate) const fn claimed(owner: u32) -> Self {
        Self::new(1, owner, 0, 0)
    }

    /// A page, small or medium by its class.
    pub(crate) fn page(owner: u32, class: usize) -> Self {
        let kind = if class < SMALL_CLASSES { 2 } else { 3 };
        Self::new(kind, owner, u32::try_from(class).unwrap_or(0xff), 0)
    }

    pub(crate) const fn medium_body(place: u32) -> Self {
        Self::new(4, 0, 0, place)
    }

    pub(crate) const fn large(owner: u32) -> Self {
        Self::new(5, owner, 0, 0)
    }

    pub(crate) const RUN_BODY: Self = Self::new(6, 0, 0, 0);
    /// Never stored: what is made of a tag that cannot be where it stands.
    pub(crate) const UNKNOWN: Self = Self::new(0xf, 0, 0, 0);

    pub(crate) const fn transit(owner: u32) -> Self {
        Self::new(7, owner, 0, 0)
    }

    pub(crate) const fn cache(owner: u32) -> Self {
        Self::new(8, owner, 0, 0)
    }

    pub(crate) const fn kind(self) -> Kind {
        match (self.0 >> Self::KIND_SHIFT) & 0xf {
            0 if self.0 == 0 => Kind::Free,
            1 => Kind::Claimed,
            2 if self.class() < SMALL_CLASSES => Kind::Small,
            3 if self.class() >= SMALL_CLASSES && self.class() < CLASSES => Kind::Medium,
            4 => Kind::MediumBody,
            5 => Kind::Large,
            6 => Kind::RunBody,
            7 => Kind::Transit,
            8 => Kind::Cache,
            _ => Kind::Unknown,
        }
    }

    pub(crate) const fn owner(self) -> u32 {
        (self.0 >> Self::OWNER_SHIFT) & Self::OWNER_MASK
    }

    pub(crate) const fn class(self) -> usize {
        (self.0 & 0xff) as usize
    }

    pub(crate) const fn place(self) -> u32 {
        (self.0 >> Self::PLACE_SHIFT) & 7
    }

    pub(crate) const fn with_owner(self, owner: u32) -> Self {
        Self(self.0 & !Self::OWNER_BITS | (owner & Self::OWNER_MASK) << Self::OWNER_SHIFT)
    }
}

/// A list of free blocks of one page: the first block's offset (high 48 bits) and how many there
/// are (low 16). The first eight bytes of each block on it are the list word of the rest, with the
/// highest bit set if the block heads a parcel ([`super::parcel`]); zero ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct List(pub(crate) u64);

impl List {
    pub(crate) const EMPTY: Self = Self(0);
    const COUNT_BITS: u32 = 64 - OFFSET_BITS;
    const COUNT_MASK: u64 = (1 << Self::COUNT_BITS) - 1;
    /// A bit that no offset has, segments being shorter: so no list with it is of any page.
    const PARCEL: u64 = 1 << 63;

    /// The link of a block that heads a parcel, the rest behind the parcel being this list.
    pub(crate) const fn of_parcel(self) -> Self {
        Self(self.0 | Self::PARCEL)
    }

    /// Whether this is such a link.
    pub(crate) const fn is_of_parcel(self) -> bool {
        self.0 & Self::PARCEL != 0
    }

    /// The rest behind the parcel, or the list as it is.
    pub(crate) const fn without_parcel(self) -> Self {
        Self(self.0 & !Self::PARCEL)
    }

    /// The first block's offset, made a multiple of the granule whatever stands there.
    #[inline(always)]
    pub(crate) const fn first(self) -> u64 {
        self.0 >> Self::COUNT_BITS & !(GRANULE_BYTES as u64 - 1)
    }

    #[inline(always)]
    pub(crate) const fn count(self) -> u32 {
        (self.0 & Self::COUNT_MASK) as u32
    }

    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the first blocks of both lists lie in the same page of 2^`PAGE_SHIFT` bytes. The
    /// empty list's lies in the segment's first, with the header.
    #[inline(always)]
    pub(crate) const fn same_page<const PAGE_SHIFT: u32>(self, other: Self) -> bool {
        (self.0 ^ other.0) >> (Self::COUNT_BITS + PAGE_SHIFT) == 0
    }

    /// Whether [`List::count`] is `length`; nobody's is, if that has more bits.
    #[inline(always)]
    pub(crate) const fn has_length(self, length: u32) -> bool {
        self.0 & Self::COUNT_MASK == length as u64
    }

    /// This list with the block at `offset` put before it.
    #[inline(always)]
    pub(crate) const fn with_first(self, offset: u64) -> Self {
        Self((offset << Self::COUNT_BITS | 1) + (self.0 & Self::COUNT_MASK))
    }

    pub(crate) const fn new(first: u64, count: u32) -> Self {
        Self(first << Self::COUNT_BITS | count as u64)
    }
}

/// The list of blocks of one page that others than its owner freed, as one word that also names
/// the last journalled push.
///
/// Bits 0-14 the first block's place in the page, in granules; 15-27 how many blocks; 28-39 the
/// slot whose journalled push this is, 0 if the last push was a plain one; 40-63 that push's
/// sequence number, or a generation where the list is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remote(pub(crate) u64);

impl Remote {
    const COUNT_SHIFT: u32 = 15;
    const SLOT_SHIFT: u32 = 28;
    const SEQUENCE_SHIFT: u32 = 40;
    /// Bits of a sequence number.
    pub(crate) const SEQUENCE_MASK: u32 = 0xff_ffff;

    /// An empty list. `generation` makes a compare-and-swap fail that was begun when the unit was
    /// another page.
    pub(crate) const fn empty(generation: u32) -> Self {
        Self((generation as u64) << Self::SEQUENCE_SHIFT)
    }

    pub(crate) const fn count(self) -> u32 {
        (self.0 >> Self::COUNT_SHIFT & 0x1fff) as u32
    }

    pub(crate) const fn slot(self) -> u32 {
        (self.0 >> Self::SLOT_SHIFT & 0xfff) as u32
    }

    pub(crate) const fn sequence(self) -> u32 {
        (self.0 >> Self::SEQUENCE_SHIFT) as u32
    }

    /// The same blocks as an ordinary list of the page that begins at `page`.
    pub(crate) const fn to_list(self, page: u64) -> List {
        if self.count() == 0 {
            return List::EMPTY;
        }
        let granule = self.0 & ((1 << Self::COUNT_SHIFT) - 1);
        List::new(page + granule * GRANULE_BYTES as u64, self.count())
    }

    /// This list with the block `offset_in_page` bytes into the page put before it, by `slot`'s
    /// journalled operation `sequence`, or by a plain one if `slot` is 0.
    #[cfg(test)]
    pub(crate) const fn with_first(self, offset_in_page: u64, slot: u32, sequence: u32) -> Self {
        self.with_chain(offset_in_page, 1, slot, sequence)
    }

    /// The same with a chain of `more` blocks, of which that one is the first.
    pub(crate) const fn with_chain(
        self,
        offset_in_page: u64,
        more: u32,
        slot: u32,
        sequence: u32,
    ) -> Self {
        let granule = offset_in_page / GRANULE_BYTES as u64;
        let count = (self.count() + more) as u64 & 0x1fff;
        Self(
            granule
                | count << Self::COUNT_SHIFT
                | (slot as u64 & 0xfff) << Self::SLOT_SHIFT
                | ((sequence & Self::SEQUENCE_MASK) as u64) << Self::SEQUENCE_SHIFT,
        )
    }
}

/// Who holds a worker slot: bits 0-33 a moment at which the process ran, 34-55 its pid, 60-63 the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotWord(pub(crate) u64);

/// The state of a worker slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// Nobody's.
    Free,
    /// A thread of the process named uses it.
    Live,
    /// The thread ended; the process named keeps the pages.
    Parked,
    /// The process named recovers it for a dead one.
    Recovering,
    /// A bit pattern that nobody stores.
    Unknown,
}

impl SlotWord {
    pub(crate) const FREE: Self = Self(0);

    const fn new(state: u64, process: ProcessId) -> Self {
        Self(state << 60 | process.to_bits())
    }

    pub(crate) const fn live(process: ProcessId) -> Self {
        Self::new(1, process)
    }

    pub(crate) const fn parked(process: ProcessId) -> Self {
        Self::new(2, process)
    }

    pub(crate) const fn recovering(by: ProcessId) -> Self {
        Self::new(3, by)
    }

    pub(crate) const fn state(self) -> SlotState {
        match self.0 >> 60 {
            0 if self.0 == 0 => SlotState::Free,
            1 => SlotState::Live,
            2 => SlotState::Parked,
            3 => SlotState::Recovering,
            _ => SlotState::Unknown,
        }
    }

    pub(crate) const fn process(self) -> ProcessId {
        ProcessId::from_bits(self.0)
    }
}

/// What a journalled operation is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is under way, or what was is done.
    Idle,
    /// A block is taken and its offset stored in a cell.
    AllocateInto,
    /// A block that a cell names is freed.
    FreeFrom,
    /// Blocks of a cache are put on the remote list of their page.
    Flush,
}

/// The journal's first word: bits 0-31 the unit, 32-55 the sequence number, 56-63 the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation(pub(crate) u64);

impl Operation {
    pub(crate) const IDLE: Self = Self(0);

    pub(crate) const fn new(step: Step, unit: u32, sequence: u32) -> Self {
        let step = match step {
            Step::Idle => 0,
            Step::AllocateInto => 1,
            Step::FreeFrom => 2,
            Step::Flush => 3,
        };
        let sequence = (sequence & Remote::SEQUENCE_MASK) as u64;
        Self(unit as u64 | sequence << 32 | step << 56)
    }

    pub(crate) const fn step(self) -> Step {
        match self.0 >> 56 {
            1 => Step::AllocateInto,
            2 => Step::FreeFrom,
            3 => Step::Flush,
            _ => Step::Idle,
        }
    }

    #[cfg(test)]
    const fn unit(self) -> u32 {
        (self.0 & 0xffff_ffff) as u32
    }

    pub(crate) const fn sequence(self) -> u32 {
        (self.0 >> 32) as u32 & Remote::SEQUENCE_MASK
    }

    /// Whether this is the operation that pushes on a list of `unit` with that sequence number.
    pub(crate) const fn pushes(self, unit: u32, sequence: u32) -> bool {
        matches!(self.step(), Step::FreeFrom | Step::Flush)
            && self.acknowledgement() == Self::new(Step::FreeFrom, unit, sequence).acknowledgement()
    }

    /// What stands in `Slot::acknowledged` once somebody saw this operation's push on a list.
    pub(crate) const fn acknowledgement(self) -> u64 {
        self.0 & ((1 << 56) - 1)
    }
}

/// A cell's value while `slot` frees the block that it named.
pub(crate) const fn cell_being_freed(slot: u32, sequence: u32) -> u64 {
    1 << 63 | (slot as u64) << OFFSET_BITS | (sequence & Remote::SEQUENCE_MASK) as u64
}

/// The slot and the sequence number out of such a value.
pub(crate) const fn cell_marker(value: u64) -> Option<(u32, u32)> {
    #[allow(clippy::cast_possible_truncation, reason = "masked to 15 and 24 bits")]
    let parts = ((value >> OFFSET_BITS & 0x7fff) as u32, value as u32 & Remote::SEQUENCE_MASK);
    if value >> 63 == 1 { Some(parts) } else { None }
}

/// Whether a cell's value names a block.
pub(crate) const fn cell_names_block(value: u64) -> bool {
    value != 0 && value >> OFFSET_BITS == 0
}

/// The unit that an offset lies in.
#[inline]
pub(crate) const fn unit_of(offset: u64) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "offsets have 48 bits, a unit 16")]
    let unit = (offset >> UNIT_SHIFT) as u32;
    unit
}

/// Where a unit begins.
#[inline]
pub(crate) const fn unit_start(unit: u32) -> u64 {
    (unit as u64) << UNIT_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_say_what_they_were_told() {
        let tag = Tag::page(4095, 95);
        assert_eq!((tag.kind(), tag.owner(), tag.class()), (Kind::Small, 4095, 95));
        let tag = Tag::page(7, 143);
        assert_eq!((tag.kind(), tag.owner(), tag.class()), (Kind::Medium, 7, 143));
        assert_eq!(Tag::medium_body(7).place(), 7);
        assert_eq!(tag.with_owner(0).owner(), 0);
        assert_eq!(tag.with_owner(0).class(), 143);
        assert_eq!(Tag(0xf00).kind(), Kind::Unknown);
        assert_eq!(Tag(1).kind(), Kind::Unknown);
        assert_eq!(Tag(Tag::page(1, 95).0 + 1).kind(), Kind::Unknown, "too large a class");
        assert_eq!(Tag(Tag::page(1, 96).0 - 1).kind(), Kind::Unknown, "too small a class");
        assert_eq!(Tag(Tag::page(1, 143).0 + 1).kind(), Kind::Unknown, "no class");
    }

    #[test]
    fn a_remote_word_names_the_same_blocks_as_its_list() {
        let page = 0x8_0000;
        let word = Remote::empty(5).with_first(0, 0, 0).with_first(0x7_fff0, 4095, 0x12_3456);
        assert_eq!(word.to_list(page), List::new(page + 0x7_fff0, 2));
        assert_eq!((word.slot(), word.sequence()), (4095, 0x12_3456));
        assert!(Remote::empty(5).to_list(page).is_empty());
    }

    #[test]
    fn a_slot_word_names_its_process() {
        let process = ProcessId { pid: 4_194_300, start_ticks: (1 << 34) - 1 };
        let word = SlotWord::recovering(process);
        assert_eq!((word.state(), word.process()), (SlotState::Recovering, process));
        assert_eq!(SlotWord::FREE.state(), SlotState::Free);
        assert_eq!(SlotWord(7).state(), SlotState::Unknown);
    }

    #[test]
    fn an_operation_keeps_its_parts() {
        let op = Operation::new(Step::FreeFrom, u32::MAX, 0xff_ffff);
        assert_eq!((op.step(), op.unit(), op.sequence()), (Step::FreeFrom, u32::MAX, 0xff_ffff));
        assert_eq!(Operation::IDLE.step(), Step::Idle);
        assert!(!cell_names_block(cell_being_freed(1, 0)) && cell_names_block(0x1_0000));
        assert_eq!(cell_marker(cell_being_freed(4095, 0xff_ffff)), Some((4095, 0xff_ffff)));
        assert_eq!(cell_marker(0x1_0000), None);
    }

    #[test]
    fn a_list_counts_what_is_put_before_it() {
        let list = List::EMPTY.with_first(0x1_0010).with_first(0x1_0020);
        assert_eq!((list.first(), list.count()), (0x1_0020, 2));
    }
}
