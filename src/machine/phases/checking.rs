//! Validating and Monitoring: the new version runs; checks decide whether it stays.

use super::{Flow, approval::fmt_reason};
use crate::{
    api::{CheckOutcome, DecisionKind, Occasion, OnBreach, Phase, ReadyReason, RollbackPolicy, Stage, Step, Task},
    machine::{RunOutcome, Transition, notices::notice_key, steps::PlannedRetry},
    shared::time::to_signed,
};

impl Transition<'_> {
    /// Step, task and length of the present stage.
    pub(crate) fn stage(&self) -> (Step, Task, &Stage) {
        match self.phase() {
            Phase::Monitoring => (Step::Monitor, Task::Monitor, &self.spec.monitoring),
            _ => (Step::Validate, Task::Validate, &self.spec.validation),
        }
    }

    /// How the flag differs from what the switch has set, and what to do; `None` while it does not.
    pub(crate) fn flag_drift(&self) -> Option<String> {
        let flag = &self.spec.application.flag;
        if self.observed.flag_value() == Some(flag.to.as_str()) {
            return None;
        }
        Some(format!(
            "key {} of ConfigMap {} is {:?}, the schema is the one of {:?}; set the key to {3:?}; or, to go back, next: {}",
            flag.config_map_key_ref.key,
            flag.config_map_key_ref.name,
            self.observed.flag_value().unwrap_or("missing"),
            flag.to,
            self.observed.rollback_command()
        ))
    }

    /// Reports a flag that was moved: once by an event, and in the condition while it lasts.
    pub(crate) fn report_flag_drift(&mut self, text: String) {
        if self.reason.as_deref() != Some(ReadyReason::FlagDrifted.as_str()) {
            self.event(true, ReadyReason::FlagDrifted, text.clone());
        }
        self.set_ready(ReadyReason::FlagDrifted, text);
    }

    pub(crate) fn advance_checking(&mut self) -> Flow {
        let (step, task, stage) = self.stage();
        let (checks, duration) = (self.spec.checks_of(task), to_signed(stage.duration));
        if let Some(d) = self.stop_request(&[DecisionKind::Rollback, DecisionKind::Abort], None) {
            return self.start_rollback(
                ReadyReason::Rollback,
                format!("{:?} by {}{}", d.decision, d.by, fmt_reason(&d.reason)),
            );
        }
        // Before the run's failure is looked at: what it reported last counts, and what the controller measures needs no run.
        self.status.checks = self.results(task, &checks);
        let run = self.observed.run(task, self.attempt(step)).and_then(|r| r.run.status.as_ref());
        self.status.users_written = run.and_then(|s| s.users_written).or(self.status.users_written);
        for (check, result) in checks.iter().zip(self.status.checks.clone()) {
            if !result.breached {
                continue;
            }
            if check.on_breach == OnBreach::Rollback && self.spec.rollback.policy == RollbackPolicy::Automatic {
                return self.start_rollback(ReadyReason::TriggerFired, format!("{}: {}", check.name, result.message));
            }
            self.report_breach(step, &check.name, &result.message);
        }
        if let RunOutcome::Failed(reason, message) = self.observed.outcome(task, self.attempt(step)) {
            self.retry_stage_run(step, reason.as_str(), &message);
            // A flag that drifts does not wait for the run: it outweighs what keeps it from measuring.
            match self.flag_drift() {
                Some(text) => self.report_flag_drift(text),
                None => self.set_ready(reason.as_str(), message),
            }
            return Flow::Settled;
        }
        if let Some(text) = self.flag_drift() {
            self.report_flag_drift(text);
            return Flow::Settled;
        }
        let Some(started) = self.started_at(step) else { return Flow::Settled };
        let end = started + duration;
        if self.now < end {
            self.wake_at(end);
            let next =
                format!("{} checks, until {end:.0}; to go back: {}", checks.len(), self.observed.rollback_command());
            self.set_ready(ReadyReason::Progressing, next);
            return Flow::Settled;
        }
        let open: Vec<String> = checks
            .iter()
            .zip(&self.status.checks)
            .filter(|(c, r)| c.on_breach != OnBreach::Warn && r.outcome != CheckOutcome::Pass)
            .filter(|(c, r)| !self.idle_trigger(c, r))
            .map(|(_, r)| format!("{} {:?} ({})", r.name, r.outcome, r.message))
            .collect();
        if !open.is_empty() {
            let text = format!(
                "{}; {step:?} ends when they pass; to go back: {}",
                open.join("; "),
                self.observed.rollback_command()
            );
            self.notify(Occasion::ManualInterventionRequired, &notice_key("held", end), &text);
            self.set_ready(ReadyReason::ChecksNotPassing, text);
            return Flow::Settled;
        }
        let idle: Vec<&str> = checks
            .iter()
            .zip(&self.status.checks)
            .filter(|(c, r)| self.idle_trigger(c, r))
            .map(|(c, _)| c.name.as_str())
            .collect();
        let passed = self.status.checks.iter().filter(|r| r.outcome == CheckOutcome::Pass).count();
        let without =
            if idle.is_empty() { String::new() } else { format!("; nothing to measure: {}", idle.join(", ")) };
        self.succeed_step(step, format!("{passed} of {} checks pass{without}", checks.len()));
        if step == Step::Validate {
            self.enter(Phase::Monitoring);
            // A check of the same name is another check: its breach here is no breach there.
            self.status.checks.clear();
            self.start_step(Step::Monitor);
        } else {
            self.start_observing();
        }
        Flow::Continue
    }

    /// Without its run a stage has no data: another one follows, and the stage does not end meanwhile.
    fn retry_stage_run(&mut self, step: Step, reason: &str, message: &str) {
        let started = self.started_at(step);
        if self.start_due_retry(step) == PlannedRetry::None {
            self.retry_later(step, reason, message);
        }
        if let (Some(started), step_status) = (started, self.ensure_step(step)) {
            step_status.started_at = started;
        }
    }

    /// Reports the breach of a check that does not roll back: once.
    fn report_breach(&mut self, step: Step, check: &str, message: &str) {
        let step_status = self.ensure_step(step);
        if step_status.reported_breaches.iter().any(|name| name == check) {
            return;
        }
        let text = format!("{check}: {message}");
        step_status.reported_breaches.push(check.to_owned());
        step_status.message = Some(text.clone());
        self.event(true, ReadyReason::CheckBreached, text);
    }
}
