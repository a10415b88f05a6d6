//! `report`: the whole record of a migration, in the order of the checklist. The figures are those of [`super::verify`].

use std::fmt::Write as _;

use kube::ResourceExt;
use serde::Serialize;

use super::{
    Error,
    answer::{Answer, Finding, Format, State, one_line, seconds},
    completion,
    connect::Connection,
    decide::standing,
    verify::{Record, fetch, verify},
};
use crate::api::{
    Audience, CreditMigrationStatus, DeliveryState, Finding as Said, Occasion, ReportEvidence, Step, StepState, Task,
    Time,
};

pub(super) const EXAMPLES: &str = "\
As Markdown, or with -o json or yaml. It holds no secret, no row of a user, and no phone number.

Examples:
  kubectl creditmigration report simplify-credits >report.md
  kubectl creditmigration report simplify-credits -o json";

/// Whose record.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Name of the CreditMigration.
    #[arg(add = completion::names())]
    name: String,
    /// How it is written.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

/// The record.
#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Report {
    name: String,
    namespace: String,
    standing: String,
    author: String,
    digest: Option<String>,
    /// The checklist, section by section.
    checklist: Vec<Section>,
    decisions: Vec<Word>,
    windows: Vec<Window>,
    notices: Vec<NoticeLine>,
    /// Objects in the bucket.
    objects: Vec<Object>,
    /// What `verify` says.
    evidence: Vec<Finding>,
}

#[derive(Serialize, Debug)]
struct Section {
    title: &'static str,
    lines: Vec<Line>,
}

#[derive(Serialize, Debug)]
struct Line {
    what: String,
    done: bool,
    evidence: String,
}

