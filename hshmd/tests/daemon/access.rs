//! Who may do what, with processes of other users. Only root can start those, so as another user
//! these tests check what they can: nothing.

use hshm_proto::{CreateSegment, ErrorCode, RequestBody};

use crate::harness::{Site, wait_until};
use crate::worker::{Role, Worker};

/// Users that exist nowhere.
const ALICE: u32 = 4_000_001;
const BOB: u32 = 4_000_002;

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn attach_as(site: &Site, uid: u32, name: &str) -> String {
    Worker::start(&site.socket(), name, Role::Attach, Some(uid)).greeting.clone()
}

#[test]
fn only_those_whom_the_mode_admits_attach() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let config = site.write_config("socket_mode = 0o666\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut root = daemon.client();
    let segment = |name: &str, mode| CreateSegment { mode, ..CreateSegment::new(name, 16 << 20) };
    root.create(segment("private", 0o600));
    root.create(segment("public", 0o666));
    root.create(segment("readable", 0o644));
    assert_eq!(attach_as(&site, ALICE, "public"), "attached");
    for name in ["private", "readable"] {
        let said = attach_as(&site, ALICE, name);
        assert!(said.contains(&format!("user {ALICE} may not attach")), "{said}");
    }
}

#[test]
fn a_socket_that_is_not_for_others_lets_nobody_else_in() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let _daemon = site.start(&[]);
    let said = attach_as(&site, ALICE, "any");
    assert!(said.contains("cannot connect: EACCES"), "{said}");
}

#[test]
fn slots_of_another_users_process_are_recovered() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let config = site.write_config("socket_mode = 0o666\n");
    let daemon = site.start(&["--config", config.to_str().unwrap()]);
    let mut root = daemon.client();
    root.create(CreateSegment { mode: 0o666, ..CreateSegment::new("a", 16 << 20) });
    let alice = Worker::start(&site.socket(), "a", Role::Connected, Some(ALICE));
    let bob = Worker::start(&site.socket(), "a", Role::Disconnected, Some(BOB));
    let destroy = RequestBody::Destroy { name: "a".into(), force: false };
    root.refused(destroy, ErrorCode::InUse);
    assert!(root.sessions().iter().any(|session| session.uid == Some(ALICE)));
    alice.kill();
    bob.kill();
    wait_until("both are recovered", || root.status().recovered_slots == 2);
}
