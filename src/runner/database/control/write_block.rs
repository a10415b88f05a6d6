//! The write block: each operation is a short transaction, and none waits for readers.
//!
//! ```text
//!  enable                  window record + ALTER DATABASE ... read_only + row of the write block, one transaction
//!  drain                   end sessions of the application, and those in the way; take the exclusive advisory lock
//!  verify_writes_blocked   a write as a role of the application must fail with SQLSTATE 25006
//!  disable                 row of the write block + end of the window, one transaction; restore the default before
//! ```
//! Once the exclusive lock is taken, no transaction that passed the write-block trigger is under way: each shares the
//! lock to its end. Transactions from before the block which have no lock on a protected table are left alone: their
//! first write meets the lock, whatever their snapshot shows.

use jiff::Timestamp;
use tokio_postgres::{Client, types::Json};

use super::{
    ControlSpec, LOCK_CLASS, LOCK_WRITE_BLOCK,
    cutover::keep_snapshot,
    ident, protected,
    read_only_default::SETTING,
    schema::check_owner,
    triggers::{TriggerKind, without_trigger},
    window_record::RecordedEnd,
    with_children,
};
use crate::{
    api::{Direction, Reason, SchemaInPlace, WindowProgress},
    runner::Failure,
};

/// Records the window, switches the database's default to read-only, and blocks writes of all other sessions, in one
/// transaction. Called again (by another session, after a crash), it keeps the prior setting that was found first.
///
/// Returns when writes were blocked, by the server's clock.
///
/// # Errors
/// `DatabaseInUse` if another migration owns the database or blocks its writes; database errors; nothing was changed.
pub async fn enable(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    attempt: u32,
    deadline: Timestamp,
) -> Result<Timestamp, Failure> {
    let tx = client.transaction().await?;
    check_owner(&tx, spec).await?;
    tx.execute(
        &format!(
            "INSERT INTO credit_migration.window_record AS i
             (migration_uid, direction, attempt, started_at, deadline, sessions, prior_read_only)
         SELECT $1, $2, $3, clock_timestamp(), $4,
                ARRAY (SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE a.datname = current_database()),
                {SETTING}
         ON CONFLICT (migration_uid, direction) DO UPDATE SET
             attempt = excluded.attempt, deadline = excluded.deadline,
             -- Only a window that ended has put the prior setting back; in one that did not, what is found now is our \
             own.
             prior_read_only = CASE WHEN i.finished_at IS NULL THEN i.prior_read_only ELSE excluded.prior_read_only END,
             started_at = CASE WHEN i.finished_at IS NULL THEN i.started_at ELSE excluded.started_at END,
             sessions = CASE WHEN i.finished_at IS NULL THEN i.sessions ELSE excluded.sessions END,
             -- The default is about to be switched, also if an earlier session had put it back.
             restored_at = NULL,
             switch_acknowledged_at = CASE WHEN i.finished_at IS NULL THEN i.switch_acknowledged_at END,
             progress = CASE WHEN i.finished_at IS NULL THEN i.progress END,
             finished_at = NULL, outcome = NULL, reason = NULL, message = NULL"
        ),
        &[&spec.uid, &direction.sql_name(), &i32::try_from(attempt).unwrap_or(i32::MAX), &deadline],
    )
    .await?;
    let database: String = tx.query_one("SELECT current_database()::text", &[]).await?.get(0);
    tx.batch_execute(&format!("ALTER DATABASE {} SET default_transaction_read_only = on", ident(&database))).await?;
    let row = tx
        .query_opt(
            "INSERT INTO credit_migration.write_block AS g (blocked, migration_uid, blocked_at, deadline, pid)
             VALUES (true, $1, clock_timestamp(), $2, pg_backend_pid())
             ON CONFLICT (only_one) DO UPDATE SET
                 blocked_at = CASE WHEN g.blocked THEN g.blocked_at ELSE excluded.blocked_at END,
                 blocked = true, migration_uid = excluded.migration_uid, deadline = excluded.deadline,
                 pid = excluded.pid, unblocked_at = NULL
                 WHERE NOT g.blocked OR g.migration_uid = excluded.migration_uid
             RETURNING blocked_at",
            &[&spec.uid, &deadline],
        )
        .await?;
    let Some(row) = row else {
        let message = "writes are blocked by another migration; next: let it end its window";
        return Err(Failure::new(Reason::DatabaseInUse, message));
    };
    tx.commit().await?;
    Ok(row.get(0))
}

