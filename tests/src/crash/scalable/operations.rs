//! What a process may be about, under the lock of a table of pages, when it dies.

use super::world::{LARGE, SMALL, World};

/// What an operation that was interrupted may have come to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// How many bytes more are allocated than before.
    pub delta: i64,
    /// How many are allocated in blocks that nobody knows.
    pub leaked: i64,
}

const NOTHING: Outcome = Outcome { delta: 0, leaked: 0 };

/// What another process does before, and where it dies.
pub type Victim = (fn(&World), &'static str);

/// One thing that a process does, how things stand before, and how they may stand after its death.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What a failure is reported under.
    pub name: &'static str,
    /// What the survivor does before.
    pub prepare: fn(&mut World),
    /// Who died before, and has the lock.
    pub victim: Option<Victim>,
    /// What the process does when it may die.
    pub run: fn(&World),
    /// What may be left.
    pub outcomes: &'static [Outcome],
}

const FREED: Outcome = Outcome { delta: -(SMALL as i64), leaked: 0 };

/// What there is to be killed in.
pub const OPERATIONS: &[Operation] = &[
    Operation {
        name: "a block cut from a larger page",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| world.take(1),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64, leaked: SMALL as i64 }],
    },
    Operation {
        name: "a page taken whole",
        prepare: |world| {
            world.hold(8, SMALL);
            world.punch(&[1, 3, 5]);
        },
        victim: None,
        run: |world| world.take(1),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64, leaked: SMALL as i64 }],
    },
    Operation {
        name: "an aligned block",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| world.take(4096),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64, leaked: SMALL as i64 }],
    },
    Operation {
        name: "a free between free neighbours",
        prepare: |world| {
            world.hold(6, SMALL);
            world.punch(&[1, 3]);
            // The block between them is the first now.
            world.blocks.swap(0, 1);
        },
        victim: None,
        run: |world| world.free(world.blocks[0]),
        outcomes: &[NOTHING, FREED],
    },
    Operation {
        name: "a free next to a cache that is not empty",
        prepare: |world| {
            world.hold(8, SMALL);
            world.punch(&[2, 4]);
        },
        victim: None,
        run: |world| world.free(world.blocks[0]),
        outcomes: &[NOTHING, FREED],
    },
    Operation {
        name: "a block that grows where it stands",
        prepare: |world| {
            world.hold(4, SMALL);
            world.punch(&[1]);
        },
        victim: None,
        run: |world| assert_eq!(world.resize(world.blocks[0], SMALL + 64), world.blocks[0]),
        outcomes: &[NOTHING, Outcome { delta: 64, leaked: 0 }],
    },
    Operation {
        name: "a block that grows to all of its neighbour",
        prepare: |world| {
            world.hold(4, SMALL);
            world.punch(&[1]);
        },
        victim: None,
        run: |world| assert_eq!(world.resize(world.blocks[0], 2 * SMALL), world.blocks[0]),
        outcomes: &[NOTHING, Outcome { delta: SMALL as i64 + 16, leaked: 0 }],
    },
    Operation {
        name: "a block that shrinks",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| assert_eq!(world.resize(world.blocks[0], SMALL - 128), world.blocks[0]),
        outcomes: &[NOTHING, Outcome { delta: -128, leaked: 0 }],
    },
    Operation {
        name: "a block that moves",
        prepare: |world| world.hold(3, SMALL),
        victim: None,
        run: |world| assert!(world.resize(world.blocks[0], LARGE) != world.blocks[0]),
        outcomes: &[
            NOTHING,
            Outcome { delta: LARGE as i64, leaked: LARGE as i64 },
            Outcome { delta: LARGE as i64 - SMALL as i64, leaked: LARGE as i64 },
        ],
    },
    Operation {
        name: "a segment that grows",
        prepare: |world| world.hold(3, LARGE),
        victim: None,
        run: |world| assert_eq!(world.heap.grow(2 << 20).ok(), Some(2 << 20)),
        outcomes: &[NOTHING],
    },
    Operation {
        name: "an allocation after one who died freeing",
        prepare: |world| {
            world.hold(9, SMALL);
            world.punch(&[1, 3, 6]);
            world.blocks.swap(0, 1);
        },
        victim: Some((|world| world.free(world.blocks[0]), "scalable.freed")),
        run: |world| world.take(1),
        outcomes: &[FREED, Outcome { delta: 0, leaked: SMALL as i64 }],
    },
    Operation {
        name: "a free after one who died allocating",
        prepare: |world| {
            world.hold(9, SMALL);
            world.punch(&[1, 3, 6]);
            world.blocks.swap(0, 1);
        },
        victim: Some((|world| world.take(64), "scalable.taken")),
        run: |world| world.free(world.blocks[0]),
        outcomes: &[
            Outcome { delta: SMALL as i64, leaked: SMALL as i64 },
            Outcome { delta: 0, leaked: SMALL as i64 },
        ],
    },
];
