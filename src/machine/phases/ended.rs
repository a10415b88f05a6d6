//! The ends: triggers are removed from the database, the finalizer is removed. A failed preparation starts again when
//! its inputs change.

use super::Flow;
use crate::{
    api::{DecisionKind, Phase, ReadyReason, Step, StepState, Task},
    machine::{RunOutcome, Transition, steps::PlannedRetry},
};

/// Attempts of a clean-up for a deleted migration, after which its triggers stay in the database.
const DELETED_CLEANUP_ATTEMPTS: u32 = 5;

impl Transition<'_> {
    pub(crate) fn advance_ended(&mut self) -> Flow {
        let inputs_changed = self.phase() == Phase::Failed && self.inputs_changed() && !self.observed.deleting;
        self.advance_cleanup();
        // Not while triggers are being removed: the next Backup installs them again.
        if inputs_changed && self.is_cleaned_up() {
            self.restart("spec or SQL changed");
            return Flow::Continue;
        }
        if self.phase() == Phase::Failed
            && self.is_cleaned_up()
            && let Some(request) = self.stop_request(&[DecisionKind::Abort], None)
        {
            self.enter(Phase::Cancelled);
            self.set_ready(ReadyReason::Aborted, format!("cancelled by {}; nothing was changed", request.by));
        }
        Flow::Settled
    }

    /// Triggers are installed by the Backup task; from then on there is something to remove.
    fn triggers_may_be_installed(&self) -> bool {
        self.step(Step::Baseline).is_some()
    }

    /// Nothing of ours is left in the database.
    fn is_cleaned_up(&self) -> bool {
        if !self.triggers_may_be_installed() {
            return true;
        }
        let (Some(clean), Some(up)) = (self.step(Step::Cleanup), self.step(Step::Baseline)) else { return false };
        clean.state == StepState::Succeeded && clean.finished_at.is_some_and(|t| t >= up.started_at)
    }

    fn advance_cleanup(&mut self) {
        if self.is_cleaned_up() {
            return;
        }
        let step = self.status.step;
        let (reason, message) = (self.reason.clone(), self.message.clone());
        if self.step(Step::Cleanup).is_none_or(|step_status| step_status.state != StepState::Running) {
            self.start_step(Step::Cleanup);
        } else if self.start_due_retry(Step::Cleanup) != PlannedRetry::NotYet {
            match self.observed.outcome(Task::Cleanup, self.attempt(Step::Cleanup)) {
                RunOutcome::Pending => {}
                RunOutcome::Succeeded(_) => {
                    self.succeed_step(Step::Cleanup, "triggers removed; the record stays in schema credit_migration")
                }
                RunOutcome::Failed(reason, message) => {
                    self.retry_later(Step::Cleanup, reason, &message.to_string());
                }
            }
        }
        // What users read stays the end of the migration, not the clean-up after it.
        self.status.step = step;
        self.reason = reason;
        self.message = message;
    }

    /// Deletion: before the window nothing is lost; inside it the change is undone; after it the new version stays.
    pub(crate) fn advance_deletion(&mut self) {
        if !self.observed.deleting {
            return;
        }
        match self.phase() {
            Phase::Preparing | Phase::AwaitingApproval => self.cancel_deleted(),
            Phase::Executing if self.deadline().is_none() => self.cancel_deleted(),
            Phase::Validating | Phase::Monitoring | Phase::Observing => {
                self.enter(Phase::Completed);
                self.set_ready(ReadyReason::Deleted, "deleted while it was being watched; the new version stays");
            }
            // Executing rolls back by itself; RollingBack ends; RollbackFailed keeps the finalizer: writes may be
            // blocked.
            Phase::Executing | Phase::RollingBack | Phase::RollbackFailed => {}
            Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled => {}
        }
    }

    fn cancel_deleted(&mut self) {
        self.enter(Phase::Cancelled);
        self.set_ready(ReadyReason::Deleted, "deleted before its window; nothing was changed");
    }

    /// Says that triggers stay in the database when the finalizer goes without a clean-up.
    pub(crate) fn report_triggers_left(&mut self) {
        if self.observed.finalizer && self.may_remove_finalizer() && !self.is_cleaned_up() {
            self.event(
                true,
                ReadyReason::TriggersLeft,
                "the database could not be reached; next: drop the triggers named credit_migration_* and \
                 schema credit_migration by hand",
            );
        }
    }

    /// The finalizer may go.
    pub(crate) fn may_remove_finalizer(&self) -> bool {
        let ended = matches!(self.phase(), Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled);
        let tries = self.failures(Step::Cleanup);
        self.observed.deleting && ended && (self.is_cleaned_up() || tries >= DELETED_CLEANUP_ATTEMPTS)
    }
}
