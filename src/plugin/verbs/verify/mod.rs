//! `verify`: whether the evidence in the status is there and hangs together.
//!
//! It believes no summary: the digest is computed again, approvals are counted in the decisions themselves, facts of
//! the window are read from its run.
//!
//! Called by the dispatch of [`plugin`](crate::plugin) and by `report`. Imports the verb `completion`, `connection`,
//! `inspect`, `output` and `error` of the plugin, `machine`, `api` and `shared`.

use std::collections::BTreeSet;

use kube::ResourceExt;
use serde::Serialize;

use super::completion;
use crate::{
    api::{
        CreditMigrationStatus, DecisionKind, Phase, ReportEvidence, SchemaInPlace, Step, StepState, Task, Time,
        WindowState,
    },
    machine::plan_digest,
    plugin::{
        PluginError,
        connection::ClusterConnection,
        inspect::record::Record,
        output::{CheckedItem, Format, Output, State, exit_of, item, items_table, seconds},
    },
    shared::{command::plugin, time::to_signed},
};

pub(crate) const EXAMPLES: &str = "\
Exit code 3: evidence that is due is missing or inconsistent. The evidence behind an approval is always due.

Examples:
  kubectl creditmigration verify simplify-credits
  kubectl creditmigration verify simplify-credits -o json";

/// What to verify.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Name of the CreditMigration.
    #[arg(add = completion::names())]
    name: String,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Serialize)]
struct Verified<'a> {
    name: &'a str,
    evidence: &'a [CheckedItem],
}

/// Verifies the evidence.
pub(crate) async fn run(connection: &ClusterConnection, args: &Args) -> Result<Output, PluginError> {
    let record = connection.record(&args.name).await?;
    let evidence = verify(&record);
    let text = args.output.write(&Verified { name: &args.name, evidence: &evidence }, || items_table(&evidence))?;
    Ok(Output { text, exit: exit_of(&evidence) })
}

/// Whether the window has started: from then on approvals are due.
fn window_started(phase: Option<Phase>) -> bool {
    !matches!(phase, None | Some(Phase::Preparing | Phase::AwaitingApproval | Phase::Failed | Phase::Cancelled))
}

/// Whether writes were unblocked on the new version.
fn is_cutover_done(status: &CreditMigrationStatus) -> bool {
    matches!(status.phase, Some(Phase::Validating | Phase::Monitoring | Phase::Observing | Phase::Completed))
}

/// One item for each piece of evidence.
pub(crate) fn verify(record: &Record) -> Vec<CheckedItem> {
    let status = record.status();
    let mut found = vec![];
    found.extend(configured(record, &status));
    found.extend(backup(&status));
    found.extend(plan(record, &status));
    found.extend(approvals_and_presence(record, &status));
    found.extend(window(record, &status));
    found.extend(rollback(record, &status));
    found.extend(reports(record, &status));
    found
}

/// Evidence of steps that a spec may leave out.
fn configured(record: &Record, status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let what = "tag and branch of the code";
    let code = match (&record.migration.spec.code, &status.code_backup) {
        (None, _) => item(what, State::NotCovered, "spec.code is not set"),
        (Some(_), None) => item(what, due(window_started(status.phase)), "no evidence in status.codeBackup"),
        (Some(wanted), Some(seen))
            if (&wanted.commit, &wanted.tag, &wanted.branch) != (&seen.commit, &seen.tag, &seen.branch) =>
        {
            item(
                what,
                State::Wrong,
                format!("{} and {} at {}, the spec says {}", seen.tag, seen.branch, seen.commit, wanted.commit),
            )
        }
        (Some(_), Some(seen)) => item(
            what,
            State::Ok,
            format!("{} and {} at {}, read back at {:.0}", seen.tag, seen.branch, seen.commit, seen.verified_at),
        ),
    };
    let what = "export of key users";
    let asked = status.steps.iter().any(|s| s.name == Step::ExportKeyUsers && s.state != StepState::Skipped);
    let users = match &status.key_users {
        Some(k) => item(
            what,
            valid_digest(&k.sha256),
            format!("{} users in {}, {} bytes, {}", k.users, k.object, k.bytes, k.sha256),
        ),
        None => item(what, due(asked && window_started(status.phase)), "no evidence in status.keyUsers"),
    };
    vec![code, users]
}

