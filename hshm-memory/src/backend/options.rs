//! How a backend's memory is to be had, and how it was had.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::options::UnknownName;

/// How memory is to be had, over what the kernel does by itself. The default asks for nothing.
///
/// # Examples
/// ```ignore-windows
/// use hshm_memory::backend::{Backend, BackendOptions, HugePages};
/// use hshm_memory::PosixMmapBackend;
///
/// let options = BackendOptions { huge_pages: HugePages::Try, populate: true, ..Default::default() };
/// let backend = PosixMmapBackend::create_with(4 << 20, 64 << 20, &options)?;
/// let obtained = backend.obtained()?;
/// // Whether the system had huge pages to give, it says.
/// assert!(obtained.huge_bytes <= obtained.resident_bytes);
/// assert!(obtained.resident_bytes >= 4 << 20);
/// # Ok::<(), hshm_memory::BackendError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendOptions {
    /// Whether memory comes in huge pages.
    pub huge_pages: HugePages,
    /// How large those are, in bytes; `None` for the system's usual size.
    pub huge_page_bytes: Option<u64>,
    /// Which nodes of the machine the memory comes from.
    pub numa: NumaPolicy,
    /// Keeps what this process uses of the memory from being swapped out. The lock is this
    /// process's: it ends with the backend, and what others use alone is not under it.
    pub lock: bool,
    /// Has all of the memory at once, rather than as it is used.
    pub populate: bool,
}

/// Whether memory comes in huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HugePages {
    /// As the system is set up to do.
    #[default]
    System,
    /// No, even if the system would.
    Never,
    /// If they can be had; else in ordinary ones.
    Try,
    /// Yes, or creating fails.
    Require,
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "system",
            Self::Never => "never",
            Self::Try => "try",
            Self::Require => "require",
        })
    }
}

impl FromStr for HugePages {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "system" => Ok(Self::System),
            "never" => Ok(Self::Never),
            "try" => Ok(Self::Try),
            "require" => Ok(Self::Require),
            other => Err(UnknownName {
                what: "use of huge pages",
                found: other.to_owned(),
                expected: "system, never, try or require",
            }),
        }
    }
}

/// Which nodes of the machine memory comes from, as `mbind(2)` has it.
///
/// # Examples
/// ```
/// use hshm_memory::backend::{NodeSet, NumaPolicy};
///
/// let policy: NumaPolicy = "interleave:0,2-3".parse()?;
/// assert_eq!(policy, NumaPolicy::Interleave(NodeSet::new([0, 2, 3])?));
/// assert_eq!(policy.nodes(), [0, 2, 3]);
/// assert_eq!(policy.to_string(), "interleave:0,2-3");
/// # Ok::<(), hshm_memory::UnknownName>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NumaPolicy {
    /// As the process that first uses a page would have it.
    #[default]
    Default,
    /// From these alone.
    Bind(NodeSet),
    /// From these in turn, page by page.
    Interleave(NodeSet),
    /// From these as long as they have any.
    Preferred(NodeSet),
}

impl NumaPolicy {
    /// The nodes that it names.
    #[must_use]
    pub fn nodes(&self) -> &[u16] {
        match self {
            Self::Default => &[],
            Self::Bind(nodes) | Self::Interleave(nodes) | Self::Preferred(nodes) => {
                nodes.as_slice()
            }
        }
    }
}

impl fmt::Display for NumaPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Bind(nodes) => write!(f, "bind:{nodes}"),
            Self::Interleave(nodes) => write!(f, "interleave:{nodes}"),
            Self::Preferred(nodes) => write!(f, "preferred:{nodes}"),
        }
    }
}

impl FromStr for NumaPolicy {
    type Err = UnknownName;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let unknown = || UnknownName {
            what: "NUMA policy",
            found: word.chars().take(80).collect(),
            expected: "default, or bind:NODES, interleave:NODES or preferred:NODES, with nodes as in 0,2-3",
        };
        if word == "default" {
            return Ok(Self::Default);
        }
        let (policy, nodes) = word.split_once(':').ok_or_else(unknown)?;
        let nodes = nodes.parse::<NodeSet>()?;
        match policy {
            "bind" => Ok(Self::Bind(nodes)),
            "interleave" => Ok(Self::Interleave(nodes)),
            "preferred" => Ok(Self::Preferred(nodes)),
            _ => Err(unknown()),
        }
    }
}

