//! What can be measured: workloads, their cases, and what a measurement yields.

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A kind of work; the README says what each does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Allocate a block and free it at once.
    Pair,
    /// Allocate 10 000 blocks, then free them all.
    Batch,
    /// Replace random blocks of random sizes in a table.
    Mixed,
    /// The same in tables that pass from thread to thread.
    Larson,
    /// One allocates, another frees.
    Xmalloc,
    /// How much memory stands behind 256 MiB of blocks, and behind those that take their place.
    Pages,
    /// Blocks of 1 to 64 MiB.
    Large,
    /// Open a segment and allocate from it for the first time.
    Attach,
    /// Requests to the daemon.
    Control,
    /// From a worker's death to its pages being anybody's.
    Recover,
    /// `mixed` in more and more processes.
    Scale,
}

/// What varies within a workload besides sizes and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Order {
    /// Nothing does.
    #[serde(rename = "")]
    Plain,
    /// First in, first out.
    Fifo,
    /// Last in, first out.
    Lifo,
    /// A fixed permutation, or random replacement.
    Random,
    /// Without the daemon.
    Embedded,
    /// Through the daemon.
    Daemon,
}

/// One line of a workload's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) workload: Workload,
    /// Bytes of each block; 0 where they vary.
    pub(crate) size: usize,
    pub(crate) order: Order,
    /// Threads of each process.
    pub(crate) threads: usize,
    pub(crate) processes: usize,
}

/// What one run yields.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// Nanoseconds for each operation; of threads at work together, the mean over them.
    pub(crate) ns_per_op: f64,
    /// Memory that was made resident for the blocks, where the workload is about that.
    pub(crate) bytes_faulted: Option<u64>,
    /// The most that was ever resident, of the process that measured.
    pub(crate) peak_rss: u64,
    /// What else the workload tells.
    pub(crate) extra: BTreeMap<String, f64>,
}

impl Measurement {
    pub(crate) fn of(ns_per_op: f64) -> Self {
        let peak_rss = crate::system::peak_rss_bytes();
        Self { ns_per_op, bytes_faulted: None, peak_rss, extra: BTreeMap::new() }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: f64) -> Self {
        self.extra.insert(name.to_owned(), value);
        self
    }
}

impl Workload {
    /// All cases of the workload, on a machine with `cores` cores.
    pub(crate) fn cases(self, cores: usize) -> Vec<Case> {
        let one = Case { workload: self, size: 0, order: Order::Plain, threads: 1, processes: 1 };
        match self {
            Self::Pair => {
                let sizes = [16, 64, 256, 1 << 10, 4 << 10, 32 << 10, 1 << 20];
                sizes.map(|size| Case { size, ..one }).into()
            }
            Self::Batch => {
                let orders = [Order::Fifo, Order::Lifo, Order::Random];
                orders.map(|order| Case { size: 64, order, ..one }).into()
            }
            Self::Mixed => vec![
                one,
                Case { threads: 2, ..one },
                // One process is one thread, for shared allocators as for all.
                Case { processes: 2, ..one },
            ],
            Self::Larson => vec![Case { threads: 2, ..one }],
            Self::Xmalloc => vec![Case { threads: 2, ..one }, Case { processes: 2, ..one }],
            Self::Large => {
                let sizes = [1, 4, 16, 64].map(|mib| mib << 20);
                let mut cases: Vec<_> = sizes.map(|size| Case { size, ..one }).into();
                cases.push(Case { order: Order::Random, ..one });
                cases
            }
            Self::Pages | Self::Recover => vec![one],
            Self::Attach => {
                [Order::Embedded, Order::Daemon].map(|order| Case { order, ..one }).into()
            }
            Self::Control => {
                [1, 64].map(|threads| Case { threads, order: Order::Daemon, ..one }).into()
            }
            Self::Scale => (1..=cores).map(|processes| Case { processes, ..one }).collect(),
        }
    }
}

impl Case {
    /// Whether only an allocator over shared memory can do it.
    pub(crate) fn needs_shared(&self) -> bool {
        use Workload::{Attach, Control, Recover, Scale};
        self.processes > 1 || matches!(self.workload, Attach | Control | Recover | Scale)
    }

    /// Those at work together.
    pub(crate) fn seats(&self) -> usize {
        self.threads * self.processes
    }

    /// How many rounds, of how many operations, are enough to count instructions; none where the
    /// count would depend on chance.
    pub(crate) fn countable(&self) -> Option<(usize, usize)> {
        match self.workload {
            Workload::Pair => Some((20_000, 1)),
            Workload::Batch => Some((5, crate::workload::batch::BLOCKS)),
            Workload::Mixed => (self.seats() == 1).then_some((100_000, 1)),
            Workload::Larson
            | Workload::Xmalloc
            | Workload::Pages
            | Workload::Large
            | Workload::Attach
            | Workload::Control
            | Workload::Recover
            | Workload::Scale => None,
        }
    }

    /// The case to compare with where private allocators cannot do this one: threads for processes.
    pub(crate) fn reference(&self) -> Self {
        let is_scale = self.workload == Workload::Scale;
        let workload = if is_scale { Workload::Mixed } else { self.workload };
        Self { workload, threads: self.seats(), processes: 1, ..*self }
    }

    /// The case within its workload, for people.
    pub(crate) fn label(&self) -> String {
        let mut words = Vec::new();
        if self.size > 0 {
            words.push(human_bytes(self.size));
        }
        if self.order != Order::Plain && self.workload != Workload::Control {
            words.push(format!("{:?}", self.order).to_lowercase());
        }
        if self.workload == Workload::Control {
            words.push(format!("{} clients", self.threads));
        } else if self.processes > 1 || self.workload == Workload::Scale {
            words.push(format!("{}p", self.processes));
        } else if self.threads > 1 || self.workload == Workload::Mixed {
            words.push(format!("{}t", self.threads));
        }
        words.join(" ")
    }
}

fn human_bytes(bytes: usize) -> String {
    match bytes {
        0..1024 => bytes.to_string(),
        1024..1_048_576 => format!("{}K", bytes >> 10),
        _ => format!("{}M", bytes >> 20),
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}
