//! A switch that cannot settle: what keeps the pods that it started from becoming ready, in Kubernetes' own words.
//!
//! On the forward path it ends the window before its deadline, by a rollback. A rollback has nowhere else to go: both
//! versions may serve, so it goes on, and people are notified.

use crate::{
    api::{Direction, Occasion, ReadyReason, WorkloadRef},
    machine::{RolloutFailure, RolloutFailureKind, Transition, notices::notice_key, transition::Reported},
    shared::{message::Message, time::seconds},
};

/// For how long a failure has to last before it ends the window, in seconds. Some pass by themselves.
fn grace_seconds(kind: RolloutFailureKind) -> i64 {
    match kind {
        // The Deployment controller has waited already; the name of an image stays invalid.
        RolloutFailureKind::NoProgress | RolloutFailureKind::ImageInvalid => 0,
        // The container has ended twice: it is given a moment to become ready.
        RolloutFailureKind::CrashLoop => 5,
        // The node may not have read yet what the pod needs.
        RolloutFailureKind::ContainerNotCreated => 10,
        // The kubelet and the ReplicaSet controller make another attempt within 10 s: a registry may answer, or a pod
        // that ends may leave room in a quota.
        RolloutFailureKind::ImageNotPulled | RolloutFailureKind::PodsRefused => 15,
    }
}

impl Transition<'_> {
    /// Reports each workload whose pods of this switch do not become ready.
    pub(crate) fn report_rollout_failures(&mut self, direction: Direction) {
        for (workload, failure) in self.rollout_failures(direction) {
            let message = self.failure_message(&workload, &failure);
            let text = message.to_string();
            let hold = match direction {
                Direction::Forward => grace_seconds(failure.kind),
                Direction::Rollback => 0,
            };
            let reported =
                self.report_problem(ReadyReason::RolloutFailed, Some(&workload.name), text.clone(), seconds(hold));
            if reported == Reported::Now && direction == Direction::Rollback {
                // Once for each rollback: a pod without a readiness probe is ready between two crashes.
                let started = self.status.rollback.as_ref().map_or(self.now, |rollback| rollback.started_at);
                let key = notice_key(&format!("rollout.{}", workload.name), started);
                let text = format!("the old version does not start, writes stay blocked until it does: {text}");
                self.notify(Occasion::ManualInterventionRequired, &key, &text);
            }
        }
    }

    /// What was reported by this call: it has lasted for long enough to end the forward window.
    pub(crate) fn reported_rollout_failure(&self, direction: Direction) -> Option<String> {
        let failures = self.rollout_failures(direction);
        let reported = failures.iter().find(|(w, _)| self.is_reported(ReadyReason::RolloutFailed, Some(&w.name)));
        reported.map(|(workload, failure)| self.failure_message(workload, failure).text)
    }

    /// Failures of pods that this very switch has started: those of an earlier template say nothing of it.
    fn rollout_failures(&self, direction: Direction) -> Vec<(WorkloadRef, RolloutFailure)> {
        let started = self.restart_marker(direction);
        let switched = self.observed.workloads.iter().filter(|w| {
            self.spec.application.workloads.contains(&w.reference) && w.restarted_for.as_ref() == Some(&started)
        });
        switched.filter_map(|w| Some((w.reference.clone(), w.failure.clone()?))).collect()
    }

    fn failure_message(&self, workload: &WorkloadRef, failure: &RolloutFailure) -> Message {
        let (kind, name) = (workload.kind.as_str(), &workload.name);
        let (what, next) = match &failure.pod {
            Some(pod) => (format!("pod {pod} of {kind} {name}"), format!("describe pod {pod}")),
            None => (format!("{kind} {name}"), format!("describe deployment/{name}")),
        };
        Message::new(format!("{what} does not become ready: {}", failure.why)).next(self.observed.kubectl(&next))
    }
}
