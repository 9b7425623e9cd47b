use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Scene, parts_of, start_until, verified};

#[test]
fn it_says_what_it_did_and_ends_with_its_verification() {
    let scene = Scene::new();
    scene.file("a", "to be or not to be");
    scene.file("sub/b", "that is the question\n");
    let child = scene.demo("").spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(output.stderr.is_empty(), "no progress where there is no terminal");
    for word in ["2 files in 2 directories", "SIGKILL", "0 violations", "still allocated  0 bytes"]
    {
        assert!(text.contains(word), "{text}");
    }
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("verified: ") && last.contains("2 files"), "{text}");
    scene.assert_clean(pid);
}

#[test]
fn blocks_are_freed_by_others_and_one_worker_is_killed_in_the_middle_of_an_item() {
    let scene = Scene::new();
    scene.many_files(300);
    let summary = scene.verified("--workers 3 --producers 2");
    assert_eq!(summary["files"], 300);
    assert_eq!(summary["items"], 300);
    // "file number N", 200 times in each.
    assert_eq!(summary["words"], 300 * 3 * 200);
    let number = |key: &str| summary[key].as_u64().unwrap();
    // A job, an input and a result for each item, and the board.
    assert!(number("allocations") > 900, "{summary}");
    assert_eq!(number("allocations"), number("local_frees") + number("remote_frees"));
    assert!(number("remote_frees") > 0, "{summary}");
    let recoveries = summary["recoveries"].as_array().unwrap();
    assert_eq!(recoveries.len(), 1, "{summary}");
    assert_eq!(recoveries[0]["how"], "SIGKILL");
    assert_eq!((&recoveries[0]["redone"], &recoveries[0]["finished"]), (&1.into(), &0.into()));
}

#[test]
fn the_smallest_of_runs_has_its_kill_too() {
    for files in [1, 2, 3] {
        let scene = Scene::new();
        for i in 0..files {
            scene.file(i.to_string(), "word");
        }
        let summary = scene.verified("--workers 1 --producers 1");
        assert_eq!(summary["recoveries"][0]["redone"], 1, "{summary}");
        assert_eq!(summary["words"], files);
    }
}

#[test]
fn processes_killed_at_any_moment_cost_nothing_but_time() {
    let scene = Scene::new();
    scene.many_files(1500);
    let summary = scene.verified("--kills 60");
    assert_eq!(summary["recoveries"].as_array().unwrap().len(), 60);
    assert_eq!(summary["comparison"]["equal"], 1500);
}

#[test]
fn more_kills_than_items_all_happen() {
    for files in [1, 5, 70] {
        let scene = Scene::new();
        scene.many_files(files);
        let summary = scene.verified("--kills 12");
        assert_eq!(summary["recoveries"].as_array().unwrap().len(), 12);
        assert_eq!(summary["comparison"]["equal"], files);
    }
}

#[test]
fn a_worker_that_somebody_else_kills_is_recovered_and_replaced() {
    let scene = Scene::new();
    scene.many_files(3000);
    let send = |signal, pid: u32| kill(Pid::from_raw(pid.cast_signed()), signal).is_ok();
    // On a busy machine the demo may be over before the worker is found.
    for _ in 0..50 {
        let child = start_until(&mut scene.demo("--json --kills 0 --workers 2"), "worker");
        // Without the coordinator, nothing comes to its end.
        send(Signal::SIGSTOP, child.id());
        let worker = parts_of(child.id()).into_iter().find(|(_, role)| role == "worker");
        let is_killed = worker.is_some_and(|(worker, _)| send(Signal::SIGKILL, worker));
        send(Signal::SIGCONT, child.id());
        let summary = verified(child.wait_with_output().unwrap());
        assert_eq!(summary["comparison"]["equal"], 3000);
        if is_killed && summary["recoveries"] != serde_json::json!([]) {
            assert_eq!(summary["recoveries"][0]["how"], "SIGKILL", "{summary}");
            return;
        }
    }
    panic!("no worker was ever killed in time");
}

#[test]
fn more_than_fits_the_segment_passes_through_it() {
    let scene = Scene::new();
    // No whole number of words fits a piece, so that words lie across the pieces' borders.
    scene.file("large", "abcdefghijkl ".repeat(1_500_000));
    scene.file("long", vec![b'x'; 9 << 20]);
    let summary = scene.verified("--size 16M");
    assert_eq!(summary["words"], 1_500_001);
    assert_eq!(summary["shared_bytes"], 13 * 1_500_000 + (9 << 20));
    assert!(summary["items"].as_u64().unwrap() > 100, "{summary}");
}

#[test]
fn memory_without_a_name_serves_as_well() {
    let scene = Scene::new();
    scene.many_files(50);
    assert_eq!(scene.verified("--backend memfd")["comparison"]["equal"], 50);
}

#[test]
fn two_at_once_do_not_meet() {
    let scene = Scene::new();
    scene.many_files(400);
    let run = || scene.verified("--workers 2")["comparison"]["equal"].clone();
    thread::scope(|scope| {
        let both = [scope.spawn(run), scope.spawn(run)];
        for one in both {
            assert_eq!(one.join().unwrap(), 400);
        }
    });
}
