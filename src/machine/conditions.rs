//! What users read, derived from the phase in the same patch: printer columns and conditions.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    RunOutcome, StatusReason, Transition,
    faults::{Fault, fault},
    safeguards::RollbackReadiness,
    steps,
    transition::READY,
};
use crate::api::{CreditMigrationStatus, MigrationRunSpec, Phase, Problem, ReadyReason, WorkProgress, Writes};

/// Type of the condition that says whether a rollback could switch the application back.
const ROLLBACK_READY: &str = "RollbackReady";

/// Type of the condition that says that nothing goes on by itself.
const STALLED: &str = "Stalled";

/// Type of the condition that reports down SQL which was not approved.
const DOWN_CHANGED: &str = ReadyReason::DownSqlChanged.as_str();

/// How far the long part of a present run is; `None` while nothing is reported.
fn work(transition: &Transition<'_>) -> Option<WorkProgress> {
    transition.observed.runs.iter().find_map(|observed| {
        let MigrationRunSpec { task, attempt, .. } = observed.run.spec;
        let present = attempt == transition.attempt(steps::run_policy(task).step?)
            && matches!(transition.observed.outcome(task, attempt), RunOutcome::Pending);
        observed.run.status.as_ref()?.work.clone().filter(|_| present)
    })
}

pub(super) fn derive(transition: &mut Transition<'_>) {
    transition.status.observed_generation = Some(transition.observed.generation);
    transition.status.progress = transition.status.step.map(steps::progress);
    transition.status.work = work(transition);
    let phase = transition.phase();
    let writes = writes(transition);
    transition.status.writes = Some(writes);
    let reason = transition.reason.clone().unwrap_or_else(|| ReadyReason::Progressing.into());
    let message = transition.message.clone().unwrap_or_default();

    set(transition, READY, Some(phase == Phase::Completed), reason.as_str(), &message);
    let busy = matches!(
        phase,
        Phase::Preparing
            | Phase::AwaitingApproval
            | Phase::Executing
            | Phase::Validating
            | Phase::Monitoring
            | Phase::Observing
            | Phase::RollingBack
    );
    set(transition, "Reconciling", busy.then_some(true), reason.as_str(), &message);
    let failed = matches!(phase, Phase::Failed | Phase::RollbackFailed) && !fault(Fault::SilentFailure);
    let stalled = failed || reason == StatusReason::Machine(ReadyReason::WindowOverdue);
    match transition.refused_for_long().filter(|_| !stalled) {
        Some(refused) => set(transition, STALLED, Some(true), ReadyReason::EffectRefused.as_str(), &refused),
        None => set(transition, STALLED, stalled.then_some(true), reason.as_str(), &message),
    }

    let drift = transition.down_drift();
    if let Some(text) = &drift {
        transition.report_problem(ReadyReason::DownSqlChanged, None, text.clone(), SignedDuration::ZERO);
    }
    set(transition, DOWN_CHANGED, drift.is_some().then_some(true), "NotApproved", &drift.unwrap_or_default());

    derive_rollback_ready(transition);

    let backup = match (&transition.status.backup, &transition.status.verification) {
        (Some(b), Some(_)) => (true, "ReadThroughToEnd", format!("{} {} bytes, {}", b.object, b.bytes, b.sha256)),
        (Some(b), None) => (false, "NotReadBack", format!("{} was uploaded, not yet read back", b.object)),
        _ => (false, "NoBackup", "no backup of this plan yet".to_owned()),
    };
    set(transition, "BackupVerified", Some(backup.0), backup.1, &backup.2);
    // Of the plan: that of the present pods changes with each of them.
    let expected = transition.status.plan.as_ref().and_then(|plan| plan.expected_window.as_ref());
    let expected_seconds = expected.map_or_else(|| transition.expected_window().seconds, |expected| expected.seconds);
    let rehearsal = match &transition.status.rehearsal {
        Some(r) => (
            true,
            "RolledBackEqual",
            format!(
                "{} tables equal after the rollback; {}{}; expected window {} s (limit {})",
                r.tables_equal,
                r.checks_summary(),
                r.appended(),
                expected_seconds,
                transition.spec.window.max_duration
            ),
        ),
        None => (false, "NoRehearsal", "no rehearsal of this plan yet".to_owned()),
    };
    set(transition, "RehearsalPassed", Some(rehearsal.0), rehearsal.1, &rehearsal.2);
    let open = transition.spec.not_covered();
    let (reason, message) = match open.as_slice() {
        [] => ("AllLines", "every line of the checklist is configured".to_owned()),
        open => {
            let lines: Vec<&str> = open.iter().map(|gap| gap.what.as_str()).collect();
            let next = format!("next: {}", transition.observed.plugin("plan", ""));
            (ReadyReason::NotConfigured.as_str(), format!("the team's own business: {}; {next}", lines.join("; ")))
        }
    };
    set(transition, "ChecklistCovered", Some(open.is_empty()), reason, &message);
    let limit = transition.spec.window.max_duration;
    // The length is not reported while it grows: a status that changes each second would be written each second.
    let (reason, message) = match (writes, transition.deadline()) {
        // Nothing unblocks them by itself.
        (Writes::Blocked, Some(deadline)) if transition.phase() == Phase::RollbackFailed => {
            ("Blocked", format!("until an operator has fixed it; should have ended by {deadline:.0} (limit {limit})"))
        }
        (Writes::Blocked, Some(deadline)) if transition.now >= deadline => {
            ("Blocked", format!("should have ended at {deadline:.0} (limit {limit})"))
        }
        (Writes::Blocked, Some(deadline)) => ("Blocked", format!("until {deadline:.0} at the latest (limit {limit})")),
        (Writes::Blocked, None) => ("Blocked", format!("limit {limit}")),
        (Writes::Open, _) => ("Unblocked", format!("{:.1} s of {limit}", transition.blocked_seconds())),
    };
    set(transition, "WritesBlocked", Some(writes == Writes::Blocked), reason, &message);
}

