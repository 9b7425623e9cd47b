//! One suite for all backends: each either has a property, or is excused from it for a reason.
//!
//! The table is printed with `--nocapture`. It is the only test of its program, so that nobody else
//! maps memory meanwhile.

// What the systems report of mappings, files and descriptors, each reports in its own way.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod properties;
mod subjects;

use std::fmt::Write;
use std::panic::catch_unwind;

use crate::properties::PLACE;
use crate::subjects::{Property, Subject};

#[test]
fn every_backend_keeps_its_promises() {
    let mut table = String::from("backend × property\n");
    let mut failed = Vec::new();
    for subject in Subject::ALL {
        writeln!(table, "{subject}").unwrap();
        if let Some(why) = subject.missing() {
            writeln!(table, "    not applicable: {why}").unwrap();
            continue;
        }
        for property in Property::ALL {
            let excuse = subject.excuses().iter().find(|(excused, _)| *excused == property);
            let result = match excuse {
                Some((_, why)) => format!("not applicable: {why}"),
                None if catch_unwind(|| properties::run(property, subject)).is_ok() => "ok".into(),
                None => {
                    failed.push(format!("{subject}: {property:?}"));
                    "FAILED".to_owned()
                }
            };
            let property = format!("{property:?}");
            writeln!(table, "    {property:<14} {result}").unwrap();
        }
    }
    println!("{table}");
    assert!(failed.is_empty(), "{} failed: {}", failed.len(), failed.join(", "));
}

#[test]
fn another_process_sees_the_same_bytes() {
    // Without a place this is no other process, and the suite asks one.
    if let Ok(place) = std::env::var(PLACE) {
        properties::look_and_answer(&place);
    }
}
