//! The processes that the daemon knows: those connected, and those that hold worker slots.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hshm_memory::ProcessId;
use hshm_proto::limits::{
    MAX_CLIENT_NAME_BYTES, SEGMENTS_PER_SESSION_SHOWN, SESSIONS_PER_PAGE, truncated,
};
use hshm_proto::{SessionInfo, SessionState, Version};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::access::Peer;
use crate::config::Limits;
use crate::quota::is_limited;
use crate::state::now_unix_ms;

/// The first version of the protocol that has [`SessionState::Recovering`].
const TELLS_OF_RECOVERY: Version = 3;

/// Connections and watched processes.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    table: Mutex<Table>,
}

/// Why a connection does not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TooMany {
    /// There are so many, and no more are allowed.
    InAll(usize),
    /// The user has so many, and may have no more.
    OfUser(usize),
}

#[derive(Debug, Default)]
struct Table {
    last_number: u64,
    connections: BTreeMap<u64, Connection>,
    watched: HashMap<ProcessId, Watched>,
    dying: BTreeMap<ProcessId, Dying>,
    recovered_processes: u64,
    recovered_slots: u64,
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    client_name: String,
    since_unix_ms: u64,
    attached: BTreeSet<String>,
    /// Told when the process died, so that whoever inherited its socket does not go on under its
    /// name.
    close: Arc<Notify>,
}

/// A process whose death will be noticed.
#[derive(Debug)]
struct Watched {
    number: u64,
    uid: Option<u32>,
    gid: Option<u32>,
    since_unix_ms: u64,
    /// Segments it held worker slots of when they were last searched.
    holds: BTreeSet<String>,
    /// Segments that a session of it had attached when its end began.
    left: BTreeSet<String>,
    watcher: AbortHandle,
}

/// A process that died and is being recovered.
#[derive(Debug)]
struct Dying {
    number: u64,
    uid: Option<u32>,
    gid: Option<u32>,
    name: String,
    since_unix_ms: u64,
    /// Segments that it used and that are not recovered yet.
    left: BTreeSet<String>,
    /// Worker slots recovered so far.
    slots: u32,
}

/// A connection's entry, which goes with this value. Its process stays watched while it holds worker
/// slots.
#[derive(Debug)]
pub(crate) struct Connected {
    processes: Arc<Processes>,
    /// The session's number.
    pub(crate) number: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.processes.table().connections.remove(&self.number);
    }
}

/// Counts for the status reply.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) watched: u64,
    /// Processes that died, held something, and are not wholly recovered yet.
    pub(crate) recovering: u64,
    pub(crate) recovered_processes: u64,
    pub(crate) recovered_slots: u64,
}

impl Table {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// The dead that are not wholly recovered yet, with the segments that are left.
    fn recovering(
        &self,
        after: Option<u64>,
        may_see: impl Fn(Option<u32>) -> bool,
    ) -> impl Iterator<Item = SessionInfo> {
        let is_shown = move |dying: &&Dying| {
            after.is_none_or(|after| dying.number > after) && !dying.left.is_empty()
        };
        let dying =
            self.dying.iter().filter(move |(_, dying)| is_shown(dying) && may_see(dying.uid));
        dying.map(|(process, dying)| {
            let Dying { number, uid, gid, name, since_unix_ms, left, .. } = dying;
            entry(
                (*number, *process, *uid, *gid, *since_unix_ms),
                name.clone(),
                SessionState::Recovering,
                left.clone(),
            )
        })
    }

    fn is_connected(&self, process: ProcessId) -> bool {
        self.connections.values().any(|connection| connection.peer.process == Some(process))
    }
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

impl Processes {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing under this lock is left half done by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new connection.
    ///
    /// # Errors
    /// If there are as many already as `limits` allow.
    pub(crate) fn connect(
        self: &Arc<Self>,
        peer: &Peer,
        client_name: &str,
        close: Arc<Notify>,
        limits: &Limits,
    ) -> Result<Connected, TooMany> {
        let mut table = self.table();
        if table.connections.len() >= limits.max_sessions {
            return Err(TooMany::InAll(limits.max_sessions));
        }
        if is_limited(peer.uid) {
            // One user never takes the last places, so that others, and the administrator, get in.
            let least_kept = limits.max_sessions.div_ceil(4);
            let most = limits.max_sessions.saturating_sub(least_kept).max(1);
            let most = limits.max_user_sessions.map_or(most, |set| set.min(most));
            let same_user = |connection: &&Connection| connection.peer.uid == peer.uid;
            if table.connections.values().filter(same_user).count() >= most {
                return Err(TooMany::OfUser(most));
            }
        }
        let number = table.next_number();
        let connection = Connection {
            peer: peer.clone(),
            client_name: client_name.to_owned(),
            since_unix_ms: now_unix_ms(),
            attached: BTreeSet::new(),
            close,
        };
        table.connections.insert(number, connection);
        Ok(Connected { processes: Arc::clone(self), number })
    }

    /// False if the session had it attached already.
    pub(crate) fn attach(&self, number: u64, segment: &str) -> bool {
        let mut table = self.table();
        let found = table.connections.get_mut(&number);
        found.is_some_and(|connection| connection.attached.insert(segment.to_owned()))
    }

