//! After the window: what a rollback needs in the database, and whether the application can write.

use std::time::Duration;

use tokio_postgres::{Client, Transaction};

use super::{
    ControlSpec, Table, check_schema, credits_now, exists, ident, protected, resolve, stored_down_sql,
    triggers::{TriggerKind, without_trigger},
    verify_writes::verify_writes_unblocked,
    with_children,
};
use crate::{
    api::{MissingSafeguard, Reason, SafeguardKind},
    runner::{
        Failure, UnlessLost,
        database::connection::{Target, USE_OWN_SEARCH_PATH_SQL},
    },
};

/// Longest that one measurement takes.
const SAFEGUARDS_TIMEOUT: Duration = Duration::from_secs(20);
/// Of the write that is tried: it must hold no one up.
const TRIAL_SETTINGS: &str = "SET LOCAL lock_timeout = 500; SET LOCAL statement_timeout = 3000";
/// What is reported at most.
const MAX_MISSING: usize = 16;

/// What is missing: measured on a session of its own, and as an ordinary session of the application. The write that is
/// tried is rolled back. `approved` is the digest of the down SQL.
///
/// # Errors
/// Those of a connection; `DatabaseUnavailable` after 20 s; database errors. Then nothing is known.
pub async fn missing_safeguards(
    target: &Target,
    spec: &ControlSpec,
    approved: &str,
) -> Result<Vec<MissingSafeguard>, Failure> {
    let measuring = async {
        let mut client = target.connect("safeguards").await?;
        let mut missing = Vec::new();
        missing.extend(refused_writes(target, &client, spec).await?);
        missing.extend(missing_triggers(&client, spec).await?);
        missing.extend(failing_change_tracking(&mut client, spec).await?);
        if stored_down_sql(&client, spec, approved).await?.is_none() {
            missing.push(MissingSafeguard::new(SafeguardKind::StoredDownSql));
        }
        if let Err(refused) = check_schema(&client, spec).await.unless_lost()? {
            let detail = Some(refused.message);
            missing.push(MissingSafeguard { detail, ..MissingSafeguard::new(SafeguardKind::ControlSchema) });
        }
        missing.sort_by_key(|found| found.kind);
        missing.truncate(MAX_MISSING);
        Ok(missing)
    };
    tokio::time::timeout(SAFEGUARDS_TIMEOUT, measuring).await.unwrap_or_else(|_| {
        let seconds = SAFEGUARDS_TIMEOUT.as_secs();
        Err(Failure::new(Reason::DatabaseUnavailable, format!("the database did not answer within {seconds} s")))
    })
}

/// The write block is on, or an ordinary session of the application is refused.
async fn refused_writes(
    target: &Target,
    client: &Client,
    spec: &ControlSpec,
) -> Result<Option<MissingSafeguard>, Failure> {
    let refused = |detail: String| MissingSafeguard {
        detail: Some(detail),
        ..MissingSafeguard::new(SafeguardKind::UnblockedWrites)
    };
    if exists(client, "write_block").await? {
        let query = "SELECT migration_uid FROM credit_migration.write_block WHERE blocked";
        if let Some(row) = client.query_opt(query, &[]).await? {
            let uid: &str = row.get(0);
            return Ok(Some(refused(format!("the write block of migration uid {uid} is on"))));
        }
    }
    match verify_writes_unblocked(target, spec).await {
        Err(Failure { reason: Reason::WritesStillBlocked, message }) => Ok(Some(refused(message))),
        Err(failure) if failure.is_connection_lost() => Err(failure),
        // That a table is locked says nothing of the write block.
        Ok(_) | Err(_) => Ok(None),
    }
}

/// Triggers that are not there, not enabled or not the operator's own.
async fn missing_triggers(client: &Client, spec: &ControlSpec) -> Result<Vec<MissingSafeguard>, Failure> {
    let mut missing = Vec::new();
    let tables = with_children(client, &protected(client, spec).await?).await?;
    let balances = match resolve(client, &credits_now(client, spec).await?.balances.table).await? {
        Some(table) => with_children(client, &[table]).await?,
        None => vec![],
    };
    let wanted = [
        (SafeguardKind::WriteBlock, TriggerKind::WriteBlock, &tables),
        (SafeguardKind::ChangeTracking, TriggerKind::ChangeTracking, &balances),
        (SafeguardKind::ChangeTracking, TriggerKind::TruncateTracking, &balances),
    ];
    for (kind, trigger, tables) in wanted {
        for table in without_trigger(client, tables, trigger).await? {
            missing.push(MissingSafeguard {
                table: Some(table.to_string()),
                trigger: Some(trigger.name().to_owned()),
                ..MissingSafeguard::new(kind)
            });
        }
    }
    Ok(missing)
}

/// Runs the change-tracking trigger on one row, and rolls back. Column names are compiled into its function: once one
/// is renamed, each write fails.
async fn failing_change_tracking(client: &mut Client, spec: &ControlSpec) -> Result<Option<MissingSafeguard>, Failure> {
    let balances = credits_now(client, spec).await?.into_owned().balances;
    let Some(table) = resolve(client, &balances.table).await? else { return Ok(None) };
    let tx = client.transaction().await?;
    let tried = write_one_row(&tx, &table, &balances.balance_column).await;
    tx.rollback().await?;
    let Err(error) = tried else { return Ok(None) };
    // Class 42: a name or a type does not fit. Anything else says nothing of the trigger: a lock, a refused write.
    match error.code() {
        Some(state) if state.code().starts_with("42") => Ok(Some(MissingSafeguard {
            table: Some(table.to_string()),
            trigger: Some(TriggerKind::ChangeTracking.name().to_owned()),
            detail: Some(Failure::from(&error).message),
            ..MissingSafeguard::new(SafeguardKind::WorkingChangeTracking)
        })),
        Some(_) => Ok(None),
        None => Err(Failure::from(&error)),
    }
}

/// Sets one column of one row that no one has locked to its own value.
async fn write_one_row(tx: &Transaction<'_>, table: &Table, preferred: &str) -> Result<(), tokio_postgres::Error> {
    tx.batch_execute(TRIAL_SETTINGS).await?;
    let column = "SELECT attname::text FROM pg_catalog.pg_attribute
        WHERE attrelid = pg_catalog.to_regclass($1) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
          AND attidentity <> 'a' ORDER BY attname <> $2, attnum LIMIT 1";
    let Some(row) = tx.query_opt(column, &[&table.sql(), &preferred]).await? else { return Ok(()) };
    let (name, column) = (table.sql(), ident(row.get(0)));
    let cursor =
        format!("DECLARE credit_migration_trial CURSOR FOR SELECT 1 FROM {name} LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED");
    tx.batch_execute(&cursor).await?;
    if tx.query("FETCH 1 FROM credit_migration_trial", &[]).await?.is_empty() {
        return Ok(());
    }
    // Triggers of the application run, too.
    let write = format!(
        "{USE_OWN_SEARCH_PATH_SQL}; UPDATE {name} SET {column} = {column} WHERE CURRENT OF credit_migration_trial"
    );
    tx.batch_execute(&write).await
}
