//! What the kernel says about a range of mapped memory: sizes of pages, locks, nodes.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::ptr::NonNull;

use super::{BackendError, NodeSet, NumaPolicy, Obtained};

/// `MPOL_PREFERRED_MANY` of Linux 5.15, which libc does not have.
pub(super) const MPOL_PREFERRED_MANY: i32 = 5;
/// `MPOL_F_ADDR`: the policy of an address, rather than the thread's. Not in libc either.
const MPOL_F_ADDR: i32 = 2;
/// Words of a mask of as many nodes as the kernel can have.
pub(super) const MASK_WORDS: usize = NodeSet::MAX_NODES as usize / 64;

/// What the kernel says about `[base, base + len)`, part of a mapping of this process.
pub(super) fn look_up(base: NonNull<u8>, len: u64) -> Result<Obtained, BackendError> {
    let smaps = File::open("/proc/self/smaps").and_then(|file| {
        let start = base.addr().get() as u64;
        sum(BufReader::new(file), &(start..start.saturating_add(len)))
    });
    let found = smaps.map_err(|source| {
        let what = "cannot read what the kernel says about mapped memory (/proc/self/smaps)";
        BackendError::System { what, source }
    })?;
    Ok(Obtained { numa: policy_at(base)?, ..found })
}

/// Sums the records of the mappings that lie in `range`, wholly or in part.
fn sum(smaps: impl BufRead, range: &Range<u64>) -> std::io::Result<Obtained> {
    let mut found = Obtained::default();
    let mut part = None;
    for line in smaps.lines() {
        let line = line?;
        if let Some(mapping) = addresses(&line) {
            let (start, end) = (mapping.start.max(range.start), mapping.end.min(range.end));
            part = (start < end).then(|| end - start);
            continue;
        }
        let Some(part_bytes) = part else { continue };
        let Some((key, value)) = line.split_once(':') else { continue };
        let bytes = || {
            let number = value.trim().strip_suffix(" kB").unwrap_or_default();
            number.parse::<u64>().unwrap_or(0) * 1024
        };
        match key {
            "KernelPageSize" => found.page_bytes = found.page_bytes.max(bytes()),
            "Rss" => found.resident_bytes += bytes(),
            "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => found.huge_bytes += bytes(),
            // These are resident, and not among what the kernel calls so.
            "Shared_Hugetlb" | "Private_Hugetlb" => {
                found.huge_bytes += bytes();
                found.resident_bytes += bytes();
            }
            // Memory of the huge page file system is never swapped out.
            "VmFlags" if value.split(' ').any(|flag| flag == "lo" || flag == "ht") => {
                found.locked_bytes += part_bytes;
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The addresses of a record's first line; `None` for its other lines.
fn addresses(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

fn policy_at(base: NonNull<u8>) -> Result<NumaPolicy, BackendError> {
    let mut mode = 0_i32;
    let mut mask = [0_u64; MASK_WORDS];
    // The kernel takes the count of bits for one more than it is.
    let bits = mask.len() * 64 + 1;
    // SAFETY: [ffi] the mode and the mask are live; the mask has as many bits as are announced, but
    // for the last, which the kernel leaves alone; the address is mapped.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut mode,
            mask.as_mut_ptr(),
            bits,
            base.as_ptr(),
            MPOL_F_ADDR,
        )
    };
    if result != 0 {
        let source = std::io::Error::last_os_error();
        // Kernels built for one node have no policies, and containers may not ask for them.
        if matches!(source.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) {
            return Ok(NumaPolicy::Default);
        }
        return Err(BackendError::System { what: "cannot ask for the memory's policy", source });
    }
    let nodes = (0..NodeSet::MAX_NODES).filter(|node| {
        mask.get(usize::from(node / 64)).is_some_and(|word| word >> (node % 64) & 1 == 1)
    });
    let Ok(nodes) = NodeSet::new(nodes) else { return Ok(NumaPolicy::Default) };
    // The upper bits are flags of the mode.
    Ok(match mode & 0xff {
        libc::MPOL_BIND => NumaPolicy::Bind(nodes),
        libc::MPOL_INTERLEAVE => NumaPolicy::Interleave(nodes),
        libc::MPOL_PREFERRED | MPOL_PREFERRED_MANY => NumaPolicy::Preferred(nodes),
        _ => NumaPolicy::Default,
    })
}

/// The nodes that this machine has, as the kernel writes them.
pub(super) fn online_nodes() -> String {
    let online = std::fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    let online = online.trim();
    if online.is_empty() { "unknown".to_owned() } else { online.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
10000-20000 rw-s 00000000 00:01 7 /dev/shm/a
KernelPageSize:        4 kB
Rss:                  40 kB
ShmemPmdMapped:       16 kB
VmFlags: rd wr sh mr mw me ms
20000-40000 rw-s 00000000 00:0f 8 /anon_hugepage (deleted)
KernelPageSize:     2048 kB
Rss:                   0 kB
Shared_Hugetlb:       64 kB
VmFlags: rd wr sh mr mw me ms de ht
40000-50000 rw-p 00000000 00:00 0
Rss:                  20 kB
VmFlags: rd wr mr mw me lo
";

    #[test]
    fn records_of_the_mappings_in_a_range_are_summed() {
        let all = sum(SMAPS.as_bytes(), &(0x1_8000..0x3_0000)).unwrap();
        assert_eq!(all.page_bytes, 2 << 20);
        assert_eq!(all.resident_bytes, (40 + 64) << 10);
        assert_eq!(all.huge_bytes, (16 + 64) << 10);
        assert_eq!(all.locked_bytes, 0x1_0000);
        let last = sum(SMAPS.as_bytes(), &(0x4_0000..0x6_0000)).unwrap();
        assert_eq!((last.resident_bytes, last.locked_bytes), (20 << 10, 0x1_0000));
        assert_eq!(sum(SMAPS.as_bytes(), &(0..1)).unwrap(), Obtained::default());
    }
}
