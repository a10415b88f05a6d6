//! The checklist's sections. Evidence checks off each line.

use serde::Serialize;

use crate::{
    api::{
        Audience, CreditMigrationStatus, DeliveryState, Finding, Occasion, RollbackRehearsalMode,
        RollbackRehearsalStatus, Step, StepState, Task, Topic,
    },
    plugin::inspect::record::Record,
};

#[derive(Serialize, Debug)]
pub(super) struct Section {
    pub(super) title: &'static str,
    pub(super) lines: Vec<ChecklistLine>,
}

#[derive(Serialize, Debug)]
pub(super) struct ChecklistLine {
    pub(super) what: String,
    pub(super) done: bool,
    pub(super) evidence: String,
}

/// Titles of the sections that get further lines, or that not every record has.
const TEST: &str = "Test and application";
const COMMUNICATION: &str = "Communication";
const AFTERWARDS: &str = "Afterwards";
const ROLLBACK: &str = "Rollback";

/// Sections of the checklist, and the steps that check off their lines.
const SECTIONS: &[(&str, &[(&str, Step)])] = &[
    (
        "Backup and safety",
        &[
            ("Full backup of the database, in the bucket", Step::Backup),
            ("The backup is complete: downloaded and read to its end", Step::VerifyBackup),
            ("Tag and branch of the code", Step::CodeBackup),
        ],
    ),
    (
        "Data",
        &[("Statistics of users and transactions", Step::Baseline), ("Export of key users", Step::ExportKeyUsers)],
    ),
    (
        TEST,
        &[
            ("Migration and rollback on a copy", Step::Rehearse),
            ("Flag and ENABLE_ROLLBACK are prepared", Step::Preflight),
        ],
    ),
    (COMMUNICATION, &[("The technical team is notified", Step::NotifyTeam)]),
    ("Phase 1: preparation", &[("The plan is approved", Step::Approve), ("Time and presence", Step::Schedule)]),
    (
        "Phase 2: execution",
        &[
            ("Read-only mode, verified", Step::BlockWrites),
            ("Migration script", Step::Migrate),
            ("Its result", Step::VerifyMigration),
            ("Application switched", Step::SwitchApplication),
            ("Read-only mode ended", Step::UnblockWrites),
        ],
    ),
    ("Phase 3: validation", &[("Functions, performance, data", Step::Validate)]),
    ("Phase 4: monitoring", &[("Logs, figures, triggers", Step::Monitor)]),
    (
        AFTERWARDS,
        &[
            ("After 24 hours", Step::DayCheck),
            ("After one week", Step::WeekReview),
            ("Decision to keep the new system", Step::Decide),
        ],
    ),
    (
        ROLLBACK,
        &[
            ("Read-only mode, verified", Step::BlockWritesForRollback),
            ("Application switched back", Step::SwitchBack),
            ("Rollback script", Step::RollbackSql),
            ("Its result", Step::VerifyRollback),
            ("Read-only mode ended", Step::UnblockWritesAfterRollback),
        ],
    ),
];

/// The checklist, section by section.
pub(super) fn checklist(record: &Record, status: &CreditMigrationStatus) -> Vec<Section> {
    let section = |(title, lines): &(&'static str, &[(&str, Step)])| {
        let mut lines: Vec<ChecklistLine> =
            lines.iter().flat_map(|(what, step)| of_step(what, *step, record, status)).collect();
        match *title {
            TEST => lines.push(both_versions(record)),
            COMMUNICATION => lines.extend([maintenance_notice(status), contacts(record)]),
            AFTERWARDS => lines.push(rollback_rehearsal(record, status)),
            _ => {}
        }
        Section { title, lines }
    };
    let listed = SECTIONS.iter().filter(|(title, _)| *title != ROLLBACK || status.rollback.is_some());
    let mut sections: Vec<Section> = listed.map(section).collect();
    // Triggers and checks, each with its last measurement.
    let measured: Vec<ChecklistLine> = status
        .checks
        .iter()
        .map(|check| ChecklistLine {
            what: format!("Check {}", check.name),
            done: check.outcome == crate::api::CheckOutcome::Pass && !check.breached,
            evidence: format!(
                "{}, {} measurements{}: {}",
                check.outcome,
                check.measured,
                if check.breached { ", breached" } else { "" },
                check.message
            ),
        })
        .collect();
    if !measured.is_empty() {
        sections.push(Section { title: "Checks of the last stage", lines: measured });
    }
    sections
}

