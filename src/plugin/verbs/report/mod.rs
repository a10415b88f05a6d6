//! `report`: writes the whole record of a migration, in the order of the checklist (`checklist`). Its evidence is that
//! of [`super::verify`].
//!
//! Called by the dispatch of [`plugin`](crate::plugin). Imports the verbs `completion`, `status` and `verify`,
//! `connection`, `inspect`, `output` and `error` of the plugin, and `api`.

mod checklist;

use std::fmt::Write as _;

use kube::ResourceExt;
use serde::Serialize;

use self::checklist::{Section, checklist};
use super::{completion, status::current_state, verify::verify};
use crate::{
    api::{
        CreditMigrationStatus, ExpectedWindow, RecoveryPoints, Replication, ReportEvidence, StatementEvidence,
        TableUsers, Task, Time,
    },
    plugin::{
        PluginError,
        connection::ClusterConnection,
        inspect::record::Record,
        output::{CheckedItem, Format, Output, State, one_line, seconds},
    },
};

pub(crate) const EXAMPLES: &str = "\
As Markdown, or with -o json or yaml. It has no secret, no row of a user, and no phone number.

Examples:
  kubectl creditmigration report simplify-credits >report.md
  kubectl creditmigration report simplify-credits -o json";

/// Whose record to write.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Name of the CreditMigration.
    #[arg(add = completion::names())]
    name: String,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// The record.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct MigrationReport {
    name: String,
    namespace: String,
    current_state: String,
    author: String,
    digest: Option<String>,
    expected_window: Option<ExpectedWindow>,
    /// What else uses the tables, as the approvers were asked on it.
    table_users: Option<String>,
    /// The checklist, section by section.
    checklist: Vec<Section>,
    /// Statements of the SQL as the rehearsal measured them, the longest first.
    statements: Vec<StatementEvidence>,
    decisions: Vec<DecisionRecord>,
    windows: Vec<WindowLine>,
    notices: Vec<NoticeLine>,
    /// Objects in the bucket.
    objects: Vec<Object>,
    /// Result of `verify`.
    evidence: Vec<CheckedItem>,
}

