//! Task `Cleanup`: removes the triggers when the migration has ended and no one waits for it, and drops what
//! rehearsals that were killed have left.
//!
//! # Contract
//! - Ledger and window record stay: they are the record, and keep the SQL from running again. So does a list of
//!   unexplained balances that is not empty.
//! - Each trigger goes in a transaction of its own under `lock_timeout`, retried after a jittered pause: `DROP TRIGGER`
//!   waits for readers, and later sessions wait for it.
//! - Idempotent; does nothing where nothing is, or where the database belongs to another migration.

use tokio_postgres::{Client, GenericClient};

use crate::{
    api::Reason,
    runner::{
        Failure,
        context::TaskContext,
        database::{
            control::{
                ControlSpec, LOCK_CHANGE, LOCK_CLASS, Table, TriggerChange, change_trigger, check_schema, define,
                exists, millis, trigger_lock_timeout,
            },
            scratch::{self, LOCK_REHEARSAL},
        },
    },
};

/// Cleans up.
///
/// # Errors
/// Those of [`cleanup`]; `LockTimeout` while a rehearsal is under way.
pub async fn run(context: &TaskContext<'_>) -> Result<String, Failure> {
    let mut client = context.settings.target()?.connect("cleanup").await?;
    let control_spec = context.control_spec();
    cleanup(&mut client, &control_spec).await?;
    // The server may still be at work for a pod that was killed: what it is about to make must not come after this.
    let lock = format!(
        "SET lock_timeout = {}; SELECT pg_catalog.pg_advisory_lock({LOCK_CLASS}, {LOCK_REHEARSAL})",
        millis(control_spec.trigger_timeout)
    );
    client.batch_execute(&lock).await.map_err(|e| {
        let Failure { reason, message } = e.into();
        let next = "end the sessions named credit-migration/rehearsal";
        Failure::new(reason, format!("a rehearsal of this database is under way: {message}; next: {next}"))
    })?;
    let mut dropped = scratch::sweep(&client, &control_spec.uid).await?;
    let elsewhere = match sweep_elsewhere(context).await {
        Ok(more) => {
            dropped += more;
            String::new()
        }
        // That server may be gone for good, and nothing of the migration depends on it.
        Err(failure) => {
            tracing::warn!(error = %failure, "the server of the copy is not searched for scratch databases");
            let name = &context.spec.plan.rehearsal.database;
            format!("; check whether there is a database {name} on the server of spec.rehearsal.connection: {failure}")
        }
    };
    Ok(format!(
        "triggers removed, {dropped} scratch databases dropped, the database is free for the next migration{elsewhere}"
    ))
}

/// Drops what killed rehearsals have left on another server.
async fn sweep_elsewhere(context: &TaskContext<'_>) -> Result<usize, Failure> {
    match context.settings.copy_target()? {
        Some(on) => scratch::sweep(&on.connect("cleanup").await?, &context.spec.migration_uid).await,
        None => Ok(0),
    }
}

/// Removes triggers, functions, write block, tracked changes and baseline, and releases the database for the next
/// migration.
///
/// In: a connection as the migration role, outside of a transaction.
///
/// # Errors
/// `DatabaseInUse` while writes are blocked; `LockTimeout` when a trigger could not be dropped within
/// `control_spec.trigger_timeout`: what went before is gone, and calling again goes on.
pub async fn cleanup(client: &mut Client, control_spec: &ControlSpec) -> Result<(), Failure> {
    if !ours(client, control_spec).await? {
        return Ok(());
    }
    let triggers = client
        .query(
            "SELECT n.nspname::text, c.relname::text, t.tgname::text
             FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace
             WHERE f.nspname = 'credit_migration' AND NOT t.tgisinternal AND t.tgparentid = 0 ORDER BY 1, 2, 3",
            &[],
        )
        .await?;
    for row in &triggers {
        let table = Table { schema: row.get(0), name: row.get(1) };
        change_trigger(client, control_spec, &table, TriggerChange::Drop(row.get(2))).await?;
    }
    let tx = client.transaction().await?;
    tx.batch_execute(&format!(
        "SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = {};
         SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {LOCK_CHANGE})",
        millis(trigger_lock_timeout(control_spec))
    ))
    .await?;
    // Asked again under the lock: another migration may have claimed the database meanwhile.
    if ours(&tx, control_spec).await? {
        // A person still has to read a list that names users; the next Backup empties it.
        if exists(&tx, "unexplained_balances").await? {
            let listed = tx.query_opt("SELECT FROM credit_migration.unexplained_balances LIMIT 1", &[]).await?;
            if listed.is_none() {
                define(&tx, "DROP TABLE credit_migration.unexplained_balances").await?;
            }
        }
        if exists(&tx, "parked_tables").await? {
            let parked = tx.query_opt("SELECT FROM credit_migration.parked_tables LIMIT 1", &[]).await?;
            if parked.is_none() {
                define(&tx, "DROP TABLE credit_migration.parked_tables, credit_migration.parked_grants").await?;
            }
        }
        define(
            &tx,
            "DROP FUNCTION IF EXISTS credit_migration.block_writes();
             DROP FUNCTION IF EXISTS credit_migration.track_changes();
             DROP TABLE IF EXISTS credit_migration.write_block, credit_migration.exempt_transaction,
                 credit_migration.changed_users, credit_migration.baseline, credit_migration.schema_objects,
                 credit_migration.compared, credit_migration.written_users, credit_migration.claim",
        )
        .await?;
    }
    tx.commit().await.map_err(Failure::from)
}

/// Whether there is something to clean up that is this migration's. Writes must be unblocked.
async fn ours(client: &impl GenericClient, control_spec: &ControlSpec) -> Result<bool, Failure> {
    check_schema(client, control_spec).await?;
    if !exists(client, "claim").await? || !exists(client, "write_block").await? {
        return Ok(false);
    }
    let claim =
        client.query_opt("SELECT FROM credit_migration.claim WHERE migration_uid = $1", &[&control_spec.uid]).await?;
    if claim.is_none() {
        return Ok(false);
    }
    let closed = client.query_opt("SELECT migration_uid FROM credit_migration.write_block WHERE blocked", &[]).await?;
    match closed {
        None => Ok(true),
        Some(row) => {
            let message = format!(
                "writes are blocked by migration uid {}: the triggers stay; next: end its window first",
                row.get::<_, &str>(0)
            );
            Err(Failure::new(Reason::DatabaseInUse, message))
        }
    }
}