#[derive(Serialize, Debug)]
struct Word {
    at: Option<Time>,
    decision: String,
    by: String,
    reason: String,
    digest: Option<String>,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Window {
    run: String,
    way: &'static str,
    state: String,
    blocked_at: Option<Time>,
    released_at: Option<Time>,
    blocked_seconds: Option<f64>,
    proof: Option<String>,
    users_written_since: Option<u64>,
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

/// Writes it.
pub(super) async fn run(connection: &Connection, args: &Args) -> Result<Answer, Error> {
    let report = of(&fetch(connection, &args.name).await?);
    Ok(Answer::fine(args.output.write(&report, || markdown(&report))?))
}

fn of(record: &Record) -> Report {
    let m = &record.migration;
    let status = m.status.clone().unwrap_or_default();
    Report {
        name: m.name_any(),
        namespace: m.namespace().unwrap_or_default(),
        standing: standing(m),
        author: m.spec.requested_by.clone(),
        digest: status.plan.as_ref().and_then(|p| p.digest.clone()),
        checklist: checklist(record, &status),
        decisions: record
            .decisions
            .iter()
            .map(|d| Word {
                at: d.metadata.creation_timestamp.as_ref().map(|t| t.0),
                decision: format!("{:?}", d.spec.decision),
                by: d.spec.by.clone(),
                reason: d.spec.reason.clone().unwrap_or_default(),
                digest: d.spec.digest.clone(),
            })
            .collect(),
        windows: windows(record),
        notices: status
            .notices
            .iter()
            .map(|n| NoticeLine {
                occasion: format!("{:?}", n.notice.occasion),
                at: n.notice.at,
                state: format!("{:?}", n.state),
                channels: n.deliveries.iter().map(|d| format!("{} {:?}", d.channel, d.state)).collect(),
            })
            .collect(),
        objects: objects(&status),
        evidence: verify(record),
    }
}

fn windows(record: &Record) -> Vec<Window> {
    let mut runs: Vec<_> = record
        .runs
        .iter()
        .filter(|r| matches!(r.spec.task, Task::Window | Task::RollbackWindow))
        .filter_map(|r| Some((r, r.status.as_ref()?.window.as_ref()?)))
        .collect();
    runs.sort_by_key(|(r, w)| (w.blocked_at, r.spec.task, r.spec.attempt));
    runs.into_iter()
        .map(|(r, w)| Window {
            run: r.name_any(),
            way: if r.spec.task == Task::Window { "there" } else { "back" },
            state: format!("{:?}", w.state),
            blocked_at: w.blocked_at,
            released_at: w.released_at,
            blocked_seconds: w
                .blocked_at
                .zip(w.released_at)
                .and_then(|(from, to)| (to - from).total(jiff::Unit::Second).ok()),
            proof: w.proof.clone(),
            users_written_since: w.users_written_since,
        })
        .collect()
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

/// Sections of the checklist, and the steps that tick its lines off.
const SECTIONS: &[(&str, &[(&str, Step)])] = &[
    (
        "Backup and safety",
        &[
            ("Full backup of the database, in the bucket", Step::Backup),
            ("The backup is whole: downloaded and read to its end", Step::VerifyBackup),
            ("Tag and branch of the code", Step::CodeBackup),
        ],
    ),
    (
        "Data",
        &[("Statistics of users and transactions", Step::Baseline), ("Export of key users", Step::ExportKeyUsers)],
    ),
    (
        "Test and application",
        &[
            ("Migration and way back on a copy", Step::Rehearse),
            ("Flag and ENABLE_ROLLBACK are prepared", Step::Preflight),
        ],
    ),
    ("Communication", &[("The technical team knows", Step::NotifyTeam)]),
    ("Phase 1: preparation", &[("People agree", Step::Approve), ("Time and presence", Step::Schedule)]),
    (
        "Phase 2: execution",
        &[
            ("Read-only mode, with proof", Step::OpenWindow),
            ("Migration script", Step::Migrate),
            ("Its result", Step::VerifyMigration),
            ("Application switched", Step::SwitchApplication),
            ("Read-only mode ended", Step::CloseWindow),
        ],
    ),
    ("Phase 3: validation", &[("Functions, performance, data", Step::Validate)]),
    ("Phase 4: monitoring", &[("Logs, figures, triggers", Step::Monitor)]),
    (
        "Afterwards",
        &[
            ("After 24 hours", Step::DayCheck),
            ("After one week", Step::WeekReview),
            ("Decision to keep the new system", Step::Decide),
        ],
    ),
    (
        "Way back",
        &[
            ("Read-only mode, with proof", Step::ReopenWindow),
            ("Application switched back", Step::SwitchBack),
            ("Rollback script", Step::RollbackSql),
            ("Its result", Step::VerifyRollback),
            ("Read-only mode ended", Step::ReleaseWindow),
        ],
    ),
];

fn checklist(record: &Record, status: &CreditMigrationStatus) -> Vec<Section> {
    let mut sections: Vec<Section> = SECTIONS
        .iter()
        .map(|(title, lines)| Section {
            title,
            lines: lines.iter().flat_map(|(what, step)| of_step(what, *step, record, status)).collect(),
        })
        .collect();
    if let Some(s) = sections.iter_mut().find(|s| s.title == "Test and application") {
        s.lines.push(both_versions(record));
    }
    if status.rollback.is_none() {
        sections.retain(|s| s.title != "Way back");
    }
    if let Some(s) = sections.iter_mut().find(|s| s.title == "Communication") {
        s.lines.extend(told(status));
        s.lines.push(contacts(record));
    }
    // Triggers and checks one by one, as they were measured last.
    let measured: Vec<Line> = status
        .checks
        .iter()
        .map(|c| Line {
            what: format!("Check {}", c.name),
            done: c.outcome == crate::api::Outcome::Pass && !c.breached,
            evidence: format!(
                "{:?}, {} measurements{}: {}",
                c.outcome,
                c.measured,
                if c.breached { ", breached" } else { "" },
                c.message
            ),
        })
        .collect();
    if !measured.is_empty() {
        sections.push(Section { title: "Checks of the last stage", lines: measured });
    }
    sections
}

/// What a stage looks at, by the words that [`not_covered`](crate::api::CreditMigrationSpec::not_covered) has for it when no check does.
type Parts = &'static [(&'static str, &'static [&'static str])];

