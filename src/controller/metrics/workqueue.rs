//! Migrations whose reconciliation is due and has not started. The library's queue cannot be read, so its times are
//! kept here again: a trigger is due at once, a requeue at its time, and a start takes what was due.

use std::time::Instant;

use crate::controller::per_migration::PerMigration;

/// When each migration is due.
#[derive(Default)]
pub(super) struct Workqueue(PerMigration<Option<Instant>>);

impl Workqueue {
    /// A migration is due at `at`, or at an earlier time that is known already.
    pub(super) fn add(&self, namespace: &str, name: &str, at: Instant) {
        self.0.change(namespace, name, |due| *due = Some(due.map_or(at, |due| due.min(at))));
    }

    /// A reconciliation starts, or the migration is gone.
    pub(super) fn remove(&self, namespace: &str, name: &str) {
        self.0.forget(namespace, name);
    }

    /// Migrations that are due at `now`.
    pub(super) fn depth(&self, now: Instant) -> usize {
        self.0.count(|due| due.is_some_and(|due| due <= now))
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
