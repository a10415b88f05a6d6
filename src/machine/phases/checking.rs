//! Validating and Monitoring: the new version runs; checks decide whether it stays.

use super::{Flow, approval::fmt_reason};
use crate::{
    api::{
        Check, CheckOutcome, CheckResult, DecisionKind, MigrationRunStatus, Occasion, OnBreach, Phase, ReadyReason,
        Reason, RollbackPolicy, Stage, Step, Task, Time,
    },
    machine::{
        ObservedDecision, RunOutcome, StatusReason, Transition,
        faults::{Fault, fault},
        notices::notice_key,
        steps::{PlannedRetry, run_policy},
        transition::Reported,
    },
    shared::{
        quoted::Quoted,
        time::{saturating_add, seconds, to_signed},
    },
};

/// How long triggers may be without a result before people are notified, in seconds.
const UNMEASURED_LIMIT_SECONDS: i64 = 30;
/// Of drifts whose flag is set again, one is notified in this time, in seconds.
const RESTORED_NOTICE_SECONDS: i64 = 600;
/// How late a result may be, in seconds: its report takes time, and clocks differ.
const LATE_RESULT_SECONDS: i64 = 5;

/// What keeps a stage from ending, or what ends it.
#[derive(Debug)]
enum StageVerdict {
    /// The old version is to come back.
    RollBack {
        /// Cause of the rollback.
        cause: ReadyReason,
        /// Who decided, or the check and its value.
        message: String,
    },
    /// The stage's run failed: without it there is no data.
    RunFailed {
        /// Class of the failure.
        reason: Reason,
        /// What was observed.
        message: String,
    },
    /// The flag was changed.
    FlagDrifted(String),
    /// The stage's time has not passed.
    UnderWay {
        /// Its end.
        until: Time,
        /// What is measured.
        text: String,
    },
    /// The time has passed, and checks do not pass.
    ChecksOpen {
        /// End of the stage's time.
        since: Time,
        /// Which, and why.
        text: String,
    },
    /// All checks pass.
    Passed,
}

