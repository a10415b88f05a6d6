//! What users read, derived from the phase in the same patch: printer columns and conditions.

use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    StatusReason, Transition,
    faults::{Fault, fault},
    phases::Doubt,
    steps,
    transition::READY,
};
use crate::api::{Phase, ReadyReason, Writes};

/// Type of the condition that says whether a rollback could switch the application back.
const ROLLBACK_READY: &str = "RollbackReady";

/// Type of the condition that reports down SQL which was not approved.
const DOWN_CHANGED: &str = ReadyReason::DownSqlChanged.as_str();

pub(super) fn derive(transition: &mut Transition<'_>) {
    transition.status.observed_generation = Some(transition.observed.generation);
    transition.status.progress = transition.status.step.map(steps::progress);
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
    set(transition, "Stalled", stalled.then_some(true), reason.as_str(), &message);

    let drift = transition.down_drift();
    if let Some(text) = &drift {
        transition.report_problem(ReadyReason::DownSqlChanged, None, text.clone(), SignedDuration::ZERO);
    }
    set(transition, DOWN_CHANGED, drift.is_some().then_some(true), "NotApproved", &drift.unwrap_or_default());

    let rollback = rollback_ready(transition);
    if let Some(RollbackPossible::No(reason, message)) = &rollback
        && transition.status.conditions.iter().any(|c| c.type_ == ROLLBACK_READY && c.status == "True")
    {
        transition.event(true, *reason, message.clone());
    }
    match rollback {
        None => set(transition, ROLLBACK_READY, None, "", ""),
        Some(RollbackPossible::Yes(text)) => set(transition, ROLLBACK_READY, Some(true), "Switchable", &text),
        Some(RollbackPossible::No(reason, text)) => {
            set(transition, ROLLBACK_READY, Some(false), reason.as_str(), &text);
        }
        // Reported as a problem.
        Some(RollbackPossible::Doubtful(doubt)) => {
            let status = match doubt {
                Doubt::Fails(_) => "False",
                Doubt::TooOld(_) => "Unknown",
            };
            set_status(transition, ROLLBACK_READY, Some(status), doubt.reason().as_str(), doubt.message());
        }
    }

    let backup = match (&transition.status.backup, &transition.status.verification) {
        (Some(b), Some(_)) => (true, "ReadThroughToEnd", format!("{} {} bytes, {}", b.object, b.bytes, b.sha256)),
        (Some(b), None) => (false, "NotReadBack", format!("{} was uploaded, not yet read back", b.object)),
        _ => (false, "NoBackup", "no backup of this plan yet".to_owned()),
    };
    set(transition, "BackupVerified", Some(backup.0), backup.1, &backup.2);
    let rehearsal = match &transition.status.rehearsal {
        Some(r) => (
            true,
            "RolledBackEqual",
            format!(
                "{} tables equal after the rollback; {}; expected window {} s (limit {})",
                r.tables_equal,
                r.checks_summary(),
                transition.expected_window().seconds,
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

/// Whether a rollback could do its work, with a message.
enum RollbackPossible {
    Yes(String),
    No(ReadyReason, String),
    /// It could start, and the rehearsals speak against it.
    Doubtful(Doubt),
}

/// Whether a rollback could do its work, while one may follow or waits.
fn rollback_ready(transition: &Transition<'_>) -> Option<RollbackPossible> {
    let failed = match transition.phase() {
        Phase::Validating | Phase::Monitoring | Phase::Observing => false,
        Phase::RollingBack if transition.awaits_rollback_window() => false,
        Phase::RollbackFailed if !transition.may_be_blocked() => true,
        _ => return None,
    };
    let violation = transition.rollback_violation().or_else(|| transition.violation_before_rollback_window());
    Some(match (violation, transition.rollback_doubt()) {
        (Some(violation), _) => RollbackPossible::No(violation.reason, violation.message.to_string()),
        (None, _) if failed => RollbackPossible::No(
            ReadyReason::RollbackNotStarted,
            format!("the last one did not start; next: {}", transition.observed.rollback_command()),
        ),
        (None, Some(doubt)) => RollbackPossible::Doubtful(doubt),
        (None, None) => {
            let from = &transition.spec.application.flag.from;
            let rehearsed = transition.rollback_rehearsed().map_or_else(String::new, |text| format!("; {text}"));
            RollbackPossible::Yes(format!("flag and workloads can be switched back to {from}{rehearsed}"))
        }
    })
}

/// Blocked from the moment the order to block may be out, to the moment it is known that they are unblocked.
fn writes(transition: &Transition<'_>) -> Writes {
    let in_window = matches!(transition.phase(), Phase::Executing | Phase::RollingBack | Phase::RollbackFailed);
    if in_window && transition.may_be_blocked() { Writes::Blocked } else { Writes::Open }
}

/// Sets or removes (`None`) one condition; others, also those of other writers, stay as they are.
fn set(transition: &mut Transition<'_>, type_: &str, status: Option<bool>, reason: &str, message: &str) {
    let status = status.map(|is| if is { "True" } else { "False" });
    set_status(transition, type_, status, reason, message);
}

/// The same with a status that may be `Unknown`.
fn set_status(transition: &mut Transition<'_>, type_: &str, status: Option<&str>, reason: &str, message: &str) {
    let Some(status) = status else { return transition.status.conditions.retain(|c| c.type_ != type_) };
    let old = transition.status.conditions.iter().position(|c| c.type_ == type_);
    let since = old
        .map(|i| &transition.status.conditions[i])
        .filter(|c| c.status == status)
        .map_or(Time(transition.now), |c| c.last_transition_time.clone());
    let condition = Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: since,
        observed_generation: Some(transition.observed.generation),
    };
    match old {
        Some(i) => transition.status.conditions[i] = condition,
        None => transition.status.conditions.push(condition),
    }
}