/// Missing if it is due.
fn due(now: bool) -> State {
    if now { State::Missing } else { State::NotYet }
}

/// Whether a digest has the form `sha256:` and 64 hex digits.
fn valid_digest(sha: &str) -> State {
    let hex = sha.strip_prefix("sha256:");
    let good = hex.is_some_and(|h| h.len() == 64 && h.chars().all(|c| c.is_ascii_hexdigit()));
    if good { State::Ok } else { State::Wrong }
}

fn backup(status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let mut found = vec![];
    found.push(match &status.baseline {
        None => item("baseline", State::Missing, "no evidence in status.baseline"),
        Some(b) => item("baseline", State::Ok, format!("{}, at {:.0}", b.summary(), b.taken_at)),
    });
    let what = "backup, read back";
    found.push(match (&status.backup, &status.verification) {
        (None, _) => item(what, State::Missing, "no evidence in status.backup"),
        (_, None) => item(what, State::Missing, "no evidence in status.verification"),
        (Some(b), Some(v)) if (b.bytes, &b.sha256) != (v.bytes, &v.sha256) => item(
            what,
            State::Wrong,
            format!("{} bytes {} were uploaded, {} bytes {} read back", b.bytes, b.sha256, v.bytes, v.sha256),
        ),
        (Some(_), Some(v)) if v.entries == 0 => item(what, State::Wrong, "the archive has no entry"),
        (Some(b), Some(v)) => {
            item(what, State::Ok, format!("{}: {} bytes, {}, {} entries", b.object, b.bytes, b.sha256, v.entries))
        }
    });
    let what = "rehearsal";
    found.push(match (&status.rehearsal, &status.baseline) {
        (None, _) => item(what, State::Missing, "no evidence in status.rehearsal"),
        (Some(r), _) if r.tables_equal == 0 => item(what, State::Wrong, "no table was compared after the rollback"),
        (Some(r), Some(b)) if r.users != b.users => {
            item(what, State::Wrong, format!("{} users restored, the baseline has {}", r.users, b.users))
        }
        (Some(r), _) => item(
            what,
            if r.has_reservations() { State::Note } else { State::Ok },
            format!(
                "{} users; {} tables equal after the rollback; migration {}, rollback {}; {}; {}{}",
                r.users,
                r.tables_equal,
                seconds(r.migrate_seconds),
                seconds(r.rollback_seconds),
                r.writes_summary(),
                r.checks_summary(),
                r.appended()
            ),
        ),
    });
    found
}

fn plan(record: &Record, status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let mut found = vec![];
    let what = "digest of the plan";
    let uid = record.migration.uid().unwrap_or_default();
    let computed = plan_digest(&uid, &record.migration.spec, status);
    let plan = status.plan.as_ref();
    found.push(match (plan.and_then(|p| p.digest.as_ref()), computed) {
        (None, _) => item(what, State::Missing, "status.plan has none: the rehearsal has not passed"),
        (Some(reported), Some(computed)) if *reported == computed => {
            item(what, State::Ok, format!("{reported}, computed again"))
        }
        (Some(reported), computed) => {
            let computed = computed.unwrap_or_else(|| "none: evidence is missing".into());
            // After RollbackFailed the down SQL may have been corrected: it is read again, the approvals were for the
            // old one.
            let hint =
                if status.rollback.is_some() { "; the down SQL may have been corrected for the rollback" } else { "" };
            item(what, State::Wrong, format!("status says {reported}, computed is {computed}{hint}"))
        }
    });
    for (i, which) in ["up SQL", "down SQL"].into_iter().enumerate() {
        let Some(plan) = plan else {
            found.push(item(which, State::Missing, "no evidence in status.plan"));
            continue;
        };
        let planned = if i == 0 { &plan.up_sha256 } else { &plan.down_sha256 };
        found.push(match &record.sql[i] {
            Some(now) if now == planned => item(which, State::Ok, format!("{planned}, also in its ConfigMap")),
            Some(now) => item(which, State::Wrong, format!("planned {planned}, its ConfigMap has {now}")),
            None => item(which, State::NotChecked, format!("planned {planned}; its ConfigMap cannot be read")),
        });
    }
    found
}

