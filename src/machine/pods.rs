//! Pods of runs that do not start: reported in Kubernetes' own words, so that no step waits in silence.

use super::{
    Job, JobPod, ObservedRun, StatusReason, Transition,
    steps::{Retention, run_policy},
    transition::Reported,
};
use crate::{
    api::{Occasion, ReadyReason},
    shared::time::seconds,
};

/// Seconds after which a pod that does not start is reported. Much of what delays one passes by itself.
const START_GRACE_SECONDS: i64 = 5;
/// Seconds between two readings of a pod that is not running: pods are not watched.
const READ_SECONDS: i64 = 5;

impl Transition<'_> {
    /// Reports pods that do not start: by one Event for each run, and in `Ready` if the step waits for nothing else.
    pub(crate) fn report_pods(&mut self) {
        let observed = self.observed;
        let starting = observed.runs.iter().filter(|run| is_starting(run) && self.is_wanted(run));
        for run in starting.collect::<Vec<_>>() {
            self.wake_at(self.now + seconds(READ_SECONDS));
            self.report_pod(run);
        }
    }

    fn report_pod(&mut self, run: &ObservedRun) {
        let JobPod::Waiting(Some(why)) = &run.pod else { return };
        let (task, attempt) = (run.run.spec.task, run.run.spec.attempt);
        let name = self.observed.run_name(task, attempt);
        let next = self.observed.describe_job_and_pods(&name);
        let text = format!("the pod of Job {name} does not start: {why}; next: {next}");
        let grace = seconds(START_GRACE_SECONDS);
        let reported = self.report_problem(ReadyReason::PodNotStarted, Some(&name), text.clone(), grace);
        if reported == Reported::Now && task.is_window() && self.may_be_blocked() {
            self.notify(Occasion::ManualInterventionRequired, &format!("pod.{name}"), &text);
        }
        let waits = self.reason.as_ref().is_none_or(StatusReason::is_under_way);
        // No phase waits for a notice, or for what follows its end.
        let is_awaited = !matches!(run_policy(task).retention, Retention::WhilePending | Retention::Always);
        if waits && is_awaited {
            self.set_ready(ReadyReason::PodNotStarted, text);
        }
    }
}

/// Its Job is active, and no container of it has been started.
fn is_starting(run: &ObservedRun) -> bool {
    run.job == Job::Active && !run.run.has_ended() && matches!(run.pod, JobPod::Absent | JobPod::Waiting(_))
}
