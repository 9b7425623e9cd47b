//! What a process may be about when it dies.

use hshm_memory::{Allocator, OnExit};

use super::outcomes::{
    BECOMES_LARGE, EXACT, FREES_LARGE, FREES_MEDIUM, FREES_SMALL, GROWS_BY_FOUR, MOVES_LARGE,
    MOVES_SMALL, Outcome, SHRINKS_BY_TWO, SMALL_BYTES, TAKES_LARGE, TAKES_MEDIUM, TAKES_SMALL,
    UNIT, outcome,
};
use super::situations::{
    LARGE, MEDIUM, SHORT_RUN, SMALL, SMALL_PER_PAGE, bin_of_a_parcel, cached, cached_anothers,
    cached_of_a_page_in_use, cached_of_all_sorts, cached_of_an_idle_page,
    cached_of_an_idle_page_in_a_bin, elsewhere, empty_cell, fill_cell, free_first,
    full_but_for_what_a_dead_freed, full_page_and_one, idle_page_that_a_dead_freed_to,
    idle_page_with_a_bin, idle_pages_everywhere, leave, left_by_another, nearly_cached, nothing,
    purged_page, resize_first, sparse_page, take, take_small, trim, warm,
};
use super::world::World;

const MIB: u64 = 1 << 20;

/// Somebody who died before the operation begins and has not been recovered.
#[derive(Clone, Copy, Debug)]
pub struct Victim {
    /// The name of the operation that it was about.
    pub operation: &'static str,
    /// Where in it it died.
    pub point: &'static str,
    /// How often it had passed there before.
    pub passes: u32,
}

/// One thing that a process does, how things stand before, and how they may stand after its death.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// What a failure is reported under.
    pub name: &'static str,
    /// What becomes of the blocks of the dead.
    pub on_exit: OnExit,
    /// Size of the segment and what it can grow to.
    pub size: (u64, u64),
    /// What the survivor does before.
    pub prepare: fn(&World),
    /// Who died before.
    pub victim: Option<Victim>,
    /// What the process does before it may die.
    pub setup: fn(&World),
    /// What it does when it may die.
    pub run: fn(&World),
    /// What may be left.
    pub outcomes: &'static [Outcome],
    /// Whether it has too many instructions for all of them to be gone through each time.
    pub long: bool,
}

const fn keep(
    name: &'static str,
    setup: fn(&World),
    run: fn(&World),
    outcomes: &'static [Outcome],
) -> Operation {
    let on_exit = OnExit::Keep;
    let (size, prepare) = ((MIB, MIB), warm as fn(&World));
    Operation { name, on_exit, size, prepare, victim: None, setup, run, outcomes, long: false }
}

impl Operation {
    const fn after(self, prepare: fn(&World)) -> Self {
        Self { prepare, ..self }
    }

    const fn wide(self) -> Self {
        Self { size: (3 * MIB, 4 * MIB), ..self }
    }

    /// Large enough for workers to have caches.
    const fn roomy(self) -> Self {
        Self { size: (18 * MIB, 18 * MIB), ..self }
    }

    const fn long(self) -> Self {
        Self { long: true, ..self }
    }

    const fn reclaim(self) -> Self {
        Self { on_exit: OnExit::Reclaim, ..self }
    }

    const fn victim(self, operation: &'static str, point: &'static str, passes: u32) -> Self {
        Self { victim: Some(Victim { operation, point, passes }), ..self }
    }
}

/// The recovery of one who died at `point` of `operation`, with `outcomes` of its own.
const fn recovery(
    name: &'static str,
    operation: &'static str,
    point: &'static str,
    passes: u32,
    outcomes: &'static [Outcome],
) -> Operation {
    let this = keep(name, nothing, |w| assert!(w.heap.recover_dead().slots > 0), outcomes);
    this.victim(operation, point, passes)
}

