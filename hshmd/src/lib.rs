//! The daemon: it owns shared-memory segments, hands them to processes, and recovers what dead
//! processes left in them. It is never on the data path: kill it, and workers go on allocating.
//!
//! # How it fits together
//!
//! | module | what it knows |
//! |---|---|
//! | [`config`], [`paths`], [`size`] | what the daemon is told, and the defaults |
//! | [`daemon`], `reload` | the order of starting, running and stopping; reading the configuration again |
//! | `listen`, `socket`, `awaited`, `strangers`, `session`, `handlers`, `complaints` | connections, packets, and what each request does |
//! | `registry`, `declare`, `segment`, `adopt`, `quota`, `access`, `names`, `peer_groups` | segments, their owners and limits |
//! | [`logging`], `journal` | the log |
//! | [`gpu`] | graphics processors' drivers, which a child of the daemon asks |
//! | `state` | the records on disk from which a restarted daemon finds its segments |
//! | `manager` | systemd: what it hands over, keeps, and is told |
//! | `processes`, `pidfd`, `reaper` | who is alive, and what becomes of the slots of those who are not |
//!
//! Everything runs on one thread, except what may take long (creating, walking and recovering
//! heaps), which runs on threads that may block.
#![deny(unsafe_code)]

mod access;
mod adopt;
mod awaited;
pub mod check;
mod complaints;
pub mod config;
pub mod daemon;
mod declare;
mod device_memory;
mod error;
mod events;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod gpu;
mod handlers;
mod journal;
mod listen;

pub mod logging;
mod manager;
mod metrics;
mod names;
pub mod paths;
mod peer_groups;
mod pidfd;
mod processes;
mod quota;
mod reaper;
mod recovery;
mod registry;
mod reload;
mod repair;
mod segment;
mod session;
pub mod size;
mod socket;
mod state;
mod stderr;
mod strangers;

pub use error::DaemonError;
