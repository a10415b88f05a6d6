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
    /// They do not show whether it works.
    NotShown(Violation),
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
                self.status.users_written = Some(evidence.users_written);
                self.status.credits_written.clone_from(&evidence.credits_written);
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
            // A window needs neither pg_dump nor the copy's server, and lets the down SQL act outside of the database:
            // writes are blocked.
            let not_shown =
                matches!(failed.reason, Reason::ServerTooNew | Reason::ServerTooOld | Reason::SqlOutsideDatabase);
            let now = match not_shown {
                true => "it does not show whether a rollback now would work",
                false => "a rollback now would fail as well",
            };
            let text = format!(
                "the rollback failed in its rehearsal of {:.0} ({}): {}; {now}",
                failed.at,
                failed.reason,
                Message::parse(&failed.message).text
            );
            let message = Message::new(text).next(logs(attempt));
            let violation = Violation { reason: ReadyReason::RollbackRehearsalFailed, message };
            return Some(if not_shown { Doubt::NotShown(violation) } else { Doubt::Fails(violation) });
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
        Some(Doubt::NotShown(Violation { reason: ReadyReason::RollbackRehearsalTooOld, message }))
    }

    /// What the last rehearsal that passed has shown, after what is known already, and how old it is. Balances that
    /// nothing explains are a finding: a rollback keeps them.
    pub(crate) fn with_rehearsed(&self, ready: Message) -> Message {
        let rehearsals = self.status.rollback_rehearsal.as_ref();
        let rehearsed = match rehearsals.and_then(RollbackRehearsalStatus::summary) {
            Some(summary) => format!("rehearsed {summary}"),
            None => {
                let before = self.step(Step::Rehearse).and_then(|step_status| step_status.finished_at);
                let at = before.map_or_else(String::new, |at| format!(", at {at:.0}"));
                format!("last rehearsed before the window{at}")
            }
        };
        let message = Message::new(format!("{}; {rehearsed}", ready.text));
        let passed = rehearsals.and_then(|rehearsals| rehearsals.passed.as_ref());
        match passed.and_then(|passed| passed.unexplained).unwrap_or_default() {
            0 => message,
            _ => message.next(format!("find out what wrote them: {}", self.observed.plugin("report", ""))),
        }
    }

    /// End of the last rehearsal that passed: without one since the window, of Monitoring, at whose end it was due.
    fn last_rehearsal(&self) -> Option<Time> {
        let passed = self.status.rollback_rehearsal.as_ref().and_then(|rehearsals| rehearsals.passed.as_ref());
        passed.map(|evidence| evidence.finished_at).or_else(|| self.step(Step::Monitor)?.finished_at)
    }
}
