//! Observing: the new version runs; it is checked after a day and after a week, with a report each; then an approver
//! decides.
//!
//! There is no automatic rollback any more: it would affect everything written since. A breach is reported.

use super::{Flow, approval::fmt_reason};
use crate::{
    api::{
        CheckOutcome, DecisionKind, MigrationRun, Occasion, Phase, ReadyReason, Reason, Step, StepState, Task, Time,
    },
    machine::{RunOutcome, Transition, notices::notice_key, steps::PlannedRetry},
    shared::time::{saturating_add, to_signed},
};

impl Transition<'_> {
    pub(crate) fn start_observing(&mut self) {
        self.enter(Phase::Observing);
        self.status.checks.clear();
        self.schedule_follow_up(Step::DayCheck);
    }

    /// When writes were unblocked on the new version.
    pub(crate) fn cutover_at(&self) -> Option<Time> {
        self.status.window.as_ref().filter(|w| w.task == Some(Task::Window))?.unblocked_at
    }

    /// Plans a follow-up for its time.
    fn schedule_follow_up(&mut self, step: Step) {
        let after =
            if step == Step::DayCheck { self.spec.follow_ups.day_after() } else { self.spec.follow_ups.week_after() };
        let due = saturating_add(self.cutover_at().unwrap_or(self.now), to_signed(after));
        self.status.step = Some(step);
        let step_status = self.ensure_step(step);
        step_status.state = StepState::Running;
        step_status.retry_at = Some(due);
    }

    pub(crate) fn advance_observing(&mut self) -> Flow {
        if let Some(d) = self.rollback_request() {
            return self
                .start_rollback(ReadyReason::Rollback, format!("{} by {}{}", d.decision, d.by, fmt_reason(&d.reason)));
        }
        self.advance_rollback_rehearsal();
        let drift = self.flag_drift();
        let drifted = drift.is_some();
        if let Some(text) = drift {
            self.report_flag_drift(&text);
        }
        let (step, task) = match self.status.step {
            Some(Step::Decide) => return self.advance_decide(drifted),
            Some(Step::WeekReview) => (Step::WeekReview, Task::WeekReview),
            _ => (Step::DayCheck, Task::DayCheck),
        };
        if self.start_due_retry(step) == PlannedRetry::NotYet {
            let due = self.step(step).and_then(|step_status| step_status.retry_at).unwrap_or(self.now);
            if !drifted && self.failures(step) == 0 {
                let text = format!("{step} at {due:.0}; to roll back: {}", self.observed.rollback_command());
                self.set_ready(ReadyReason::Observing, text);
            }
            return Flow::Settled;
        }
        match self.observed.outcome(task, self.attempt(step)) {
            RunOutcome::Pending if drifted => {}
            RunOutcome::Pending => self.set_ready(ReadyReason::Observing, format!("{step} is under way")),
            RunOutcome::Failed(reason, message) => {
                self.retry_later(step, reason, &message.to_string());
            }
            RunOutcome::Succeeded(run) => {
                let run = run.clone();
                return self.record_report(step, &run);
            }
        }
        Flow::Settled
    }

    fn record_report(&mut self, step: Step, run: &MigrationRun) -> Flow {
        let status = run.status.clone().unwrap_or_default();
        self.record_balances(&status);
        let Some(report) = status.report else {
            self.retry_later(step, Reason::Internal, "the run reported success without a report");
            return Flow::Settled;
        };
        for r in status.checks.iter().filter(|r| r.outcome != CheckOutcome::Pass || r.breached) {
            self.event(true, ReadyReason::CheckBreached, format!("{step}: {}: {}, {}", r.name, r.outcome, r.message));
        }
        self.status.checks = status.checks;
        let text = format!("{}; report: {}", report.summary, report.object);
        self.succeed_step(step, text.clone());
        let attempt = self.attempt(step);
        if step == Step::DayCheck {
            self.status.day_report = Some(report);
            self.notify(Occasion::DayReport, &format!("day.{attempt}"), &text);
            self.schedule_follow_up(Step::WeekReview);
        } else {
            self.status.week_report = Some(report);
            self.notify(Occasion::WeekReport, &format!("week.{attempt}"), &text);
            // What was said up to now was said without the report.
            self.ask_for(DecisionKind::Keep);
            self.start_step(Step::Decide);
        }
        Flow::Continue
    }

    /// Waits for a decision, and reminds.
    fn advance_decide(&mut self, drifted: bool) -> Flow {
        let Some(asked) = self.started_at(Step::Decide) else { return Flow::Settled };
        let digest = self.status.plan.as_ref().and_then(|p| p.digest.clone());
        let mut answers = self.answers(DecisionKind::Keep);
        let keep = answers.find(|d| d.digest == digest && d.by != self.spec.requested_by).cloned();
        drop(answers);
        if let (Some(d), false) = (keep, drifted) {
            let text = format!("{} keeps the new version{}", d.by, fmt_reason(&d.reason));
            self.succeed_step(Step::Decide, text.clone());
            self.enter(Phase::Completed);
            self.event(false, ReadyReason::Completed, text.clone());
            self.set_ready(ReadyReason::Completed, text);
            return Flow::Continue;
        }
        let interval = to_signed(self.spec.follow_ups.reminder_interval);
        let report = self.status.week_report.as_ref().map(|r| r.object.clone()).unwrap_or_default();
        let text = format!(
            "keep or roll back? asked since {asked:.0}, report: {report}; next: {}; or, to roll back: {}",
            self.observed.plugin("keep", ""),
            self.observed.rollback_command()
        );
        if self.status.reminded_at.is_none_or(|t| self.now >= t + interval) {
            self.status.reminded_at = Some(self.now);
            self.event(true, ReadyReason::DecisionDue, text.clone());
            self.notify(Occasion::DecisionDue, &notice_key("decision", self.now), &text);
        }
        if let Some(t) = self.status.reminded_at {
            self.wake_at(t + interval);
        }
        if !drifted {
            self.set_ready(ReadyReason::DecisionDue, text);
        }
        Flow::Settled
    }
}