/// What is asked of a stage, in order: the first answer decides.
const GATES: &[fn(&Transition<'_>) -> Option<StageVerdict>] =
    &[requested_rollback, breached_check, failed_run, drifted_flag, time_left, open_checks];

fn requested_rollback(t: &Transition<'_>) -> Option<StageVerdict> {
    let request = t.rollback_request()?;
    let message = format!("{} by {}{}", request.decision, request.by, fmt_reason(&request.reason));
    Some(StageVerdict::RollBack { cause: ReadyReason::Rollback, message })
}

fn breached_check(t: &Transition<'_>) -> Option<StageVerdict> {
    let (check, result) = t.stage_results().find(|(check, result)| result.breached && t.rolls_back(check))?;
    let message = format!("{}: {}", check.name, result.message);
    Some(StageVerdict::RollBack { cause: ReadyReason::TriggerFired, message })
}

fn failed_run(t: &Transition<'_>) -> Option<StageVerdict> {
    let (step, task, _) = t.stage();
    match t.observed.outcome(task, t.attempt(step)) {
        RunOutcome::Failed(reason, message) => Some(StageVerdict::RunFailed { reason, message: message.to_string() }),
        RunOutcome::Pending | RunOutcome::Succeeded(_) => None,
    }
}

fn drifted_flag(t: &Transition<'_>) -> Option<StageVerdict> {
    t.flag_drift().map(StageVerdict::FlagDrifted)
}

fn time_left(t: &Transition<'_>) -> Option<StageVerdict> {
    let until = t.stage_end().filter(|end| t.now < *end)?;
    let checks = t.stage_results().count();
    let text = format!("{checks} checks, until {until:.0}; to roll back: {}", t.observed.rollback_command());
    Some(StageVerdict::UnderWay { until, text })
}

fn open_checks(t: &Transition<'_>) -> Option<StageVerdict> {
    let (step, ..) = t.stage();
    let open: Vec<String> = t
        .stage_results()
        .filter(|(c, r)| c.on_breach != OnBreach::Warn && r.outcome != CheckOutcome::Pass && !t.idle_trigger(c, r))
        .map(|(_, r)| format!("{} {} ({})", r.name, r.outcome, r.message))
        .collect();
    if open.is_empty() {
        return None;
    }
    let text =
        format!("{}; {step} ends when they pass; to roll back: {}", open.join("; "), t.observed.rollback_command());
    Some(StageVerdict::ChecksOpen { since: t.stage_end()?, text })
}

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
        let (map, key) = (&flag.config_map_key_ref.name, &flag.config_map_key_ref.key);
        Some(format!(
            "key {key} of ConfigMap {map} is {}, the schema is the one of {}; pods that start meanwhile run the wrong \
             version",
            Quoted(self.observed.flag_value().unwrap_or("missing")),
            Quoted(&flag.to),
        ))
    }

    /// Reports a flag that was changed after the window, and notifies at once: the next pod that starts runs the wrong
    /// version.
    pub(crate) fn report_flag_drift(&mut self, drift: &str) {
        let flag = &self.spec.application.flag;
        let (map, key) = (&flag.config_map_key_ref.name, &flag.config_map_key_ref.key);
        let back = self.observed.rollback_command();
        let text = if self.restores_flag() {
            let name = self.spec.application.workloads.first().map_or("", |w| w.name.as_str());
            let restart = self.observed.kubectl(&format!("rollout restart deployment/{name}"));
            format!(
                "{drift}; the operator sets it again (spec.application.flag.onDrift: Restore); to roll back: {back}; \
                 to replace pods that started meanwhile, next: {restart}"
            )
        } else {
            let set = self.observed.set_key_command(map, key, &flag.to);
            format!("{drift}; to roll back: {back}; to set it again, next: {set}")
        };
        let reported = self.report_lasting(ReadyReason::FlagDrifted, text.clone());
        if reported == Reported::Now && !fault(Fault::SilentDrift) {
            // A sync from Git may set it back each time that it is set again.
            let second = self.now.as_second();
            let key = if self.restores_flag() { second - second % RESTORED_NOTICE_SECONDS } else { second };
            self.notify(Occasion::ManualInterventionRequired, &format!("flag.{key}"), &text);
        }
    }

    /// Measures, and does what the first of [`GATES`] that is not passed demands.
    pub(crate) fn advance_checking(&mut self) -> Flow {
        self.record_results();
        let (step, ..) = self.stage();
        let verdict = GATES.iter().find_map(|ask| ask(self)).unwrap_or(StageVerdict::Passed);
        // What rolls back outweighs the run, and the flag outweighs what keeps the run from measuring.
        match verdict {
            StageVerdict::RollBack { cause, message } => return self.start_rollback(cause, message),
            StageVerdict::RunFailed { reason, message } => {
                self.retry_stage_run(step, reason, &message);
                match self.flag_drift() {
                    Some(text) => self.report_flag_drift(&text),
                    None => self.set_ready(reason, message),
                }
            }
            StageVerdict::FlagDrifted(text) => self.report_flag_drift(&text),
            StageVerdict::UnderWay { until, text } => {
                self.wake_at(until);
                self.set_ready(ReadyReason::Progressing, text);
            }
            StageVerdict::ChecksOpen { since, text } => {
                self.notify(Occasion::ManualInterventionRequired, &notice_key("checks", since), &text);
                self.set_ready(ReadyReason::ChecksNotPassing, text);
            }
            StageVerdict::Passed => {
                self.finish_stage(step);
                return Flow::Continue;
            }
        }
        self.report_unmeasured_triggers();
        Flow::Settled
    }

    /// Reports triggers that are not measured, whatever the cause: no rollback would start by itself.
    fn report_unmeasured_triggers(&mut self) {
        let (step, task, _) = self.stage();
        let triggers: Vec<(Check, CheckResult)> = self
            .stage_results()
            .filter(|(check, _)| check.is_trigger())
            .map(|(check, result)| (check, result.clone()))
            .collect();
        let late_at = |check: &Check, result: &CheckResult| {
            saturating_add(result.at, to_signed(check.interval) + seconds(LATE_RESULT_SECONDS))
        };
        let mut unmeasured = vec![];
        for (check, result) in &triggers {
            let last = match result.outcome {
                _ if result.measured == 0 => "no result".to_owned(),
                CheckOutcome::Error => format!("error: {}", result.message),
                _ if late_at(check, result) <= self.now => format!("last result at {:.0}", result.at),
                CheckOutcome::Pass | CheckOutcome::Fail | CheckOutcome::NoData => {
                    self.wake_at(late_at(check, result));
                    continue;
                }
            };
            unmeasured.push(format!("{} ({last})", check.name));
        }
        if unmeasured.is_empty() {
            return;
        }
        let name = self.observed.run_name(task, self.attempt(step));
        let text = format!(
            "triggers are not measured, so that no rollback starts by itself: {} (limit {UNMEASURED_LIMIT_SECONDS} s \
             without a result){}; to roll back: {}; next: {}",
            unmeasured.join(", "),
            self.pod_note(task),
            self.observed.rollback_command(),
            self.observed.describe_job(&name)
        );
        let limit = seconds(UNMEASURED_LIMIT_SECONDS);
        let reported = self.report_problem(ReadyReason::TriggersNotMeasured, None, text.clone(), limit);
        if reported == Reported::Now {
            self.notify(Occasion::ManualInterventionRequired, &notice_key("triggers", self.now), &text);
        }
        let drifted = self.reason == Some(StatusReason::Machine(ReadyReason::FlagDrifted));
        if reported != Reported::NotYet && !drifted {
            self.set_ready(ReadyReason::TriggersNotMeasured, text);
        }
    }

    /// What Kubernetes says of the pod of a task's present run, to be added to a message.
    pub(crate) fn pod_note(&self, task: Task) -> String {
        let step = run_policy(task).step;
        let run = step.and_then(|step| self.observed.run(task, self.attempt(step)));
        run.map(|run| run.pod.note()).unwrap_or_default()
    }

    /// Records what was measured. What a failed run reported last counts, and what the controller measures needs no
    /// run.
    fn record_results(&mut self) {
        if self.rollback_request().is_some() {
            return;
        }
        let (step, task, _) = self.stage();
        let checks = self.spec.checks_of(task);
        self.status.checks = self.results(task, &checks);
        let run = self.observed.run(task, self.attempt(step)).and_then(|r| r.run.status.as_ref());
        self.record_balances(&run.cloned().unwrap_or_default());
        for (check, result) in checks.iter().zip(self.status.checks.clone()).filter(|(_, result)| result.breached) {
            if self.rolls_back(check) {
                return;
            }
            self.report_breach(step, &check.name, &result.message);
        }
    }

    /// Records what a run measured of the balances. What it did not measure stays as it was.
    pub(super) fn record_balances(&mut self, measured: &MigrationRunStatus) {
        let MigrationRunStatus { users_written, credits_written, unexplained, .. } = measured.clone();
        let status = &mut self.status;
        status.users_written = users_written.or(status.users_written);
        status.credits_written = credits_written.or(status.credits_written.take());
        status.unexplained = unexplained.or(status.unexplained.take());
    }

    /// A breach of this check starts a rollback.
    fn rolls_back(&self, check: &Check) -> bool {
        check.on_breach == OnBreach::Rollback && self.spec.rollback.policy == RollbackPolicy::Automatic
    }

    /// The decision to roll back, if there is one.
    pub(crate) fn rollback_request(&self) -> Option<ObservedDecision> {
        self.stop_request(&[DecisionKind::Rollback, DecisionKind::Abort])
    }

    /// Checks of the present stage with their results.
    fn stage_results(&self) -> impl Iterator<Item = (Check, &CheckResult)> {
        let (_, task, _) = self.stage();
        self.spec.checks_of(task).into_iter().zip(&self.status.checks)
    }

    /// End of the present stage, if its checks pass by then.
    fn stage_end(&self) -> Option<Time> {
        let (step, _, stage) = self.stage();
        Some(self.started_at(step)? + to_signed(stage.duration))
    }

    fn finish_stage(&mut self, step: Step) {
        let idle: Vec<String> =
            self.stage_results().filter(|(c, r)| self.idle_trigger(c, r)).map(|(c, _)| c.name).collect();
        let passed = self.status.checks.iter().filter(|r| r.outcome == CheckOutcome::Pass).count();
        let without =
            if idle.is_empty() { String::new() } else { format!("; nothing to measure: {}", idle.join(", ")) };
        let all = self.stage_results().count();
        self.succeed_step(step, format!("{passed} of {all} checks pass{without}"));
        if step == Step::Validate {
            self.enter(Phase::Monitoring);
            // A check of the same name is another check: its breach here is no breach there.
            self.status.checks.clear();
            self.start_step(Step::Monitor);
        } else {
            self.start_observing();
        }
    }

    /// Without its run a stage has no data: another one follows, and the stage does not end meanwhile.
    fn retry_stage_run(&mut self, step: Step, reason: Reason, message: &str) {
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
