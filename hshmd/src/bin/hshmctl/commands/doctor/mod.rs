//! `hshmctl doctor`: what this machine offers hshm, and what stands in its way.

mod logout;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Result;
use hshm_client::{Client, Error, StatusInfo};
use hshmd::size::format_size;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access, geteuid};
use serde::Serialize;

use crate::exit::Exit;
use crate::table::{Side, grid};
use crate::text;
use crate::ui::Ui;

/// Where POSIX shared memory lives.
const SHM: &str = "/dev/shm";
/// Less room than this is hardly a heap.
const LITTLE_BYTES: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

impl Finding {
    fn ok(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warning(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self { what, verdict: Verdict::Warning, found: found.into(), advice }
    }

    fn problem(what: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Problem, ..Self::warning(what, found, advice) }
    }
}

/// Looks at everything; `daemon` is what came of connecting to it.
pub(super) fn run(daemon: Result<Client>, ui: &mut Ui) -> Result<Exit> {
    let release = read("/proc/sys/kernel/osrelease");
    let status = daemon.and_then(|client| Ok(client.status()?));
    // Without a daemon it is about the one that this user could start.
    let daemons_user = status.as_ref().map_or_else(|_| geteuid().as_raw(), |status| status.uid);
    let mut findings = vec![daemon_answers(status), kernel(release.as_deref())];
    findings.extend(shared_memory(Path::new(SHM)));
    findings.extend([
        logout::look(daemons_user),
        processes_visible(read("/proc/self/mountinfo").as_deref()),
        overcommit(read("/proc/sys/vm/overcommit_memory").as_deref()),
        address_space(soft_limit(Resource::RLIMIT_AS)),
        open_files(soft_limit(Resource::RLIMIT_NOFILE)),
        control_group(),
        huge_pages(
            read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").as_deref(),
            read("/proc/sys/vm/nr_hugepages").as_deref(),
        ),
    ]);
    ui.show(&findings, |ui| {
        let rows = findings.iter().map(|finding| {
            let verdict = match finding.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Problem => "PROBLEM",
            };
            vec![finding.what.to_owned(), verdict.to_owned(), finding.found.clone()]
        });
        let columns = [("WHAT", Side::Left), ("", Side::Left), ("FOUND", Side::Left)];
        ui.line(grid(ui.form(), &columns, rows.collect()))?;
        for finding in &findings {
            if let Some(advice) = &finding.advice {
                ui.line(format_args!("\n{}: {advice}", finding.what))?;
            }
        }
        Ok(())
    })?;
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Problem);
    Ok(if broken { Exit::Violations } else { Exit::Success })
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn daemon_answers(status: Result<StatusInfo>) -> Finding {
    const WHAT: &str = "daemon";
    match status {
        Ok(status) => Finding::ok(
            WHAT,
            format!("hshmd {} answers at {}", status.server_version, status.socket.display()),
        ),
        Err(error) => {
            let who = match error.downcast_ref() {
                Some(Error::SocketPermission { socket }) => who_may_connect(socket),
                _ => None,
            };
            let advice = format!(
                "{}{}; embedded use needs none",
                text::one_line(&error),
                who.map_or_else(String::new, |who| format!("; {who}"))
            );
            Finding::problem(WHAT, "none answers", advice)
        }
    }
}

/// Whom the socket's permissions let in, as far as this user may see them.
fn who_may_connect(socket: &Path) -> Option<String> {
    const GROUP_WRITES: u32 = 0o020;
    let found = fs::metadata(socket).ok()?;
    let owner = match found.uid() {
        0 => "root".to_owned(),
        uid => format!("user {} and root", text::user(uid)),
    };
    if found.mode() & GROUP_WRITES == 0 {
        return Some(format!("{owner} alone may use it"));
    }
    let (group, me) = (text::group(found.gid()), text::user(geteuid().as_raw()));
    Some(format!(
        "{owner} may use it, and members of the group {group}: sudo usermod -aG {group} {me}, and log in anew"
    ))
}

fn kernel(release: Option<&str>) -> Finding {
    const WHAT: &str = "kernel";
    let Some(release) = release else {
        return Finding::warning(WHAT, "unknown", "/proc is not mounted: deaths cannot be told");
    };
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 14) {
        Finding::ok(WHAT, format!("Linux {release}"))
    } else if version >= (5, 3) {
        Finding::warning(
            WHAT,
            format!("Linux {release}"),
            "before 5.14 fresh memory is populated page by page, which is slower",
        )
    } else {
        Finding::problem(
            WHAT,
            format!("Linux {release}"),
            "5.3 or later is needed: the daemon knows the death of a process by its pidfd",
        )
    }
}

fn shared_memory(place: &Path) -> Vec<Finding> {
    const WHAT: &str = "shared memory";
    let Ok(stat) = statvfs(place) else {
        let advice = format!("mount a tmpfs at {}: mount -t tmpfs tmpfs {0}", place.display());
        return vec![Finding::problem(WHAT, format!("no {}", place.display()), advice)];
    };
    let total = stat.fragment_size().saturating_mul(stat.blocks());
    let free = stat.fragment_size().saturating_mul(stat.blocks_available());
    let found =
        format!("{}: {} of {} free", place.display(), format_size(free), format_size(total));
    let remount = "enlarge it (mount -o remount,size=50% /dev/shm; docker run --shm-size=1g; an \
                   emptyDir of medium Memory in Kubernetes), or destroy segments that nobody uses";
    let room = if free == 0 && total > 0 {
        Finding::problem(WHAT, found, remount)
    } else if free < LITTLE_BYTES || free < total / 10 {
        Finding::warning(WHAT, found, remount)
    } else {
        Finding::ok(WHAT, found)
    };
    let access = match access(place, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Finding::ok("may create there", "yes"),
        Err(errno) => Finding::warning(
            "may create there",
            format!("no: {}", errno.desc()),
            "this user needs a daemon that creates segments, and can attach to them only",
        ),
    };
    vec![room, access]
}