/// A stage's lines: that its time went by proves nothing of what no check looked at.
fn parts(step: Step) -> Option<Parts> {
    Some(match step {
        Step::Validate => &[
            ("Functions", &["validation: login"]),
            ("Performance", &["validation: time", "validation: error rate"]),
            ("Data", &["validation: sum"]),
        ],
        Step::Monitor => &[
            ("Logs", &["monitoring: errors"]),
            ("Figures", &["monitoring: key figures"]),
            ("Triggers", &["trigger: "]),
        ],
        Step::DayCheck => &[("After 24 hours", &["after a day"])],
        Step::WeekReview => &[("After one week", &["after a week"])],
        _ => return None,
    })
}

/// The lines of a step: one, or for a stage one for each part of what it looks at.
fn of_step(what: &str, step: Step, record: &Record, status: &CreditMigrationStatus) -> Vec<Line> {
    let line = step_line(what, step, status);
    let Some(parts) = parts(step) else { return vec![line] };
    let gaps = record.migration.spec.not_covered();
    let part = |(what, words): &(&str, &[&str])| {
        let open = gaps.iter().filter(|gap| words.iter().any(|word| gap.what.starts_with(word)));
        let open: Vec<&str> = open.map(|gap| gap.what.as_str()).collect();
        let without = if open.is_empty() { String::new() } else { format!("; no check of: {}", open.join(", ")) };
        Line {
            what: (*what).to_owned(),
            done: line.done && open.is_empty(),
            evidence: format!("{}{without}", line.evidence),
        }
    };
    parts.iter().map(part).collect()
}

/// The application's own word that it can run both versions: Preflight has asked for it.
fn both_versions(record: &Record) -> Line {
    let runs = record.runs.iter().filter(|r| r.spec.task == Task::Preflight);
    let last = runs.filter_map(|r| Some((r.spec.attempt, r.status.as_ref()?))).max_by_key(|(attempt, _)| *attempt);
    let finding = last.and_then(|(_, s)| s.findings.iter().find(|f| f.name == Said::VERSION_PROBE));
    let evidence = match finding {
        Some(finding) => finding.message.clone(),
        None if record.migration.spec.application.version_probe.is_none() => {
            "nobody asked: spec.application.versionProbe is not set".to_owned()
        }
        None => "no answer is recorded".to_owned(),
    };
    Line {
        what: "Both versions are in the application".into(),
        done: finding.is_some_and(|f| f.reason.is_none() && f.message.contains(Said::HOLDS_BOTH)),
        evidence,
    }
}

fn step_line(what: &str, step: Step, status: &CreditMigrationStatus) -> Line {
    let of = status.steps.iter().find(|s| s.name == step);
    let evidence = match of {
        None => "not begun".to_owned(),
        Some(s) => {
            let message = s.message.clone().or(s.reason.clone()).unwrap_or_default();
            let when = s.finished_at.map(|t| format!(", {t:.0}")).unwrap_or_default();
            match s.state {
                StepState::Skipped => format!("not configured: {message}"),
                state => format!("{state:?}{when}: {message}"),
            }
        }
    };
    Line { what: what.into(), done: of.is_some_and(|s| s.state == StepState::Succeeded), evidence }
}

/// Each audience of the maintenance notice.
fn told(status: &CreditMigrationStatus) -> Vec<Line> {
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
            "{:?}, {:.0}, by {}",
            n.state,
            n.notice.at,
            if taken.is_empty() { "none".into() } else { taken.join(", ") }
        ),
    };
    vec![Line { what: "Maintenance notice".into(), done: !taken.is_empty(), evidence }]
}

