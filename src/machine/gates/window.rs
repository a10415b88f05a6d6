//! The window: does what it is expected to take fit into what it may take.

use super::Violation;
use crate::{
    api::{ExpectedRollout, ExpectedWindow, ReadyReason, RollbackRehearsalEvidence, WorkloadRef},
    machine::Transition,
    shared::message::Message,
};

/// The expected window is not longer than `spec.window.maxDuration`. Before the rehearsal the rollouts alone count.
pub(super) fn check(transition: &Transition<'_>) -> Option<Violation> {
    let expected = transition.expected_window();
    let limit = transition.spec.window.max_duration;
    if expected.seconds <= std::time::Duration::from(limit).as_secs() {
        return None;
    }
    Some(Violation {
        reason: ReadyReason::WindowTooShort,
        message: Message::new(format!(
            "the window is expected to take {}; spec.window.maxDuration is {limit}",
            expected.summary()
        ))
        .next("raise spec.window.maxDuration, or shorten what takes longest"),
    })
}

impl Transition<'_> {
    /// What the window is expected to take, as far as it is known.
    pub(crate) fn expected_window(&self) -> ExpectedWindow {
        let rehearsal = self.status.rehearsal.as_ref();
        ExpectedWindow::new(
            rehearsal.map_or(0.0, |r| r.migrate_seconds),
            rehearsal.map_or(0.0, |r| r.compare_seconds),
            self.rollouts(),
        )
    }

    /// Seconds that the window of a rollback is expected to take. Its SQL follows the rollout.
    pub(crate) fn expected_rollback_seconds(&self, rehearsed: &RollbackRehearsalEvidence) -> u64 {
        let RollbackRehearsalEvidence { rollback_seconds, compare_seconds, .. } = rehearsed;
        let sql = ExpectedWindow::new(*rollback_seconds, *compare_seconds, vec![]);
        sql.seconds + self.rollouts().iter().map(|rollout| rollout.seconds).max().unwrap_or_default()
    }

    /// The rollout of each workload that is restarted, as far as it is known.
    fn rollouts(&self) -> Vec<ExpectedRollout> {
        let wanted = &self.spec.application.workloads;
        let rollout = |wanted: &WorkloadRef| self.observed.workloads.iter().find(|w| w.reference == *wanted);
        wanted.iter().filter_map(|wanted| rollout(wanted)?.rollout.clone()).collect()
    }

    /// Keeps the expected window in the plan, for those who approve it.
    pub(crate) fn record_expected_window(&mut self) {
        let expected = self.expected_window();
        if let Some(plan) = &mut self.status.plan {
            plan.expected_window = Some(expected);
        }
    }
}
