//! Connections that have not greeted yet. They cost a descriptor or two and are no sessions, so that
//! limits on those do not hold for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::quota::is_limited;

/// Connections without a greeting that one user may have. Another's are served meanwhile: there is
/// room for more than one such user.
pub(crate) const MAX_USER_STRANGERS: usize = 32;

/// How many each user has.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    of_user: Mutex<HashMap<u32, usize>>,
}

/// A connection that is to greet. Its place is free when this value goes.
#[derive(Debug)]
pub(crate) struct Stranger {
    all: Arc<Strangers>,
    uid: u32,
}

impl Strangers {
    /// Enters one of the user's connections; none if there are too many already.
    pub(crate) fn enter(self: &Arc<Self>, uid: u32) -> Option<Stranger> {
        let mut of_user = self.of_user.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of_user.entry(uid).or_default();
        if *count >= MAX_USER_STRANGERS && is_limited(uid) {
            return None;
        }
        *count += 1;
        Some(Stranger { all: Arc::clone(self), uid })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut of_user = self.all.of_user.lock().unwrap_or_else(PoisonError::into_inner);
        // Users who have none are forgotten, so that the table does not grow.
        if let Some(count) = of_user.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                of_user.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_all_places_and_those_that_go_are_free_again() {
        const USER: u32 = 4_000_001;
        let all = Arc::new(Strangers::default());
        let mut entered: Vec<_> = std::iter::from_fn(|| all.enter(USER)).take(1000).collect();
        assert_eq!(entered.len(), MAX_USER_STRANGERS);
        assert!(all.enter(USER + 1).is_some(), "another user");
        entered.pop();
        assert!(all.enter(USER).is_some());
        drop(entered);
        assert!(all.of_user.lock().unwrap().is_empty());
    }

    #[test]
    fn root_is_not_limited() {
        let all = Arc::new(Strangers::default());
        assert_eq!(std::iter::from_fn(|| all.enter(0)).take(1000).count(), 1000);
    }
}
