//! Observing: the new version runs; after a day and after a week it is looked at, with a report each; then a person decides.
//!
//! Nothing goes back by itself any more: after so long that is a decision about everything written since. A breach is told.

use super::approval::because;
use crate::{
    api::{CheckOutcome, DecisionKind, MigrationRun, Occasion, Phase, Step, StepState, Task, Time},
    machine::{Machine, Outcome, notices::at},
    shared::time::{saturating_add, seconds, to_signed},
};

/// Longest wait between two tries of a follow-up.
const RETRY_SECONDS: i64 = 300;

impl Machine<'_> {
    pub(crate) fn begin_observing(&mut self) {
        self.enter(Phase::Observing);
        self.s.checks.clear();
        self.await_follow_up(Step::DayCheck);
        self.advance_observing();
    }

    /// When writes were opened on the new version.
    pub(crate) fn cut_over_at(&self) -> Option<Time> {
        self.s.window.as_ref().filter(|w| w.task == Some(Task::Window))?.released_at
    }

    /// Plans a follow-up for its time.
    fn await_follow_up(&mut self, step: Step) {
        let after =
            if step == Step::DayCheck { self.spec.follow_ups.day_after() } else { self.spec.follow_ups.week_after() };
        let due = saturating_add(self.cut_over_at().unwrap_or(self.now), to_signed(after));
        self.s.step = Some(step);
        let x = self.step_mut(step);
        x.state = StepState::Running;
        x.retry_at = Some(due);
    }

    pub(crate) fn advance_observing(&mut self) {
        if let Some(d) = self.stop_word(&[DecisionKind::Revert, DecisionKind::Abort], None) {
            return self.go_back("Revert", format!("{:?} by {}{}", d.decision, d.by, because(&d.reason)));
        }
        let drifted = self.flag_drifted();
        let (step, task) = match self.s.step {
            Some(Step::Decide) => return self.advance_decide(drifted),
            Some(Step::WeekReview) => (Step::WeekReview, Task::WeekReview),
            _ => (Step::DayCheck, Task::DayCheck),
        };
        if self.retry_due(step) == Some(false) {
            let due = self.step(step).and_then(|x| x.retry_at).unwrap_or(self.now);
            if !drifted && self.step(step).is_none_or(|x| x.failures == 0) {
                let text = format!("{step:?} at {due:.0}; to go back: {}", self.o.go_back());
                self.explain("Observing", text);
            }
            return;
        }
        match self.o.outcome(task, self.attempt(step)) {
            Outcome::Pending if drifted => {}
            Outcome::Pending => self.explain("Observing", format!("{step:?} is under way")),
            Outcome::Failed(reason, message) => {
                self.retry_later(step, reason.as_str(), &message, RETRY_SECONDS);
            }
            Outcome::Succeeded(run) => {
                let run = run.clone();
                self.take_report(step, &run);
            }
        }
    }

    fn take_report(&mut self, step: Step, run: &MigrationRun) {
        let status = run.status.clone().unwrap_or_default();
        let Some(report) = status.report else {
            self.retry_later(step, "Internal", "the run reported success without a report", RETRY_SECONDS);
            return;
        };
        for r in status.checks.iter().filter(|r| r.outcome != CheckOutcome::Pass || r.breached) {
            self.event(true, "CheckBreached", format!("{step:?}: {}: {:?}, {}", r.name, r.outcome, r.message));
        }
        self.s.checks = status.checks;
        self.s.users_written = status.users_written.or(self.s.users_written);
        let text = format!("{}; report: {}", report.summary, report.object);
        self.succeed_step(step, text.clone());
        let attempt = self.attempt(step);
        if step == Step::DayCheck {
            self.s.day_report = Some(report);
            self.tell(Occasion::DayReport, &format!("day.{attempt}"), &text);
            self.await_follow_up(Step::WeekReview);
        } else {
            self.s.week_report = Some(report);
            self.tell(Occasion::WeekReport, &format!("week.{attempt}"), &text);
            self.start_step(Step::Decide);
        }
        self.advance_observing();
    }

    /// Waits for a person's word, and reminds.
    fn advance_decide(&mut self, drifted: bool) {
        let Some(asked) = self.step(Step::Decide).map(|x| x.started_at) else { return };
        let digest = self.s.plan.as_ref().and_then(|p| p.digest.clone());
        // What was said before the week was over was said without its report. Times of decisions are whole seconds, cut off.
        let word = self
            .decisions(DecisionKind::Keep, Some(asked - seconds(1)))
            .find(|d| d.digest == digest && d.by != self.spec.requested_by)
            .cloned();
        if let (Some(d), false) = (word, drifted) {
            let text = format!("{} keeps the new version{}", d.by, because(&d.reason));
            self.succeed_step(Step::Decide, text.clone());
            self.enter(Phase::Completed);
            self.event(false, "Completed", text.clone());
            self.explain("Completed", text);
            return self.advance_ended();
        }
        let interval = to_signed(self.spec.follow_ups.reminder_interval);
        let report = self.s.week_report.as_ref().map(|r| r.object.clone()).unwrap_or_default();
        let text = format!(
            "keep or revert? asked since {asked:.0}, report: {report}; next: {}; or, to go back: {}",
            self.o.plugin("keep", ""),
            self.o.go_back()
        );
        if self.s.reminded_at.is_none_or(|t| self.now >= t + interval) {
            self.s.reminded_at = Some(self.now);
            self.event(true, "DecisionDue", text.clone());
            self.tell(Occasion::DecisionDue, &at("decision", self.now), &text);
        }
        if let Some(t) = self.s.reminded_at {
            self.wake_at(t + interval);
        }
        if !drifted {
            self.explain("DecisionDue", text);
        }
    }
}
