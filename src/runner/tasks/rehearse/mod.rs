//! Task `Rehearse`: what will happen, on a copy that comes from the bucket.
//!
//! ```text
//!  scratch database ─ pg_restore < object ─ counts as in the baseline ─ triggers ─ fingerprint ─┐
//!         ┌─ fingerprint equal? ─ down SQL, verifyDown ─ checks ─ compare ─ up SQL, verifyUp ────┘
//!         └─ up SQL ─ rehearsal.writes ─ down SQL, verifyDown ─ objects equal? ─ drop it, always
//! ```
//!
//! # Contract
//! - Up and down run through the same code as in the window.
//! - The copy is dropped whatever happens; one that a killed pod left is dropped by the next attempt, or by Cleanup.
//! - Only one rehearsal of a database is under way at a time, even if its program is started twice.
//!
//! Called by the runner's dispatch. Imports `checks`, `database`, `clients`, `context` and `failure` of the runner, and
//! `api`.

mod checks;
mod directory;
mod restore;
mod writes;

pub(super) use restore::{Restored, Restorer};

use std::time::Instant;

use tokio_postgres::Client;

use crate::{
    api::{Activity, BackupFormat, Reason, Rehearsal, RehearsalEvidence, StatementEvidence, WorkUnit},
    runner::{
        Failure,
        clients::{
            archive,
            object_store::{STORE_RETRY_TIMEOUT, StoreClient},
            rate_limit::RateLimit,
        },
        context::{MountedSql, TaskContext},
        database::{
            connection::Target,
            control::{
                self, Applied, ControlSpec, LOCK_CLASS, Sql, StatementMeter, existing, schema_objects::SchemaObjects,
                write_block,
            },
            copy_place,
            fingerprint::Fingerprint,
            scratch::{self, LOCK_REHEARSAL},
            snapshot::{Access, snapshot},
            version::ServerVersion,
        },
    },
};

/// Differences that a message names; the log has all.
const MAX_NAMED_DIFFERENCES: usize = 10;

/// Rehearses. Notes `rehearsal`.
///
/// # Errors
/// `ScratchDatabaseExists`, `BackupAltered`, `DumpFailed`; whatever up and down fail with; `CheckNotMeasurable`;
/// `RollbackNotEqual`. What happened on the copy starts with `rehearsal: `.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let target = context.settings.target()?;
    let store =
        StoreClient::open(&context.spec.plan.backup.store, &context.settings.store_keys()?, STORE_RETRY_TIMEOUT)?;
    let sql = migration_sql(context)?;
    let evidence = on_copy(context, &target, async |admin, copy| rehearse(context, &store, admin, copy, &sql).await)
        .await
        .map_err(|failure| Failure::new(failure.reason, format!("rehearsal: {}", failure.message)))?;
    let message = evidence.summary();
    context.progress.update(|status| status.rehearsal = Some(evidence));
    Ok(message)
}

/// Does `work` with the migration role's session and a scratch database, on the server that the spec says, which is
/// dropped afterwards, whatever happens.
///
/// # Errors
/// `ScratchDatabaseExists`, `CopyTooRisky`; those of [`copy_place::elsewhere`], of `work` and of the connections.
pub(in crate::runner::tasks) async fn on_copy<T>(
    context: &TaskContext<'_>,
    target: &Target,
    work: impl AsyncFnOnce(&Client, &Target) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let Rehearsal { database: name, max_size, .. } = &context.spec.plan.rehearsal;
    let elsewhere = context.settings.copy_target()?;
    let on = elsewhere.as_ref().unwrap_or(target);
    if name == on.database() {
        return Err(Failure::new(
            Reason::ScratchDatabaseExists,
            format!("spec.rehearsal.database is {name}, the database itself; next: choose a name that is free"),
        ));
    }
    let original = target.connect("rehearsal").await?;
    let lock = format!("SELECT pg_advisory_lock({LOCK_CLASS}, {LOCK_REHEARSAL})");
    tokio::select! {
        locked = original.batch_execute(&lock) => locked?,
        () = context.stop.cancelled() => return Err(Failure::terminated()),
    }
    let other = match &elsewhere {
        Some(on) => Some(on.connect("rehearsal").await?),
        None => None,
    };
    // Since Preflight it may have changed.
    match &other {
        Some(other) => {
            let roles = &context.spec.plan.database.application_roles;
            copy_place::elsewhere(&original, other, on, roles).await?
        }
        None => copy_place::next_to_original(&original, max_size).await?,
    };
    let admin = other.as_ref().unwrap_or(&original);
    scratch::create(&original, admin, on, name, &context.spec.migration_uid).await?;
    let copy = on.with_database(name);
    let done = tokio::select! {
        done = work(&original, &copy) => done,
        () = context.stop.cancelled() => Err(Failure::terminated()),
    };
    drop_copy(on, admin, name).await;
    done
}