    /// A session ends: what it had attached.
    pub(crate) fn end(&self, number: u64) -> BTreeSet<String> {
        let mut table = self.table();
        let found = table.connections.get_mut(&number);
        found.map(|connection| std::mem::take(&mut connection.attached)).unwrap_or_default()
    }

    /// A process that is about to die had these attached.
    pub(crate) fn leave(&self, process: ProcessId, segments: BTreeSet<String>) {
        if let Some(watched) = self.table().watched.get_mut(&process) {
            watched.left.extend(segments);
        }
    }

    /// False if the session did not have it attached.
    pub(crate) fn detach(&self, number: u64, segment: &str) -> bool {
        let mut table = self.table();
        table.connections.get_mut(&number).is_some_and(|found| found.attached.remove(segment))
    }

    /// A segment is gone, whoever had it attached.
    pub(crate) fn forget_segment(&self, segment: &str) {
        let mut table = self.table();
        for connection in table.connections.values_mut() {
            connection.attached.remove(segment);
        }
        for watched in table.watched.values_mut() {
            watched.holds.remove(segment);
        }
    }

    /// How many sessions have the segment attached, and which processes they are.
    pub(crate) fn attached(&self, segment: &str) -> (u32, Vec<ProcessId>) {
        let table = self.table();
        let having = table.connections.values().filter(|found| found.attached.contains(segment));
        let sessions = u32::try_from(having.clone().count()).unwrap_or(u32::MAX);
        (sessions, having.filter_map(|found| found.peer.process).collect())
    }

    pub(crate) fn is_watched(&self, process: ProcessId) -> bool {
        self.table().watched.contains_key(&process)
    }

    /// Enters a process whose death `watcher` will report. False, and `watcher` is stopped, if there
    /// was one already.
    pub(crate) fn watch(
        &self,
        process: ProcessId,
        peer: Option<&Peer>,
        watcher: AbortHandle,
    ) -> bool {
        let mut table = self.table();
        if let Some(found) = table.watched.get_mut(&process) {
            watcher.abort();
            if let Some(peer) = peer {
                (found.uid, found.gid) = (Some(peer.uid), Some(peer.gid));
            }
            return false;
        }
        let watched = Watched {
            number: table.next_number(),
            uid: peer.map(|peer| peer.uid),
            gid: peer.map(|peer| peer.gid),
            since_unix_ms: now_unix_ms(),
            holds: BTreeSet::new(),
            left: BTreeSet::new(),
            watcher,
        };
        table.watched.insert(process, watched);
        true
    }

    /// The process died: its connections are closed, and it is watched no more. Returns the segments
    /// that it had attached or held worker slots of, as far as is known; `held` are such.
    pub(crate) fn died(&self, process: ProcessId, held: &BTreeSet<String>) -> BTreeSet<String> {
        let mut table = self.table();
        let mut used = held.clone();
        let (mut number, mut user, mut name) = (None, None, None);
        if let Some(watched) = table.watched.remove(&process) {
            watched.watcher.abort();
            (number, user) = (Some(watched.number), watched.uid.zip(watched.gid));
            used.extend(watched.holds);
            used.extend(watched.left);
        }
        for connection in table.connections.values_mut() {
            if connection.peer.process == Some(process) {
                connection.close.notify_one();
                user = Some((connection.peer.uid, connection.peer.gid));
                name = Some(connection.client_name.clone());
                used.append(&mut connection.attached);
            }
        }
        let number = number.unwrap_or_else(|| table.next_number());
        let name = name.unwrap_or_else(|| command_name(process));
        let ((uid, gid), left) = (user.unzip(), used.clone());
        let dying = Dying { number, uid, gid, name, since_unix_ms: now_unix_ms(), left, slots: 0 };
        table.dying.insert(process, dying);
        used
    }

    /// Worker slots of a dead process were recovered.
    pub(crate) fn count_recovered(&self, process: ProcessId, slots: u32) {
        let mut table = self.table();
        table.recovered_slots += u64::from(slots);
        if let Some(dying) = table.dying.get_mut(&process) {
            dying.slots += slots;
        }
    }

    /// What a dead process held of one segment is recovered.
    pub(crate) fn recovered_in(&self, process: ProcessId, segment: &str) {
        if let Some(dying) = self.table().dying.get_mut(&process) {
            dying.left.remove(segment);
        }
    }

    /// The recovery of a dead process is over. Returns how many worker slots of it were recovered.
    pub(crate) fn buried(&self, process: ProcessId) -> u32 {
        let mut table = self.table();
        let slots = table.dying.remove(&process).map_or(0, |dying| dying.slots);
        table.recovered_processes += u64::from(slots > 0);
        slots
    }

    /// Who holds slots of which segments, with those who are watched by the name that they are watched under:
    /// a process that uses a segment without this daemon calls itself by another.
    pub(crate) fn by_known_names(
        &self,
        found: HashMap<ProcessId, BTreeSet<String>>,
    ) -> HashMap<ProcessId, BTreeSet<String>> {
        let mut holders: HashMap<_, BTreeSet<_>> = HashMap::new();
        for (name, mut segments) in found {
            holders.entry(self.known_as(name)).or_default().append(&mut segments);
        }
        holders
    }