fn approvals_and_presence(record: &Record, status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let spec = &record.migration.spec;
    let Some(digest) = status.plan.as_ref().and_then(|p| p.digest.clone()) else {
        return vec![item("approvals", State::Missing, "there is no digest to approve")];
    };
    let started = window_started(status.phase);
    // A window that ended without effect voids earlier approvals; one that took effect was started on those counted
    // here.
    let after = status.approvals_after;
    let people = record.approvers(&digest, after);
    let (needed, names) = (spec.approval.required as usize, list(&people));
    let (namespace, name) = (record.migration.namespace().unwrap_or_default(), record.migration.name_any());
    let next = format!("next: {}", plugin(&namespace, format!("approve {name}")));
    let mut found = vec![match people.len() {
        n if n >= needed => item("approvals", State::Ok, format!("{n} of {needed}, not the author: {names}")),
        n if started => item("approvals", State::Missing, format!("{n} of {needed} decisions for {digest}: {names}")),
        n => item("approvals", State::NotYet, format!("{n} of {needed}: {names}; {next}")),
    }];
    let reported: BTreeSet<String> = status.approved_by.iter().cloned().collect();
    if let Some(unfounded) = reported.iter().find(|by| !people.contains(*by)) {
        let text = format!("status.approvedBy has {unfounded}, without a decision for {digest}");
        found.push(item("approvals", State::Wrong, text));
    }
    // Until the window starts, older confirmations do not count: the machine counts in the same way.
    let present = record.present(&digest, after, !started);
    let needed = spec.schedule.presence.required.max(2) as usize;
    found.push(match present.len() {
        n if n >= needed => item("presence", State::Ok, format!("{n} of {needed}: {}", list(&present))),
        n if started => item("presence", State::Missing, format!("{n} of {needed}: {}", list(&present))),
        n => {
            let next = plugin(&namespace, format!("ready {name}"));
            let within = seconds(to_signed(spec.schedule.presence.within).as_secs_f64());
            item(
                "presence",
                State::NotYet,
                format!("{n} of {needed} within {within}: {}; next: {next}", list(&present)),
            )
        }
    });
    found
}

fn list(people: &BTreeSet<String>) -> String {
    if people.is_empty() { "none".into() } else { people.iter().cloned().collect::<Vec<_>>().join(", ") }
}

/// Evidence of the window on the forward path, as its run reported it.
fn window(record: &Record, status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let run = record.window(Task::Window);
    let kept = is_cutover_done(status);
    let Some((run, w)) = run else {
        return vec![item("window", due(window_started(status.phase)), "no run of the window has reported")];
    };
    let name = run.name_any();
    let mut found = vec![match &w.verification {
        Some(evidence) => {
            item("writes were blocked", State::Ok, format!("{evidence}; {} sessions ended", w.terminated_sessions))
        }
        None => item("writes were blocked", due(kept), format!("{name} has not reported it")),
    }];
    found.push(match w.migrate_seconds {
        Some(s) => {
            item("SQL committed, once", State::Ok, format!("ledger row and SQL in one transaction, {}", seconds(s)))
        }
        None => item("SQL committed, once", due(kept), format!("{name} has not committed")),
    });
    let comparison = w.comparison.as_ref().or(status.window.as_ref().and_then(|w| w.comparison.as_ref()));
    found.push(balances("balances after the change", comparison, kept));
    if let (Some(blocked), Some(unblocked)) = (w.blocked_at, w.unblocked_at) {
        found.push(blocked_time("window", blocked, unblocked, record));
    } else {
        let open = if w.state <= WindowState::Ready && !w.stuck { "not started" } else { "not ended" };
        let stuck = if w.stuck { ", stuck" } else { "" };
        found.push(item("window", due(kept), format!("{open}: {}{stuck}", w.state)));
    }
    found
}

