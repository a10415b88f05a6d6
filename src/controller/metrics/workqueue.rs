//! Migrations whose reconciliation is due and has not started. The library's queue cannot be read, so its times are
//! kept here again: a trigger is due at once, a requeue at its time, and a start takes what was due.

use std::{
    collections::HashMap,
    ops::DerefMut,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// When each migration is due, by namespace and name.
#[derive(Default)]
pub(super) struct Workqueue(Mutex<HashMap<(String, String), Instant>>);

impl Workqueue {
    /// A migration is due at `at`, or at an earlier time that is known already.
    pub(super) fn add(&self, namespace: &str, name: &str, at: Instant) {
        self.lock().entry((namespace.into(), name.into())).and_modify(|due| *due = at.min(*due)).or_insert(at);
    }

    /// A reconciliation starts, or the migration is gone.
    pub(super) fn remove(&self, namespace: &str, name: &str) {
        self.lock().remove(&(namespace.into(), name.into()));
    }

    /// Migrations that are due at `now`.
    pub(super) fn depth(&self, now: Instant) -> usize {
        self.lock().values().filter(|due| **due <= now).count()
    }

    fn lock(&self) -> impl DerefMut<Target = HashMap<(String, String), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_waits_until_it_starts() {
        let (queue, now) = (Workqueue::default(), Instant::now());
        let later = now + Duration::from_secs(30);
        queue.add("shop", "a", later);
        queue.add("shop", "b", now);
        assert_eq!((queue.depth(now), queue.depth(later)), (1, 2));
        queue.add("shop", "a", now);
        queue.add("shop", "a", later);
        assert_eq!(queue.depth(now), 2, "the earliest time counts");
        queue.remove("shop", "b");
        queue.add("bank", "b", now);
        assert_eq!(queue.depth(now), 2, "by namespace and name");
        queue.remove("bank", "b");
        queue.remove("shop", "a");
        assert_eq!(queue.depth(later), 0);
    }
}