/// Lines of a stage, each with the topics of the checks that it needs.
type Parts = &'static [(&'static str, Topic)];

/// The lines of a stage. Its duration alone is no evidence for what no check measured.
fn parts(step: Step) -> Option<Parts> {
    Some(match step {
        Step::Validate => {
            &[("Functions", Topic::Functions), ("Performance", Topic::Performance), ("Data", Topic::Data)]
        }
        Step::Monitor => &[("Logs", Topic::Logs), ("Figures", Topic::Figures), ("Triggers", Topic::Triggers)],
        Step::DayCheck => &[("After 24 hours", Topic::Day)],
        Step::WeekReview => &[("After one week", Topic::Week)],
        _ => return None,
    })
}

/// The lines of a step: one, or for a stage one for each part that it checks.
fn of_step(what: &str, step: Step, record: &Record, status: &CreditMigrationStatus) -> Vec<ChecklistLine> {
    let line = step_line(what, step, status);
    let Some(parts) = parts(step) else { return vec![line] };
    let gaps = record.migration.spec.not_covered();
    let part = |(what, topic): &(&str, Topic)| {
        let open: Vec<&str> = gaps.iter().filter(|gap| gap.topic == *topic).map(|gap| gap.what.as_str()).collect();
        let without = if open.is_empty() { String::new() } else { format!("; no check of: {}", open.join(", ")) };
        ChecklistLine {
            what: (*what).to_owned(),
            done: line.done && open.is_empty(),
            evidence: format!("{}{without}", line.evidence),
        }
    };
    parts.iter().map(part).collect()
}

/// Whether the application reports that it can run both versions, as Preflight recorded it.
fn both_versions(record: &Record) -> ChecklistLine {
    let runs = record.runs.iter().filter(|r| r.spec.task == Task::Preflight);
    let last = runs.filter_map(|r| Some((r.spec.attempt, r.status.as_ref()?))).max_by_key(|(attempt, _)| *attempt);
    let finding = last.and_then(|(_, s)| s.findings.iter().find(|f| f.name == Finding::VERSION_PROBE));
    let evidence = match finding {
        Some(finding) => finding.message.clone(),
        None if record.migration.spec.application.version_probe.is_none() => {
            "not checked: spec.application.versionProbe is not set".to_owned()
        }
        None => "no answer is recorded".to_owned(),
    };
    ChecklistLine {
        what: "Both versions are in the application".into(),
        done: finding.is_some_and(|f| f.reason.is_none() && f.holds_both_versions == Some(true)),
        evidence,
    }
}

fn step_line(what: &str, step: Step, status: &CreditMigrationStatus) -> ChecklistLine {
    let of = status.steps.iter().find(|s| s.name == step);
    let evidence = match of {
        None => "not started".to_owned(),
        Some(s) => {
            let message = s.message.clone().or(s.reason.clone()).unwrap_or_default();
            let when = s.finished_at.map(|t| format!(", {t:.0}")).unwrap_or_default();
            match s.state {
                StepState::Skipped => format!("not configured: {message}"),
                state => format!("{state}{when}: {message}"),
            }
        }
    };
    ChecklistLine { what: what.into(), done: of.is_some_and(|s| s.state == StepState::Succeeded), evidence }
}

/// Whether the rollback passed its last rehearsal on what was written since the cutover.
fn rollback_rehearsal(record: &Record, status: &CreditMigrationStatus) -> ChecklistLine {
    let mode = record.migration.spec.rollback.rehearsal.mode;
    let again = status.rollback_rehearsal.as_ref();
    let evidence = match again.and_then(RollbackRehearsalStatus::summary) {
        Some(summary) => summary,
        None if mode == RollbackRehearsalMode::Never => {
            format!("not configured: spec.rollback.rehearsal.mode is {mode}")
        }
        None => "not rehearsed".to_owned(),
    };
    ChecklistLine {
        what: "Rollback, rehearsed on what was written since".into(),
        done: again.is_some_and(|again| again.passed.is_some() && again.failed.is_none()),
        evidence,
    }
}

/// Whether a channel accepted the maintenance notice.
fn maintenance_notice(status: &CreditMigrationStatus) -> ChecklistLine {
    let notice = status.notices.iter().rev().find(|n| n.notice.occasion == Occasion::MaintenanceStarts);
    let taken: Vec<String> = notice
        .iter()
        .flat_map(|n| &n.deliveries)
        .filter(|d| d.state == DeliveryState::Delivered)
        .map(|d| d.channel.clone())
        .collect();
    let evidence = match notice {
        None => "not sent".to_owned(),
        Some(n) => format!(
            "{}, {:.0}, by {}",
            n.state,
            n.notice.at,
            if taken.is_empty() { "none".into() } else { taken.join(", ") }
        ),
    };
    ChecklistLine { what: "Maintenance notice".into(), done: !taken.is_empty(), evidence }
}

