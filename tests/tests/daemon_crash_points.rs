//! The daemon is killed at each point of creating, attaching, growing, destroying and starting; the
//! next one finds each segment whole or not at all, and nothing else.
#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it did not expect is to fail there and then"
)]

use std::path::Path;

use hshm_client::{Client, CreateOptions, Segment};
use hshm_memory::PosixShmMmap;
use hshm_memory::crash::{CRASH_POINTS, arm};
use hshm_tests::cells::Cells;
use hshm_tests::crash::process;
use hshm_tests::process::wait_until;
use hshmd::config::Config;
use hshmd::paths::Namespace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

const SIZE: u64 = 4 << 20;
const GROWN: u64 = 8 << 20;

/// A directory for daemons that follow one another.
struct Site(TempDir);

impl Site {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hshm-test-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Starts a daemon that dies at `point`.
    fn start(&self, point: Option<&'static str>) -> Pid {
        let config = Config::new(self.path().join("socket"), self.path().join("state"));
        let daemon = process::spawn(|| {
            if let Some(point) = point {
                assert!(arm(point, 0), "there is no crash point {point}");
            }
            hshmd::daemon::run(config, |_| ()).unwrap();
        });
        daemon.unwrap()
    }

    fn connect(&self) -> Client {
        let client = || Client::builder().socket(self.path().join("socket")).connect();
        wait_until("the daemon listens", || client().is_ok());
        client().unwrap()
    }

    fn objects(&self) -> Vec<String> {
        Namespace::of(&self.path().join("state")).unwrap().objects().unwrap()
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.path().join("state/segments")).unwrap().count()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for object in self.objects() {
            let _ = PosixShmMmap::unlink(&object);
        }
    }
}

fn options() -> CreateOptions {
    CreateOptions { capacity_bytes: Some(2 * GROWN), ..CreateOptions::new("one", SIZE) }
}

/// Creates a segment, and puts a block there.
fn create(client: &Client) -> Option<(Segment, hshm_client::OffsetPointer)> {
    client.create(&options()).ok()?;
    let segment = client.attach("one").ok()?;
    let block = segment.put_bytes(b"to be").unwrap();
    Some((segment, block))
}

/// What a daemon is asked, and whether the segment must be there afterwards.
struct Scene {
    point: &'static str,
    /// How many segments the daemon may have when the next one has started.
    left: &'static [usize],
    act: fn(&Client),
    /// Whether there is a segment before.
    has_segment: bool,
}

/// Whatever comes of it: the daemon dies of it.
fn creates(client: &Client) {
    let _ = client.create(&options());
}

fn attaches(client: &Client) {
    let _ = client.attach("one");
}

fn grows(client: &Client) {
    let _ = client.grow("one", GROWN);
}

fn destroys(client: &Client) {
    let _ = client.destroy("one", true);
}

const SCENES: &[Scene] = &[
    Scene { point: "daemon.create_recorded", left: &[0], act: creates, has_segment: false },
    Scene { point: "daemon.object_made", left: &[0], act: creates, has_segment: false },
    Scene { point: "segment.without_magic", left: &[0], act: creates, has_segment: false },
    Scene { point: "daemon.laid_out", left: &[0], act: creates, has_segment: false },
    Scene { point: "daemon.create_ready", left: &[1], act: creates, has_segment: false },
    Scene { point: "daemon.attached", left: &[1], act: attaches, has_segment: true },
    Scene { point: "grow.tables_ready", left: &[1], act: grows, has_segment: true },
    Scene { point: "grow.extended", left: &[1], act: grows, has_segment: true },
    Scene { point: "daemon.destroy_recorded", left: &[0], act: destroys, has_segment: true },
    Scene { point: "daemon.object_removed", left: &[0], act: destroys, has_segment: true },
    Scene { point: "daemon.removed", left: &[0], act: destroys, has_segment: true },
];

/// The next daemon has whole segments and nothing else, and does whatever is asked of it.
fn judge(site: &Site, scene: &Scene) {
    let daemon = site.start(None);
    let client = site.connect();
    let found = client.list().unwrap();
    let (point, left) = (scene.point, found.len());
    assert!(scene.left.contains(&left), "{point}: {left} segments are left");
    assert_eq!(site.objects().len(), left, "{point}: objects");
    assert_eq!(site.records(), left, "{point}: records");
    for segment in found {
        assert_eq!(segment.problem, None, "{point}");
        let heap = client.attach(&segment.name).unwrap();
        let block = heap.put_bytes(b"or not").unwrap();
        // SAFETY: the block is ours.
        unsafe { heap.free(block) }.unwrap();
        assert!(client.check(&segment.name).unwrap().is_clean(), "{point}");
        // All of it can be used, also what it grew by.
        assert_eq!(client.grow("one", GROWN).unwrap(), GROWN, "{point}");
        while heap.allocate(8 << 10).is_ok() {}
        assert_eq!(heap.report().units_free, 0, "{point}");
        drop(heap);
        client.destroy(&segment.name, false).unwrap();
    }
    assert!(create(&client).is_some(), "{point}: a segment is made anew");
    client.destroy("one", true).unwrap();
    assert!(site.objects().is_empty() && site.records() == 0, "{point}: all is removed");
    kill(daemon, Signal::SIGTERM).unwrap();
    process::wait(daemon).unwrap();
}

