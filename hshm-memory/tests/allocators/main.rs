//! One suite for all allocators over all backends: what the trait promises, each of them keeps.
//!
//! `cargo test -p hshm-memory --test allocators -- --nocapture` prints the matrix.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cases;
mod properties;
mod random;
mod wrong;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use hshm_memory::{AllocatorKind, BackendKind};

use self::cases::{ALLOCATORS, AllocatorCase, BACKENDS, BackendCase, NOT_HERE};
use self::properties::{PROPERTIES, Property};

/// What a cell of the matrix came to.
#[derive(Default)]
struct Cell {
    kept: usize,
    /// Properties that the allocator does not have, and why.
    not_applicable: Vec<(&'static str, &'static str)>,
    failed: Vec<String>,
}

/// Whether an allocator has a property: if not, why not.
pub(crate) type Verdict = Result<(), &'static str>;

fn run(allocator: &AllocatorCase, backend: &BackendCase) -> Cell {
    let mut cell = Cell::default();
    for &Property { name, holds } in PROPERTIES {
        match catch_unwind(AssertUnwindSafe(|| holds(allocator, backend))) {
            Ok(Ok(())) => cell.kept += 1,
            Ok(Err(why)) => cell.not_applicable.push((name, why)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                let text = text.unwrap_or("it panicked");
                let (allocator, backend) = (allocator.kind, backend.name);
                cell.failed.push(format!("{allocator} over {backend}, {name}: {text}"));
            }
        }
    }
    cell
}

/// The names of a list such as "a, b or c".
fn names(list: &'static str) -> impl Iterator<Item = &'static str> {
    list.split([',', ' ']).filter(|word| !word.is_empty() && *word != "or")
}

/// All kinds that the library knows by name have their row or column.
fn missing() -> Vec<String> {
    let kinds = "?".parse::<AllocatorKind>().unwrap_err().expected;
    let rows: Vec<_> = ALLOCATORS.iter().map(|case| case.kind.to_string()).collect();
    let mut missing: Vec<_> =
        names(kinds).filter(|kind| !rows.iter().any(|row| row == kind)).map(String::from).collect();
    let kinds = "?".parse::<BackendKind>().unwrap_err().expected;
    let is_there = |kind: &str| BACKENDS.iter().any(|case| case.name == kind);
    let elsewhere = |kind: &str| NOT_HERE.iter().any(|(name, _)| *name == kind);
    missing.extend(names(kinds).filter(|k| is_there(k) == elsewhere(k)).map(String::from));
    missing
}

#[test]
fn every_allocator_keeps_the_promises_over_every_backend() {
    let mut table = format!("{:15}", "");
    for backend in BACKENDS {
        let _ = write!(table, "{:>16}", backend.name);
    }
    let mut notes = String::new();
    let mut failures = Vec::new();
    for allocator in ALLOCATORS {
        let _ = write!(table, "\n{:15}", allocator.kind.to_string());
        let mut reasons: Vec<(&str, &str)> = Vec::new();
        for backend in BACKENDS {
            let cell = run(allocator, backend);
            let (kept, rest) = (cell.kept, cell.not_applicable.len());
            let summary = match (cell.failed.len(), rest) {
                (0, 0) => format!("{kept} ok"),
                (0, rest) => format!("{kept} ok, {rest} n/a"),
                (failed, _) => format!("{failed} FAILED"),
            };
            let _ = write!(table, "{summary:>16}");
            assert_eq!(kept + rest + cell.failed.len(), PROPERTIES.len(), "a property is missing");
            failures.extend(cell.failed);
            reasons.extend(cell.not_applicable);
        }
        reasons.sort_unstable();
        reasons.dedup();
        for (property, why) in reasons {
            let _ = writeln!(notes, "{}: {property}: n/a: {why}", allocator.kind);
        }
    }
    for (backend, why) in NOT_HERE {
        let _ = writeln!(notes, "{backend}: n/a: {why}");
    }
    let names: Vec<_> = PROPERTIES.iter().map(|property| property.name).collect();
    let list = names.join("; ");
    #[allow(clippy::print_stdout, reason = "the matrix is what one asks the test for")]
    {
        println!("{table}\n\n{notes}\nproperties: {list}");
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    let missing = missing();
    assert!(missing.is_empty(), "the matrix has no row or column for {missing:?}");
}