/// Up and down SQL, ready to run.
pub struct MigrationSql {
    /// The change.
    pub up: Sql,
    /// The rollback.
    pub down: Sql,
    /// What is written in between.
    pub writes: Option<Sql>,
}

/// All SQL texts, which the rehearsal needs together.
///
/// # Errors
/// `SqlChanged` and those of [`sql::for_run`](crate::shared::sql::for_run).
fn migration_sql(context: &TaskContext<'_>) -> Result<MigrationSql, Failure> {
    let MountedSql { up, down } = context.mounted_sql();
    let writes = context.spec.plan.rehearsal.writes.clone();
    let writes = writes.map(|text| Sql::read("spec.rehearsal.writes", text)).transpose()?;
    Ok(MigrationSql { up: up?, down: down?, writes })
}

/// Everything that happens on the copy.
async fn rehearse(
    context: &TaskContext<'_>,
    store: &StoreClient,
    admin: &Client,
    copy: &Target,
    sql: &MigrationSql,
) -> Result<RehearsalEvidence, Failure> {
    let started = Instant::now();
    let Restored { left_out, not_owned } = restore(context, store, admin, copy).await?;
    let control_spec = ControlSpec { not_owned, ..context.control_spec() };
    let restore_seconds = started.elapsed().as_secs_f64();

    let mut client = copy.connect("rehearsal-copy").await?;
    let users = same_as_baseline(admin, &client, &control_spec).await?;
    // A restored copy has no statistics; without them its times would say nothing about the real ones.
    client.batch_execute("ANALYZE").await?;
    control::install(&mut client, &control_spec).await?;
    baseline(&mut client, &control_spec).await?;
    let rate = RateLimit::new(context.spec.plan.runner.limits.fingerprint());
    let before = fingerprint(context, &mut client, &rate).await?;

    let observer = copy.connect("rehearsal-observer").await?;
    let mut meter = StatementMeter::new(&observer, &client).await?;
    let migrated = write_block::with_blocked_copy(&mut client, &control_spec, async |client| {
        control::rehearse_up(client, &control_spec, &sql.up, &sql.down, Some(&mut meter)).await
    });
    let migrated = migrated.await?;
    let (rights_lost, invariants) = match &migrated {
        Applied::Now { rights_lost, invariants, .. } => (rights_lost.clone(), invariants.clone()),
        Applied::Earlier { .. } | Applied::NotApplicable => (vec![], vec![]),
    };
    let migrate_seconds = seconds(migrated)?;
    let started = Instant::now();
    // As the window does; here all are compared in any case.
    let (_, up_compares_all) = control::compare_blocked(&mut client, &control_spec).await?;
    let compare_seconds = started.elapsed().as_secs_f64();
    let comparison = control::compare(&client, &control_spec).await?;
    if comparison.unexplained > 0 {
        return Err(Failure::new(
            Reason::BalancesUnexplained,
            format!(
                "the up SQL changed the balances of {} of {} users, limit 0; next: correct the up SQL",
                comparison.unexplained, comparison.users
            ),
        ));
    }
    let measured = checks::measure(context, copy).await?;
    let rolled_back = write_block::with_blocked_copy(&mut client, &control_spec, async |client| {
        control::rehearse_down(client, &control_spec, &sql.down, Some(&mut meter)).await
    });
    let rolled_back = rolled_back.await?;
    let down_compares_all = matches!(rolled_back, Applied::Now { all_compared: true, .. });
    let rollback_seconds = seconds(rolled_back)?;

    let after = fingerprint(context, &mut client, &rate).await?;
    require_equal(&before, &after)?;
    let writes = match &sql.writes {
        Some(writes) => Some(writes::rehearse(&mut client, &control_spec, sql, writes).await?),
        None => None,
    };
    Ok(RehearsalEvidence {
        users,
        restore_seconds,
        migrate_seconds,
        rollback_seconds,
        tables_equal: u32::try_from(before.tables.len()).unwrap_or(u32::MAX),
        checks_measured: measured.checks,
        checks_not_passing: measured.not_passing,
        compare_seconds,
        writes,
        schema: SchemaObjects::recorded(admin, &control_spec).await?.evidence(),
        left_out,
        rights_lost,
        invariants,
        server: server_of(context, &client).await?,
        statements: StatementEvidence::longest(meter.measured()),
        up_compares_all,
        down_compares_all,
    })
}

/// Which server has the copy, if it is not the original's.
pub(in crate::runner::tasks) async fn server_of(
    context: &TaskContext<'_>,
    copy: &Client,
) -> Result<Option<String>, Failure> {
    let Some(on) = context.settings.copy_target()? else { return Ok(None) };
    Ok(Some(format!("{} at {}", ServerVersion::of(copy).await?, on.host_port())))
}