/// Contacts and audiences. Only roles: names and phone numbers stay in the spec.
fn contacts(record: &Record) -> ChecklistLine {
    let notifications = &record.migration.spec.notifications;
    let gaps = record.migration.spec.not_covered();
    let roles_missing = gaps.iter().any(|gap| gap.topic == Topic::Contacts);
    let roles: Vec<String> = notifications.contacts.iter().map(|c| c.role.to_string()).collect();
    let reached: Vec<String> = [Audience::Support, Audience::Users, Audience::Social, Audience::StatusPage]
        .into_iter()
        .filter(|a| notifications.reaches(*a))
        .map(|a| a.to_string())
        .collect();
    let evidence = format!(
        "contacts: {}; channels reach: {}",
        if roles.is_empty() { "none".into() } else { roles.join(", ") },
        if reached.is_empty() { "the team at most".into() } else { reached.join(", ") }
    );
    ChecklistLine {
        what: "Emergency contacts, support, users, status page".into(),
        done: !roles_missing && reached.len() == 4,
        evidence,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{machine::steps::FORWARD, plugin::inspect::record::tests::completed};

    #[test]
    fn every_step_is_a_line_of_the_checklist() {
        let lines: Vec<Step> = SECTIONS.iter().flat_map(|(_, lines)| lines.iter().map(|(_, step)| *step)).collect();
        for step in FORWARD.iter().map(|row| row.step) {
            assert_eq!(lines.iter().filter(|s| **s == step).count(), 1, "{step:?}");
        }
    }

    #[test]
    fn the_rollback_is_checked_off_by_its_last_rehearsal() {
        let mut record = completed();
        record.migration.spec.rollback.rehearsal.mode = RollbackRehearsalMode::Daily;
        let mut line = |again: serde_json::Value| {
            let status = record.migration.status.as_mut().unwrap();
            status.rollback_rehearsal = serde_json::from_value(again).unwrap();
            let sections = checklist(&record, &record.migration.status.clone().unwrap());
            let lines = sections.into_iter().flat_map(|section| section.lines);
            lines.filter(|line| line.what.starts_with("Rollback, rehearsed")).map(|l| (l.done, l.evidence)).collect()
        };
        let none: Vec<(bool, String)> = line(json!(null));
        assert_eq!(none, [(false, "not rehearsed".to_owned())]);
        let passed = json!(crate::api::fixtures::rollback_rehearsal(crate::api::Time::UNIX_EPOCH));
        let (done, evidence) = line(json!({"passed": passed, "expectedWindowSeconds": 33})).remove(0);
        assert!(done && evidence.contains("900 rows") && evidence.contains("120 credits"), "{evidence}");
        assert!(evidence.ends_with("writes would be blocked for about 33 s"), "{evidence}");
        let failed = json!({"reason": "SqlFailed", "message": "m", "at": "2030-01-01T00:00:00Z"});
        let (done, evidence) = line(json!({"passed": passed, "failed": failed})).remove(0);
        assert!(!done && evidence == "failed at 2030-01-01T00:00:00Z: SqlFailed: m", "{evidence}");
    }

    #[rstest::rstest]
    #[case(json!({"name": "version probe", "holdsBothVersions": true, "message": "m"}), true)]
    #[case(json!({"name": "version probe", "holdsBothVersions": false, "message": "m"}), false)]
    #[case(json!({"name": "version probe", "message": "it holds both versions"}), false)]
    #[case(json!({"name": "version probe", "reason": "ProbeFailed", "message": "no answer"}), false)]
    #[case(json!({"name": "bucket", "holdsBothVersions": true, "message": "m"}), false)]
    fn both_versions_as_the_application_reports_them(#[case] finding: serde_json::Value, #[case] done: bool) {
        let mut record = completed();
        let mut run = record.runs[0].clone();
        run.spec.task = Task::Preflight;
        run.status = Some(serde_json::from_value(json!({"phase": "Succeeded", "findings": [finding]})).unwrap());
        record.runs.push(run);
        assert_eq!(both_versions(&record).done, done, "{:?}", both_versions(&record));
    }
}