    /// The name that a process of this name is watched under, or this name if it is not watched.
    pub(crate) fn known_as(&self, name: ProcessId) -> ProcessId {
        let namesake = {
            let table = self.table();
            if table.watched.contains_key(&name) {
                return name;
            }
            table.watched.keys().find(|known| known.pid == name.pid).copied()
        };
        // Of all that ever had the number, one lives.
        namesake.filter(|known| known.is_alive() && name.is_alive()).unwrap_or(name)
    }

    /// What a search of all segments found: who holds slots of which. Processes that hold none and
    /// have no connection are watched no more.
    pub(crate) fn update_holders(&self, holders: &HashMap<ProcessId, BTreeSet<String>>) {
        let mut table = self.table();
        let mut idle = Vec::new();
        for (process, watched) in &mut table.watched {
            watched.holds = holders.get(process).cloned().unwrap_or_default();
            if watched.holds.is_empty() {
                idle.push(*process);
            }
        }
        for process in idle {
            if !table.is_connected(process)
                && let Some(watched) = table.watched.remove(&process)
            {
                watched.watcher.abort();
            }
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let table = self.table();
        Counts {
            connections: count(table.connections.len()),
            watched: count(table.watched.len()),
            recovering: count(table.dying.values().filter(|dying| !dying.left.is_empty()).count()),
            recovered_processes: table.recovered_processes,
            recovered_slots: table.recovered_slots,
        }
    }

    /// A page of the sessions that `viewer` may see, and whether there are more: administrators see
    /// all, others those of their own user. Who speaks an early `version` of the protocol is not told of
    /// the dead.
    pub(crate) fn page(
        &self,
        after: Option<u64>,
        viewer: &Peer,
        version: Version,
    ) -> (Vec<SessionInfo>, bool) {
        let table = self.table();
        let no_slots = BTreeSet::new();
        let may_see = |uid: Option<u32>| viewer.is_admin() || uid == Some(viewer.uid);
        let mut sessions = Vec::new();
        // No more than can be shown are described: who asks for page after page costs little.
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        let connections = table.connections.range((first, Bound::Unbounded));
        let connections = connections.filter(|(_, found)| {
            let is_dead = found.peer.process.is_some_and(|it| table.dying.contains_key(&it));
            may_see(Some(found.peer.uid)) && !is_dead
        });
        for (number, connection) in connections.take(SESSIONS_PER_PAGE + 1) {
            let process = connection.peer.process.unwrap_or_default();
            let holds = table.watched.get(&process).map_or(&no_slots, |watched| &watched.holds);
            let segments = connection.attached.union(holds).cloned().collect();
            let (uid, gid) = (Some(connection.peer.uid), Some(connection.peer.gid));
            sessions.push(entry(
                (*number, process, uid, gid, connection.since_unix_ms),
                connection.client_name.clone(),
                SessionState::Connected,
                segments,
            ));
        }
        let connected: HashSet<_> =
            table.connections.values().filter_map(|found| found.peer.process).collect();
        let mut holding: Vec<_> = table
            .watched
            .iter()
            .filter(|(process, watched)| {
                let beyond = after.is_none_or(|after| watched.number > after);
                let holds = !watched.holds.is_empty() && !connected.contains(process);
                beyond && holds && may_see(watched.uid)
            })
            .collect();
        holding.sort_unstable_by_key(|(_, watched)| watched.number);
        for (process, watched) in holding.into_iter().take(SESSIONS_PER_PAGE + 1) {
            sessions.push(entry(
                (watched.number, *process, watched.uid, watched.gid, watched.since_unix_ms),
                command_name(*process),
                SessionState::Holding,
                watched.holds.clone(),
            ));
        }
        if version >= TELLS_OF_RECOVERY {
            sessions.extend(table.recovering(after, may_see));
        }
        drop(table);
        sessions.sort_by_key(|session| session.session);
        let more = sessions.len() > SESSIONS_PER_PAGE;
        sessions.truncate(SESSIONS_PER_PAGE);
        (sessions, more)
    }
}

fn entry(
    (session, process, uid, gid, since_unix_ms): (u64, ProcessId, Option<u32>, Option<u32>, u64),
    client_name: String,
    state: SessionState,
    segments: BTreeSet<String>,
) -> SessionInfo {
    let segments_total = u32::try_from(segments.len()).unwrap_or(u32::MAX);
    let segments = segments.into_iter().take(SEGMENTS_PER_SESSION_SHOWN).collect();
    SessionInfo {
        session,
        process,
        uid,
        gid,
        client_name,
        state,
        since_unix_ms,
        segments,
        segments_total,
    }
}

/// The name of a process's command, which it may have set to anything.
fn command_name(process: ProcessId) -> String {
    let name = fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
    let printable: String = name.trim_end().chars().filter(|c| !c.is_control()).collect();
    truncated(&printable, MAX_CLIENT_NAME_BYTES)
}

#[cfg(test)]
#[path = "processes_tests.rs"]
mod tests;
