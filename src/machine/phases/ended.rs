//! The ends: triggers are removed from the database, the finalizer is removed. A failed preparation starts again when
//! its inputs change.

use super::Flow;
use crate::{
    api::{Phase, ReadyReason, Step, StepState, Task},
    machine::{RunOutcome, Transition, steps::PlannedRetry},
    shared::message::Message,
};

/// Removes all triggers of the operator, with their functions.
const DROP_TRIGGERS: &str =
    "DROP FUNCTION IF EXISTS credit_migration.block_writes(), credit_migration.track_changes() CASCADE";

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
            && let Some(request) = self.cancel_request()
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
            // Nothing can be started there, and no one has to undo what is not under way.
            Phase::RollingBack if self.observed.namespace_deleting && !self.may_be_blocked() => {
                self.enter(Phase::Completed);
                self.set_ready(
                    ReadyReason::Deleted,
                    "deleted with its namespace before the rollback blocked writes; the new version stays",
                );
            }
            // Executing rolls back by itself; RollingBack ends; RollbackFailed keeps the finalizer: writes may be
            // blocked.
            Phase::Executing | Phase::RollingBack | Phase::RollbackFailed => {}
            Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled => {}
        }
    }

    fn cancel_deleted(&mut self) {
        self.call_off("the CreditMigration was deleted before its window; nothing was changed");
        self.enter(Phase::Cancelled);
        self.set_ready(ReadyReason::Deleted, "deleted before its window; nothing was changed");
    }

    /// Says that triggers stay in the database when the finalizer goes without a clean-up.
    pub(crate) fn report_triggers_left(&mut self) {
        if self.observed.finalizer && self.may_remove_finalizer() && !self.is_cleaned_up() {
            let why = if self.observed.namespace_deleting {
                "no Job can be started in a namespace that is being deleted".to_owned()
            } else {
                format!("Cleanup failed {} times", self.failures(Step::Cleanup))
            };
            let text = format!("{why}; the triggers stay in database {}", self.spec.database.name);
            let next = format!("run in that database, as its migration role: {DROP_TRIGGERS}");
            self.event(true, ReadyReason::TriggersLeft, Message::new(text).next(next).to_string());
        }
    }

    /// The finalizer may go. In a namespace that is being deleted no Cleanup can start: all ended phases have writes
    /// unblocked, so the triggers that stay refuse nothing.
    pub(crate) fn may_remove_finalizer(&self) -> bool {
        let ended = matches!(self.phase(), Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled);
        let tries = self.failures(Step::Cleanup);
        let hopeless = self.observed.namespace_deleting || tries >= DELETED_CLEANUP_ATTEMPTS;
        self.observed.deleting && ended && (self.is_cleaned_up() || hopeless)
    }
}