/// Roles only: names and numbers stay in the spec.
fn contacts(record: &Record) -> Line {
    let notifications = &record.migration.spec.notifications;
    let gaps = record.migration.spec.not_covered();
    let roles_missing = gaps.iter().any(|gap| gap.what.starts_with("emergency contacts"));
    let roles: Vec<String> = notifications.contacts.iter().map(|c| format!("{:?}", c.role)).collect();
    let reached: Vec<String> = [Audience::Support, Audience::Users, Audience::Social, Audience::StatusPage]
        .into_iter()
        .filter(|a| notifications.reaches(*a))
        .map(|a| format!("{a:?}"))
        .collect();
    let evidence = format!(
        "contacts: {}; channels reach: {}",
        if roles.is_empty() { "none".into() } else { roles.join(", ") },
        if reached.is_empty() { "the team at most".into() } else { reached.join(", ") }
    );
    Line {
        what: "Emergency contacts, support, users, status page".into(),
        done: !roles_missing && reached.len() == 4,
        evidence,
    }
}

/// Writing to a String cannot fail.
fn markdown(report: &Report) -> String {
    let Report { name, namespace, standing, author, digest, checklist, decisions, windows, notices, objects, evidence } =
        report;
    let mut text = format!(
        "# Credit migration {name}\n\n- Namespace: {namespace}\n- Stands: {}\n- Author: {author}\n- Plan: {}\n",
        one_line(standing.clone()),
        digest.as_deref().unwrap_or("none yet")
    );
    for section in checklist {
        let _ = write!(text, "\n## {}\n", section.title);
        for line in &section.lines {
            let tick = if line.done { "x" } else { " " };
            let _ = writeln!(text, "- [{tick}] {}: {}", line.what, one_line(line.evidence.clone()));
        }
    }
    let time = |t: &Option<Time>| t.map(|t| format!("{t:.0}")).unwrap_or_default();
    grid(
        &mut text,
        "Decisions",
        &["At", "Decision", "By", "Reason", "Plan"],
        decisions.iter().map(|w| {
            vec![time(&w.at), w.decision.clone(), w.by.clone(), w.reason.clone(), w.digest.clone().unwrap_or_default()]
        }),
    );
    grid(
        &mut text,
        "Windows",
        &["Run", "Way", "State", "Blocked", "Released", "Blocked for", "Proof"],
        windows.iter().map(|w| {
            vec![
                w.run.clone(),
                w.way.to_owned(),
                w.state.clone(),
                time(&w.blocked_at),
                time(&w.released_at),
                w.blocked_seconds.map(seconds).unwrap_or_default(),
                w.proof.clone().unwrap_or_default(),
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
        objects.iter().map(|o| {
            let bytes = o.bytes.map(|b| b.to_string()).unwrap_or_default();
            vec![o.what.to_owned(), o.object.clone(), bytes, o.sha256.clone().unwrap_or_default()]
        }),
    );
    grid(
        &mut text,
        "Evidence",
        &["State", "What", "Message"],
        evidence.iter().map(|f| vec![f.state.word().to_owned(), f.what.clone(), f.message.clone()]),
    );
    let bad = evidence.iter().filter(|f| f.state.bad()).count();
    let ok = evidence.iter().filter(|f| f.state == State::Ok).count();
    let _ = write!(text, "\n{ok} ok, {bad} missing or wrong, of {}", evidence.len());
    text
}

/// A table of Markdown; nothing if it has no row.
fn grid(text: &mut String, title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    // A bar would end the cell.
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
    use crate::plugin::{procedure::STEPS, verify::tests::completed};

    #[test]
    fn every_step_is_a_line_of_the_checklist() {
        let lines: Vec<Step> = SECTIONS.iter().flat_map(|(_, lines)| lines.iter().map(|(_, step)| *step)).collect();
        for step in STEPS {
            assert_eq!(lines.iter().filter(|s| *s == step).count(), 1, "{step:?}");
        }
    }

    #[test]
    fn the_record_is_whole() {
        let mut record = completed();
        let status = record.migration.status.as_mut().unwrap();
        status.steps = serde_json::from_value(json!([
            {"name": "Backup", "state": "Succeeded", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z",
             "finishedAt": "2030-01-01T00:01:00Z", "message": "10 bytes\nin s3://b/o"},
            {"name": "CodeBackup", "state": "Skipped", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z", "message": "spec.code is not set"},
        ]))
        .unwrap();
        status.notices = serde_json::from_value(json!([{"state": "Delivered", "attempt": 1,
            "notice": {"id": "1", "occasion": "MaintenanceStarts", "at": "2030-01-01T01:00:00Z", "message": "x", "phase": "AwaitingApproval"},
            "deliveries": [{"channel": "team", "state": "Delivered", "message": "200", "at": "2030-01-01T01:00:00Z"}]}]))
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
            "- [ ] Decision to keep the new system: not begun",
            "- [x] Maintenance notice: Delivered, 2030-01-01T01:00:00Z, by team",
            "| 2030-01-01T01:00:00Z | Execute | ann | a \\| b | sha256:",
            "| m-window-1 | there | Released | 2030-01-01T02:00:00Z | 2030-01-01T02:00:09Z | 9s | 25006 |",
            "| backup | s3://b/o | 10 | sha256:dump |",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("+49") && !text.contains("Dora"), "no personal data:\n{text}");
        assert!(!text.contains("## Way back"));
        let json = serde_json::to_value(of(&record)).unwrap();
        assert_eq!(json["windows"][0]["blockedSeconds"], 9.0);
    }

    /// All steps succeeded, by a spec without checks, channels and probe: a box that nobody looked into stays empty.
    #[test]
    fn what_nobody_did_is_not_ticked() {
        let mut record = completed();
        let done: Vec<_> = STEPS
            .iter()
            .map(|step| json!({"name": step, "state": "Succeeded", "attempt": 1, "startedAt": "2030-01-01T00:00:00Z", "message": "done"}))
            .collect();
        record.migration.status.as_mut().unwrap().steps = serde_json::from_value(json!(done)).unwrap();
        record.migration.spec.application.version_probe = None;
        record.migration.spec.validation.checks.clear();
        record.migration.spec.monitoring.checks.clear();
        let text = markdown(&of(&record));
        for part in [
            "- [x] Flag and ENABLE_ROLLBACK are prepared: Succeeded: done",
            "- [ ] Both versions are in the application: nobody asked: spec.application.versionProbe is not set",
            "- [x] Time and presence: ",
            "- [ ] Maintenance notice: not sent",
            "- [ ] Functions: Succeeded: done; no check of: validation: login, display, deduction, upgrade",
            "- [ ] Performance: Succeeded: done; no check of: validation: time to the answer below 100 ms, ",
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

    #[rstest::rstest]
    #[case(json!({"name": "version probe", "message": "the application runs v1; it holds both versions"}), true)]
    #[case(json!({"name": "version probe", "message": "the application runs v1; it does not say which versions it holds"}), false)]
    #[case(json!({"name": "version probe", "reason": "ProbeFailed", "message": "no answer"}), false)]
    #[case(json!({"name": "bucket", "message": "it holds both versions"}), false)]
    fn both_versions_by_the_applications_own_word(#[case] finding: serde_json::Value, #[case] done: bool) {
        let mut record = completed();
        let mut run = record.runs[0].clone();
        run.spec.task = Task::Preflight;
        run.status = Some(serde_json::from_value(json!({"phase": "Succeeded", "findings": [finding]})).unwrap());
        record.runs.push(run);
        assert_eq!(both_versions(&record).done, done, "{:?}", both_versions(&record));
    }

    #[test]
    fn a_way_back_has_its_section() {
        let mut record = completed();
        record.migration.status.as_mut().unwrap().rollback = Some(
            serde_json::from_value(json!({"cause": "Revert", "message": "r", "startedAt": "2030-01-01T03:00:00Z"}))
                .unwrap(),
        );
        assert!(markdown(&of(&record)).contains("## Way back"));
    }
}
