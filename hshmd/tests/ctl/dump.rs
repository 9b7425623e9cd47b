//! The picture of a heap.

use crate::harness::{Daemon, assert_refused};

#[test]
fn each_part_of_a_heap_is_drawn() {
    let daemon = Daemon::start();
    daemon.text("create jobs --size 4M");
    let segment = daemon.client().attach("jobs").unwrap();
    for _ in 0..32 {
        segment.allocate(1000).unwrap();
    }
    segment.allocate(1 << 20).unwrap();

    let stretches = &daemon.json("dump jobs")["stretches"];
    let stretches = stretches.as_array().unwrap();
    let of_kind =
        |kind: &str| stretches.iter().filter(|one| one["kind"] == kind).collect::<Vec<_>>();
    let [page] = of_kind("page")[..] else { panic!("{stretches:?}") };
    assert_eq!((&page["block_bytes"], &page["allocated_blocks"]), (&1024.into(), &32.into()));
    let [large] = of_kind("large")[..] else { panic!("{stretches:?}") };
    assert_eq!(large["bytes"], 1 << 20);
    let heap = &daemon.json("inspect jobs")["heap"];
    let free = of_kind("free").iter().map(|one| one["bytes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(free, heap["units_free"].as_u64().unwrap() * heap["unit_bytes"].as_u64().unwrap());

    let svg = daemon.path().join("jobs.svg");
    let text = daemon.text(&format!("dump jobs --svg {}", svg.display()));
    // Half of the page's blocks are allocated, and 16 units are one block.
    assert_eq!(text.matches('\u{2584}').count(), 1, "{text}");
    assert_eq!(text.lines().nth(1).unwrap().matches('#').count(), 16, "{text}");
    assert!(text.contains("worker 1") && text.contains("1 KiB"), "{text}");
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"), "{drawn}");
    assert_eq!(drawn.matches("<rect ").count(), drawn.matches("</rect>").count());
    assert!(drawn.contains("32 of 64 blocks of 1 KiB, of worker 1"), "{drawn}");
}

#[test]
fn what_cannot_be_drawn_is_said() {
    let daemon = Daemon::start();
    assert_refused(&daemon.ctl("dump nothing"), &["\"nothing\""]);
    daemon.text("create arena --size 4M --allocator stack");
    assert_refused(&daemon.ctl("dump arena"), &["stack", "thread-local"]);
    daemon.text("create jobs --size 4M");
    let nowhere = daemon.path().join("no/such/jobs.svg");
    let output = daemon.ctl(&format!("dump jobs --svg {}", nowhere.display()));
    assert_refused(&output, &["jobs.svg", "No such file"]);
}
