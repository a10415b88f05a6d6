//! Tasks `DayCheck` and `WeekReview`: measure for a while, and write a report into the bucket next to the backup.
//!
//! # Contract
//! - A check that does not pass is in the report, and the task succeeds: a person decides then.
//! - Started again, it measures again and overwrites the same object.
//! - The report has sums, and no row of any user.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Transaction;

use crate::{
    api::{Check, CheckOutcome, CheckResult, Reason, ReportEvidence, TableUsers, Task, Time, sha256},
    runner::{
        Failure, checks,
        clients::object_store::{STORE_RETRY_TIMEOUT, StoreClient},
        context::TaskContext,
        database::{
            control::{self, Cutover},
            snapshot::{Access, snapshot},
            statistics::{Present, Statistics, Usage, statistics, usage},
            table_users::TableUsage,
        },
    },
};

/// The object in the bucket.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FollowUpReport<'a> {
    migration: &'a str,
    #[serde(rename = "migrationUID")]
    migration_uid: &'a str,
    database: &'a str,
    task: Task,
    #[serde(skip_serializing_if = "Option::is_none")]
    cutover_at: Option<Time>,
    taken_at: Time,
    statistics: &'a Statistics,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<&'a Usage>,
    checks: &'a [CheckResult],
    #[serde(flatten)]
    users: &'a TableUsers,
    /// Names of checks that were never measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_measured: Vec<&'a str>,
}

/// Measures, then writes the report. Notes `checks` and `report`. `before` is what an earlier process reported.
///
/// # Errors
/// Those of settings, connection and store; `Internal` without the inputs.
pub async fn run(context: &TaskContext<'_>, before: &[CheckResult]) -> Result<String, Failure> {
    let plan = &context.spec.plan;
    let (follow_up, ending) = match context.spec.task {
        Task::WeekReview => (&plan.follow_ups.week, "week-report.json"),
        _ => (&plan.follow_ups.day, "day-report.json"),
    };
    let backup = context.spec.inputs.backup_object.as_deref();
    let backup = backup.ok_or_else(|| Failure::new(Reason::Internal, "the run has no input backupObject"))?;
    let object = format!("{}.{ending}", TaskContext::backup_base(backup));
    let store = StoreClient::open(&plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;

    let checks = plan.checks_of(context.spec.task);
    checks::report_safeguards(context).await;
    let used_before = table_usage(context).await?;
    let results = measured(context, &checks, before, follow_up.duration.into()).await?;
    let (statistics, usage) = tokio::select! {
        figures = figures(context) => figures?,
        () = context.stop.cancelled() => return Err(Failure::terminated()),
    };
    let users = table_usage(context).await?.since_then(&used_before);
    let verdict = Verdict::of(&checks, &results);
    let report = FollowUpReport {
        migration: &context.spec.migration,
        migration_uid: &context.spec.migration_uid,
        database: &plan.database.name,
        task: context.spec.task,
        cutover_at: context.spec.inputs.cutover_at,
        taken_at: statistics.taken_at,
        statistics: &statistics,
        usage: usage.as_ref(),
        checks: &results,
        users: &users,
        not_measured: verdict.not_measured.clone(),
    };
    let report = serde_json::to_vec_pretty(&report).map_err(|e| Failure::new(Reason::Internal, e.to_string()))?;
    let evidence = ReportEvidence {
        object,
        bytes: u64::try_from(report.len()).unwrap_or(0),
        sha256: sha256(&report),
        passed: verdict.passed,
        checks: u32::try_from(checks.len()).unwrap_or(u32::MAX),
        summary: summary(&verdict, checks.len(), &statistics, usage.as_ref()) + &users.appended(),
        users,
        taken_at: statistics.taken_at,
    };
    store.put(&evidence.object, report).await?;
    context.progress.update(|status| status.report = Some(evidence.clone()));
    Ok(format!("{}; {}", evidence.summary, evidence.object))
}

/// The last result of each check after `duration`.
async fn measured(
    context: &TaskContext<'_>,
    checks: &[Check],
    before: &[CheckResult],
    duration: Duration,
) -> Result<Vec<CheckResult>, Failure> {
    if checks.is_empty() {
        return Ok(vec![]);
    }
    let stop = context.stop.child_token();
    let over = async {
        tokio::time::sleep(duration).await;
        stop.cancel();
        // The measurements end by themselves.
        std::future::pending::<()>().await;
    };
    let results = tokio::select! {
        results = checks::watch(context, checks, before, &stop) => results?,
        () = over => vec![],
    };
    if context.stop.is_cancelled() {
        return Err(Failure::terminated());
    }
    Ok(results)
}

/// What uses the tables now. What the server counts has no time: what is new since an earlier reading has happened
/// meanwhile.
async fn table_usage(context: &TaskContext<'_>) -> Result<TableUsage, Failure> {
    let client = context.settings.target()?.connect("follow-up").await?;
    let tables = control::with_parked(&client, &context.control_spec(), context.changed_tables()).await?;
    TableUsage::read(&client, &tables, &context.spec.plan.database.application_roles).await
}

/// Figures of one snapshot.
async fn figures(context: &TaskContext<'_>) -> Result<(Statistics, Option<Usage>), Failure> {
    let mut client = context.settings.target()?.connect("follow-up").await?;
    let tx = snapshot(&mut client, Access::Read).await?;
    let control_spec = context.control_spec();
    let limit = format!("SET LOCAL statement_timeout = {}", control::millis(control_spec.statement_timeout));
    tx.batch_execute(&limit).await?;
    let credits = &*control::credits_now(&tx, &control_spec).await?;
    let statistics = statistics(&tx, credits, Present::now(&tx, credits).await?).await?;
    let mut usage = match cutover(context, &tx).await? {
        Some(cutover) => usage(&tx, credits, &cutover).await?,
        None => None,
    };
    if let Some(usage) = &mut usage
        && control::exists(&tx, "changed_users").await?
    {
        usage.users_written = Some(control::users_written(&tx, &control_spec).await?);
    }
    Ok((statistics, usage))
}

/// The cutover of the ledger; without it the time at which writes were unblocked.
async fn cutover(context: &TaskContext<'_>, tx: &Transaction<'_>) -> Result<Option<Cutover>, Failure> {
    let known = control::cutover(tx, &context.control_spec()).await?;
    Ok(known.or_else(|| context.spec.inputs.cutover_at.map(Cutover::at)))
}

/// Which checks passed.
#[derive(Debug, PartialEq, Eq)]
struct Verdict<'a> {
    passed: u32,
    /// Name and outcome of those that did not.
    failed: Vec<String>,
    not_measured: Vec<&'a str>,
}