/// A set of nodes of the machine, of which there is at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u16>", into = "Vec<u16>")]
pub struct NodeSet(Vec<u16>);

impl NodeSet {
    /// The most nodes that Linux can have.
    pub const MAX_NODES: u16 = 1024;

    /// The nodes with these numbers.
    ///
    /// # Errors
    /// [`UnknownName`] if there is none, or one that is not below [`NodeSet::MAX_NODES`].
    pub fn new(nodes: impl IntoIterator<Item = u16>) -> Result<Self, UnknownName> {
        let mut nodes: Vec<u16> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        match nodes.last() {
            Some(last) if *last < Self::MAX_NODES => Ok(Self(nodes)),
            Some(last) => Err(Self::unknown(&last.to_string())),
            None => Err(Self::unknown("")),
        }
    }

    /// Their numbers, ascending.
    #[must_use]
    pub fn as_slice(&self) -> &[u16] {
        &self.0
    }

    fn unknown(found: &str) -> UnknownName {
        UnknownName {
            what: "list of nodes",
            found: found.chars().take(80).collect(),
            expected: "numbers below 1024 and ranges of them, as in 0,2-3",
        }
    }
}

impl TryFrom<Vec<u16>> for NodeSet {
    type Error = UnknownName;

    fn try_from(nodes: Vec<u16>) -> Result<Self, Self::Error> {
        Self::new(nodes)
    }
}

impl From<NodeSet> for Vec<u16> {
    fn from(nodes: NodeSet) -> Self {
        nodes.0
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.0.chunk_by(|a, b| a + 1 == *b);
        for (index, range) in ranges.enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match range {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [only] => write!(f, "{comma}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl FromStr for NodeSet {
    type Err = UnknownName;

    fn from_str(list: &str) -> Result<Self, Self::Err> {
        let unknown = || Self::unknown(list);
        let mut nodes = Vec::new();
        for part in list.trim().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = first.parse::<u16>().map_err(|_| unknown())?;
            let last = last.parse::<u16>().map_err(|_| unknown())?;
            if first > last || last >= Self::MAX_NODES {
                return Err(unknown());
            }
            nodes.extend(first..=last);
            if nodes.len() > usize::from(Self::MAX_NODES) {
                return Err(unknown());
            }
        }
        Self::new(nodes)
    }
}

/// How a backend's memory was had, as the kernel reports it for this process now.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Obtained {
    /// The size, in bytes, of the pages that the memory is mapped in; the largest, if they differ.
    /// More than the machine's own only for memory that comes in huge pages alone.
    pub page_bytes: u64,
    /// How much of it this process has in use, in bytes.
    pub resident_bytes: u64,
    /// How much of that is in huge pages, whichever way they came, in bytes.
    pub huge_bytes: u64,
    /// Length of the address range, in bytes, in which this process keeps what it uses from being
    /// swapped out.
    pub locked_bytes: u64,
    /// The nodes that further memory comes from.
    pub numa: NumaPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_they_are_read() {
        for word in ["default", "bind:0", "interleave:0-3", "preferred:1,3-4,1023"] {
            assert_eq!(word.parse::<NumaPolicy>().unwrap().to_string(), word);
        }
        assert_eq!("bind:3,1,2,2".parse::<NumaPolicy>().unwrap().to_string(), "bind:1-3");
        for bad in ["", "bind", "bind:", "bind:x", "bind:3-1", "bind:1024", "bind:-1", "all:0"] {
            assert!(bad.parse::<NumaPolicy>().is_err(), "{bad}");
        }
        let long = "bind:".to_owned() + &"0-1023,".repeat(100);
        assert!(long.parse::<NumaPolicy>().unwrap_err().to_string().len() < 300);
        for word in ["system", "never", "try", "require"] {
            assert_eq!(word.parse::<HugePages>().unwrap().to_string(), word);
        }
        assert!("always".parse::<HugePages>().is_err());
    }
}