#[test]
fn a_daemon_killed_in_a_request_leaves_whole_segments_or_none() {
    for scene in SCENES {
        let site = Site::new();
        let before = site.start(None);
        let client = site.connect();
        if scene.has_segment {
            create(&client).unwrap();
        }
        kill(before, Signal::SIGKILL).unwrap();
        process::wait(before).unwrap();
        let daemon = site.start(Some(scene.point));
        let client = site.connect();
        (scene.act)(&client);
        let killed = process::was_killed(process::wait(daemon).unwrap());
        assert_eq!(killed, Ok(true), "it dies at {}", scene.point);
        judge(&site, scene);
    }
}

#[test]
fn a_daemon_killed_as_it_starts_leaves_whole_segments_or_none() {
    // What the daemon before left, and at what point of its start the next one dies.
    let scenes = [
        (None, "daemon.adopting", &[1][..]),
        (Some("record"), "daemon.orphan_found", &[1]),
        (Some("daemon.laid_out"), "daemon.removal_half_done", &[0]),
        (Some("daemon.destroy_recorded"), "daemon.removal_half_done", &[0]),
    ];
    for (before, point, left) in scenes {
        let site = Site::new();
        let dying = before.filter(|before| before.starts_with("daemon."));
        let daemon = site.start(dying);
        let client = site.connect();
        let made = create(&client).is_some();
        if made && dying.is_some() {
            destroys(&client);
        }
        if dying.is_none() {
            kill(daemon, Signal::SIGKILL).unwrap();
        }
        assert_eq!(process::was_killed(process::wait(daemon).unwrap()), Ok(true));
        if before == Some("record") {
            std::fs::remove_dir_all(site.path().join("state/segments")).unwrap();
        }
        // The next daemon dies of what it finds, twice, before one comes through.
        for _ in 0..2 {
            let daemon = site.start(Some(point));
            let killed = process::was_killed(process::wait(daemon).unwrap());
            assert_eq!(killed, Ok(true), "it dies at {point}");
        }
        judge(&site, &Scene { point, left, act: creates, has_segment: false });
    }
}

/// What a client does when it is killed, and where; and where the daemons are killed that recover
/// what it held, each at its start but for the first.
const RECOVERIES: &[(&str, &[&str])] = &[
    ("into.taken", &["recover.taken", "free.linked", "recover.journal_done", "page.saved"]),
    ("into.stored", &["recover.taken", "page.saved", "page.abandoned", "slot.vacated"]),
    ("from.marked", &["recover.taken", "recover.taken", "free.linked", "slot.vacated"]),
    ("from.freed", &["recover.journal_done", "recover.journal_done", "page.abandoned"]),
];
const CELLS: u64 = 32;

/// Fills all cells and empties one, or dies before.
fn fill_and_empty(client: &Client, point: &str) {
    let segment = client.attach("one").unwrap();
    let cells: Vec<_> = Cells::of(&segment).places().collect();
    for (index, &cell) in cells.iter().enumerate().skip(1) {
        segment.allocate_into(cell, [100, 3000, 70_000][index % 3]).unwrap();
    }
    assert!(arm(point, 0));
    segment.allocate_into(cells[0], 100).unwrap();
    // SAFETY: [owned] blocks in cells are used by nobody.
    unsafe { segment.free_from(cells[1]) }.unwrap();
}

/// Whether a child is dead, killed with signal 9. It is not there any more then.
fn has_been_killed(child: Pid) -> bool {
    let status = waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap();
    status != WaitStatus::StillAlive && process::was_killed(status).unwrap()
}

#[test]
fn daemons_killed_while_they_recover_leave_it_to_the_next() {
    for (death, points) in RECOVERIES {
        let site = Site::new();
        let mut daemon = site.start(Some(points[0]));
        let client = site.connect();
        let options = CreateOptions { custom_header_bytes: CELLS * 8, ..options() };
        client.create(&options).unwrap();
        let survivor = client.attach("one").unwrap();
        let dying = process::spawn(|| fill_and_empty(&site.connect(), death)).unwrap();
        assert_eq!(process::was_killed(process::wait(dying).unwrap()), Ok(true), "{death}");
        for point in points.iter().skip(1).map(Some).chain([None]) {
            wait_until("the daemon dies while it recovers", || has_been_killed(daemon));
            // Nobody waits for them.
            let block = survivor.put_bytes(b"to be").unwrap();
            // SAFETY: the block is ours.
            unsafe { survivor.free(block) }.unwrap();
            assert_eq!(survivor.holders().len(), 2, "{death}: the dead one's slot is not free yet");
            daemon = site.start(point.copied());
        }
        let client = site.connect();
        assert_eq!(client.status().unwrap().recovered_slots, 1, "{death}");
        assert_eq!(survivor.holders().len(), 1, "{death}");
        let check = client.check("one").unwrap();
        assert!(check.is_clean(), "{death}: {check:?}");
        let cells = Cells::of(&survivor);
        cells.assert_balance();
        cells.clear();
        assert_eq!(survivor.report().allocated_bytes, 0, "{death}");
        kill(daemon, Signal::SIGTERM).unwrap();
        process::wait(daemon).unwrap();
    }
}

#[test]
fn each_of_the_daemons_points_has_a_scene() {
    let started = ["daemon.adopting", "daemon.orphan_found", "daemon.removal_half_done"];
    for point in CRASH_POINTS {
        let of_daemon = ["daemon.", "segment."].iter().any(|kind| point.name.starts_with(kind));
        let is_met =
            started.contains(&point.name) || SCENES.iter().any(|scene| scene.point == point.name);
        assert!(!of_daemon || is_met, "no scene comes by {}", point.name);
    }
}