fn balances(what: &str, comparison: Option<&crate::api::Comparison>, due_now: bool) -> CheckedItem {
    match comparison {
        Some(c) if c.unexplained == 0 => {
            item(what, State::Ok, format!("{} users compared, 0 unexplained, {} credits", c.users, c.total_balance))
        }
        Some(c) => item(what, State::Wrong, format!("{} of {} users unexplained, at most 0", c.unexplained, c.users)),
        None => item(what, due(due_now), "no comparison was reported"),
    }
}

fn blocked_time(what: &str, blocked: Time, unblocked: Time, record: &Record) -> CheckedItem {
    let took = (unblocked - blocked).total(jiff::Unit::Second).unwrap_or_default();
    let limit = to_signed(record.migration.spec.window.max_duration).as_secs_f64();
    let text = format!("writes were blocked for {}, at most {}", seconds(took), seconds(limit));
    item(what, if took > limit { State::Wrong } else { State::Ok }, text)
}

/// Evidence of the rollback, if there was one.
fn rollback(record: &Record, status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let Some(rollback) = &status.rollback else { return vec![] };
    let back = status.phase == Some(Phase::RolledBack);
    let mut found = vec![item("cause of the rollback", State::Ok, format!("{}: {}", rollback.cause, rollback.message))];
    let run = record.window(Task::RollbackWindow).or_else(|| record.window(Task::Window));
    match run {
        Some((_, w)) if w.schema_in_place() == Some(SchemaInPlace::Old) => {
            found.push(item("old schema", State::Ok, "the down SQL is committed, or the up SQL never was"));
            if w.comparison.is_some() || w.users_written_since.is_some() {
                found.push(balances("balances after the rollback", w.comparison.as_ref(), back));
            }
            if let (Task::RollbackWindow, Some(blocked), Some(unblocked)) =
                (run.map_or(Task::Window, |r| r.0.spec.task), w.blocked_at, w.unblocked_at)
            {
                found.push(blocked_time("window of the rollback", blocked, unblocked, record));
            }
        }
        Some((run, w)) => found.push(item("old schema", due(back), format!("{} is {}", run.name_any(), w.state))),
        None => found.push(item("old schema", due(back), "no run of the rollback has reported")),
    }
    found
}

fn reports(record: &Record, status: &CreditMigrationStatus) -> Vec<CheckedItem> {
    let done = |step| status.steps.iter().any(|s| s.name == step && s.state == StepState::Succeeded);
    let of = |what: &str, step, report: &Option<ReportEvidence>| match report {
        Some(r) => item(
            what,
            valid_digest(&r.sha256),
            format!("{}: {} of {} checks passed; {}", r.object, r.passed, r.checks, r.summary),
        ),
        None => item(what, due(done(step)), "no report yet"),
    };
    let mut found = vec![
        of("report after a day", Step::DayCheck, &status.day_report),
        of("report after a week", Step::WeekReview, &status.week_report),
    ];
    if status.phase == Some(Phase::Completed) {
        let digest = status.plan.as_ref().and_then(|p| p.digest.clone()).unwrap_or_default();
        let kept =
            record.decisions_on(DecisionKind::Keep, &digest).find(|d| d.spec.by != record.migration.spec.requested_by);
        found.push(match kept {
            Some(d) => item("decision to keep", State::Ok, format!("{} by {}", d.name_any(), d.spec.by)),
            None => {
                item("decision to keep", State::Missing, format!("no Keep for {digest} by another than the author"))
            }
        });
    }
    found
}

#[cfg(test)]
mod tests;