/// Whether this process sees other users' in /proc.
fn processes_visible(mounts: Option<&str>) -> Finding {
    const WHAT: &str = "other processes";
    let proc = mounts
        .unwrap_or_default()
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/proc") && line.contains(" - proc "));
    let hidden = proc.is_some_and(|line| {
        line.contains("hidepid=2")
            || line.contains("hidepid=1")
            || line.contains("hidepid=invisible")
            || line.contains("hidepid=noaccess")
            || line.contains("hidepid=ptraceable")
    });
    if hidden {
        Finding::warning(
            WHAT,
            "hidden by /proc's mount option hidepid",
            "a daemon of another user than its clients' then goes by kill(2) alone, which a reused \
             process number deceives; run the daemon in the group that hidepid's gid= names",
        )
    } else {
        Finding::ok(WHAT, "visible")
    }
}

fn overcommit(mode: Option<&str>) -> Finding {
    const WHAT: &str = "overcommit";
    match mode {
        Some("2") => Finding::warning(
            WHAT,
            "strict (vm.overcommit_memory = 2)",
            "reserving a segment's capacity counts as memory: choose capacities close to sizes, or \
             set vm.overcommit_memory to 0 or 1",
        ),
        Some(_) => Finding::ok(WHAT, "allowed"),
        None => Finding::warning(WHAT, "unknown", "cannot read vm.overcommit_memory"),
    }
}

fn soft_limit(resource: Resource) -> Option<u64> {
    let (soft, _) = getrlimit(resource).ok()?;
    (soft != nix::sys::resource::RLIM_INFINITY).then_some(soft)
}

fn address_space(limit: Option<u64>) -> Finding {
    const WHAT: &str = "address space";
    match limit {
        None => Finding::ok(WHAT, "unlimited"),
        Some(bytes) => Finding::warning(
            WHAT,
            format!("limited to {}", format_size(bytes)),
            "a segment takes its whole capacity of it in each process: ulimit -v unlimited, or \
             capacities that fit",
        ),
    }
}

fn open_files(limit: Option<u64>) -> Finding {
    const WHAT: &str = "open files";
    match limit {
        Some(files) if files < 1024 => Finding::warning(
            WHAT,
            format!("at most {files}"),
            "a daemon needs two for each client and one for each segment: ulimit -n 4096, or \
             LimitNOFILE= in its unit",
        ),
        Some(files) => Finding::ok(WHAT, format!("at most {files}")),
        None => Finding::ok(WHAT, "unlimited"),
    }
}

/// Shared memory counts against the control group of whoever touches it first.
fn control_group() -> Finding {
    const WHAT: &str = "memory limit";
    let own = read("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let mut tightest: Option<(u64, String)> = None;
    for group in Path::new(path).ancestors() {
        let relative = group.strip_prefix("/").unwrap_or(group);
        let file = Path::new("/sys/fs/cgroup").join(relative).join("memory.max");
        let limit = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(limit) = limit
            && tightest.as_ref().is_none_or(|(least, _)| limit < *least)
        {
            tightest = Some((limit, group.display().to_string()));
        }
    }
    match tightest {
        None => Finding::ok(WHAT, "none"),
        Some((bytes, group)) => Finding::warning(
            WHAT,
            format!("{} in control group {group}", format_size(bytes)),
            "segments count against the control group of whoever touches their memory first: keep \
             their sizes below, or raise MemoryMax=",
        ),
    }
}

fn huge_pages(transparent: Option<&str>, reserved: Option<&str>) -> Finding {
    const WHAT: &str = "huge pages";
    // The mode in force stands in brackets.
    let mode =
        transparent.and_then(|modes| modes.split(['[', ']']).nth(1)).unwrap_or("not supported");
    let reserved = reserved.unwrap_or("0");
    Finding::ok(WHAT, format!("for shared memory: {mode}; reserved: {reserved}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_told_apart() {
        assert_eq!(kernel(Some("6.18.1-cloud")).verdict, Verdict::Ok);
        assert_eq!(kernel(Some("5.14")).verdict, Verdict::Ok);
        assert_eq!(kernel(Some("5.10.0-8-amd64")).verdict, Verdict::Warning);
        assert_eq!(kernel(Some("4.19.0")).verdict, Verdict::Problem);
        assert_eq!(kernel(None).verdict, Verdict::Warning);
    }

    #[test]
    fn what_stands_in_the_way_comes_with_advice() {
        let mount = "22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw,hidepid=invisible";
        for finding in [
            processes_visible(Some(mount)),
            overcommit(Some("2")),
            address_space(Some(1 << 30)),
            open_files(Some(256)),
        ] {
            assert_eq!(finding.verdict, Verdict::Warning);
            assert!(finding.advice.is_some(), "{finding:?}");
        }
        assert_eq!(
            processes_visible(Some(&mount.replace(",hidepid=invisible", ""))).verdict,
            Verdict::Ok
        );
        assert_eq!(overcommit(Some("0")).verdict, Verdict::Ok);
    }

    #[test]
    fn a_place_that_is_not_there_is_a_problem() {
        let findings = shared_memory(Path::new("/nonexistent/shm"));
        assert_eq!(findings[0].verdict, Verdict::Problem);
    }

    #[test]
    fn the_mode_in_force_is_read_from_the_brackets() {
        let modes = "always within_size advise [never] deny force";
        assert!(huge_pages(Some(modes), Some("4")).found.contains("never; reserved: 4"));
    }
}
