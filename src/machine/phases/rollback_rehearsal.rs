//! The rollback, rehearsed again while the new version runs: at the end of Monitoring, then each day until the
//! decision.
//!
//! It runs in parallel to the observation and blocks nothing of it. A rollback that fails there is
//! `RollbackReady=False`; without a recent rehearsal `RollbackReady` is `Unknown`. `safeguards` reports both.
//! A rehearsal that could not be carried out says nothing about the rollback: it is retried.

use jiff::SignedDuration;

use crate::{
    api::{
        Phase, ReadyReason, Reason, Retry, RollbackRehearsalFailure, RollbackRehearsalMode, RollbackRehearsalStatus,
        Step, StepState, Task, Time,
    },
    machine::{RunOutcome, Transition, gates::Violation, steps::PlannedRetry},
    shared::message::Message,
};

/// From the end of one rehearsal to the next.
const INTERVAL: SignedDuration = SignedDuration::from_hours(24);
/// From a rehearsal that could not be carried out to the next.
const PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// Age from which a rehearsal says nothing of a rollback now: one day was missed.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(48);

/// What the rehearsals say against a rollback.
pub(crate) enum Doubt {
    /// It failed there.
    Fails(Violation),
    /// It was not rehearsed for long.
    TooOld(Violation),
}

impl Transition<'_> {
    /// Follows the rehearsals of the rollback, in parallel to the observation.
    pub(crate) fn advance_rollback_rehearsal(&mut self) {
        let mode = self.spec.rollback.rehearsal.mode;
        if mode == RollbackRehearsalMode::Never {
            return;
        }
        // What users read stays the observation.
        let shown = (self.status.step, self.reason.clone(), self.message.clone());
        self.follow_rollback_rehearsal(mode);
        (self.status.step, self.reason, self.message) = shown;
        let daily = mode == RollbackRehearsalMode::Daily;
        if let Some(last) = self.last_rehearsal().filter(|last| daily && self.now < *last + MAX_AGE) {
            self.wake_at(last + MAX_AGE);
        }
    }

    /// Ends what is planned or under way when the observation has ended: its run is removed.
    pub(crate) fn end_rollback_rehearsal(&mut self) {
        const STEP: Step = Step::RehearseRollback;
        let now = self.now;
        if self.phase() == Phase::Observing || self.step(STEP).is_none() {
            return;
        }
        let step_status = self.ensure_step(STEP);
        step_status.retry_at = None;
        if step_status.state == StepState::Running {
            step_status.state = StepState::Skipped;
            step_status.finished_at = Some(now);
            step_status.message = Some("the observation has ended".to_owned());
        }
    }

    fn follow_rollback_rehearsal(&mut self, mode: RollbackRehearsalMode) {
        const STEP: Step = Step::RehearseRollback;
        let Some(state) = self.step(STEP).map(|step_status| step_status.state) else { return self.start_step(STEP) };
        if self.start_due_retry(STEP) != PlannedRetry::None || state != StepState::Running {
            return;
        }
        let outcome = match self.observed.outcome(Task::RehearseRollback, self.attempt(STEP)) {
            RunOutcome::Pending => return,
            RunOutcome::Failed(reason, message) => Err((reason, message.to_string())),
            RunOutcome::Succeeded(run) => {
                let evidence = run.status.as_ref().and_then(|status| status.rollback_rehearsal.clone());
                evidence.ok_or((Reason::Internal, "the run reported success without a rehearsal".to_owned()))
            }
        };
        let now = self.now;
        match outcome {
            Ok(evidence) => {
                let summary = evidence.summary();
                self.status.rollback_rehearsal = Some(RollbackRehearsalStatus {
                    expected_window_seconds: Some(self.expected_rollback_seconds(&evidence)),
                    passed: Some(evidence),
                    failed: None,
                });
                self.succeed_step(STEP, summary);
            }
            Err((reason, message)) if reason.retry() == Retry::May => {
                self.retry_later(STEP, reason, &message);
                // Each attempt dumps the whole database.
                self.ensure_step(STEP).retry_at = Some(now + PAUSE);
                return self.wake_at(now + PAUSE);
            }
            Err((reason, message)) => {
                self.status.rollback_rehearsal.get_or_insert_default().failed =
                    Some(RollbackRehearsalFailure { reason, message: message.clone(), at: now });
                self.fail_step(STEP, reason, message);
            }
        }
        let step_status = self.ensure_step(STEP);
        step_status.failures = 0;
        // Also after a failure: rows and data change, and so may what fails.
        step_status.retry_at = (mode == RollbackRehearsalMode::Daily).then_some(now + INTERVAL);
        if let Some(at) = step_status.retry_at {
            self.wake_at(at);
        }
    }

    /// What the rehearsals say against a rollback; `None` if nothing.
    pub(crate) fn rollback_doubt(&self) -> Option<Doubt> {
        let mode = self.spec.rollback.rehearsal.mode;
        if self.phase() != Phase::Observing || mode == RollbackRehearsalMode::Never {
            return None;
        }
        let rehearsals = self.status.rollback_rehearsal.as_ref();
        let logs = |attempt: u32| {
            self.observed.kubectl(&format!("logs job/{}", self.observed.run_name(Task::RehearseRollback, attempt)))
        };
        let attempt = self.attempt(Step::RehearseRollback);
        if let Some(failed) = rehearsals.and_then(|rehearsals| rehearsals.failed.as_ref()) {
            let text = format!(
                "the rollback failed in its rehearsal of {:.0} ({}): {}; a rollback now would fail as well",
                failed.at,
                failed.reason,
                Message::parse(&failed.message).text
            );
            let message = Message::new(text).next(logs(attempt));
            return Some(Doubt::Fails(Violation { reason: ReadyReason::RollbackRehearsalFailed, message }));
        }
        let last = self.last_rehearsal()?;
        if mode != RollbackRehearsalMode::Daily || self.now < last + MAX_AGE {
            return None;
        }
        let text = format!(
            "the rollback was last rehearsed at {last:.0}, more than {} h ago (limit {} h)",
            MAX_AGE.as_hours(),
            MAX_AGE.as_hours()
        );
        let message = Message::new(text).next(logs(attempt));
        Some(Doubt::TooOld(Violation { reason: ReadyReason::RollbackRehearsalTooOld, message }))
    }

    /// What the last rehearsal that passed has shown, and how old it is.
    pub(crate) fn rollback_rehearsed(&self) -> String {
        let rehearsals = self.status.rollback_rehearsal.as_ref();
        if let Some(passed) = rehearsals.and_then(|rehearsals| rehearsals.passed.as_ref()) {
            let seconds = rehearsals.and_then(|rehearsals| rehearsals.expected_window_seconds).unwrap_or_default();
            let (at, summary) = (passed.finished_at, passed.summary());
            return format!("rehearsed at {at:.0}: {summary}; writes would be blocked for about {seconds} s");
        }
        let before = self.step(Step::Rehearse).and_then(|step_status| step_status.finished_at);
        let at = before.map_or_else(String::new, |at| format!(", at {at:.0}"));
        format!("last rehearsed before the window{at}")
    }

    /// End of the last rehearsal that passed: without one since the window, of Monitoring, at whose end it was due.
    fn last_rehearsal(&self) -> Option<Time> {
        let passed = self.status.rollback_rehearsal.as_ref().and_then(|rehearsals| rehearsals.passed.as_ref());
        passed.map(|evidence| evidence.finished_at).or_else(|| self.step(Step::Monitor)?.finished_at)
    }
}
