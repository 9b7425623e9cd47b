//! However the demo ends, nothing is left behind.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Scene, parts_of, start_until};

fn busy_scene() -> Scene {
    let scene = Scene::new();
    scene.many_files(3000);
    scene
}

/// Runs a demo, and sends a signal to one of its processes while some process plays `role`. Returns
/// how it ended, what it said, and its process id.
fn strike(
    scene: &Scene,
    signal: Signal,
    role: &str,
    whom: impl Fn(u32) -> Option<u32>,
) -> (ExitStatus, String, u32) {
    // On a busy machine the demo may be over before the signal comes.
    for _ in 0..50 {
        let child = start_until(&mut scene.demo(""), role);
        let pid = child.id();
        let _ = whom(pid).map(|pid| kill(Pid::from_raw(pid.cast_signed()), signal));
        let output = child.wait_with_output().unwrap();
        if !output.status.success() {
            return (output.status, String::from_utf8(output.stderr).unwrap(), pid);
        }
    }
    panic!("the demo is always over too early");
}

#[test]
fn a_signal_ends_it_early_and_leaves_nothing() {
    let scene = busy_scene();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        for role in ["daemon", "producer", "worker"] {
            let (status, stderr, pid) = strike(&scene, signal, role, Some);
            assert_eq!(status.code(), Some(code), "{stderr}");
            assert!(stderr.contains("nothing is left behind"), "{stderr}");
            assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
            // All of it is gone when the coordinator is, not some time later.
            scene.assert_clean(pid);
        }
    }
}

#[test]
fn killing_the_coordinator_ends_all_others() {
    let scene = busy_scene();
    for role in ["daemon", "producer", "worker"] {
        let (status, _, pid) = strike(&scene, Signal::SIGKILL, role, Some);
        assert_eq!(status.signal(), Some(9));
        scene.wait_until_clean(pid);
    }
}

#[test]
fn killing_the_daemon_is_an_error_and_leaves_nothing() {
    let scene = busy_scene();
    let daemon = |pid| {
        let parts = parts_of(pid);
        parts.into_iter().find(|(_, role)| role == "daemon").map(|(pid, _)| pid)
    };
    let (status, stderr, pid) = strike(&scene, Signal::SIGKILL, "worker", daemon);
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("hshmctl: error: "), "{stderr}");
    scene.assert_clean(pid);
}