/// Runs SQL in a copy of the database while writes are blocked there for all other sessions: in a rehearsal the SQL
/// must pass the write block under this very login, as in the window. Nothing else of a window is there.
///
/// # Errors
/// Those of `run`, after which writes stay blocked in the copy; database errors.
pub(in crate::runner) async fn with_blocked_copy<T>(
    client: &mut Client,
    spec: &ControlSpec,
    run: impl AsyncFnOnce(&mut Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    set_in_copy(client, spec, true).await?;
    let done = run(client).await?;
    set_in_copy(client, spec, false).await?;
    Ok(done)
}

async fn set_in_copy(client: &Client, spec: &ControlSpec, blocked: bool) -> Result<(), Failure> {
    client
        .execute(
            "INSERT INTO credit_migration.write_block (blocked, migration_uid, blocked_at, deadline, pid)
             VALUES ($2, $1, clock_timestamp(), clock_timestamp(), pg_backend_pid())
             ON CONFLICT (only_one) DO UPDATE SET blocked = excluded.blocked, pid = excluded.pid",
            &[&spec.uid, &blocked],
        )
        .await?;
    Ok(())
}

/// Takes over the write block of another session: from now on it lets this session pass. The read-only default is
/// left as it is. Returns since when writes are blocked.
///
/// # Errors
/// Database errors.
pub async fn take_over(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    attempt: u32,
) -> Result<Option<Timestamp>, Failure> {
    let tx = client.transaction().await?;
    let row = tx
        .query_opt(
            "UPDATE credit_migration.write_block SET pid = pg_backend_pid() WHERE blocked AND migration_uid = $1
             RETURNING blocked_at",
            &[&spec.uid],
        )
        .await?;
    // The rollback may take over from the forward window, whose record has the settings of before. It then counts as
    // acknowledged: the flag may have the old value already, so no pod may unblock writes on the new schema by itself.
    tx.execute(
        "INSERT INTO credit_migration.window_record AS i
             (migration_uid, direction, attempt, started_at, deadline, prior_read_only, sessions, restored_at, \
             switch_acknowledged_at)
         SELECT o.migration_uid, $2, $3, o.started_at, o.deadline, o.prior_read_only, o.sessions, o.restored_at,
                CASE WHEN o.direction = $2 THEN o.switch_acknowledged_at ELSE coalesce(o.switch_acknowledged_at, \
                clock_timestamp()) END
         FROM credit_migration.window_record o
         WHERE o.migration_uid = $1 AND o.finished_at IS NULL ORDER BY o.started_at LIMIT 1
         ON CONFLICT (migration_uid, direction) DO UPDATE SET attempt = excluded.attempt, finished_at = NULL, outcome \
         = NULL,
             reason = NULL, message = NULL,
             sessions = CASE WHEN i.finished_at IS NULL THEN i.sessions ELSE excluded.sessions END,
             restored_at = CASE WHEN i.finished_at IS NULL THEN i.restored_at ELSE excluded.restored_at END,
             switch_acknowledged_at = coalesce(i.switch_acknowledged_at, excluded.switch_acknowledged_at)",
        &[&spec.uid, &direction.sql_name(), &i32::try_from(attempt).unwrap_or(i32::MAX)],
    )
    .await?;
    tx.commit().await?;
    Ok(row.map(|row| row.get(0)))
}

/// Unblocks writes and records how the window ended, in one transaction; then releases the exclusive lock.
///
/// Returns when writes were unblocked, by the server's clock; `None` if they were not blocked.
///
/// # Errors
/// Database errors; writes are blocked as before, or unblocked.
pub async fn disable(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    end: &RecordedEnd,
    progress: &WindowProgress,
) -> Result<Option<Timestamp>, Failure> {
    let tx = client.transaction().await?;
    keep_snapshot(&tx, spec).await?;
    let unblocked_at = tx
        .query_opt(
            "UPDATE credit_migration.write_block SET blocked = false, unblocked_at = clock_timestamp(), pid = NULL
             WHERE blocked AND migration_uid = $1 RETURNING unblocked_at",
            &[&spec.uid],
        )
        .await?
        .map(|row| row.get::<_, Timestamp>(0));
    tx.execute(
        "UPDATE credit_migration.window_record SET finished_at = clock_timestamp(), outcome = $3, reason = $4, message \
            = $5,
                progress = CASE WHEN direction = $2 THEN $6 ELSE progress END
         WHERE migration_uid = $1 AND finished_at IS NULL",
        &[
            &spec.uid,
            &direction.sql_name(),
            &match end.schema {
                SchemaInPlace::Old => "rolled_back",
                SchemaInPlace::New => "unblocked",
            },
            &end.failure.as_ref().map(|failure| failure.reason.as_str()),
            &end.failure.as_ref().map(|failure| failure.message.as_str()),
            &Json(&WindowProgress { unblocked_at: unblocked_at.or(progress.unblocked_at), ..progress.clone() }),
        ],
    )
    .await?;
    tx.commit().await?;
    // It must be released as often as it was taken: otherwise it would still refuse writes.
    while holds_exclusive_lock(client).await? {
        client.query_one("SELECT pg_catalog.pg_advisory_unlock($1, $2)", &[&LOCK_CLASS, &LOCK_WRITE_BLOCK]).await?;
    }
    Ok(unblocked_at)
}

/// Whether writes are blocked by this migration, this session is the one that passes, and each protected table has its
/// write-block trigger.
///
/// # Errors
/// Database errors.
pub async fn is_held(client: &Client, spec: &ControlSpec) -> Result<bool, Failure> {
    let query = "SELECT EXISTS (SELECT FROM credit_migration.write_block
                 WHERE blocked AND migration_uid = $1 AND pid = pg_backend_pid())";
    if !client.query_one(query, &[&spec.uid]).await?.get::<_, bool>(0) {
        return Ok(false);
    }
    let tables = with_children(client, &protected(client, spec).await?).await?;
    Ok(without_trigger(client, &tables, TriggerKind::WriteBlock).await?.is_empty())
}

/// Whether this session has the lock of the write block exclusively.
///
/// # Errors
/// Database errors.
pub async fn holds_exclusive_lock(client: &Client) -> Result<bool, Failure> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE pid = pg_backend_pid() AND granted AND mode = \
                'ExclusiveLock'
                            AND locktype = 'advisory' AND classid = $1::int4::oid AND objid = $2::int4::oid)",
            &[&LOCK_CLASS, &LOCK_WRITE_BLOCK],
        )
        .await?;
    Ok(row.get(0))
}
