//! Validating and Monitoring: the new version runs; checks decide whether it stays.

use super::approval::because;
use crate::{
    api::{CheckOutcome, DecisionKind, Occasion, OnBreach, Phase, RollbackPolicy, Stage, Step, Task},
    machine::{Machine, Outcome, notices::at},
    shared::time::to_signed,
};

impl Machine<'_> {
    /// Step, task and length of the present stage.
    pub(crate) fn stage(&self) -> (Step, Task, &Stage) {
        match self.phase() {
            Phase::Monitoring => (Step::Monitor, Task::Monitor, &self.spec.monitoring),
            _ => (Step::Validate, Task::Validate, &self.spec.validation),
        }
    }

    /// Whether somebody has moved the flag since; told once.
    pub(crate) fn flag_drifted(&mut self) -> bool {
        let flag = &self.spec.application.flag;
        if self.o.flag_value() == Some(flag.to.as_str()) {
            return false;
        }
        let text = format!(
            "key {} of ConfigMap {} is {:?}, the schema is the one of {:?}; set the key to {3:?}; or, to go back, next: {}",
            flag.config_map_key_ref.key,
            flag.config_map_key_ref.name,
            self.o.flag_value().unwrap_or("missing"),
            flag.to,
            self.o.go_back()
        );
        if self.reason.as_deref() != Some("FlagDrifted") {
            self.event(true, "FlagDrifted", text.clone());
        }
        self.explain("FlagDrifted", text);
        true
    }

    pub(crate) fn advance_stage(&mut self) {
        let (step, task, stage) = self.stage();
        let (checks, duration) = (self.spec.checks_of(task), to_signed(stage.duration));
        if let Some(d) = self.stop_word(&[DecisionKind::Revert, DecisionKind::Abort], None) {
            return self.go_back("Revert", format!("{:?} by {}{}", d.decision, d.by, because(&d.reason)));
        }
        // Before the run's failure is looked at: what it reported last counts, and what the controller measures needs no run.
        self.s.checks = self.results(task, &checks);
        let run = self.o.run(task, self.attempt(step)).and_then(|r| r.run.status.as_ref());
        self.s.users_written = run.and_then(|s| s.users_written).or(self.s.users_written);
        for (check, result) in checks.iter().zip(self.s.checks.clone()) {
            if !result.breached {
                continue;
            }
            if check.on_breach == OnBreach::Rollback && self.spec.rollback.policy == RollbackPolicy::Automatic {
                return self.go_back("TriggerFired", format!("{}: {}", check.name, result.message));
            }
            self.warn_once(step, &check.name, &result.message);
        }
        if let Outcome::Failed(reason, message) = self.o.outcome(task, self.attempt(step)) {
            self.measure_anew(step, reason.as_str(), &message);
            // A flag that drifts does not wait for the run: it outweighs what keeps it from measuring.
            if !self.flag_drifted() {
                self.explain(reason.as_str(), message);
            }
            return;
        }
        if self.flag_drifted() {
            return;
        }
        let Some(started) = self.step(step).map(|x| x.started_at) else { return };
        let end = started + duration;
        if self.now < end {
            self.wake_at(end);
            let next = format!("{} checks, until {end:.0}; to go back: {}", checks.len(), self.o.go_back());
            return self.explain("Progressing", next);
        }
        let open: Vec<String> = checks
            .iter()
            .zip(&self.s.checks)
            .filter(|(c, r)| c.on_breach != OnBreach::Warn && r.outcome != CheckOutcome::Pass)
            .filter(|(c, r)| !self.idle_trigger(c, r))
            .map(|(_, r)| format!("{} {:?} ({})", r.name, r.outcome, r.message))
            .collect();
        if !open.is_empty() {
            let text = format!("{}; {step:?} ends when they pass; to go back: {}", open.join("; "), self.o.go_back());
            self.tell(Occasion::PersonNeeded, &at("held", end), &text);
            return self.explain("ChecksNotPassing", text);
        }
        let idle: Vec<&str> = checks
            .iter()
            .zip(&self.s.checks)
            .filter(|(c, r)| self.idle_trigger(c, r))
            .map(|(c, _)| c.name.as_str())
            .collect();
        let passed = self.s.checks.iter().filter(|r| r.outcome == CheckOutcome::Pass).count();
        let without =
            if idle.is_empty() { String::new() } else { format!("; nothing to measure: {}", idle.join(", ")) };
        self.succeed_step(step, format!("{passed} of {} checks pass{without}", checks.len()));
        if step == Step::Validate {
            self.enter(Phase::Monitoring);
            // A check of the same name is another check: its breach here is no breach there.
            self.s.checks.clear();
            self.start_step(Step::Monitor);
            return self.advance_stage();
        }
        self.begin_observing();
    }

    /// Without its run a stage has no data: another one follows, and the stage does not end meanwhile.
    fn measure_anew(&mut self, step: Step, reason: &str, message: &str) {
        let started = self.step(step).map(|x| x.started_at);
        if self.retry_due(step).is_none() {
            self.retry_later(step, reason, message, 60);
        }
        if let (Some(started), x) = (started, self.step_mut(step)) {
            x.started_at = started;
        }
    }

    fn warn_once(&mut self, step: Step, check: &str, message: &str) {
        let text = format!("{check}: {message}");
        if self.step(step).and_then(|x| x.message.as_deref()).is_some_and(|m| m.starts_with(&format!("{check}:"))) {
            return;
        }
        self.step_mut(step).message = Some(text.clone());
        self.event(true, "CheckBreached", text);
    }
}
