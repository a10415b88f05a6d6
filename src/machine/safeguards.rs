//! After the window: what a rollback needs, and whether the application's writes are refused. Measured by the pods of
//! the stages and of the follow-ups, reported as problems and by the condition `RollbackReady`.

use jiff::SignedDuration;

use super::{
    Transition,
    faults::{Fault, fault},
    gates::Violation,
    notices::notice_key,
    phases::Doubt,
    steps::run_policy,
    transition::Reported,
};
use crate::{
    api::{MissingSafeguard, Occasion, Phase, ReadyReason, SafeguardReport, Task, Time},
    shared::{message::Message, time::seconds},
};

/// From when on a report says nothing of now while a pod measures, in seconds.
const OUTDATED_SECONDS: i64 = 90;
/// For how long what may pass in a moment lasts before people are notified, in seconds: a webhook that restarts, a
/// quota that another rollout fills, a failover of the database.
const TRANSIENT_SECONDS: i64 = 30;
/// Tasks that measure.
const MEASURING: [Task; 5] = [Task::Validate, Task::Monitor, Task::DayCheck, Task::WeekReview, Task::RehearseRollback];

/// Whether a rollback could be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RollbackReadiness {
    /// As far as it was measured.
    Ready(Message),
    /// What is missing.
    Missing(Violation),
    /// It is not known.
    Unknown(Violation),
}

/// Something against a rollback.
struct Cause {
    /// It would not work; otherwise that is not known.
    is_certain: bool,
    violation: Violation,
    /// The table, if there can be several.
    subject: Option<String>,
    /// For how long it lasts before people are notified.
    hold: SignedDuration,
}

impl Cause {
    fn certain(violation: Violation) -> Self {
        Self { is_certain: true, violation, subject: None, hold: SignedDuration::ZERO }
    }

    fn possible(violation: Violation) -> Self {
        Self { is_certain: false, ..Self::certain(violation) }
    }
}