#[derive(Serialize, Debug)]
struct DecisionRecord {
    at: Option<Time>,
    decision: String,
    by: String,
    reason: String,
    digest: Option<String>,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct WindowLine {
    run: String,
    direction: &'static str,
    state: String,
    blocked_at: Option<Time>,
    unblocked_at: Option<Time>,
    blocked_seconds: Option<f64>,
    verification: Option<String>,
    users_written_since: Option<u64>,
    recovery: RecoveryPoints,
    replication: Option<Replication>,
}

#[derive(Serialize, Debug)]
struct NoticeLine {
    occasion: String,
    at: Time,
    state: String,
    channels: Vec<String>,
}

#[derive(Serialize, Debug)]
struct Object {
    what: &'static str,
    object: String,
    bytes: Option<u64>,
    sha256: Option<String>,
}

/// Writes the record.
pub(crate) async fn run(connection: &ClusterConnection, args: &Args) -> Result<Output, PluginError> {
    let report = of(&connection.record(&args.name).await?);
    Ok(Output::success(args.output.write(&report, || markdown(&report))?))
}

fn of(record: &Record) -> MigrationReport {
    let m = &record.migration;
    let status = m.status.clone().unwrap_or_default();
    MigrationReport {
        name: m.name_any(),
        namespace: m.namespace().unwrap_or_default(),
        current_state: current_state(m),
        author: m.spec.requested_by.clone(),
        digest: status.plan.as_ref().and_then(|p| p.digest.clone()),
        expected_window: status.plan.as_ref().and_then(|p| p.expected_window.clone()),
        table_users: status.table_users.as_ref().and_then(TableUsers::summary),
        checklist: checklist(record, &status),
        statements: m.measured_statements(),
        decisions: record
            .decisions
            .iter()
            .map(|decision| DecisionRecord {
                at: decision.metadata.creation_timestamp.as_ref().map(|t| t.0),
                decision: decision.spec.decision.to_string(),
                by: decision.spec.by.clone(),
                reason: decision.spec.reason.clone().unwrap_or_default(),
                digest: decision.spec.digest.clone(),
            })
            .collect(),
        windows: windows(record),
        notices: status
            .notices
            .iter()
            .map(|notice| NoticeLine {
                occasion: notice.notice.occasion.to_string(),
                at: notice.notice.at,
                state: notice.state.to_string(),
                channels: notice.deliveries.iter().map(|d| format!("{} {}", d.channel, d.state)).collect(),
            })
            .collect(),
        objects: objects(&status),
        evidence: verify(record),
    }
}

fn windows(record: &Record) -> Vec<WindowLine> {
    let mut runs: Vec<_> = record
        .runs
        .iter()
        .filter(|r| r.spec.task.is_window())
        .filter_map(|r| Some((r, r.status.as_ref()?.window.as_ref()?)))
        .collect();
    runs.sort_by_key(|(r, w)| (w.blocked_at, r.spec.task, r.spec.attempt));
    runs.into_iter()
        .map(|(run, window)| WindowLine {
            run: run.name_any(),
            direction: if run.spec.task == Task::Window { "forward" } else { "rollback" },
            state: window.state.to_string(),
            blocked_at: window.blocked_at,
            unblocked_at: window.unblocked_at,
            blocked_seconds: window
                .blocked_at
                .zip(window.unblocked_at)
                .and_then(|(from, to)| (to - from).total(jiff::Unit::Second).ok()),
            verification: window.verification.clone(),
            users_written_since: window.users_written_since,
            recovery: window.recovery.clone(),
            replication: window.replication.clone(),
        })
        .collect()
}

/// `blocked 0/1, committed 0/2`, as far as they are known.
fn recovery(points: &RecoveryPoints) -> String {
    let RecoveryPoints { blocked_lsn, committed_lsn, unblocked_lsn, restore_point } = points;
    let known = [
        ("blocked", blocked_lsn),
        ("committed", committed_lsn),
        ("unblocked", unblocked_lsn),
        ("restore point", restore_point),
    ];
    let known: Vec<String> =
        known.into_iter().filter_map(|(what, value)| Some(format!("{what} {}", value.as_ref()?))).collect();
    known.join(", ")
}

fn objects(status: &CreditMigrationStatus) -> Vec<Object> {
    let mut all = vec![];
    if let Some(b) = &status.backup {
        all.push(Object {
            what: "backup",
            object: b.object.clone(),
            bytes: Some(b.bytes),
            sha256: Some(b.sha256.clone()),
        });
        all.push(Object { what: "statistics", object: b.statistics_object.clone(), bytes: None, sha256: None });
    }
    if let Some(k) = &status.key_users {
        all.push(Object {
            what: "key users",
            object: k.object.clone(),
            bytes: Some(k.bytes),
            sha256: Some(k.sha256.clone()),
        });
    }
    let reports = [("report after a day", &status.day_report), ("report after a week", &status.week_report)];
    for (what, report) in reports {
        if let Some(ReportEvidence { object, bytes, sha256, .. }) = report {
            all.push(Object { what, object: object.clone(), bytes: Some(*bytes), sha256: Some(sha256.clone()) });
        }
    }
    all
}

/// Writing to a String cannot fail.
fn markdown(report: &MigrationReport) -> String {
    let MigrationReport {
        name,
        namespace,
        current_state,
        author,
        digest,
        expected_window,
        table_users,
        checklist,
        statements,
        decisions,
        windows,
        notices,
        objects,
        evidence,
    } = report;
    let mut text = format!(
        "# Credit migration {name}\n\n- Namespace: {namespace}\n- State: {}\n- Author: {author}\n- Plan: {}\n\
         - Expected window: {}\n",
        one_line(current_state.clone()),
        digest.as_deref().unwrap_or("none yet"),
        expected_window.as_ref().map_or_else(|| "not known yet".to_owned(), ExpectedWindow::summary)
    );
    if let Some(users) = table_users {
        let _ = writeln!(text, "- Tables: {}", one_line(users.clone()));
    }
    for section in checklist {
        let _ = write!(text, "\n## {}\n", section.title);
        for line in &section.lines {
            let tick = if line.done { "x" } else { " " };
            let _ = writeln!(text, "- [{tick}] {}: {}", line.what, one_line(line.evidence.clone()));
        }
    }
    let time = |t: &Option<Time>| t.map(|t| format!("{t:.0}")).unwrap_or_default();
    let columns = ["SQL", "Statement", "Seconds", "Rows", "Strongest lock"];
    grid(&mut text, "Statements in the rehearsal", &columns, statements.iter().map(StatementEvidence::row));
    grid(
        &mut text,
        "Decisions",
        &["At", "Decision", "By", "Reason", "Plan"],
        decisions.iter().map(|decision| {
            vec![
                time(&decision.at),
                decision.decision.clone(),
                decision.by.clone(),
                decision.reason.clone(),
                decision.digest.clone().unwrap_or_default(),
            ]
        }),
    );
    grid(
        &mut text,
        "Windows",
        &["Run", "Direction", "State", "Blocked", "Unblocked", "Blocked for", "Verified by", "Recovery points"],
        windows.iter().map(|window| {
            vec![
                window.run.clone(),
                window.direction.to_owned(),
                window.state.clone(),
                time(&window.blocked_at),
                time(&window.unblocked_at),
                window.blocked_seconds.map(seconds).unwrap_or_default(),
                window.verification.clone().unwrap_or_default(),
                recovery(&window.recovery),
            ]
        }),
    );
    grid(
        &mut text,
        "Notices",
        &["At", "Occasion", "State", "Channels"],
        notices
            .iter()
            .map(|n| vec![format!("{:.0}", n.at), n.occasion.clone(), n.state.clone(), n.channels.join(", ")]),
    );
    grid(
        &mut text,
        "Objects",
        &["What", "Object", "Bytes", "SHA-256"],
        objects.iter().map(|object| {
            let bytes = object.bytes.map(|b| b.to_string()).unwrap_or_default();
            vec![object.what.to_owned(), object.object.clone(), bytes, object.sha256.clone().unwrap_or_default()]
        }),
    );
    grid(
        &mut text,
        "Evidence",
        &["State", "What", "Message"],
        evidence.iter().map(|f| vec![f.state.as_str().to_owned(), f.what.clone(), f.message.clone()]),
    );
    let bad = evidence.iter().filter(|f| f.state.is_problem()).count();
    let ok = evidence.iter().filter(|f| f.state == State::Ok).count();
    let _ = write!(text, "\n{ok} ok, {bad} missing or wrong, of {}", evidence.len());
    text
}

/// A table of Markdown; nothing if it has no row.
fn grid(text: &mut String, title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    // An unescaped bar would end the cell.
    let row = |cells: Vec<String>| {
        format!("| {} |\n", cells.into_iter().map(|c| one_line(c).replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
    };
    let rows: Vec<String> = rows.map(row).collect();
    if rows.is_empty() {
        return;
    }
    let _ = write!(
        text,
        "\n## {title}\n{}{}\n{}",
        row(header.iter().map(|h| (*h).to_owned()).collect()),
        "|---".repeat(header.len()) + "|",
        rows.concat()
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{machine::steps::FORWARD, plugin::inspect::record::tests::completed};

    #[test]
    fn the_record_is_whole() {
        let mut record = completed();
        let status = record.migration.status.as_mut().unwrap();
        status.steps = serde_json::from_value(json!([
            {"name": "Backup", "state": "Succeeded", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z",
             "finishedAt": "2030-01-01T00:01:00Z", "message": "10 bytes\nin s3://b/o"},
            {"name": "CodeBackup", "state": "Skipped", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z",
             "message": "spec.code is not set"},
        ]))
        .unwrap();
        status.notices = serde_json::from_value(json!([{"state": "Delivered", "attempt": 1,
        "notice": {"id": "1", "occasion": "MaintenanceStarts", "at": "2030-01-01T01:00:00Z", "message": "x",
            "phase": "AwaitingApproval"},
        "deliveries": [
            {"channel": "team", "state": "Delivered", "message": "200", "at": "2030-01-01T01:00:00Z"},
        ]}]))
        .unwrap();
        record.migration.spec.notifications = serde_json::from_value(
            json!({"contacts": [{"role": "DBA", "name": "Dora", "phone": "+49 30 1", "duty": "database"}]}),
        )
        .unwrap();
        record.decisions[0].spec.reason = Some("a | b".into());
        let text = markdown(&of(&record));
        for part in [
            "# Credit migration m",
            "- [x] Full backup of the database, in the bucket: Succeeded, 2030-01-01T00:01:00Z: 10 bytes in s3://b/o",
            "- [ ] Tag and branch of the code: not configured: spec.code is not set",
            "- [ ] Decision to keep the new system: not started",
            "- [x] Maintenance notice: Delivered, 2030-01-01T01:00:00Z, by team",
            "| 2030-01-01T01:00:00Z | Approve | ann | a \\| b | sha256:",
            "| m-window-1 | forward | Unblocked | 2030-01-01T02:00:00Z | 2030-01-01T02:00:09Z | 9s | 25006 |",
            "| backup | s3://b/o | 10 | sha256:dump |",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("+49") && !text.contains("Dora"), "no personal data:\n{text}");
        assert!(!text.contains("## Rollback"));
        let json = serde_json::to_value(of(&record)).unwrap();
        assert_eq!(json["windows"][0]["blockedSeconds"], 9.0);
    }

    /// All steps succeeded, for a spec without checks, channels and probe: what was not checked is not checked off.
    #[test]
    fn what_was_not_done_is_not_checked_off() {
        let mut record = completed();
        let done: Vec<_> = FORWARD
            .iter()
            .map(|row| {
                json!({"name": row.step, "state": "Succeeded", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z",
                    "message": "done"})
            })
            .collect();
        record.migration.status.as_mut().unwrap().steps = serde_json::from_value(json!(done)).unwrap();
        record.migration.spec.application.version_probe = None;
        record.migration.spec.validation.checks.clear();
        record.migration.spec.monitoring.checks.clear();
        let text = markdown(&of(&record));
        for part in [
            "- [x] Flag and ENABLE_ROLLBACK are prepared: Succeeded: done",
            "- [ ] Both versions are in the application: not checked: spec.application.versionProbe is not set",
            "- [x] Time and presence: ",
            "- [ ] Maintenance notice: not sent",
            "- [ ] Functions: Succeeded: done; no check of: validation: login, display, deduction, upgrade",
            "- [ ] Performance: Succeeded: done; no check of: validation: response time below 100 ms, ",
            "- [ ] Data: ",
            "- [ ] Logs: ",
            "- [ ] Figures: ",
            "- [ ] Triggers: ",
            "- [ ] After 24 hours: ",
            "- [x] Decision to keep the new system: ",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let checks = json!([{"name": "total", "balances": {"compare": "Total"}, "max": "1"}]);
        record.migration.spec.validation.checks = serde_json::from_value(checks).unwrap();
        assert!(markdown(&of(&record)).contains("- [x] Data: Succeeded: done\n"));
    }

    #[test]
    fn a_rollback_has_its_section() {
        let mut record = completed();
        record.migration.status.as_mut().unwrap().rollback = Some(
            serde_json::from_value(json!({"cause": "Rollback", "message": "r", "startedAt": "2030-01-01T03:00:00Z"}))
                .unwrap(),
        );
        assert!(markdown(&of(&record)).contains("## Rollback"));
    }
}
