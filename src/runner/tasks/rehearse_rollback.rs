//! Task `RehearseRollback`: what a rollback would do now, on a copy of the live database.
//!
//! ```text
//!  snapshot of the live database ─ pg_dump │ pg_restore ─> scratch database ─ down SQL, verifyDown ─ compare ─ drop it
//!                                └─ users and credits written, transactions since the cutover, schema
//! ```
//!
//! # Contract
//! - The down SQL runs through the same code as in the window, with ledger, baseline and tracked changes of the live
//!   database. It is the approved one.
//! - Nothing is written to the pod's disk, and nothing into the bucket; one MiB is in memory.
//! - The live database is only read. Its sessions end when the task does; a window that rolls back ends them at once.
//! - The copy is dropped as that of the rehearsal is.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::Client;

use super::rehearse::{Restored, Restorer, on_copy, seconds, server_of};
use crate::{
    api::{Activity, BalancesCheck, BalancesComparison, Check, Direction, Reason, RollbackRehearsalEvidence, WorkUnit},
    runner::{
        Failure,
        checks::{
            self, Source, SourceContext,
            evaluator::{Measurement, Value},
        },
        clients::{pg_tools::Running, rate_limit::RateLimit},
        context::TaskContext,
        database::{
            connection::Target,
            control::{
                self, Applied, ControlSpec, ROLLBACK_REHEARSAL, SCHEMA, Sql, schema_objects::SchemaObjects, write_block,
            },
            fingerprint::count_rows,
            snapshot::{Access, snapshot},
            statistics::{Usage, usage},
        },
        report::Meter,
    },
    telemetry,
};

/// Kinds of transaction that get into the status.
const MAX_TRANSACTION_KINDS: usize = 20;
/// How long `pg_dump` waits for a table that another session has locked exclusively.
const DUMP_LOCK_TIMEOUT: &str = "--lock-wait-timeout=60000";

/// Rehearses the rollback. Notes `rollback_rehearsal`.
///
/// # Errors
/// `ScratchDatabaseExists`, `DumpFailed`; `BalancesUnexplained`; whatever the down SQL fails with. What happened on the
/// copy starts with `rehearsal of the rollback: `.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let target = context.settings.target()?;
    // Each day, so that what was missing at a follow-up and is there again does not stay reported.
    checks::report_safeguards(context).await;
    let evidence =
        on_copy(context, &target, async |admin, copy| rehearse(context, &target, admin, copy).await).await.map_err(
            |failure| Failure::new(failure.reason, format!("rehearsal of the rollback: {}", failure.message)),
        )?;
    let message = evidence.summary();
    context.progress.update(|status| status.rollback_rehearsal = Some(evidence));
    Ok(message)
}

async fn rehearse(
    context: &TaskContext<'_>,
    target: &Target,
    admin: &Client,
    copy: &Target,
) -> Result<RollbackRehearsalEvidence, Failure> {
    let mut control_spec = context.control_spec();
    let started = Instant::now();
    let (unexplained, balances) = unexplained_balances(context, target).await?;
    let mut live = target.connect(ROLLBACK_REHEARSAL).await?;
    let down = approved_down_sql(context, &live, &control_spec).await?;
    let tx = snapshot(&mut live, Access::Read).await?;
    let row = tx.query_one("SELECT pg_export_snapshot()", &[]).await?;
    let Restored { left_out, not_owned } = copy_live(context, target, admin, copy, row.get(0)).await?;
    control_spec.not_owned = not_owned;
    let schema = SchemaObjects::take(&tx).await?.evidence();
    let users_written = control::users_written(&tx, &control_spec).await?;
    let credits_written = Some(control::credits_written(&tx, &control_spec).await?);
    let since = match control::cutover(&tx, &control_spec).await? {
        Some(cutover) => usage(&tx, &*control::credits_now(&tx, &control_spec).await?, &cutover).await?,
        None => None,
    };
    tx.rollback().await?;
    drop(live);

    let mut client = copy.connect("rehearsal-copy").await?;
    // A restored copy has no statistics; without them its times would say nothing about the real ones.
    client.batch_execute("ANALYZE").await?;
    let rows = count_rows(&mut client).await?;
    // As standby does; the copy's tables are not those that were compared then.
    control::refresh_baseline(&mut client, &control_spec, Direction::Rollback).await?;
    let untracked = control::compare_untracked(&mut client, &control_spec, Direction::Rollback, true).await?.differing;
    let rolled_back = write_block::with_blocked_copy(&mut client, &control_spec, async |client| {
        control::rehearse_down(client, &control_spec, &down, None).await
    });
    let rolled_back = rolled_back.await?;
    let compares_all = matches!(rolled_back, Applied::Now { all_compared: true, .. });
    let rollback_seconds = seconds(rolled_back)?;
    let comparing = Instant::now();
    // As the window does; here all are compared in any case.
    control::compare_blocked(&mut client, &control_spec).await?;
    let compare_seconds = comparing.elapsed().as_secs_f64();
    let comparison = control::compare(&client, &control_spec).await?;
    if comparison.unexplained > 0 {
        let (unexplained, users) = (comparison.unexplained, comparison.users);
        let message = format!("the down SQL changed the balances of {unexplained} of {users} users, limit 0");
        return Err(Failure::new(Reason::BalancesUnexplained, message));
    }
    let (unexplained, balances) = match untracked {
        0 => (unexplained, balances),
        untracked => (
            Some(unexplained.unwrap_or(0) + untracked),
            format!(
                "the balances of {untracked} users were written without a trace in the change tracking, limit 0: a \
                 rollback keeps them as they are; {balances}"
            ),
        ),
    };
    let server = server_of(context, &client).await?;
    let server = server.map_or_else(String::new, |server| format!("; the copy was on another server, {server}"));
    let mut transactions = since.map_or_else(Vec::new, |Usage { transactions, .. }| transactions);
    transactions.truncate(MAX_TRANSACTION_KINDS);
    Ok(RollbackRehearsalEvidence {
        finished_at: telemetry::now(),
        rows,
        users: comparison.users,
        users_written,
        credits_written,
        unexplained,
        transactions,
        duration_seconds: started.elapsed().as_secs_f64(),
        rollback_seconds,
        compare_seconds,
        compares_all,
        schema,
        left_out,
        message: format!("each balance kept; {balances}{server}"),
    })
}