impl Transition<'_> {
    /// The window has ended on the new schema, and no one has decided yet.
    fn may_be_rolled_back(&self) -> bool {
        matches!(self.phase(), Phase::Validating | Phase::Monitoring | Phase::Observing)
    }

    /// Takes what was measured last, and reports what keeps a rollback from being carried out, or from being known to
    /// be possible. People are notified of each cause, once for as long as it lasts.
    pub(super) fn report_safeguards(&mut self) {
        if !self.may_be_rolled_back() {
            return;
        }
        self.record_safeguards();
        if let Some(at) = self.outdated_at().filter(|at| self.now < *at) {
            self.wake_at(at);
        }
        // A report of yesterday must not hide what is asked now.
        if self.recent_until().is_some_and(|until| self.now < until) {
            for found in self.missing_safeguards().iter().filter(|found| found.kind.refuses_writes()) {
                self.set_ready(found.kind.ready_reason(), self.safeguard_message(found).to_string());
            }
        }
        for Cause { violation, subject, hold, .. } in self.causes_against_rollback() {
            self.report_unready(violation.reason, subject.as_deref(), &violation.message.to_string(), hold);
        }
    }

    fn report_unready(&mut self, reason: ReadyReason, subject: Option<&str>, text: &str, hold: SignedDuration) {
        if self.report_problem(reason, subject, text.to_owned(), hold) == Reported::Now {
            let key = notice_key(&format!("rollback-ready.{}", reason.as_str()), self.now);
            self.notify(Occasion::ManualInterventionRequired, &key, text);
        }
    }

    fn record_safeguards(&mut self) {
        // Also of a run that was followed by another one: it may be the last that has measured.
        let runs = self.observed.runs.iter().filter(|r| MEASURING.contains(&r.run.spec.task));
        let reports = runs.filter_map(|r| r.run.status.as_ref()?.safeguards.as_ref());
        let newest = self.status.safeguards.iter().chain(reports).max_by_key(|report| report.at).cloned();
        self.status.safeguards = newest;
    }

    fn missing_safeguards(&self) -> Vec<MissingSafeguard> {
        self.status.safeguards.as_ref().map(|report| report.missing.clone()).unwrap_or_default()
    }

    fn safeguard_message(&self, found: &MissingSafeguard) -> Message {
        let map = &self.spec.migration.down.config_map_key_ref.name;
        found.message(&self.observed.kubectl(&format!("edit configmap {map}")))
    }

    /// Whether a rollback could be carried out; `None` in a phase in which none may follow.
    pub(super) fn rollback_readiness(&self) -> Option<RollbackReadiness> {
        let waits = self.awaits_rollback_window();
        let failed = self.phase() == Phase::RollbackFailed && !self.may_be_blocked();
        if !self.may_be_rolled_back() && !waits && !failed {
            return None;
        }
        let violation = self.rollback_violation().or_else(|| self.violation_before_rollback_window());
        if let Some(violation) = violation {
            return Some(RollbackReadiness::Missing(violation));
        }
        if failed {
            let message = Message::new("the last one did not start").next(self.observed.rollback_command());
            return Some(RollbackReadiness::Missing(Violation { reason: ReadyReason::RollbackNotStarted, message }));
        }
        let from = &self.spec.application.flag.from;
        let ready = format!("flag and workloads can be switched back to {from}");
        if waits {
            return Some(RollbackReadiness::Ready(Message::new(ready)));
        }
        let causes = self.causes_against_rollback();
        let first = |is_certain| causes.iter().find(|cause| cause.is_certain == is_certain);
        Some(match (first(true), first(false)) {
            (Some(cause), _) => RollbackReadiness::Missing(cause.violation.clone()),
            (None, Some(cause)) => RollbackReadiness::Unknown(cause.violation.clone()),
            (None, None) => {
                let measured = match (self.phase(), &self.status.safeguards) {
                    // No pod measures between the follow-ups.
                    (Phase::Observing, Some(report)) => {
                        format!("the database had what it needs at {:.0}, when it was last measured", report.at)
                    }
                    _ => "the database has what it needs".to_owned(),
                };
                RollbackReadiness::Ready(self.with_rehearsed(Message::new(format!("{ready}; {measured}"))))
            }
        })
    }

    /// All that is known against a rollback after the window: a cause that lasts must not be hidden by another one, and
    /// reported again when that one passes.
    fn causes_against_rollback(&self) -> Vec<Cause> {
        let mut causes = vec![];
        if let Some(violation) = self.rollback_violation().or_else(|| self.violation_before_rollback_window()) {
            let passes = matches!(
                violation.reason,
                ReadyReason::FlagWriteRefused | ReadyReason::WorkloadWriteRefused | ReadyReason::QuotaExceeded
            );
            let hold = if passes { seconds(TRANSIENT_SECONDS) } else { SignedDuration::ZERO };
            causes.push(Cause { hold, ..Cause::certain(violation) });
        }
        // Approvals are in doubt then; a rollback needs none.
        causes.extend(self.policy_violation().map(Cause::possible));
        causes.extend(self.unsupported_dry_run().map(Cause::possible));
        causes.extend(self.measured_causes());
        match self.rollback_doubt().filter(|_| !fault(Fault::RehearsalsIgnored)) {
            Some(Doubt::Fails(violation)) => causes.push(Cause::certain(violation)),
            Some(Doubt::NotShown(violation)) => causes.push(Cause::possible(violation)),
            None => {}
        }
        causes
    }

    /// What the pods of the stages and of the follow-ups have measured.
    fn measured_causes(&self) -> Vec<Cause> {
        // The next report may come in a moment.
        let not_measured = |last| Cause { hold: seconds(OUTDATED_SECONDS), ..Cause::possible(self.unmeasured(last)) };
        let Some(report) = &self.status.safeguards else { return vec![not_measured(None)] };
        if !report.reachable {
            // Between the follow-ups it may be reachable again.
            let is_certain = self.phase() != Phase::Observing;
            let violation = self.unreachable(report);
            return vec![Cause { is_certain, hold: seconds(TRANSIENT_SECONDS), ..Cause::possible(violation) }];
        }
        if report.missing.is_empty() || fault(Fault::SafeguardsIgnored) {
            let outdated = self.outdated_at().is_some_and(|at| self.now >= at);
            return outdated.then(|| not_measured(Some(report.at))).into_iter().collect();
        }
        let cause = |found: &MissingSafeguard| Cause {
            subject: found.table.clone(),
            ..Cause::certain(Violation { reason: found.kind.ready_reason(), message: self.safeguard_message(found) })
        };
        report.missing.iter().map(cause).collect()
    }

    /// Until when the last report says something of now.
    fn recent_until(&self) -> Option<Time> {
        Some(self.status.safeguards.as_ref()?.at + seconds(OUTDATED_SECONDS))
    }

    /// When the last report is outdated, which is reported: in the stages a pod measures all the time.
    fn outdated_at(&self) -> Option<Time> {
        self.recent_until().filter(|_| self.phase() != Phase::Observing)
    }

    fn unmeasured(&self, last: Option<Time>) -> Violation {
        let last = last.map_or_else(|| "never was".to_owned(), |at| format!("last was at {at:.0}"));
        let task = if self.phase() == Phase::Monitoring { Task::Monitor } else { Task::Validate };
        let attempt = run_policy(task).step.map_or(0, |step| self.attempt(step));
        let name = self.observed.run_name(task, attempt);
        Violation {
            reason: ReadyReason::SafeguardsNotMeasured,
            message: Message::new(format!(
                "it is not measured whether the database has what a rollback needs, and {last} (limit \
                 {OUTDATED_SECONDS} s)"
            ))
            .next(self.observed.describe_job(&name)),
        }
    }

    fn unreachable(&self, report: &SafeguardReport) -> Violation {
        Violation {
            reason: ReadyReason::DatabaseUnreachable,
            message: Message::new(format!("the database could not be reached at {:.0}", report.at))
                .next("check the server, the network, and the Secret of spec.database.connection"),
        }
    }
}
