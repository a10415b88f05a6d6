//! Start, success, failure and retry of a step, in its row of `status.steps`.

use crate::{
    api::{Step, StepState, StepStatus},
    machine::Machine,
    shared::time::seconds,
};

impl Machine<'_> {
    pub(crate) fn step(&self, step: Step) -> Option<&StepStatus> {
        self.s.steps.iter().find(|x| x.name == step)
    }

    pub(crate) fn succeeded(&self, step: Step) -> bool {
        self.step(step).is_some_and(|x| x.state == StepState::Succeeded)
    }

    pub(crate) fn step_mut(&mut self, step: Step) -> &mut StepStatus {
        if let Some(i) = self.s.steps.iter().position(|x| x.name == step) {
            return &mut self.s.steps[i];
        }
        self.s.steps.push(StepStatus {
            name: step,
            state: StepState::Running,
            attempt: 0,
            failures: 0,
            started_at: self.now,
            finished_at: None,
            retry_at: None,
            reason: None,
            message: None,
        });
        let last = self.s.steps.len() - 1;
        &mut self.s.steps[last]
    }

    /// Marks a step as running with a fresh attempt. Persisted before its run is made.
    pub(crate) fn start_step(&mut self, step: Step) {
        let now = self.now;
        self.s.step = Some(step);
        let x = self.step_mut(step);
        x.attempt += 1;
        x.state = StepState::Running;
        x.started_at = now;
        x.finished_at = None;
        x.retry_at = None;
        x.reason = None;
        x.message = None;
    }

    pub(crate) fn succeed_step(&mut self, step: Step, message: impl Into<String>) {
        let (now, message) = (self.now, message.into());
        let x = self.step_mut(step);
        x.state = StepState::Succeeded;
        x.attempt = x.attempt.max(1);
        x.finished_at = Some(now);
        x.retry_at = None;
        x.reason = None;
        x.message = Some(message.clone());
        self.event(false, format!("{step:?}Succeeded"), message);
    }

    /// What the spec does not ask for: said, and not claimed.
    pub(crate) fn skip_step(&mut self, step: Step, message: impl Into<String>) {
        let now = self.now;
        self.s.step = Some(step);
        let x = self.step_mut(step);
        x.state = StepState::Skipped;
        x.attempt = x.attempt.max(1);
        x.finished_at = Some(now);
        x.retry_at = None;
        x.reason = Some("NotConfigured".into());
        x.message = Some(message.into());
    }

    pub(crate) fn fail_step(&mut self, step: Step, reason: impl Into<String>, message: impl Into<String>) {
        let (now, reason, message) = (self.now, reason.into(), message.into());
        let x = self.step_mut(step);
        x.state = StepState::Failed;
        x.finished_at = Some(now);
        x.reason = Some(reason.clone());
        x.message = Some(message.clone());
        self.explain(reason.clone(), message.clone());
        self.event(true, reason, message);
    }

    /// Plans another try of a running step after a failure that may pass. Returns how often it failed.
    pub(crate) fn retry_later(&mut self, step: Step, reason: &str, message: &str, longest_seconds: i64) -> u32 {
        let now = self.now;
        let x = self.step_mut(step);
        x.failures += 1;
        let failures = x.failures;
        // 2, 4, 8 ... seconds: soon enough for a slip, rare enough not to flood a server that is down.
        let wait = (1i64 << failures.min(10)).min(longest_seconds);
        x.state = StepState::Running;
        x.retry_at = Some(now + seconds(wait));
        x.reason = Some(reason.into());
        x.message = Some(message.into());
        self.explain(reason, message);
        // Without numbers that change: the same event again is counted, another one would be one more object for each try.
        self.event(true, reason, format!("{message}; tried again"));
        failures
    }

    /// Has the run of a step followed by another one at once.
    pub(crate) fn retry_now(&mut self, step: Step) {
        let now = self.now;
        let x = self.step_mut(step);
        x.failures += 1;
        x.attempt += 1;
        // Or the next one would be late from its beginning.
        x.started_at = now;
    }

    /// A retry of this step is planned.
    pub(crate) fn waiting(&self, step: Step) -> bool {
        self.step(step).is_some_and(|x| x.retry_at.is_some())
    }

    /// Whether a planned retry is due; begins it. `None` when none is planned.
    pub(crate) fn retry_due(&mut self, step: Step) -> Option<bool> {
        let at = self.step(step)?.retry_at?;
        if self.now < at {
            self.wake_at(at);
            return Some(false);
        }
        let failed = self.step(step).map(|x| (x.reason.clone(), x.message.clone()));
        self.start_step(step);
        // What went wrong is told until it goes right: between two tries of a few seconds nobody would see it.
        if let Some((reason, message)) = failed {
            let x = self.step_mut(step);
            (x.reason, x.message) = (reason, message);
        }
        Some(true)
    }

    pub(crate) fn attempt(&self, step: Step) -> u32 {
        self.step(step).map_or(0, |x| x.attempt)
    }
}