/// Compares each written balance of the live database with the transactions since the cutover: of how many users they
/// do not explain it, if it was compared, in words, too. It keeps no rollback from working, which keeps such balances.
async fn unexplained_balances(context: &TaskContext<'_>, target: &Target) -> Result<(Option<u64>, String), Failure> {
    let check = Check {
        balances: Some(BalancesCheck { compare: BalancesComparison::Users }),
        ..Check::named("rollback-rehearsal")
    };
    let source_context = SourceContext::on(context, target.clone().into())?;
    let measured = Source::new(&check, &source_context).measure(&check, Duration::ZERO, &source_context).await;
    let users = match &measured {
        Measurement::Value { value: Value::Number(text), .. } => text.parse().ok(),
        _ => None,
    };
    let found = match measured {
        _ if users == Some(0) => "each is explained by the transactions since the cutover".to_owned(),
        Measurement::Value { value: Value::Number(text), .. } => format!(
            "the balances of {text} users are not explained by the transactions since the cutover, limit 0: a rollback \
             keeps them as they are"
        ),
        Measurement::Value { .. } => "not compared with the transactions since the cutover".to_owned(),
        Measurement::Failed(detail) => format!("not compared with the transactions: {detail}"),
        Measurement::NoData(detail) | Measurement::Error(detail) => {
            format!("not compared with the transactions: {}", detail.text)
        }
    };
    Ok((users, found))
}

/// The down SQL that a rollback would run: as mounted, or as the database keeps it.
async fn approved_down_sql(
    context: &TaskContext<'_>,
    live: &Client,
    control_spec: &ControlSpec,
) -> Result<Sql, Failure> {
    match context.mounted_sql().down {
        Ok(mounted) => Ok(mounted),
        Err(failure) => {
            let approved = &context.spec.inputs.down_sha256;
            control::stored_down_sql(live, control_spec, approved).await?.ok_or(failure)
        }
    }
}

/// Copies one snapshot of the live database into the scratch database, through a pipe.
async fn copy_live(
    context: &TaskContext<'_>,
    target: &Target,
    admin: &Client,
    copy: &Target,
    exported: String,
) -> Result<Restored, Failure> {
    let dump = || {
        let arguments = [
            "--format=custom".to_owned(),
            "--no-password".to_owned(),
            format!("--snapshot={exported}"),
            // With them the copy would be in a window. What else the control schema holds the rollback needs.
            format!("--exclude-table-data={SCHEMA}.write_block"),
            format!("--exclude-table-data={SCHEMA}.window_record"),
            DUMP_LOCK_TIMEOUT.to_owned(),
        ];
        let mut env = target.libpq_env(context.settings.database_ca_file().as_deref());
        env.push(("PGAPPNAME", format!("credit-migration/{ROLLBACK_REHEARSAL}")));
        context.tools.start("pg_dump", &arguments, &env)
    };
    let rate = RateLimit::new(context.spec.plan.runner.limits.dump());
    // Of the same snapshot and options: the entries have the same numbers. pg_restore closes its end when it has read
    // the table of contents, which comes before the rows, and ends the first dump by that.
    let mut contents = context.tools.start("pg_restore", &["--list".to_owned()], &[])?;
    let mut list = Vec::new();
    let listed = contents.stdin.take();
    let (piped, read) = tokio::join!(pipe(dump()?, listed, &rate, None), contents.stdout.read_to_end(&mut list));
    piped?;
    read.map_err(|e| Failure::new(Reason::DumpFailed, format!("pg_restore --list: {e}")))?;
    contents.end().await?;

    let restorer = Restorer::new(context, admin, copy).await?;
    let mut running = restorer.start(&String::from_utf8_lossy(&list), &[])?;
    let meter = context.progress.meter(Activity::Copy, WorkUnit::Bytes);
    let piped = pipe(dump()?, running.stdin.take(), &rate, Some(&meter)).await;
    // A dump that was cut makes pg_restore fail, too, and is the better explanation.
    let restored = running.end().await;
    piped?;
    restorer.done(restored).await
}

/// Passes a program's output on to the input of another one, until either ends. That the reader has ended is no failure
/// here: it says itself why.
async fn pipe(
    mut from: Running,
    to: Option<tokio::process::ChildStdin>,
    rate: &RateLimit,
    meter: Option<&Meter>,
) -> Result<(), Failure> {
    drop(from.stdin.take());
    let Some(mut to) = to else { return Ok(()) };
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.stdout.read(&mut buffer).await;
        let read = read.map_err(|e| Failure::new(Reason::DumpFailed, format!("pg_dump: {e}")))?;
        if read == 0 {
            break;
        }
        if to.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
            return Ok(());
        }
        if let Some(meter) = meter {
            meter.add(read);
        }
        rate.pass(u64::try_from(read).unwrap_or(0)).await;
    }
    // The end of the stream is no evidence: a pg_dump that died ends its stream, too.
    from.end().await?;
    let _ = to.shutdown().await;
    Ok(())
}
