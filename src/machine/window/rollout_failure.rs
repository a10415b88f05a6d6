//! A switch that cannot start or cannot settle, while writes are blocked. This is the only list of its causes:
//!
//! | Cause | Counts |
//! |---|---|
//! | The order `Switch` waits: flag or workloads would not be changed (`switch_refusal`) | forward after 10 s |
//! | The flag cannot be set, or pods cannot be replaced (`switch_violation`) | at once |
//! | The API server refuses the write of the flag, or of a restart | after 5 s |
//! | The pods that it started do not become ready, in Kubernetes' own words | at once, or after a grace |
//! | A rollout of a rollback takes twice as long as expected, and Kubernetes names no cause | then |
//!
//! On the forward path an order that waits and failing pods end the window before its deadline, by a rollback, which is
//! notified of; the deadline ends the others. A rollback has nowhere else to go: both versions may serve, so it goes
//! on. People are notified of each other cause when it counts, once for each switch, whether it was acknowledged
//! meanwhile or not. A rollout that makes progress is no cause.

use jiff::SignedDuration;

use crate::{
    api::{Direction, Occasion, ReadyReason, Step, WorkloadRef},
    machine::{
        RolloutFailure, RolloutFailureKind, Transition,
        faults::{Fault, fault},
        gates::Violation,
        notices::notice_key,
        transition::Reported,
    },
    shared::{
        message::Message,
        time::{saturating_add, seconds},
    },
};

/// For how long the order `Switch` has to wait before that ends the forward window, in seconds: a webhook may be
/// restarting.
const WAITING_SECONDS: i64 = 10;
/// For how long the API server refuses a write of the switch until people are notified, in seconds.
const REFUSED_SECONDS: i64 = 5;

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
    /// Reports what keeps the switch from starting, or from settling.
    pub(crate) fn report_switch(&mut self, direction: Direction) {
        let now = SignedDuration::ZERO;
        if let Some(Violation { reason, message }) = self.switch_refusal(direction) {
            let text = message.to_string();
            match direction {
                Direction::Forward => drop(self.report_problem(reason, None, text, seconds(WAITING_SECONDS))),
                Direction::Rollback => self.report_stuck_switch(direction, reason, None, text, now),
            }
        }
        if !self.is_switched() {
            return;
        }
        if let Some(violation) = self.switch_violation(direction) {
            self.report_stuck_switch(direction, violation.reason, None, violation.message.to_string(), now);
        }
        if let Some(text) = self.refused_switch(direction) {
            self.report_stuck_switch(direction, ReadyReason::EffectRefused, None, text, seconds(REFUSED_SECONDS));
        }
        for (workload, failure) in self.rollout_failures(direction) {
            let (text, name) = (self.failure_message(&workload, &failure).to_string(), Some(workload.name.as_str()));
            match direction {
                Direction::Forward => {
                    let hold = seconds(grace_seconds(failure.kind));
                    self.report_problem(ReadyReason::RolloutFailed, name, text, hold);
                }
                Direction::Rollback => {
                    self.report_stuck_switch(direction, ReadyReason::RolloutFailed, name, text, now);
                }
            }
        }
        for (workload, text) in self.late_rollouts(direction) {
            self.report_stuck_switch(direction, ReadyReason::RolloutFailed, Some(&workload), text, now);
        }
    }

    /// Reports a cause, and notifies of it when it has lasted for `hold`.
    fn report_stuck_switch(
        &mut self,
        direction: Direction,
        reason: ReadyReason,
        workload: Option<&str>,
        text: String,
        hold: SignedDuration,
    ) {
        // Not only when it is reported: it may have lasted since before this switch, which has a notice of its own.
        if self.report_problem(reason, workload, text.clone(), hold) != Reported::NotYet {
            self.notify_of_stuck_switch(direction, workload.unwrap_or(reason.as_str()), &text);
        }
    }

    /// What the API server refuses while the flag, or a restart, is not written.
    fn refused_switch(&self, direction: Direction) -> Option<String> {
        let wanted = &self.spec.application.workloads;
        let mut named = self.observed.workloads.iter().filter(|w| wanted.contains(&w.reference));
        let writes = !self.is_flag_set(direction) || named.any(|w| self.awaits_restart(direction, w));
        self.refused_effect().filter(|_| writes && !fault(Fault::SilentRefusal))
    }

    /// Workloads whose rollback takes twice as long as expected without a failure that Kubernetes names: their pods run
    /// without becoming ready, or find no node. A restart that was not written has started no rollout.
    fn late_rollouts(&self, direction: Direction) -> Vec<(String, String)> {
        let started = self.started_at(Step::SwitchBack).filter(|_| direction == Direction::Rollback);
        let Some(started) = started else { return vec![] };
        let wanted = &self.spec.application.workloads;
        let named = self.observed.workloads.iter().filter(|w| wanted.contains(&w.reference) && w.failure.is_none());
        // Before that the flag, or the restart, is what is refused.
        let started_by_it = named.filter(|w| self.replacement(direction, w).is_ordered(w));
        let late = started_by_it.filter(|w| !self.is_replaced(direction, w)).filter_map(|workload| {
            let limit = workload.rollout.as_ref()?.seconds.saturating_mul(2);
            if self.now < saturating_add(started, SignedDuration::from_secs(i64::try_from(limit).unwrap_or(i64::MAX))) {
                return None;
            }
            let (name, (available, replicas)) = (&workload.reference.name, workload.available);
            let message = Message::new(format!(
                "the rollout of Deployment {name} has not ended since {started:.0} (limit {limit} s, twice what was \
                 expected): {available}/{replicas} available, {} pods to be replaced",
                workload.old_pods
            ));
            let next = self.observed.kubectl(&format!("rollout status deployment/{name}"));
            Some((name.clone(), message.next(next).to_string()))
        });
        late.collect()
    }

    /// Once for each switch and cause: a pod without a readiness probe is ready between two crashes.
    fn notify_of_stuck_switch(&mut self, direction: Direction, cause: &str, text: &str) {
        let (what, started) = match direction {
            Direction::Forward => ("forward", self.status.window.as_ref().and_then(|window| window.blocked_at)),
            Direction::Rollback => ("back", self.status.rollback.as_ref().map(|rollback| rollback.started_at)),
        };
        let key = notice_key(&format!("switch-{what}.{cause}"), started.unwrap_or(self.now));
        let deadline = self.deadline().map_or_else(String::new, |deadline| format!(" ({deadline:.0})"));
        let until = format!("writes are blocked until the deadline{deadline}");
        let text = match direction {
            Direction::Forward => format!("the application cannot be switched, {until}: {text}"),
            Direction::Rollback if !self.is_switched() => {
                format!("the application cannot be switched back, {until}: {text}")
            }
            Direction::Rollback if self.may_be_blocked() => format!(
                "the application cannot be switched back, and both versions may serve: writes stay blocked until it \
                 is: {text}"
            ),
            Direction::Rollback => {
                format!("the application cannot be switched back, and the new version runs on the old schema: {text}")
            }
        };
        if !fault(Fault::SilentSwitch) {
            self.notify(Occasion::ManualInterventionRequired, &key, &text);
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
