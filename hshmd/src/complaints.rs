//! How often the log complains of one user's clients: whoever can make the daemon write a line for each packet
//! could fill the log with them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Complaints of one user that are logged in each [`WINDOW`].
const MOST: u64 = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// Users that are told apart; further ones count as one.
const MAX_USERS: usize = 1024;
const THE_REST: u32 = u32::MAX;

/// How many there were of each user.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    of_user: Mutex<HashMap<u32, Window>>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    count: u64,
}

/// A complaint that is to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// How many were not, of those before it.
    pub(crate) unlogged: u64,
    /// Whether it is the last one for a while.
    is_last: bool,
}

impl Complaints {
    /// Counts a complaint of one of the user's clients; none if it is not to be logged.
    pub(crate) fn admit(&self, uid: u32, now: Instant) -> Option<Complaint> {
        let mut of_user = self.of_user.lock().unwrap_or_else(PoisonError::into_inner);
        let mut uid = uid;
        if !of_user.contains_key(&uid) && of_user.len() >= MAX_USERS {
            of_user.retain(|_, window| now.duration_since(window.since) < WINDOW);
            if of_user.len() >= MAX_USERS {
                uid = THE_REST;
            }
        }
        let window = of_user.entry(uid).or_insert(Window { since: now, count: 0 });
        let mut unlogged = 0;
        if now.duration_since(window.since) >= WINDOW {
            unlogged = window.count.saturating_sub(MOST);
            *window = Window { since: now, count: 0 };
        }
        window.count += 1;
        (window.count <= MOST).then_some(Complaint { unlogged, is_last: window.count == MOST })
    }
}

impl fmt::Display for Complaint {
    /// What the log says after the complaint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unlogged > 0 {
            write!(f, " ({} before it were not logged)", self.unlogged)?;
        }
        if self.is_last {
            f.write_str("; more of this user's are not logged for a minute")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_are_logged_and_the_others_counted() {
        let (all, start) = (Complaints::default(), Instant::now());
        let logged = |uid, at| all.admit(uid, start + Duration::from_secs(at));
        let first: Vec<_> = (0..100).filter_map(|_| logged(1, 0)).collect();
        assert_eq!(first.len(), 5);
        assert_eq!(first[0].to_string(), "");
        assert_eq!(first[4].to_string(), "; more of this user's are not logged for a minute");
        // Another user's are another matter.
        assert_eq!(logged(2, 1).unwrap().unlogged, 0);
        assert_eq!(logged(1, 59), None);
        let next = logged(1, 60).unwrap();
        assert_eq!(
            (next.unlogged, next.to_string().as_str()),
            (96, " (96 before it were not logged)")
        );
        assert_eq!(logged(1, 61).unwrap().unlogged, 0);
    }

    #[test]
    fn many_users_take_no_more_memory_than_some() {
        let (all, start) = (Complaints::default(), Instant::now());
        for uid in 0..10_000 {
            all.admit(uid, start);
        }
        assert_eq!(all.of_user.lock().unwrap().len(), MAX_USERS + 1);
        assert!(all.admit(20_000, start).is_none(), "the rest are one");
        // Once they are quiet they are forgotten.
        assert!(all.admit(20_000, start + WINDOW).is_some());
        assert_eq!(all.of_user.lock().unwrap().len(), 1);
    }
}
