//! Start, success, failure and retry of a step, in its row of `status.steps`.

use jiff::SignedDuration;

use crate::{
    api::{ReadyReason, Step, StepState, StepStatus, Time},
    machine::{StatusReason, Transition},
    shared::time::seconds,
};

/// What became of a retry that was planned for a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlannedRetry {
    /// None was planned.
    None,
    /// Its time has not come.
    NotYet,
    /// It was started now.
    Started,
}

impl Transition<'_> {
    pub(crate) fn step(&self, step: Step) -> Option<&StepStatus> {
        self.status.steps.iter().find(|step_status| step_status.name == step)
    }

    pub(crate) fn succeeded(&self, step: Step) -> bool {
        self.step(step).is_some_and(|step_status| step_status.state == StepState::Succeeded)
    }

    /// The status of a step; made, as running, if it is not there.
    pub(crate) fn ensure_step(&mut self, step: Step) -> &mut StepStatus {
        if let Some(i) = self.status.steps.iter().position(|step_status| step_status.name == step) {
            return &mut self.status.steps[i];
        }
        self.status.steps.push(StepStatus {
            name: step,
            state: StepState::Running,
            attempt: 0,
            failures: 0,
            started_at: self.now,
            finished_at: None,
            retry_at: None,
            superseded: false,
            reported_breaches: vec![],
            reason: None,
            message: None,
        });
        let last = self.status.steps.len() - 1;
        &mut self.status.steps[last]
    }

    /// Marks a step as running with a fresh attempt. Persisted before its run is made.
    pub(crate) fn start_step(&mut self, step: Step) {
        let now = self.now;
        self.status.step = Some(step);
        let step_status = self.ensure_step(step);
        step_status.attempt += 1;
        step_status.state = StepState::Running;
        step_status.started_at = now;
        step_status.finished_at = None;
        step_status.retry_at = None;
        step_status.superseded = false;
        step_status.reported_breaches.clear();
        step_status.reason = None;
        step_status.message = None;
    }

    pub(crate) fn succeed_step(&mut self, step: Step, message: impl Into<String>) {
        let (now, message) = (self.now, message.into());
        let step_status = self.ensure_step(step);
        step_status.state = StepState::Succeeded;
        step_status.attempt = step_status.attempt.max(1);
        step_status.superseded = false;
        step_status.finished_at = Some(now);
        step_status.retry_at = None;
        step_status.reason = None;
        step_status.message = Some(message.clone());
        self.event(false, format!("{step}Succeeded"), message);
    }

    /// What the spec does not ask for: said, and not claimed.
    pub(crate) fn skip_step(&mut self, step: Step, message: impl Into<String>) {
        let now = self.now;
        self.status.step = Some(step);
        let step_status = self.ensure_step(step);
        step_status.state = StepState::Skipped;
        step_status.attempt = step_status.attempt.max(1);
        step_status.superseded = false;
        step_status.finished_at = Some(now);
        step_status.retry_at = None;
        step_status.reason = Some(ReadyReason::NotConfigured.into());
        step_status.message = Some(message.into());
    }

    pub(crate) fn fail_step(&mut self, step: Step, reason: impl Into<StatusReason>, message: impl Into<String>) {
        let (now, reason, message): (_, StatusReason, String) = (self.now, reason.into(), message.into());
        let step_status = self.ensure_step(step);
        step_status.state = StepState::Failed;
        step_status.superseded = false;
        step_status.finished_at = Some(now);
        step_status.reason = Some(reason.clone().into());
        step_status.message = Some(message.clone());
        self.set_ready(reason.clone(), message.clone());
        self.event(true, reason, message);
    }

    /// Plans a retry of a running step after a transient failure.
    pub(crate) fn retry_later(&mut self, step: Step, reason: impl Into<StatusReason>, message: &str) {
        let (now, reason): (_, StatusReason) = (self.now, reason.into());
        let step_status = self.ensure_step(step);
        step_status.failures += 1;
        step_status.state = StepState::Running;
        step_status.retry_at = Some(now + backoff(step, step_status.failures));
        step_status.reason = Some(reason.clone().into());
        step_status.message = Some(message.into());
        self.set_ready(reason.clone(), message);
        // Without numbers that change: an equal Event is counted, another one would be one more object for each
        // attempt.
        self.event(true, reason, format!("{message}; retried"));
    }

    /// Has the run of a step followed by another one at once.
    pub(crate) fn retry_now(&mut self, step: Step) {
        let now = self.now;
        let step_status = self.ensure_step(step);
        step_status.failures += 1;
        step_status.attempt += 1;
        // Otherwise the next one would be late from its start.
        step_status.started_at = now;
    }

    /// The same after the step's backoff: the next run has its number already, and is not started before.
    pub(crate) fn retry_run_later(&mut self, step: Step) {
        self.retry_now(step);
        let now = self.now;
        let step_status = self.ensure_step(step);
        let at = now + backoff(step, step_status.failures);
        (step_status.started_at, step_status.retry_at) = (at, Some(at));
    }

    /// The run that follows after a backoff may be started when that has passed.
    pub(crate) fn start_due_run(&mut self, step: Step) {
        let Some(at) = self.step(step).and_then(|step_status| step_status.retry_at) else { return };
        match self.now < at {
            true => self.wake_at(at),
            false => self.ensure_step(step).retry_at = None,
        }
    }

    /// A retry of this step is planned.
    pub(crate) fn waiting(&self, step: Step) -> bool {
        self.step(step).is_some_and(|step_status| step_status.retry_at.is_some())
    }

    /// Starts a planned retry when it is due.
    pub(crate) fn start_due_retry(&mut self, step: Step) -> PlannedRetry {
        let Some(at) = self.step(step).and_then(|step_status| step_status.retry_at) else { return PlannedRetry::None };
        if self.now < at {
            self.wake_at(at);
            return PlannedRetry::NotYet;
        }
        let before = self.step(step).cloned();
        self.start_step(step);
        // The failure is shown until the step succeeds: between two attempts of a few seconds it could not be read.
        if let Some(before) = before {
            let step_status = self.ensure_step(step);
            (step_status.reason, step_status.message) = (before.reason, before.message);
            step_status.reported_breaches = before.reported_breaches;
        }
        PlannedRetry::Started
    }

    pub(crate) fn attempt(&self, step: Step) -> u32 {
        self.step(step).map_or(0, |step_status| step_status.attempt)
    }

    /// How often the step has failed since the plan was last changed.
    pub(crate) fn failures(&self, step: Step) -> u32 {
        self.step(step).map_or(0, |step_status| step_status.failures)
    }

    /// Start of the step's first attempt.
    pub(crate) fn started_at(&self, step: Step) -> Option<Time> {
        self.step(step).map(|step_status| step_status.started_at)
    }
}

/// 2, 4, 8 ... seconds: soon enough for a short failure, rare enough not to flood a server that is down.
fn backoff(step: Step, failures: u32) -> SignedDuration {
    seconds((1i64 << failures.min(10)).min(super::longest_retry(step)))
}