/// Whether a rollback could be carried out.
fn derive_rollback_ready(transition: &mut Transition<'_>) {
    let (status, reason, message) = match transition.rollback_readiness() {
        Some(RollbackReadiness::Ready(message)) => (Some("True"), "Switchable", message),
        Some(RollbackReadiness::Missing(violation)) => (Some("False"), violation.reason.as_str(), violation.message),
        Some(RollbackReadiness::Unknown(violation)) => (Some("Unknown"), violation.reason.as_str(), violation.message),
        None => return set_status(transition, ROLLBACK_READY, None, "", ""),
    };
    set_status(transition, ROLLBACK_READY, status, reason, &message.to_string());
}

/// Blocked from the moment the order to block may be out, to the moment it is known that they are unblocked.
fn writes(transition: &Transition<'_>) -> Writes {
    let in_window = matches!(transition.phase(), Phase::Executing | Phase::RollingBack | Phase::RollbackFailed);
    if in_window && transition.may_be_blocked() { Writes::Blocked } else { Writes::Open }
}

/// Sets or removes (`None`) one condition; others, also those of other writers, stay as they are.
fn set(transition: &mut Transition<'_>, type_: &str, status: Option<bool>, reason: &str, message: &str) {
    let status = status.map(|status| if status { "True" } else { "False" });
    set_status(transition, type_, status, reason, message);
}

/// The same with a status that may be `Unknown`.
fn set_status(transition: &mut Transition<'_>, type_: &str, status: Option<&str>, reason: &str, message: &str) {
    let Some(status) = status else { return transition.status.conditions.retain(|c| c.type_ != type_) };
    let condition = Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Time(transition.now),
        observed_generation: Some(transition.observed.generation),
    };
    put(&mut transition.status.conditions, condition);
}

/// Replaces the condition of that type. The time of its last transition stays if its status is the same.
fn put(conditions: &mut Vec<Condition>, mut condition: Condition) {
    match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
        Some(old) => {
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time.clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}

/// The status while the objects of a migration cannot be read: nothing is decided, and the condition `Stalled` and
/// `status.problems` say why. The next decision removes both.
pub fn cannot_observe(
    status: &CreditMigrationStatus,
    generation: i64,
    error: String,
    now: crate::api::Time,
) -> CreditMigrationStatus {
    let reason = ReadyReason::ReconcileFailed.as_str();
    let mut status = status.clone();
    let since = status.problems.iter().find(|problem| problem.reason == reason).map_or(now, |problem| problem.since);
    status.problems.retain(|problem| problem.reason != reason);
    status.problems.push(Problem {
        reason: reason.to_owned(),
        subject: None,
        since,
        reported: true,
        message: error.clone(),
    });
    let condition = Condition {
        type_: STALLED.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message: error,
        last_transition_time: Time(now),
        observed_generation: Some(generation),
    };
    put(&mut status.conditions, condition);
    status
}