async fn fingerprint(context: &TaskContext<'_>, client: &mut Client, rate: &RateLimit) -> Result<Fingerprint, Failure> {
    let meter = context.progress.meter(Activity::Fingerprint, WorkUnit::Tables);
    Fingerprint::take(client, rate, |read, tables| meter.add_of(read, tables)).await
}

/// The rollback has restored what was there before.
fn require_equal(before: &Fingerprint, after: &Fingerprint) -> Result<(), Failure> {
    let differences = before.differences(after);
    if differences.is_empty() {
        return Ok(());
    }
    for difference in &differences {
        tracing::error!(error = difference, "not equal after the rollback");
    }
    let more = differences.len().saturating_sub(MAX_NAMED_DIFFERENCES);
    let more = if more > 0 { format!(" and {more} more, see the log") } else { String::new() };
    let named: Vec<&str> = differences.iter().take(MAX_NAMED_DIFFERENCES).map(String::as_str).collect();
    Err(Failure::new(
        Reason::RollbackNotEqual,
        format!(
            "after the down SQL {} differences: {}{more}; next: correct the down SQL",
            differences.len(),
            named.join("; ")
        ),
    ))
}

/// Restores the object as it is in the bucket.
async fn restore(
    context: &TaskContext<'_>,
    store: &StoreClient,
    admin: &Client,
    copy: &Target,
) -> Result<Restored, Failure> {
    let (object, expected) = context.backup_input()?;
    let restorer = Restorer::new(context, admin, copy).await?;
    let meter = context.progress.meter(Activity::Restore, WorkUnit::Bytes);
    if context.spec.plan.backup.format == BackupFormat::Directory {
        return directory::restore(context, store, restorer, object, expected, &meter).await;
    }
    let list = archive::list_or_none(&context.tools, store, object).await?;
    let running = restorer.start(&list, &[])?;
    let streamed = archive::stream_through(store, object, running, |read, size| meter.add_of(read, size)).await?;
    // A cut object makes pg_restore fail, too; an altered object is the better explanation.
    archive::check_digest(object, &streamed, expected)?;
    restorer.done(streamed.ended).await
}

/// The copy has as many users with the same sum of balances as the baseline, which was taken in the dump's snapshot.
async fn same_as_baseline(admin: &Client, copy: &Client, control_spec: &ControlSpec) -> Result<u64, Failure> {
    let query =
        "SELECT count(*), coalesce(sum(balance), 0)::text FROM credit_migration.baseline WHERE migration_uid = $1";
    let recorded = admin.query_one(query, &[&control_spec.uid]).await?;
    let query = format!(
        "SELECT count(*), coalesce(sum({}), 0)::numeric::text FROM {}",
        control::ident(&control_spec.credits.balances.balance_column),
        existing(copy, &control_spec.credits.balances.table).await?.sql()
    );
    let restored = copy.query_one(&query, &[]).await?;
    let of = |row: &tokio_postgres::Row| (row.get::<_, i64>(0), row.get::<_, String>(1));
    let (recorded, restored) = (of(&recorded), of(&restored));
    if recorded != restored {
        return Err(Failure::new(
            Reason::BackupUnreadable,
            format!(
                "the restored copy has {} users with {} credits, the baseline {} with {}; next: take the backup again",
                restored.0, restored.1, recorded.0, recorded.1
            ),
        ));
    }
    Ok(u64::try_from(restored.0).unwrap_or(0))
}

async fn baseline(client: &mut Client, control_spec: &ControlSpec) -> Result<(), Failure> {
    let transaction = snapshot(client, Access::Write).await?;
    control::take_baseline(&transaction, control_spec).await?;
    transaction.commit().await.map_err(Failure::from)
}

/// Seconds of SQL that must have run now: the copy is new.
pub(super) fn seconds(applied: Applied) -> Result<f64, Failure> {
    match applied {
        Applied::Now { seconds, .. } => Ok(seconds),
        Applied::Earlier { .. } => {
            Err(Failure::new(Reason::Internal, "the SQL was not run on the copy: it was applied earlier"))
        }
        Applied::NotApplicable => {
            Err(Failure::new(Reason::Internal, "the SQL was not run on the copy: there is nothing to apply"))
        }
    }
}

/// Drops the copy, over a new connection if the old one is lost. What cannot be dropped now is dropped by the next
/// attempt.
async fn drop_copy(target: &Target, admin: &Client, name: &str) {
    let mut failed = match scratch::remove(admin, name).await {
        Ok(()) => return,
        Err(failure) => failure,
    };
    for _ in 0..3 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        match target.connect("rehearsal").await {
            Ok(client) => match scratch::remove(&client, name).await {
                Ok(()) => return,
                Err(failure) => failed = failure,
            },
            Err(failure) => failed = failure,
        }
    }
    tracing::error!(reason = %failed.reason, error = %failed, database = name, "the scratch database is left");
}