/// What there is to be killed in.
pub const OPERATIONS: &[Operation] = &[
    // Allocating.
    keep("allocate", |w| w.hold(1, SMALL), take_small, TAKES_SMALL),
    keep("allocate the last of a list", |w| w.hold(3, SMALL), take_small, TAKES_SMALL),
    keep("allocate the first of a class", warm, take_small, TAKES_SMALL),
    keep("allocate for the first time", nothing, take_small, TAKES_SMALL),
    keep("allocate a page's last", |w| w.hold(SMALL_PER_PAGE - 1, SMALL), take_small, TAKES_SMALL),
    keep("allocate from an adopted page", warm, take_small, TAKES_SMALL).after(|w| {
        warm(w);
        elsewhere(w, |w| {
            w.hold(5, SMALL);
            leave(w);
        });
    }),
    keep(
        "allocate what others freed",
        |w| {
            w.hold(SMALL_PER_PAGE - 1, SMALL);
            elsewhere(w, |w| w.drop_blocks(0..20));
        },
        take_small,
        TAKES_SMALL,
    ),
    keep(
        "allocate what this process freed",
        |w| {
            w.hold(SMALL_PER_PAGE - 1, SMALL);
            w.drop_blocks(0..20);
        },
        take_small,
        TAKES_SMALL,
    ),
    keep(
        "allocate from a kept page of another class",
        |w| {
            full_page_and_one(w);
            w.drop_blocks(0..SMALL_PER_PAGE);
        },
        |w| take(w, 2 * SMALL),
        &[outcome(0, false, 0), outcome(2 * SMALL_BYTES, false, 2 * SMALL_BYTES)],
    ),
    keep(
        "allocate from a kept page that is in a bin",
        idle_page_with_a_bin,
        |w| take(w, LARGE * 7 / 2),
        &[outcome(0, false, 0), outcome(14 * UNIT, false, 14 * UNIT)],
    ),
    keep("allocate where pages stand idle", idle_pages_everywhere, |w| take(w, LARGE), TAKES_LARGE),
    keep(
        "allocate from a page that a dead freed to",
        full_but_for_what_a_dead_freed,
        |w| take(w, 2 * SMALL),
        &[outcome(0, false, 0), outcome(2 * SMALL_BYTES, false, 2 * SMALL_BYTES)],
    ),
    keep(
        "allocate a run where a dead freed",
        idle_page_that_a_dead_freed_to,
        |w| take(w, LARGE * 7 / 2),
        &[outcome(0, false, 0), outcome(14 * UNIT, false, 14 * UNIT)],
    ),
    keep("allocate a medium block", warm, |w| take(w, MEDIUM), TAKES_MEDIUM),
    keep(
        "allocate a second medium block",
        |w| w.hold(1, MEDIUM),
        |w| take(w, MEDIUM),
        TAKES_MEDIUM,
    ),
    keep(
        "allocate a medium page's last",
        |w| w.hold(15, MEDIUM),
        |w| take(w, MEDIUM),
        TAKES_MEDIUM,
    ),
    keep(
        "allocate a fifth medium class",
        |w| [9000, 10_000, 12_000, 14_000].into_iter().for_each(|bytes| w.hold(1, bytes)),
        |w| take(w, MEDIUM),
        TAKES_MEDIUM,
    )
    .wide(),
    keep("allocate a large block", warm, |w| take(w, LARGE), TAKES_LARGE),
    keep(
        "allocate a large block that was kept",
        |w| {
            w.hold(1, SHORT_RUN);
            w.drop_blocks(0..1);
        },
        |w| take(w, SHORT_RUN),
        &[outcome(0, false, 0), outcome(2 * UNIT, false, 2 * UNIT)],
    )
    .wide(),
    keep(
        "allocate a large block of what was kept and more",
        |w| {
            w.hold(1, SHORT_RUN);
            w.drop_blocks(0..1);
        },
        |w| take(w, SHORT_RUN * 3 / 2),
        &[outcome(0, false, 0), outcome(3 * UNIT, false, 3 * UNIT)],
    )
    .wide(),
    // Freeing.
    keep("free", |w| w.hold(2, SMALL), free_first, FREES_SMALL),
    keep(
        "free a page's last",
        |w| {
            full_page_and_one(w);
            w.drop_blocks(1..SMALL_PER_PAGE);
        },
        free_first,
        FREES_SMALL,
    ),
    keep("free another's", warm, free_first, FREES_SMALL).after(|w| w.hold(3, SMALL)),
    keep("free another's where a dead did", warm, |w| w.free(0), FREES_SMALL)
        .after(|w| {
            w.hold(3, SMALL);
            w.heap.allocate_into(w.cell(0), SMALL).expect("a block");
        })
        .victim("empty a cell", "from.freed", 0),
    keep("free nobody's", warm, free_first, FREES_SMALL).after(|w| {
        warm(w);
        elsewhere(w, |w| w.hold(SMALL_PER_PAGE, SMALL));
    }),
    keep("free nobody's last", warm, free_first, FREES_SMALL).after(|w| {
        warm(w);
        elsewhere(w, |w| {
            w.hold(2, SMALL);
            w.drop_blocks(1..2);
            leave(w);
        });
    }),
    keep("free a medium block", |w| w.hold(2, MEDIUM), free_first, FREES_MEDIUM),
    keep(
        "free the last of a third idle medium page",
        |w| {
            [MEDIUM, 10_000, 20_000].into_iter().for_each(|bytes| w.hold(1, bytes));
            w.drop_blocks(1..3);
        },
        free_first,
        FREES_MEDIUM,
    )
    .wide(),
    keep("free another's medium block", warm, free_first, FREES_MEDIUM)
        .after(|w| w.hold(2, MEDIUM)),
    keep("free nobody's last medium block", warm, free_first, FREES_MEDIUM).after(|w| {
        warm(w);
        elsewhere(w, |w| {
            w.hold(1, MEDIUM);
            leave(w);
        });
    }),
    keep("free a large block", |w| w.hold(1, LARGE), free_first, FREES_LARGE),
    keep("free another's large block", warm, free_first, FREES_LARGE).after(|w| w.hold(1, LARGE)),
    keep(
        "free a large block to keep",
        |w| w.hold(1, SHORT_RUN),
        free_first,
        &[outcome(0, false, 0), outcome(-2 * UNIT, true, 0)],
    )
    .wide(),
    // Changing sizes.
    keep("reallocate", |w| w.hold(1, SMALL), |w| resize_first(w, 4 * SMALL), MOVES_SMALL),
    keep(
        "reallocate to a large block",
        |w| w.hold(1, SMALL),
        |w| resize_first(w, LARGE),
        BECOMES_LARGE,
    ),
    keep("grow a large block", |w| w.hold(1, LARGE), |w| resize_first(w, 2 * LARGE), GROWS_BY_FOUR),
    keep(
        "shrink a large block",
        |w| w.hold(1, LARGE),
        |w| resize_first(w, LARGE / 2),
        SHRINKS_BY_TWO,
    ),
    keep(
        "shrink a large block in a full segment",
        |w| {
            w.hold(1, LARGE);
            while w.heap.report().units_free > 0 {
                w.hold(8, 8 * SMALL);
            }
        },
        |w| resize_first(w, SMALL),
        &[
            outcome(0, false, 0),
            outcome(-UNIT, false, 0),
            outcome(-2 * UNIT, false, 0),
            outcome(-3 * UNIT, false, 0),
        ],
    ),
    keep("grow another's large block", nothing, |w| resize_first(w, 2 * LARGE), GROWS_BY_FOUR)
        .after(|w| w.hold(1, LARGE)),
    keep(
        "move a large block",
        |w| {
            w.hold(1, LARGE);
            w.hold(1, SMALL);
        },
        |w| resize_first(w, 2 * LARGE),
        MOVES_LARGE,
    )
    .long(),
    // Cells.
    keep("fill a cell", |w| w.hold(1, SMALL), |w| fill_cell(w, SMALL), EXACT),
    keep(
        "fill a cell with the last of a list",
        |w| w.hold(3, SMALL),
        |w| fill_cell(w, SMALL),
        EXACT,
    ),
    keep("fill a cell with the first of a class", warm, |w| fill_cell(w, SMALL), EXACT),
    keep(
        "fill a cell with a page's last",
        |w| w.hold(SMALL_PER_PAGE - 1, SMALL),
        |w| fill_cell(w, SMALL),
        EXACT,
    ),
    keep("fill a cell with a medium block", warm, |w| fill_cell(w, MEDIUM), EXACT),
    keep("fill a cell with a large block", warm, |w| fill_cell(w, LARGE), EXACT),
    keep("empty one's own cell", |w| fill_cell(w, SMALL), empty_cell, EXACT),
    keep("empty a cell", warm, empty_cell, EXACT).after(|w| {
        w.hold(2, SMALL);
        fill_cell(w, SMALL);
    }),
    keep("empty a cell of nobody's page", warm, empty_cell, EXACT).after(|w| {
        warm(w);
        elsewhere(w, |w| {
            w.hold(SMALL_PER_PAGE - 1, SMALL);
            fill_cell(w, SMALL);
        });
    }),
    keep("empty a cell of a medium block", |w| fill_cell(w, MEDIUM), empty_cell, EXACT),
    keep("empty a cell of another's medium block", warm, empty_cell, EXACT)
        .after(|w| fill_cell(w, MEDIUM)),
    keep("empty a cell of a large block", |w| fill_cell(w, LARGE), empty_cell, EXACT),
    keep("empty a cell of another's large block", warm, empty_cell, EXACT)
        .after(|w| fill_cell(w, LARGE)),
    keep("empty a cell that a dead filled", warm, empty_cell, EXACT).victim(
        "fill a cell",
        "into.stored",
        0,
    ),
    // Slots and the segment.
    keep(
        "leave",
        |w| {
            w.hold(70, SMALL);
            w.drop_blocks(60..66);
            w.hold(2, LARGE / 2);
            w.hold(3, 48);
        },
        leave,
        EXACT,
    ),
    keep("leave with medium pages", |w| w.hold(3, MEDIUM), leave, EXACT),
    keep("claim a slot for a context", warm, |w| assert!(w.heap.create_tls().is_ok()), EXACT),
    keep(
        "grow the segment",
        warm,
        |w| {
            let _ = w.heap.grow(4 * MIB).expect("room to grow");
        },
        EXACT,
    )
    .wide(),
    // The cache.
    keep("claim a cache", nearly_cached, take_small, TAKES_SMALL).roomy(),
    keep(
        "allocate from the cache",
        |w| {
            cached(w);
            w.hold(3, SMALL);
            w.drop_blocks(1..3);
        },
        take_small,
        TAKES_SMALL,
    )
    .roomy(),
    keep(
        "free to the cache",
        |w| {
            cached(w);
            w.hold(2, SMALL);
        },
        free_first,
        FREES_SMALL,
    )
    .roomy(),
    keep(
        "allocate where the cache is filled",
        |w| {
            cached(w);
            w.hold(11, SMALL);
        },
        take_small,
        TAKES_SMALL,
    )
    .roomy(),
    keep("allocate from a parcel", bin_of_a_parcel, take_small, TAKES_SMALL).roomy(),
    keep("free the last that is not cached", cached_of_an_idle_page, free_first, FREES_SMALL)
        .roomy(),
    keep(
        "free the last of the bin's page",
        cached_of_an_idle_page_in_a_bin,
        free_first,
        FREES_SMALL,
    )
    .roomy(),
    keep("free beside a full cache", cached_of_a_page_in_use, free_first, FREES_SMALL).roomy(),
    keep("free another's to a full cache", cached_anothers, free_first, FREES_SMALL)
        .after(|w| w.hold(8, SMALL))
        .roomy(),
    keep("leave a page in use", cached_of_a_page_in_use, leave, EXACT).roomy().long(),
    keep("leave with a cache", cached_of_all_sorts, leave, EXACT)
        .after(|w| w.hold(5, SMALL))
        .roomy()
        .long(),
    // Giving memory back.
    keep("trim", sparse_page, trim, EXACT),
    // Whoever takes a page for blocks of its own gives memory back for it.
    keep("trim a page of nobody's", nothing, trim, EXACT)
        .after(|w| left_by_another(w, sparse_page)),
    keep(
        "trim an idle page and a run",
        |w| {
            w.hold(1, SHORT_RUN);
            w.hold(1, MEDIUM);
            w.drop_blocks(0..2);
        },
        trim,
        EXACT,
    )
    .wide(),
    keep(
        "trim an idle page whose bin begins in its second unit",
        |w| {
            w.hold(3, MEDIUM);
            w.drop_blocks(0..3);
        },
        trim,
        EXACT,
    )
    .wide(),
    keep("allocate where memory is given back", sparse_page, |w| take(w, LARGE), TAKES_LARGE),
    keep("allocate from a purged page", purged_page, take_small, TAKES_SMALL),
    keep("allocate from a purged page of nobody's", warm, take_small, TAKES_SMALL)
        .after(|w| left_by_another(w, purged_page)),
    keep("free to a purged page", purged_page, free_first, FREES_SMALL),
    keep(
        "free the last of a purged page",
        |w| {
            purged_page(w);
            w.drop_blocks(1..w.known());
        },
        free_first,
        FREES_SMALL,
    ),
    keep("leave a purged page", purged_page, leave, EXACT),
    recovery("recover a purge", "trim", "purge.mapped", 0, EXACT),
    recovery("recover memory on its way back", "trim", "purge.unlisted", 0, EXACT),
    recovery(
        "recover a restored page",
        "allocate from a purged page",
        "purge.restored",
        0,
        TAKES_SMALL,
    ),
    keep("reclaim: trim", sparse_page, trim, EXACT).reclaim(),
    keep("reclaim: allocate from a purged page", purged_page, take_small, EXACT).reclaim(),
    // Recovering.
    recovery(
        "recover one who emptied a row",
        "free another's to a full cache",
        "cache.pushed",
        0,
        EXACT,
    )
    .after(|w| w.hold(8, SMALL))
    .roomy()
    .long(),
    recovery(
        "recover one who was about to",
        "free another's to a full cache",
        "cache.journalled",
        0,
        EXACT,
    )
    .after(|w| w.hold(8, SMALL))
    .roomy()
    .long(),
    recovery("recover one who gave back a cache", "leave with a cache", "cache.flushed", 1, EXACT)
        .after(|w| w.hold(5, SMALL))
        .roomy()
        .long(),
    recovery(
        "recover an allocation",
        "allocate the last of a list",
        "page.exhausted",
        0,
        TAKES_SMALL,
    ),
    recovery(
        "recover a half-loaded bin",
        "allocate what others freed",
        "page.loaded_remote",
        0,
        TAKES_SMALL,
    ),
    recovery(
        "recover a half-carved page",
        "allocate the first of a class",
        "page.carved",
        0,
        TAKES_SMALL,
    ),
    recovery(
        "recover a half-made medium page",
        "allocate a medium block",
        "units.page_half_published",
        3,
        EXACT,
    ),
    recovery(
        "recover a run in transit",
        "allocate a large block",
        "units.run_in_transit",
        0,
        EXACT,
    ),
    recovery("recover one who was leaving", "leave", "page.saved", 1, EXACT),
    recovery("recover a taken block", "fill a cell", "into.taken", 0, EXACT),
    recovery("recover a taken run", "fill a cell with a large block", "into.taken", 0, EXACT),
    recovery("recover a marked cell", "empty one's own cell", "from.marked", 0, EXACT),
    recovery("recover a marked cell of another's block", "empty a cell", "from.marked", 0, EXACT)
        .after(|w| {
            w.hold(2, SMALL);
            fill_cell(w, SMALL);
        }),
    recovery("recover a remote free", "empty a cell", "from.freed", 0, EXACT).after(|w| {
        w.hold(2, SMALL);
        fill_cell(w, SMALL);
    }),
    recovery(
        "recover a marked cell of nobody's page",
        "empty a cell of nobody's page",
        "from.marked",
        0,
        EXACT,
    )
    .after(|w| {
        warm(w);
        elsewhere(w, |w| {
            w.hold(SMALL_PER_PAGE - 1, SMALL);
            fill_cell(w, SMALL);
        });
    }),
    recovery(
        "recover a marked cell of a large block",
        "empty a cell of a large block",
        "from.marked",
        0,
        EXACT,
    ),
    recovery("recover an unbound run", "free a large block", "units.run_unbound", 0, FREES_LARGE),
    recovery(
        "recover a withdrawn page",
        "allocate from a kept page that is in a bin",
        "page.withdrawn",
        0,
        EXACT,
    ),
    // Where the blocks of the dead die with them.
    keep("reclaim: allocate the first of a class", warm, take_small, EXACT).reclaim(),
    keep(
        "reclaim: allocate a page's last",
        |w| w.hold(SMALL_PER_PAGE - 1, SMALL),
        take_small,
        EXACT,
    )
    .reclaim(),
    keep(
        "reclaim: allocate a large block",
        |w| {
            w.hold(70, SMALL);
            w.hold(1, LARGE);
        },
        |w| take(w, LARGE),
        EXACT,
    )
    .reclaim(),
    keep("reclaim: free to a full page", full_page_and_one, free_first, EXACT).reclaim(),
    keep("reclaim: free another's", warm, free_first, FREES_SMALL)
        .after(|w| w.hold(3, SMALL))
        .reclaim(),
    keep("reclaim: free another's large block", warm, free_first, FREES_LARGE)
        .after(|w| w.hold(1, LARGE))
        .reclaim(),
    keep("reclaim: empty another's cell", warm, empty_cell, EXACT)
        .after(|w| fill_cell(w, SMALL))
        .reclaim(),
    keep(
        "reclaim: free to the cache",
        |w| {
            cached(w);
            w.hold(3, SMALL);
        },
        free_first,
        EXACT,
    )
    .roomy()
    .reclaim(),
    keep(
        "reclaim: leave with a cache",
        |w| {
            cached(w);
            w.hold(5, SMALL);
            w.drop_blocks(1..5);
        },
        leave,
        EXACT,
    )
    .roomy()
    .reclaim()
    .long(),
    keep(
        "reclaim: leave",
        |w| {
            w.hold(70, SMALL);
            w.hold(1, LARGE);
        },
        leave,
        EXACT,
    )
    .reclaim(),
    recovery(
        "reclaim: recover",
        "reclaim: allocate a large block",
        "units.run_in_transit",
        0,
        EXACT,
    )
    .reclaim(),
];
