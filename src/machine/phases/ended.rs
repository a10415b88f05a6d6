//! The ends: triggers are removed from the database, parked tables are dropped later, the finalizer is removed. A
//! failed preparation starts again when its inputs change.

use super::Flow;
use crate::{
    api::{Phase, ReadyReason, Step, StepState, Task, Time},
    machine::{RunOutcome, Transition, steps::PlannedRetry},
    shared::{
        message::Message,
        time::{saturating_add, to_signed},
    },
};

/// Removes all triggers of the operator, with their functions.
const DROP_TRIGGERS: &str =
    "DROP FUNCTION IF EXISTS credit_migration.block_writes(), credit_migration.track_changes() CASCADE";

/// Attempts of a clean-up for a deleted migration, after which its triggers stay in the database.
const DELETED_CLEANUP_ATTEMPTS: u32 = 5;

impl Transition<'_> {
    pub(crate) fn advance_ended(&mut self) -> Flow {
        let inputs_changed = self.phase() == Phase::Failed && self.inputs_changed() && !self.observed.deleting;
        self.aside(Self::advance_cleanup);
        self.aside(Self::advance_drop_parked);
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

    /// What users read stays the end of the migration, not what is done after it.
    fn aside(&mut self, advance: fn(&mut Self)) {
        let step = self.status.step;
        let (reason, message) = (self.reason.clone(), self.message.clone());
        advance(self);
        self.status.step = step;
        self.reason = reason;
        self.message = message;
    }

    fn advance_cleanup(&mut self) {
        if self.is_cleaned_up() {
            return;
        }
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
    }

    /// Parked tables are dropped a while after someone has decided to keep the new version. Nothing waits for it, and
    /// it waits for Cleanup: from then on the database may belong to another migration.
    fn advance_drop_parked(&mut self) {
        let (Some(park), Some(kept_at)) = (&self.spec.migration.park, self.kept_at()) else { return };
        if !self.is_cleaned_up() || self.succeeded(Step::DropParked) {
            return;
        }
        if self.step(Step::DropParked).is_none() {
            let due = saturating_add(kept_at, to_signed(park.drop_after));
            let text = format!("{} are dropped from schema {} at {due:.0}", park.tables.join(", "), park.schema);
            let step_status = self.ensure_step(Step::DropParked);
            step_status.retry_at = Some(due);
            step_status.message = Some(text);
        }
        if self.start_due_retry(Step::DropParked) != PlannedRetry::NotYet {
            match self.observed.outcome(Task::DropParked, self.attempt(Step::DropParked)) {
                RunOutcome::Pending => {}
                RunOutcome::Succeeded(_) => self.succeed_step(Step::DropParked, "the parked tables are dropped"),
                RunOutcome::Failed(reason, message) => {
                    self.retry_later(Step::DropParked, reason, &message.to_string());
                }
            }
        }
    }

    /// When someone decided to keep the new version.
    fn kept_at(&self) -> Option<Time> {
        let decided = self.step(Step::Decide).filter(|step_status| step_status.state == StepState::Succeeded)?;
        decided.finished_at.filter(|_| self.phase() == Phase::Completed)
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
        self.cancel_maintenance("the CreditMigration was deleted before its window; nothing was changed");
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

    /// Says that parked tables stay in the database when the migration goes before they are dropped.
    pub(crate) fn report_parked_left(&mut self) {
        let Some(park) = &self.spec.migration.park else { return };
        let parked = self.phase() == Phase::Completed && !self.succeeded(Step::DropParked);
        if self.observed.finalizer && self.may_remove_finalizer() && parked {
            let (tables, database) = (park.tables.join(", "), &self.spec.database.name);
            let text = format!("{tables} stay parked in schema {} of database {database}", park.schema);
            let next = format!("once no one needs them, run in that database: {}", park.drop_statement());
            self.event(true, ReadyReason::ParkedTablesLeft, Message::new(text).next(next).to_string());
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
