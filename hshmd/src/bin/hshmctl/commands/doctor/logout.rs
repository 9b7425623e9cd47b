//! Whether the system takes a user's shared memory away when the user logs out: logind does by default, of all
//! but system users (`RemoveIPC=` in logind.conf(5)).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::text;

/// Users up to this one are the system's, whom logind spares.
const LAST_SYSTEM_USER: u32 = 999;

/// What becomes of the segments of a daemon of user `uid`.
pub(super) fn look(uid: u32) -> Finding {
    let is_there = Path::new("/run/systemd/seats").exists();
    let lingers = Path::new("/var/lib/systemd/linger").join(text::user(uid)).exists();
    let texts = settings().into_iter().filter_map(|file| fs::read_to_string(file).ok());
    judge(uid, is_there && removes(texts), lingers)
}

fn judge(uid: u32, is_removed: bool, lingers: bool) -> Finding {
    const WHAT: &str = "logout";
    if uid <= LAST_SYSTEM_USER {
        Finding::ok(WHAT, "segments stay: the daemon's user is the system's")
    } else if !is_removed {
        Finding::ok(WHAT, "segments stay: nothing removes them")
    } else if lingers {
        Finding::ok(WHAT, "segments stay: the daemon's user lingers")
    } else {
        Finding::warning(
            WHAT,
            format!("logind removes the segments in /dev/shm of user {} then", text::user(uid)),
            "have it linger (loginctl enable-linger), set RemoveIPC=no in /etc/systemd/logind.conf, or use the \
             system's daemon; who has a segment attached keeps it, but the next daemon does not find it",
        )
    }
}

/// The files that say it, those that count more last.
fn settings() -> Vec<PathBuf> {
    // Of drop-ins of the same name the first found here counts; all go by their names, whatever their folder.
    let mut dropped_in = BTreeMap::new();
    for folder in ["/etc", "/run", "/usr/local/lib", "/usr/lib"] {
        let entries = fs::read_dir(Path::new(folder).join("systemd/logind.conf.d"));
        for entry in entries.into_iter().flatten().flatten() {
            dropped_in.entry(entry.file_name()).or_insert(entry.path());
        }
    }
    let main = PathBuf::from("/etc/systemd/logind.conf");
    [main].into_iter().chain(dropped_in.into_values()).collect()
}

/// What the files say, and the default where they say nothing.
fn removes(texts: impl Iterator<Item = String>) -> bool {
    let mut removes = true;
    for text in texts {
        for line in text.lines() {
            if let Some((key, value)) = line.split_once('=')
                && key.trim() == "RemoveIPC"
            {
                removes = !matches!(value.trim(), "no" | "false" | "off" | "0" | "n" | "f");
            }
        }
    }
    removes
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn only_segments_of_people_who_log_out_are_removed() {
        assert_eq!(judge(1000, true, false).verdict, Verdict::Warning);
        for (uid, is_removed, lingers) in
            [(0, true, false), (999, true, false), (1000, false, false), (1000, true, true)]
        {
            assert_eq!(judge(uid, is_removed, lingers).verdict, Verdict::Ok);
        }
    }

    #[test]
    fn the_last_file_that_says_it_counts() {
        let removes = |texts: &[&str]| removes(texts.iter().map(|&text| text.to_owned()));
        assert!(removes(&[]));
        assert!(removes(&["[Login]\n#RemoveIPC=no\n"]));
        assert!(!removes(&["[Login]\nRemoveIPC=no\n"]));
        assert!(removes(&["[Login]\nRemoveIPC = no\n", "[Login]\nRemoveIPC=yes\n"]));
    }
}
