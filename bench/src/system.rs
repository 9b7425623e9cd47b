//! What the harness asks of the operating system.

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::process;

/// Ends the process: the measurement cannot go on. The coordinator reports `why`.
#[cold]
#[inline(never)]
pub(crate) fn die(why: impl Display) -> ! {
    let _ = writeln!(std::io::stderr(), "{why}");
    process::exit(3)
}

/// The cores that this process may use.
pub(crate) fn cores() -> Vec<usize> {
    // SAFETY: [init] an empty set is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: [ffi] `set` is as long as said.
    let result = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if result != 0 {
        return vec![0];
    }
    (0..libc::CPU_SETSIZE.cast_unsigned() as usize)
        // SAFETY: [init] the kernel filled the set, and `core` is within it.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect()
}

/// Binds the calling thread to the core of the `seat`th of those at work, counted from the last
/// core: the first one has most of the interrupts. Does nothing on a machine with one core.
pub(crate) fn pin(seat: usize) {
    let cores = cores();
    if cores.len() < 2 {
        return;
    }
    let core = cores[cores.len() - 1 - seat % cores.len()];
    // SAFETY: [init] an empty set is all zeros.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: [ffi] `core` came from such a set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: [ffi] `set` is as long as said. A refusal leaves the thread unbound, as it was.
    unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
}

/// The most memory that was ever resident here, in bytes.
pub(crate) fn peak_rss_bytes() -> u64 {
    status_kib("VmHWM:") << 10
}

/// Resident memory that is this process's own, in bytes.
pub(crate) fn anonymous_bytes() -> u64 {
    status_kib("RssAnon:") << 10
}

fn status_kib(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// Memory behind the shared-memory files whose names begin with `prefix`, in bytes.
pub(crate) fn shared_bytes(prefix: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    shared_files(prefix).filter_map(|path| fs::metadata(path).ok()).map(|m| m.blocks() * 512).sum()
}

/// Removes the shared-memory files whose names begin with `prefix`.
pub(crate) fn remove_shared(prefix: &str) {
    for path in shared_files(prefix) {
        let _ = fs::remove_file(path);
    }
}

fn shared_files(prefix: &str) -> impl Iterator<Item = std::path::PathBuf> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let prefix = prefix.to_owned();
    // iceoryx2 puts a prefix of its own before the name.
    entries
        .filter(move |entry| entry.file_name().to_string_lossy().contains(&prefix))
        .map(|entry| entry.path())
}

/// The processor, kernel and libraries, for the report.
pub(crate) fn machine() -> serde_json::Value {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(": ").map_or("", |(_, value)| value).to_owned()
    };
    let read = |path| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    serde_json::json!({
        "cpu": field("model name"),
        "cpu_family_model": format!("{}/{}", field("cpu family"), field("model\t")),
        "cores": cores().len(),
        "memory_kib": read("/proc/meminfo").split_whitespace().nth(1).unwrap_or_default(),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "huge_pages": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "huge_pages_shared": read("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "rustc": env!("RUSTC_VERSION"),
        "cxx": env!("CXX_COMPILER"),
    })
}
