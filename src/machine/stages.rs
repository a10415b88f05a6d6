//! Validating and Monitoring: the new version runs; checks decide whether it stays.

use super::{Machine, Outcome, preparing::because, span};
use crate::api::{
    Check, CheckResult, Decision, OnBreach, Outcome as Measured, Phase, RollbackPolicy, Stage, Step, Task,
};

impl Machine<'_> {
    /// Step, task and checks of the present stage.
    pub(super) fn stage(&self) -> (Step, Task, &Stage) {
        match self.phase() {
            Phase::Monitoring => (Step::Monitor, Task::Monitor, &self.spec.monitoring),
            _ => (Step::Validate, Task::Validate, &self.spec.validation),
        }
    }

    pub(super) fn advance_stage(&mut self) {
        let (step, task, stage) = self.stage();
        let (checks, duration) = (stage.checks.clone(), span(stage.duration));
        if let Some(d) = self.stop_word(&[Decision::Revert, Decision::Abort], None) {
            return self.go_back("Revert", format!("{:?} by {}{}", d.decision, d.by, because(&d.reason)));
        }
        if let Outcome::Failed(reason, message) = self.o.outcome(task, self.attempt(step)) {
            // Without its run a stage has no data: it is measured anew, and the stage does not end meanwhile.
            let started = self.step(step).map(|x| x.started_at);
            if self.retry_due(step).is_none() {
                self.retry_later(step, reason.as_str(), &message, 60);
            }
            if let (Some(started), x) = (started, self.step_mut(step)) {
                x.started_at = started;
            }
            return;
        }
        self.s.checks = self.results(task, &checks);
        for (check, result) in checks.iter().zip(self.s.checks.clone()) {
            if !result.breached {
                continue;
            }
            if check.on_breach == OnBreach::Rollback && self.spec.rollback.policy == RollbackPolicy::Automatic {
                return self.go_back("TriggerFired", format!("{}: {}", check.name, result.message));
            }
            self.warn_once(step, &check.name, &result.message);
        }
        let flag = &self.spec.application.flag;
        if self.o.flag_value() != Some(flag.to.as_str()) {
            let text = format!(
                "key {} of ConfigMap {} is {:?}, the schema is the one of {:?}; next: set the key to {3:?}, or go back: kubectl creditmigration rollback {} --confirm",
                flag.config_map_key_ref.key,
                flag.config_map_key_ref.name,
                self.o.flag_value().unwrap_or("missing"),
                flag.to,
                self.o.name
            );
            if self.reason.as_deref() != Some("FlagDrifted") {
                self.event(true, "FlagDrifted", text.clone());
            }
            return self.explain("FlagDrifted", text);
        }
        let Some(started) = self.step(step).map(|x| x.started_at) else { return };
        let end = started + duration;
        if self.now < end {
            self.wake_at(end);
            let next = format!(
                "{} checks, until {end:.0}; to go back: kubectl creditmigration rollback {} --confirm",
                checks.len(),
                self.o.name
            );
            return self.explain("Progressing", next);
        }
        let open: Vec<String> = checks
            .iter()
            .zip(&self.s.checks)
            .filter(|(c, r)| c.on_breach != OnBreach::Warn && r.outcome != Measured::Pass)
            .map(|(_, r)| format!("{} {:?} ({})", r.name, r.outcome, r.message))
            .collect();
        if !open.is_empty() {
            return self.explain(
                "ChecksNotPassing",
                format!(
                    "{}; {step:?} ends when they pass; to go back: kubectl creditmigration rollback {} --confirm",
                    open.join("; "),
                    self.o.name
                ),
            );
        }
        self.succeed_step(step, format!("{} of {0} checks pass", checks.len()));
        if step == Step::Validate {
            self.enter(Phase::Monitoring);
            // A check of the same name is another check: its breach here is no breach there.
            self.s.checks.clear();
            self.start_step(Step::Monitor);
            return self.advance_stage();
        }
        self.enter(Phase::Completed);
        self.explain("Completed", "the new version stays");
        self.event(false, "Completed", "the new version stays");
        self.advance_ended();
    }

    fn warn_once(&mut self, step: Step, check: &str, message: &str) {
        let text = format!("{check}: {message}");
        if self.step(step).and_then(|x| x.message.as_deref()).is_some_and(|m| m.starts_with(&format!("{check}:"))) {
            return;
        }
        self.step_mut(step).message = Some(text.clone());
        self.event(true, "CheckBreached", text);
    }

    /// Results in the order of the checks; what was not measured is NoData, which is never success.
    fn results(&self, task: Task, checks: &[Check]) -> Vec<CheckResult> {
        let (step, ..) = self.stage();
        let run = self.o.run(task, self.attempt(step));
        let reported = run.and_then(|r| r.run.status.as_ref()).map(|s| s.checks.as_slice()).unwrap_or_default();
        checks
            .iter()
            .map(|check| match &check.workload {
                Some(_) => self.workload_result(check),
                None => {
                    reported.iter().find(|r| r.name == check.name).map(|r| self.fresh(check, r)).unwrap_or_else(|| {
                        CheckResult {
                            name: check.name.clone(),
                            outcome: Measured::NoData,
                            failed: 0,
                            recent: String::new(),
                            measured: 0,
                            breached: false,
                            message: "not measured yet".into(),
                            at: self.now,
                        }
                    })
                }
            })
            .collect()
    }

    /// A result that is too old says nothing of now: its pod may hang, or its node be gone. Three intervals and 30 s for
    /// time-outs and clocks that differ.
    fn fresh(&self, check: &Check, result: &CheckResult) -> CheckResult {
        if self.now.duration_since(result.at) <= span(check.interval) * 3 + super::seconds(30) {
            return result.clone();
        }
        let message =
            format!("last measured at {:.0}, more than three intervals ago; next: kubectl get pods", result.at);
        CheckResult { outcome: Measured::NoData, message, ..result.clone() }
    }

    /// A workload check is measured by what is observed, at each interval and when it changes.
    fn workload_result(&self, check: &Check) -> CheckResult {
        let previous = self.s.checks.iter().find(|r| r.name == check.name);
        let seen = check.workload.as_ref().and_then(|w| self.o.workloads.iter().find(|x| x.reference == *w));
        let (good, message) = match seen {
            Some(w) if w.exists => (
                w.available.0 >= w.available.1 && w.available.1 > 0,
                format!("{} of {} replicas available", w.available.0, w.available.1),
            ),
            _ => (false, "the workload is missing".into()),
        };
        let interval = span(check.interval);
        let due =
            previous.is_none_or(|p| self.now.duration_since(p.at) >= interval || (p.outcome == Measured::Pass) != good);
        if let (false, Some(p)) = (due, previous) {
            return p.clone();
        }
        let mut recent = previous.map_or_else(String::new, |p| p.recent.clone());
        recent.push(if good { '.' } else { 'x' });
        let surplus = recent.len().saturating_sub(check.failures.of.max(1) as usize);
        recent.drain(..surplus);
        let failed = u32::try_from(recent.matches('x').count()).unwrap_or(u32::MAX);
        CheckResult {
            name: check.name.clone(),
            outcome: if good { Measured::Pass } else { Measured::Fail },
            failed,
            recent,
            measured: previous.map_or(0, |p| p.measured) + 1,
            breached: previous.is_some_and(|p| p.breached) || (!good && failed >= check.failures.count.max(1)),
            message,
            at: self.now,
        }
    }

    /// When the next workload check is due.
    pub(super) fn next_workload_check(&self) -> Option<crate::api::Time> {
        let (.., stage) = self.stage();
        stage
            .checks
            .iter()
            .filter(|c| c.workload.is_some())
            .filter_map(|c| Some(self.s.checks.iter().find(|r| r.name == c.name)?.at + span(c.interval)))
            .min()
    }
}
