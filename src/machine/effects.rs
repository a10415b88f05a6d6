//! From a persisted status to what has to be done. Level-based: the same status and observations give the same effects,
//! so a crash after the status was written loses nothing.

use super::{
    Effect, Job, ObservedRun, StartRun, Transition,
    faults::{Fault, fault},
    steps,
};
use crate::api::{Check, MigrationRunSpec, Phase, RunInputs, RunPhase, Step, StepState, Task, WindowCommand};

/// Longest time for the channels of one notice, in seconds.
const NOTIFY_SECONDS: u64 = 120;
/// Longest time of a follow-up beyond its measurements, in seconds.
const FOLLOW_UP_SECONDS: u64 = 900;
/// Longest time for the removal of the guards, in seconds.
const CLEANUP_SECONDS: u64 = 600;

impl Transition<'_> {
    pub(super) fn effects(&self) -> Vec<Effect> {
        if self.may_remove_finalizer() {
            return if self.observed.finalizer { vec![Effect::RemoveFinalizer] } else { vec![] };
        }
        if !self.observed.finalizer {
            // Nothing is begun before deletion can be held up: else a window could be left closed by `kubectl delete`.
            return if self.observed.deleting { vec![] } else { vec![Effect::AddFinalizer] };
        }
        let mut effects: Vec<Effect> = self
            .observed
            .runs
            .iter()
            .filter(|r| !self.wanted(r))
            .map(|r| Effect::RemoveRun { name: self.observed.run_name(r.run.spec.task, r.run.spec.attempt) })
            .collect();
        let tidy = effects.is_empty();
        match self.phase() {
            Phase::Preparing => effects.extend(self.start_preparing_run()),
            Phase::Executing => effects.extend(self.window_effects(Task::Window, self.attempt(Step::BlockWrites))),
            Phase::Validating | Phase::Monitoring => {
                effects.extend(self.start_stage_run());
                effects.extend(self.due_check_jobs());
            }
            Phase::Observing => effects.extend(self.start_follow_up_run()),
            Phase::RollingBack
                if self.status.step == Some(Step::BlockWritesForRollback)
                    && self.waiting(Step::BlockWritesForRollback) => {}
            Phase::RollingBack => {
                let (task, attempt) = self.rollback_run();
                effects.extend(self.window_effects(task, attempt));
            }
            // Guards are removed only when nothing is left that could put them up again.
            Phase::Failed | Phase::Completed | Phase::RolledBack | Phase::Cancelled if tidy => {
                effects.extend(self.start_cleanup_run());
            }
            _ => {}
        }
        for attempt in self.runs_to_send() {
            effects.extend(self.start_run(Task::Notify, attempt, Some(NOTIFY_SECONDS)));
        }
        effects
    }

    /// Whether a run still serves the present status, or stays as a record.
    fn wanted(&self, r: &ObservedRun) -> bool {
        let spec = &r.run.spec;
        let ended = r.run.status.as_ref().is_some_and(|s| matches!(s.phase, RunPhase::Succeeded | RunPhase::Failed));
        let opened = spec.window.as_ref().is_some_and(|w| w.command >= WindowCommand::BlockWrites);
        // What was begun for a spec or SQL that has changed since is ended, not rehearsed on beside its successor.
        let superseded = |step: Step| self.step(step).is_some_and(|step_status| step_status.superseded);
        let current = |step: Step| spec.attempt == self.run_attempt(step) && (ended || !superseded(step));
        match spec.task {
            Task::Preflight => self.preparing_or(ended) && current(Step::Preflight),
            Task::CodeBackup => self.preparing_or(ended) && current(Step::CodeBackup),
            Task::ExportKeyUsers => self.preparing_or(ended) && current(Step::ExportKeyUsers),
            // Of those that failed only the last: one that fails for days would leave a run and a pod each few minutes.
            Task::DayCheck => self.observing_or(ended) && current(Step::DayCheck),
            Task::WeekReview => self.observing_or(ended) && current(Step::WeekReview),
            // What became of it is in the status.
            Task::Notify => self.notice_of(spec.attempt).is_some(),
            Task::Backup => self.preparing_or(ended) && current(Step::Baseline),
            Task::VerifyBackup => self.preparing_or(ended) && current(Step::VerifyBackup),
            Task::Rehearse => self.preparing_or(ended) && current(Step::Rehearse),
            // A window that was ordered open is never taken from under its pod.
            Task::Window => opened || (self.phase() == Phase::Executing && current(Step::BlockWrites)),
            Task::RollbackWindow => {
                opened || (self.phase() == Phase::RollingBack && current(Step::BlockWritesForRollback))
            }
            Task::Validate => self.phase() == Phase::Validating && current(Step::Validate),
            Task::Monitor => self.phase() == Phase::Monitoring && current(Step::Monitor),
            Task::Cleanup => current(Step::Cleanup),
        }
    }

    fn preparing_or(&self, ended: bool) -> bool {
        self.phase() == Phase::Preparing || ended
    }

    fn observing_or(&self, ended: bool) -> bool {
        self.phase() == Phase::Observing || ended
    }

    fn start_preparing_run(&self) -> Option<Effect> {
        let step = self.status.step?;
        let task = steps::preparing_task(step)?;
        let refused = step == Step::Preflight && self.cluster_violation().is_some();
        if self.waiting(step) || refused || self.status.plan.is_none() {
            return None;
        }
        let timeout = std::time::Duration::from(self.spec.runner.step_timeout).as_secs();
        self.start_run(task, self.run_attempt(step), Some(timeout))
    }

    fn start_stage_run(&self) -> Option<Effect> {
        let (step, task, _) = self.stage();
        if self.waiting(step) || self.spec.checks_of(task).iter().all(Check::by_controller) {
            return None;
        }
        self.start_run(task, self.attempt(step), None)
    }

    fn start_follow_up_run(&self) -> Option<Effect> {
        let follow_ups = &self.spec.follow_ups;
        let (step, task, follow_up) = match self.status.step? {
            Step::DayCheck => (Step::DayCheck, Task::DayCheck, &follow_ups.day),
            Step::WeekReview => (Step::WeekReview, Task::WeekReview, &follow_ups.week),
            _ => return None,
        };
        if self.waiting(step) {
            return None;
        }
        let measured = std::time::Duration::from(follow_up.duration).as_secs();
        self.start_run(task, self.attempt(step), Some(measured + FOLLOW_UP_SECONDS))
    }

    fn start_cleanup_run(&self) -> Option<Effect> {
        let step_status = self.step(Step::Cleanup)?;
        if step_status.state != StepState::Running || step_status.retry_at.is_some() {
            return None;
        }
        self.start_run(Task::Cleanup, step_status.attempt, Some(CLEANUP_SECONDS))
    }

    /// The run and its Job, unless both are there or the run has ended.
    pub(super) fn start_run(&self, task: Task, attempt: u32, timeout_seconds: Option<u64>) -> Option<Effect> {
        if let Some(ObservedRun { run, job }) = self.observed.run(task, attempt) {
            let ended = run.status.as_ref().is_some_and(|s| matches!(s.phase, RunPhase::Succeeded | RunPhase::Failed));
            if ended || *job != Job::Absent {
                return None;
            }
        }
        let plan = self.status.plan.as_ref();
        let name = self.observed.run_name(task, attempt);
        let window = matches!(task, Task::Window | Task::RollbackWindow).then(|| self.wanted_order(task));
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
                    notice: (task == Task::Notify).then(|| self.notice_of(attempt).cloned()).flatten(),
                    cut_over_at: self.cut_over_at(),
                },
                window,
            },
            image: self.image_of(task),
            timeout_seconds,
        })))
    }

    /// The image that people approved carries what is before the window and the windows themselves, also the way back a week later.
    /// What comes after needs the tasks that this operator knows.
    fn image_of(&self, task: Task) -> String {
        match task {
            Task::Validate | Task::Monitor | Task::DayCheck | Task::WeekReview | Task::Notify | Task::Cleanup => {
                self.observed.runner_image.clone()
            }
            _ => self.status.runner_image.clone().unwrap_or_default(),
        }
    }
}
