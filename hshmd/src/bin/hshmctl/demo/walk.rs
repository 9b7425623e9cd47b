//! Which files there are.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sys::statfs::{FsType, statfs};
use serde::Serialize;

use super::signals::Signals;

/// What stands under a directory.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Where the walk began.
    pub(super) root: PathBuf,
    /// Regular files, in a fixed order.
    pub(super) files: Vec<FoundFile>,
    /// Directories that were looked into.
    pub(super) directories: u64,
    /// Length of all files.
    pub(super) bytes: u64,
    pub(super) skipped: Skipped,
}

/// What was passed over, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Skipped {
    /// Symbolic links: what they lead to is met elsewhere, or is outside.
    pub(super) links: u64,
    /// Devices, sockets and pipes.
    pub(super) special: u64,
    /// Files beyond the limit.
    pub(super) too_large: u64,
    /// Directories that this user may not read, and files that vanished.
    pub(super) unreadable: u64,
    /// Directories such as /proc, whose files are made up by the kernel as they are read.
    pub(super) pseudo: u64,
}

/// A file as the walk met it.
#[derive(Debug)]
pub(super) struct FoundFile {
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

/// By which it is known whether a file was changed or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) len: u64,
    device: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(found: &Metadata) -> Self {
        Self {
            len: found.len(),
            device: found.dev(),
            inode: found.ino(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// Finds the regular files under `root`, which may itself be one. Links are not followed, and what
/// cannot be read is counted and passed over; only `root` itself must be there.
pub(super) fn walk(root: &Path, max_file_bytes: u64, signals: &Signals) -> Result<Tree> {
    let mut tree = Tree { root: root.to_path_buf(), ..Tree::default() };
    // The root may be a link: that is what was asked for.
    let found = fs::metadata(root).context("cannot look at it")?;
    if !found.is_dir() {
        // A device or a pipe as the root is as special as anywhere.
        tree.meet(root.to_path_buf(), &found, max_file_bytes);
        return Ok(tree);
    }
    // A directory that the walk may not read is passed over, but not the first.
    let mut waiting = vec![(root.to_path_buf(), found.dev(), fs::read_dir(root)?)];
    tree.directories += 1;
    while let Some((_, device, entries)) = waiting.pop() {
        signals.check()?;
        let mut found: Vec<_> = entries.filter_map(|entry| tree.seen(entry)).collect();
        found.sort_by_key(fs::DirEntry::file_name);
        for entry in found {
            // Of a link itself, not of what it leads to.
            let Some(metadata) = tree.seen(entry.metadata()) else { continue };
            let path = entry.path();
            if !metadata.is_dir() {
                tree.meet(path, &metadata, max_file_bytes);
            } else if metadata.dev() != device && is_pseudo(&path) {
                tree.skipped.pseudo += 1;
            } else if let Some(entries) = tree.seen(fs::read_dir(&path)) {
                tree.directories += 1;
                waiting.push((path, metadata.dev(), entries));
            }
        }
    }
    Ok(tree)
}

impl Tree {
    /// What could be read; what could not is counted.
    fn seen<T>(&mut self, result: io::Result<T>) -> Option<T> {
        if result.is_err() {
            self.skipped.unreadable += 1;
        }
        result.ok()
    }

    /// Takes up what is no directory, if it is a file of fair size.
    fn meet(&mut self, path: PathBuf, found: &Metadata, max_file_bytes: u64) {
        if found.is_symlink() {
            self.skipped.links += 1;
        } else if !found.is_file() {
            self.skipped.special += 1;
        } else if found.len() > max_file_bytes {
            self.skipped.too_large += 1;
        } else {
            self.bytes += found.len();
            self.files.push(FoundFile { path, stamp: found.into() });
        }
    }
}

/// File systems whose files the kernel makes up as they are read, by `statfs(2)`'s numbers: their
/// lengths and contents say nothing, and reading some of them has effects.
fn is_pseudo(path: &Path) -> bool {
    const KINDS: [i64; 11] = [
        0x9fa0,      // proc
        0x6265_6572, // sysfs
        0x6462_6720, // debugfs
        0x7472_6163, // tracefs
        0x7363_6673, // securityfs
        0xf97c_ff8c, // selinuxfs
        0x0027_e0eb, // cgroup
        0x6367_7270, // cgroup2
        0xcafe_4a11, // bpf
        0x6165_676c, // pstore
        0xde5e_81e4, // efivarfs
    ];
    // What cannot be asked is looked into, and fails there.
    statfs(path).is_ok_and(|found| {
        let FsType(kind) = found.filesystem_type();
        KINDS.contains(&kind)
    })
}
