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
        let missing = self.missing_safeguards();
        for found in &missing {
            let text = self.safeguard_message(found).to_string();
            let reason = found.kind.ready_reason();
            self.report_unready(reason, found.table.as_deref(), &text, SignedDuration::ZERO);
            // A report of yesterday must not hide what is asked now.
            if found.kind.refuses_writes() && self.recent_until().is_some_and(|until| self.now < until) {
                self.set_ready(reason, text);
            }
        }
        let (violation, hold) = match self.rollback_readiness() {
            // The first report may come in a moment.
            Some(RollbackReadiness::Unknown(violation)) if violation.reason == ReadyReason::SafeguardsNotMeasured => {
                (violation, seconds(OUTDATED_SECONDS))
            }
            Some(RollbackReadiness::Missing(violation) | RollbackReadiness::Unknown(violation)) => {
                (violation, SignedDuration::ZERO)
            }
            Some(RollbackReadiness::Ready(_)) | None => return,
        };
        // Those are reported with their tables.
        if missing.iter().all(|found| found.kind.ready_reason() != violation.reason) {
            self.report_unready(violation.reason, None, &violation.message.to_string(), hold);
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
        // Approvals are in doubt then; a rollback needs none.
        if let Some(violation) = self.policy_violation() {
            return Some(RollbackReadiness::Unknown(violation));
        }
        if let Some(violation) = self.unsupported_dry_run() {
            return Some(RollbackReadiness::Unknown(violation));
        }
        Some(self.with_rehearsals(match self.status.safeguards.clone() {
            // Between the follow-ups it may be reachable again.
            Some(report) if !report.reachable && self.phase() == Phase::Observing => {
                RollbackReadiness::Unknown(self.unreachable(&report))
            }
            Some(report) if !report.reachable => RollbackReadiness::Missing(self.unreachable(&report)),
            Some(report) => match report.missing.first().filter(|_| !fault(Fault::SafeguardsIgnored)) {
                Some(found) => RollbackReadiness::Missing(Violation {
                    reason: found.kind.ready_reason(),
                    message: self.safeguard_message(found),
                }),
                None if self.outdated_at().is_some_and(|at| self.now >= at) => {
                    RollbackReadiness::Unknown(self.unmeasured(Some(report.at)))
                }
                None => RollbackReadiness::Ready(Message::new(match self.phase() {
                    // No pod measures between the follow-ups.
                    Phase::Observing => {
                        format!(
                            "{ready}; the database had what it needs at {:.0}, when it was last measured",
                            report.at
                        )
                    }
                    _ => format!("{ready}; the database has what it needs"),
                })),
            },
            None => RollbackReadiness::Unknown(self.unmeasured(None)),
        }))
    }

    /// What was measured, and what the rehearsals of the rollback say.
    fn with_rehearsals(&self, measured: RollbackReadiness) -> RollbackReadiness {
        let RollbackReadiness::Ready(ready) = measured else { return measured };
        match self.rollback_doubt().filter(|_| !fault(Fault::RehearsalsIgnored)) {
            Some(Doubt::Fails(violation)) => RollbackReadiness::Missing(violation),
            Some(Doubt::NotShown(violation)) => RollbackReadiness::Unknown(violation),
            None => RollbackReadiness::Ready(self.with_rehearsed(ready)),
        }
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
