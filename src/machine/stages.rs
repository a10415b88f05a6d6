//! Validating and Monitoring: the new version runs; checks decide whether it stays.

use super::{CheckJobStart, CheckPod, DEADLINE, Effect, Job, Machine, Outcome, notices::at, preparing::because};
use crate::{
    api::{
        Check, CheckOutcome, CheckResult, DecisionKind, Occasion, OnBreach, Phase, RollbackPolicy, Stage, Step,
        TRIGGERS, Task,
    },
    shared::time::{saturating_add, seconds, to_signed},
};

/// Begin of what is said of a Job whose container does not start.
const WAITS: &str = "waits for Job ";

impl Machine<'_> {
    /// Step, task and length of the present stage.
    pub(super) fn stage(&self) -> (Step, Task, &Stage) {
        match self.phase() {
            Phase::Monitoring => (Step::Monitor, Task::Monitor, &self.spec.monitoring),
            _ => (Step::Validate, Task::Validate, &self.spec.validation),
        }
    }

    /// Whether somebody has moved the flag since; told once.
    pub(super) fn flag_drifted(&mut self) -> bool {
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

    pub(super) fn advance_stage(&mut self) {
        let (step, task, stage) = self.stage();
        let (checks, duration) = (self.spec.checks_of(task), to_signed(stage.duration));
        if let Some(d) = self.stop_word(&[DecisionKind::Rollback, DecisionKind::Abort], None) {
            return self.go_back("Rollback", format!("{:?} by {}{}", d.decision, d.by, because(&d.reason)));
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
            self.tell(Occasion::ManualInterventionRequired, &at("held", end), &text);
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

    /// Results in the order of the checks; what was not measured is NoData, which is never success.
    fn results(&self, task: Task, checks: &[Check]) -> Vec<CheckResult> {
        let (step, ..) = self.stage();
        let run = self.o.run(task, self.attempt(step));
        let reported = run.and_then(|r| r.run.status.as_ref()).map(|s| s.checks.as_slice()).unwrap_or_default();
        checks
            .iter()
            .enumerate()
            .map(|(i, check)| {
                if check.workload.is_some() {
                    return self.workload_result(check);
                }
                if check.job.is_some() {
                    return self.job_result(check, i);
                }
                let known = reported.iter().find(|r| r.name == check.name);
                let mut result = known.map_or_else(|| self.unmeasured(check), |r| self.fresh(check, r));
                // The judge of a lost run is gone with it; its breach is not.
                result.breached |= self.known(check).is_some_and(|p| p.breached);
                result
            })
            .collect()
    }

    fn known(&self, check: &Check) -> Option<&CheckResult> {
        self.s.checks.iter().find(|r| r.name == check.name)
    }

    fn unmeasured(&self, check: &Check) -> CheckResult {
        // As it was: a time that moves on with each look would be written, and looked at again, without end.
        if let Some(known) = self.known(check).filter(|p| p.measured == 0) {
            return known.clone();
        }
        CheckResult {
            name: check.name.clone(),
            outcome: CheckOutcome::NoData,
            failed: 0,
            recent: String::new(),
            measured: 0,
            breached: false,
            message: "not measured yet".into(),
            at: self.now,
        }
    }

    /// A trigger that is measured, and finds nothing to measure (no traffic at night, a schema without transactions). It says when to
    /// go back, not when all is well: it would hold a stage that nobody can let go, for the spec is immutable by now.
    fn idle_trigger(&self, check: &Check, result: &CheckResult) -> bool {
        TRIGGERS.contains(&check.name.as_str())
            && result.outcome == CheckOutcome::NoData
            && result.measured > 0
            && !self.is_old(check, result)
    }

    fn is_old(&self, check: &Check, result: &CheckResult) -> bool {
        self.now.duration_since(result.at) > to_signed(check.interval) * 3 + seconds(30)
    }

    /// A result that is too old says nothing of now: its pod may hang, or its node be gone. Three intervals and 30 s for
    /// time-outs and clocks that differ.
    fn fresh(&self, check: &Check, result: &CheckResult) -> CheckResult {
        if !self.is_old(check, result) {
            return result.clone();
        }
        let message = format!(
            "last measured at {:.0}, more than three intervals ago; next: {}",
            result.at,
            self.o.kubectl("get pods")
        );
        CheckResult { outcome: CheckOutcome::NoData, message, ..result.clone() }
    }

    /// A workload check is measured by what is observed, at each interval and when it changes.
    fn workload_result(&self, check: &Check) -> CheckResult {
        let previous = self.known(check);
        let seen = check.workload.as_ref().and_then(|w| self.o.workloads.iter().find(|x| x.reference == *w));
        let (good, message) = match seen {
            Some(w) if w.exists => (
                w.available.0 >= w.available.1 && w.available.1 > 0,
                format!("{} of {} replicas available", w.available.0, w.available.1),
            ),
            _ => (false, "the workload is missing".into()),
        };
        let interval = to_signed(check.interval);
        let due = previous
            .is_none_or(|p| self.now.duration_since(p.at) >= interval || (p.outcome == CheckOutcome::Pass) != good);
        if let (false, Some(p)) = (due, previous) {
            return p.clone();
        }
        self.counted(check, previous, good, message)
    }

    /// A job check is measured by its Job: exit code 0 or not. The measurement under way is the one after those that are known.
    fn job_result(&self, check: &Check, i: usize) -> CheckResult {
        let previous = self.known(check);
        let known = previous.map_or(0, |p| p.measured);
        let name = self.check_job(i, known + 1);
        let seen = self.o.check_jobs.iter().find(|j| j.name == name);
        let describe = || {
            let pods = self.o.kubectl(&format!("describe pods -l job-name={name}"));
            format!("{}; {pods}", self.o.kubectl(&format!("describe job/{name}")))
        };
        match seen.map(|j| (&j.job, &j.pod)) {
            Some((Job::Complete, _)) => self.counted(check, previous, true, format!("Job {name} succeeded")),
            // The pod's own time-out is shorter: at the Job's there was no pod that could have answered.
            Some((Job::Failed { reason }, pod)) if reason == DEADLINE || matches!(pod, CheckPod::Waiting(_)) => {
                let why = match pod {
                    CheckPod::Waiting(why) if !why.is_empty() => format!(", {why}"),
                    _ => self.said_of(previous, &name).map(|why| format!(", {why}")).unwrap_or_default(),
                };
                let message = format!(
                    "could not be measured: the container of Job {name} was not started ({reason}{why}); next: {}",
                    describe()
                );
                self.uncounted(check, previous, message)
            }
            Some((Job::Failed { reason }, _)) => {
                let next = self.o.kubectl(&format!("logs job/{name}"));
                self.counted(check, previous, false, format!("Job {name} failed ({reason}); next: {next}"))
            }
            Some((Job::Active | Job::Absent, pod)) => {
                let result = previous.map_or_else(|| self.unmeasured(check), |p| self.fresh(check, p));
                match pod {
                    // Kept for the end: the kubelet forgets what a container waited for when it ends its pod.
                    CheckPod::Waiting(why) if !why.is_empty() => {
                        CheckResult { message: format!("{WAITS}{name} {why}; next: {}", describe()), ..result }
                    }
                    CheckPod::Started if result.message.starts_with(WAITS) => {
                        CheckResult { message: format!("Job {name} is under way"), ..result }
                    }
                    _ => result,
                }
            }
            None => previous.map_or_else(|| self.unmeasured(check), |p| self.fresh(check, p)),
        }
    }

    /// What was last said of a Job whose container did not start.
    fn said_of(&self, previous: Option<&CheckResult>, name: &str) -> Option<String> {
        let why = previous?.message.strip_prefix(WAITS)?.strip_prefix(name)?;
        why.split_once("; next: ").map(|(why, _)| why.trim().to_owned())
    }

    fn check_job(&self, i: usize, measurement: u64) -> String {
        let (_, task, _) = self.stage();
        self.o.check_job_name(task, i, measurement)
    }

    /// One more try that brought no measurement: it counts as neither, for it says nothing of the application.
    fn uncounted(&self, check: &Check, previous: Option<&CheckResult>, message: String) -> CheckResult {
        let previous = previous.cloned().unwrap_or_else(|| self.unmeasured(check));
        CheckResult { outcome: CheckOutcome::Error, measured: previous.measured + 1, message, at: self.now, ..previous }
    }

    /// One more measurement of a check that the controller measures.
    fn counted(&self, check: &Check, previous: Option<&CheckResult>, good: bool, message: String) -> CheckResult {
        let mut recent = previous.map_or_else(String::new, |p| p.recent.clone());
        recent.push(if good { '.' } else { 'x' });
        let surplus = recent.len().saturating_sub(check.failures.of.max(1) as usize);
        recent.drain(..surplus);
        let failed = u32::try_from(recent.matches('x').count()).unwrap_or(u32::MAX);
        CheckResult {
            name: check.name.clone(),
            outcome: if good { CheckOutcome::Pass } else { CheckOutcome::Fail },
            failed,
            recent,
            measured: previous.map_or(0, |p| p.measured) + 1,
            breached: previous.is_some_and(|p| p.breached) || (!good && failed >= check.failures.count.max(1)),
            message,
            at: self.now,
        }
    }

    /// Jobs of job checks that are due, and the time of the next one.
    pub(super) fn job_checks(&mut self) -> Vec<Effect> {
        let (_, task, _) = self.stage();
        let mut effects = vec![];
        for (i, check) in self.spec.checks_of(task).into_iter().enumerate() {
            let Some(job) = check.job.clone() else { continue };
            let known = self.known(&check).filter(|r| r.measured > 0);
            let due = known.map(|r| r.at + to_signed(check.interval)).filter(|due| self.now < *due);
            let name = self.check_job(i, known.map_or(0, |r| r.measured) + 1);
            match due {
                Some(due) => self.wake_at(due),
                None if self.o.check_jobs.iter().any(|j| j.name == name) => {}
                None => effects.push(Effect::StartCheckJob(Box::new(CheckJobStart { name, check: check.name, job }))),
            }
        }
        effects
    }

    /// When the next workload check is due; never in the past, for each look costs requests.
    pub(super) fn next_workload_check(&self) -> Option<crate::api::Time> {
        let (_, task, _) = self.stage();
        self.spec
            .checks_of(task)
            .iter()
            .filter(|c| c.workload.is_some())
            .filter_map(|c| Some(saturating_add(self.known(c)?.at, to_signed(c.interval))))
            .filter(|due| *due > self.now)
            .min()
    }
}
