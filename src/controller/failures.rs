//! Reconciliations that fail in a row: when the next one follows, and which are reported on the object.

use std::time::Duration;

use super::{Error, per_migration::PerMigration};
use crate::api::{CreditMigrationStatus, Phase, ReadyReason, Writes};

/// Wait after the first failure. It doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait while writes are blocked.
const LONGEST_IN_WINDOW: Duration = Duration::from_secs(1);
/// Longest wait while a window is prepared, or the new version is being checked.
const LONGEST_UNDER_WAY: Duration = Duration::from_secs(15);
/// Longest wait otherwise: a refused request must not cost an API server that is overloaded already.
const LONGEST: Duration = Duration::from_secs(300);

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Reading, or the whole reconciliation by its time-out.
    Reconcile,
    /// Writing the status.
    PersistStatus,
    /// Applying an effect.
    ApplyEffect,
}

impl Activity {
    /// Reason of its Event.
    pub(super) fn event_reason(self) -> &'static str {
        match self {
            Activity::Reconcile => ReadyReason::ReconcileFailed.as_str(),
            Activity::PersistStatus => "StatusRefused",
            Activity::ApplyEffect => ReadyReason::EffectRefused.as_str(),
        }
    }

    /// Failures in a row from which on the controller reports it by itself; `None` if the next decision does. A failed
    /// read mostly succeeds a second later.
    fn reported_from(self) -> Option<u32> {
        match self {
            Activity::Reconcile => Some(3),
            Activity::PersistStatus => Some(1),
            Activity::ApplyEffect => None,
        }
    }
}

/// A reconciliation that failed.
pub(super) struct Failed {
    /// In what.
    pub(super) activity: Activity,
    /// Why.
    pub(super) error: Error,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { activity: Activity::Reconcile, error }
    }
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        Error::from(error).into()
    }
}

impl Failed {
    /// Whether the failure is reported on the object, the last of so many in a row: the first ones, then ever more
    /// rarely.
    pub(super) fn is_reported(&self, in_a_row: u32) -> bool {
        let Some(first) = self.activity.reported_from() else { return false };
        let due = in_a_row == first || (in_a_row > first && in_a_row.is_power_of_two());
        due && !self.is_of_no_object()
    }

    /// Nothing is wrong with the object: another leader was faster.
    fn is_of_no_object(&self) -> bool {
        matches!(self.error, Error::Conflict | Error::LeaseLost)
    }
}

/// Failures in a row, by namespace and name.
#[derive(Default)]
pub(crate) struct Failures(PerMigration<Record>);

/// What is known of one object.
#[derive(Clone, Debug, Default)]
struct Record {
    in_a_row: u32,
    /// What the API server refused last, of the effects.
    refused_effect: Option<String>,
    /// Longest wait that its last decision allows. The watch may lag behind that decision when requests fail.
    longest: Option<Duration>,
}

impl Failures {
    /// Remembers what was decided, before it is persisted.
    pub(super) fn decided(&self, namespace: &str, name: &str, status: &CreditMigrationStatus) {
        self.0.change(namespace, name, |record| record.longest = Some(longest_wait(status)));
    }

    /// Counts one more. Gives their number.
    pub(super) fn count(&self, namespace: &str, name: &str, failed: &Failed) -> u32 {
        self.0.change(namespace, name, |record| {
            record.in_a_row = record.in_a_row.saturating_add(1);
            if failed.activity == Activity::ApplyEffect && !failed.is_of_no_object() {
                record.refused_effect = Some(failed.error.to_string());
            }
            record.in_a_row
        })
    }

    /// Starts again from zero, after a success.
    pub(super) fn clear(&self, namespace: &str, name: &str) {
        self.0.change(namespace, name, |record| (record.in_a_row, record.refused_effect) = (0, None));
    }

    /// What the API server refused of the effects of the last decision; `None` once all could be applied.
    pub(super) fn refused_effect(&self, namespace: &str, name: &str) -> Option<String> {
        self.0.change(namespace, name, |record| record.refused_effect.clone())
    }

    /// Forgets an object that is gone.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        self.0.forget(namespace, name);
    }

    /// When the object is reconciled again: after 1, 2, 4 ... s, up to a limit that its last decision sets, or
    /// `watched` if there was none.
    pub(super) fn retry_after(&self, namespace: &str, name: &str, watched: Option<&CreditMigrationStatus>) -> Duration {
        let record = self.0.change(namespace, name, |record| record.clone());
        retry_after(record.in_a_row, record.longest.or(watched.map(longest_wait)).unwrap_or(LONGEST))
    }
}