impl<'a> Verdict<'a> {
    fn of(checks: &'a [Check], results: &[CheckResult]) -> Self {
        let mut verdict = Self { passed: 0, failed: vec![], not_measured: vec![] };
        for check in checks {
            match results.iter().find(|result| result.name == check.name) {
                None => verdict.not_measured.push(&check.name),
                Some(result) if result.breached => verdict.failed.push(format!("{} breached its limit", check.name)),
                Some(result) if result.outcome == CheckOutcome::Pass => verdict.passed += 1,
                Some(result) => verdict.failed.push(format!("{} {}", check.name, result.outcome)),
            }
        }
        verdict
    }
}

fn summary(verdict: &Verdict<'_>, checks: usize, statistics: &Statistics, usage: Option<&Usage>) -> String {
    let mut not: Vec<String> = verdict.failed.clone();
    not.extend(verdict.not_measured.iter().map(|name| format!("{name} not measured")));
    let not = if not.is_empty() { String::new() } else { format!(" ({})", not.join(", ")) };
    let Statistics { users, total_balance, .. } = statistics;
    let since = usage.map_or_else(
        || "transactions since the cutover unknown".to_owned(),
        |usage| format!("{} transactions since {:.0}", usage.count(), usage.since),
    );
    format!("{} of {checks} checks passed{not}; {users} users, balances {total_balance}, {since}", verdict.passed)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_check_that_passed_and_never_breached_counts() {
        let checks = ["good", "breached", "silent", "never"].map(Check::named);
        let result = |name: &str, outcome: CheckOutcome, breached: bool| -> CheckResult {
            serde_json::from_value(json!({"name": name, "outcome": outcome, "failed": 0, "measured": 3,
                "breached": breached, "message": "", "at": Time::UNIX_EPOCH}))
            .unwrap()
        };
        let results = [
            result("good", CheckOutcome::Pass, false),
            result("breached", CheckOutcome::Pass, true),
            result("silent", CheckOutcome::NoData, false),
        ];
        let verdict = Verdict::of(&checks, &results);
        let statistics = Statistics {
            users: 7,
            total_balance: "12.5".to_owned(),
            total_purchased: None,
            average_balance: "1".to_owned(),
            max_balance: "2".to_owned(),
            transactions: None,
            taken_at: Time::UNIX_EPOCH,
        };
        assert_eq!(
            summary(&verdict, checks.len(), &statistics, None),
            "1 of 4 checks passed (breached breached its limit, silent NoData, never not measured); 7 users, balances \
                12.5, transactions since the cutover unknown"
        );
    }
}
