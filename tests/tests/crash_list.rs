//! The page of crash points says what the code says.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::fmt::Write as _;

use hshm_memory::crash::CRASH_POINTS;
use hshm_tests::tidy::{files, root};

const PAGE: &str = "docs/crash-points.md";

const BEGINNING: &str = "\
# Where a process may die

A process may be killed between any two instructions. These are the windows in which shared memory, or
what the daemon keeps on disk, is between two states: what a death there leaves, and who repairs it.
Where it is not said, whoever recovers the dead process's worker slots does: the daemon, or, without
one, any process that asks for it. Recovery may be killed itself, and is done again then.

Each window has a crash point in the code (`crash_point!`), at which tests kill a real process with
SIGKILL, in each operation that comes by there; a point that no test comes by fails them:
`tests/tests/crash_points.rs`, `scalable_crash.rs`, `collections` and `daemon_crash_points.rs`. Who
recovers is killed as well, and who recovers from that, up to fourteen one after the other. Besides,
processes are killed after single instructions of each operation, wherever those are
(`crash_steps.rs`; after each one with `HSHM_CRASH_STEPS=all`), many at once (`deaths_at_once.rs`), and
at random by the hundred (`kill-storm`).

This page is made from the code and compared with it by `tests/tests/crash_list.rs`, which writes it if
`HSHM_WRITE_DOCS=1` is set.

| point | in | a death there leaves | what repairs it |
|---|---|---|---|
";

/// The page, and what is wrong with the code that it is made from.
fn page() -> (String, Vec<String>) {
    let mut page = BEGINNING.to_owned();
    let mut wrong = Vec::new();
    let sources = files();
    let of_library = |path: &str| {
        let is_source = path.starts_with("hshm-memory/src/") || path.starts_with("hshmd/src/");
        is_source && path.ends_with(".rs")
    };
    for point in CRASH_POINTS {
        let mark = format!("crash_point!(\"{}\")", point.name);
        let passing = sources.iter().filter(|file| of_library(&file.path));
        let passing: Vec<_> = passing
            .filter(|file| file.text.contains(&mark))
            .map(|file| {
                let mut parts = file.path.rsplitn(3, '/');
                let (name, folder) = (parts.next().unwrap_or_default(), parts.next());
                format!("`{}/{name}`", folder.unwrap_or_default())
            })
            .collect();
        if passing.is_empty() {
            wrong.push(format!("{} stands nowhere in the code", point.name));
        }
        let passing = passing.join(", ");
        let (name, leaves, repair) = (point.name, point.leaves, point.repair);
        writeln!(page, "| `{name}` | {passing} | {leaves} | {repair} |").unwrap();
    }
    (page, wrong)
}

#[test]
fn the_page_of_crash_points_is_what_the_code_says() {
    let (page, wrong) = page();
    assert!(wrong.is_empty(), "{wrong:?}");
    let path = root().join(PAGE);
    if std::env::var("HSHM_WRITE_DOCS").is_ok_and(|wanted| wanted == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = page.lines().zip(found.lines()).find(|(expected, found)| expected != found);
    assert!(
        page == found,
        "{PAGE} is not what the code says; write it anew with HSHM_WRITE_DOCS=1: {differs:?}"
    );
}
