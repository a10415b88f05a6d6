//! From a persisted status to what has to be done. Level-based: the same status and observations give the same effects,
//! so a crash after the status was written loses nothing.

use super::{
    Effect, Job, ObservedRun, StartRun, Transition,
    faults::{Fault, fault},
    steps::{self, Image, Retention, Timeout, run_policy},
};
use crate::api::{MigrationRunSpec, Phase, RunInputs, Step, StepState, Task, WindowCommand};

impl Transition<'_> {
    pub(super) fn effects(&self) -> Vec<Effect> {
        if self.may_remove_finalizer() {
            return if self.observed.finalizer { vec![Effect::RemoveFinalizer] } else { vec![] };
        }
        if !self.observed.finalizer {
            // Nothing is started before deletion can be delayed: otherwise `kubectl delete` could leave writes blocked.
            return if self.observed.deleting { vec![] } else { vec![Effect::AddFinalizer] };
        }
        let mut effects: Vec<Effect> = self
            .observed
            .runs
            .iter()
            .filter(|r| !self.is_wanted(r))
            .map(|r| Effect::RemoveRun { name: self.observed.run_name(r.run.spec.task, r.run.spec.attempt) })
            .collect();
        let tidy = effects.is_empty();
        match self.phase() {
            Phase::Preparing => effects.extend(self.start_preparing_run()),
            Phase::Executing => effects.extend(self.window_effects(Task::Window, self.attempt(Step::BlockWrites))),
            Phase::Validating | Phase::Monitoring => {
                effects.extend(self.restored_flag());
                effects.extend(self.start_stage_run());
                effects.extend(self.due_check_jobs());
            }
            Phase::Observing => {
                effects.extend(self.restored_flag());
                effects.extend(self.start_follow_up_run());
                effects.extend(self.start_unlisted_run(Step::RehearseRollback, Task::RehearseRollback));
            }
            Phase::RollingBack
                if self.status.step == Some(Step::BlockWritesForRollback)
                    && self.waiting(Step::BlockWritesForRollback) => {}
            Phase::RollingBack => {
                let (task, attempt) = self.rollback_run();
                effects.extend(self.window_effects(task, attempt));
            }
            // Triggers are removed only when no run is left that could install them again.
            Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled if tidy => {
                effects.extend(self.start_unlisted_run(Step::Cleanup, Task::Cleanup));
                effects.extend(self.start_unlisted_run(Step::DropParked, Task::DropParked));
            }
            _ => {}
        }
        for attempt in self.runs_to_send() {
            effects.extend(self.start_run(Task::Notify, attempt));
        }
        effects
    }

    /// Whether a run still serves the present status, or is kept as a record.
    pub(super) fn is_wanted(&self, r: &ObservedRun) -> bool {
        let spec = &r.run.spec;
        let ordered = spec.window.as_ref().is_some_and(|w| w.command >= WindowCommand::BlockWrites);
        let current = self.is_current(r);
        match run_policy(spec.task).retention {
            Retention::Always => current,
            Retention::During(phase) => {
                let goes_on = spec.task == Task::Validate && self.validation_goes_on();
                current && (self.phase() == phase || goes_on)
            }
            Retention::Record(phase) => current && (self.phase() == phase || r.run.has_ended()),
            Retention::Window(phase) => ordered || (current && self.phase() == phase),
            Retention::WhilePending => self.notice_of(spec.attempt).is_some(),
        }
    }

    /// The run is that of its step's present attempt. A run of a plan that has changed since is not, unless it has
    /// ended: it must not continue in parallel with its successor.
    fn is_current(&self, r: &ObservedRun) -> bool {
        let Some(step) = run_policy(r.run.spec.task).step else { return false };
        let superseded = self.step(step).is_some_and(|step_status| step_status.superseded);
        r.run.spec.attempt == self.run_attempt(step) && (r.run.has_ended() || !superseded)
    }

    fn start_preparing_run(&self) -> Option<Effect> {
        let step = self.status.step?;
        let task = steps::task_in(Phase::Preparing, step)?;
        let refused = step == Step::Preflight && self.cluster_violation().is_some();
        if self.waiting(step) || refused || self.status.plan.is_none() {
            return None;
        }
        self.start_run(task, self.run_attempt(step))
    }

    fn start_stage_run(&self) -> Option<Effect> {
        let (step, task, _) = self.stage();
        if self.waiting(step) {
            return None;
        }
        // Also without a check of its own: what a rollback needs is measured in each stage.
        self.start_run(task, self.attempt(step))
    }

    fn start_follow_up_run(&self) -> Option<Effect> {
        let step = self.status.step?;
        let task = steps::task_in(Phase::Observing, step)?;
        if self.waiting(step) {
            return None;
        }
        self.start_run(task, self.attempt(step))
    }

    /// The run of a step that is in no path.
    fn start_unlisted_run(&self, step: Step, task: Task) -> Option<Effect> {
        let step_status = self.step(step)?;
        if step_status.state != StepState::Running || step_status.retry_at.is_some() {
            return None;
        }
        self.start_run(task, step_status.attempt)
    }

    /// The run and its Job, unless both are there or the run has ended. None in a namespace that is being deleted: it
    /// would be refused, and with it the effects after it.
    pub(super) fn start_run(&self, task: Task, attempt: u32) -> Option<Effect> {
        if self.observed.namespace_deleting {
            return None;
        }
        if let Some(ObservedRun { run, job, .. }) = self.observed.run(task, attempt)
            && (run.has_ended() || *job != Job::Absent)
        {
            return None;
        }
        let plan = self.status.plan.as_ref();
        let name = self.observed.run_name(task, attempt);
        let window = task.is_window().then(|| self.wanted_order(task));
        Some(Effect::StartRun(Box::new(StartRun {
            name: name.clone(),
            spec: MigrationRunSpec {
                migration: self.observed.name.clone(),
                migration_uid: match fault(Fault::UidOfAttempt) {
                    false => self.observed.uid.clone(),
                    true => name.clone(),
                },
                task,
                attempt,
                plan: self.spec.clone(),
                inputs: RunInputs {
                    up_sha256: plan.map(|p| p.up_sha256.clone()).unwrap_or_default(),
                    down_sha256: plan.map(|p| p.down_sha256.clone()).unwrap_or_default(),
                    backup_object: self.status.backup.as_ref().map(|b| b.object.clone()),
                    backup_sha256: self.status.backup.as_ref().map(|b| b.sha256.clone()),
                    schema_sha256: self
                        .status
                        .rehearsal
                        .as_ref()
                        .and_then(|rehearsal| rehearsal.schema.as_ref())
                        .map(|schema| schema.sha256.clone()),
                    rights_lost: self
                        .status
                        .rehearsal
                        .as_ref()
                        .map(|rehearsal| rehearsal.rights_lost.clone())
                        .unwrap_or_default(),
                    notice: (task == Task::Notify).then(|| self.notice_of(attempt).cloned()).flatten(),
                    cutover_at: self.cutover_at(),
                },
                window,
            },
            image: self.image_of(task),
            timeout_seconds: self.timeout_of(task),
        })))
    }

    fn image_of(&self, task: Task) -> String {
        match run_policy(task).image {
            Image::Approved => self.status.runner_image.clone().unwrap_or_default(),
            Image::Operator => self.observed.runner_image.clone(),
        }
    }

    /// Seconds after which the task's Job is ended; `None` for tasks that end themselves.
    fn timeout_of(&self, task: Task) -> Option<u64> {
        let seconds = |duration: kube::core::Duration| std::time::Duration::from(duration).as_secs();
        match run_policy(task).timeout {
            Timeout::None => None,
            Timeout::Step => Some(seconds(self.spec.runner.step_timeout)),
            Timeout::Seconds(n) => Some(n),
            Timeout::AfterMeasurements(n) => {
                self.spec.follow_ups.of(task).map(|follow_up| seconds(follow_up.duration) + n)
            }
        }
    }
}