/// Longest wait between two attempts.
fn longest_wait(status: &CreditMigrationStatus) -> Duration {
    if status.writes == Some(Writes::Blocked) {
        return LONGEST_IN_WINDOW;
    }
    match status.phase {
        Some(Phase::Executing | Phase::Validating | Phase::Monitoring | Phase::RollingBack) => LONGEST_UNDER_WAY,
        _ => LONGEST,
    }
}

fn retry_after(in_a_row: u32, longest: Duration) -> Duration {
    FIRST_WAIT.saturating_mul(1 << in_a_row.saturating_sub(1).min(16)).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout() -> Error {
        Error::Timeout(Duration::from_secs(30))
    }

    fn unread() -> Failed {
        timeout().into()
    }

    fn status(phase: Phase, writes: Writes) -> CreditMigrationStatus {
        CreditMigrationStatus { phase: Some(phase), writes: Some(writes), ..Default::default() }
    }

    #[test]
    fn retries_are_rarer_with_each_failure_but_not_while_writes_are_blocked() {
        let seconds = |status: &CreditMigrationStatus| {
            [0, 1, 2, 3, 5, 9, 10, 1000, u32::MAX].map(|n| retry_after(n, longest_wait(status)).as_secs())
        };
        assert_eq!(seconds(&CreditMigrationStatus::default()), [1, 1, 2, 4, 16, 256, 300, 300, 300]);
        assert_eq!(seconds(&status(Phase::AwaitingApproval, Writes::Open)), [1, 1, 2, 4, 16, 256, 300, 300, 300]);
        assert_eq!(seconds(&status(Phase::Monitoring, Writes::Open)), [1, 1, 2, 4, 15, 15, 15, 15, 15]);
        for phase in [Phase::Executing, Phase::RollingBack, Phase::RollbackFailed] {
            assert_eq!(seconds(&status(phase, Writes::Blocked)), [1; 9], "{phase}");
        }
    }

    #[test]
    fn what_was_decided_counts_more_than_what_the_watch_has_shown() {
        let failures = Failures::default();
        let open = status(Phase::AwaitingApproval, Writes::Open);
        for _ in 0..10 {
            failures.count("shop", "m", &unread());
        }
        assert_eq!(failures.retry_after("shop", "m", Some(&open)), LONGEST);
        failures.decided("shop", "m", &status(Phase::Executing, Writes::Blocked));
        assert_eq!(failures.retry_after("shop", "m", Some(&open)), LONGEST_IN_WINDOW);
    }

    #[test]
    fn a_failure_that_lasts_is_reported_ever_more_rarely() {
        let failed = |activity, error| Failed { activity, error };
        let reported = |failed: &Failed| (1..=40).filter(|n| failed.is_reported(*n)).collect::<Vec<_>>();
        assert_eq!(reported(&failed(Activity::PersistStatus, timeout())), [1, 2, 4, 8, 16, 32]);
        assert_eq!(reported(&unread()), [3, 4, 8, 16, 32]);
        assert_eq!(reported(&failed(Activity::ApplyEffect, timeout())), [0; 0], "the next decision reports it");
        for error in [Error::Conflict, Error::LeaseLost] {
            assert_eq!(reported(&failed(Activity::PersistStatus, error)), [0; 0], "nothing is wrong with the object");
        }
    }

    #[test]
    fn a_refused_effect_is_known_until_all_are_applied() {
        let failures = Failures::default();
        let refused = || failures.refused_effect("shop", "m");
        for (error, known) in [(Error::Conflict, false), (timeout(), true), (Error::Conflict, true)] {
            failures.count("shop", "m", &Failed { activity: Activity::ApplyEffect, error });
            assert_eq!(refused().is_some(), known);
        }
        failures.count("shop", "m", &unread());
        assert_eq!(refused(), Some(timeout().to_string()));
        failures.clear("shop", "m");
        assert_eq!(refused(), None);
    }

    #[test]
    fn failures_of_one_object_say_nothing_of_another() {
        let failures = Failures::default();
        let count = |name| failures.count("shop", name, &unread());
        assert_eq!([count("a"), count("a"), count("b")], [1, 2, 1]);
        failures.clear("shop", "a");
        assert_eq!([count("a"), count("b")], [1, 2]);
        failures.forget("shop", "a");
        assert_eq!(failures.0.count(|_| true), 1);
    }
}
