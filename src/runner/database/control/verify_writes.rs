//! Verification that writes are blocked, or unblocked: a write of no row, as a role of the application, is tried.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, error::SqlState};

use super::{ControlSpec, Table, ident, jitter, millis, protected, triggers::WRITE_BLOCK_TRIGGER, with_children};
use crate::{
    api::Reason,
    runner::{
        Failure,
        database::connection::{Target, USE_OWN_SEARCH_PATH_SQL},
    },
};

/// How long a new session is tried to be opened, once writes are unblocked.
const OBSERVATION_LIMIT: Duration = Duration::from_secs(2);

/// Verifies on another session than that of the window that writes are refused: as each role of the application on each
/// protected table that it may write. Returns what was tried and observed.
///
/// # Errors
/// `WritesNotBlocked` if a write went through, or was refused for another cause; `PrivilegeMissing` with the `GRANT`;
/// `LockTimeout` if a table is locked against writes: another session changes or indexes it.
pub async fn verify_writes_blocked(client: &Client, spec: &ControlSpec) -> Result<String, Failure> {
    // The write waits for the lock of the table before the trigger fires; an index that is being built would delay it
    // for minutes.
    let limits = format!(
        "ROLLBACK; SET lock_timeout = {}; SET statement_timeout = {}",
        millis(spec.lock_timeout),
        millis(spec.lock_timeout + Duration::from_secs(5))
    );
    client.batch_execute(&limits).await?;
    let tables = with_children(client, &protected(client, spec).await?).await?;
    let mut refusals = Vec::new();
    let mut not_tried = 0;
    for role in &spec.application_roles {
        for table in &tables {
            match harmless_write(client, role, table).await? {
                Some(write) => refusals.push(expect_refusal(client, role, table, &write).await?),
                None => not_tried += 1,
            }
        }
    }
    if refusals.is_empty() {
        // The application may write none of them: the owner takes its place, in a session that the write block does
        // not name.
        let role: String = client.query_one("SELECT current_user::text", &[]).await?.get(0);
        for table in &tables {
            if let Some(write) = harmless_write(client, &role, table).await? {
                refusals.push(expect_refusal(client, &role, table, &write).await?);
            }
        }
    }
    match refusals.first() {
        Some(first) => {
            Ok(format!("{} writes refused, {not_tried} not tried for lack of a right; {first}", refusals.len()))
        }
        None => Err(Failure::new(
            Reason::WritesNotBlocked,
            "no protected table can be written by the migration role, so the write block cannot be verified",
        )),
    }
}

/// Verifies that writes go through: in a new session with the database's own read-only default, as each role of the
/// application on each protected table that it may write. Returns what was tried.
///
/// # Errors
/// `WritesStillBlocked` if a write was refused as the write block does; others if it cannot be verified.
pub async fn verify_writes_unblocked(target: &Target, spec: &ControlSpec) -> Result<String, Failure> {
    let start = Instant::now();
    let client = loop {
        match target.connect_for_observation("verification").await {
            Err(failure) if failure.is_connection_lost() && start.elapsed() < OBSERVATION_LIMIT => {
                tokio::time::sleep(jitter(Duration::from_millis(100))).await;
            }
            connected => break connected?,
        }
    };
    // A default that was there before the window is the owner's own, and so is one of the role.
    let row = client
        .query_one(
            "SELECT setting = 'on' AND (source <> 'database' OR coalesce((SELECT prior_read_only::boolean
                        FROM credit_migration.window_record WHERE migration_uid = $1
                        ORDER BY started_at LIMIT 1), false))
             FROM pg_catalog.pg_settings WHERE name = 'default_transaction_read_only'",
            &[&spec.uid],
        )
        .await?;
    let start = if row.get(0) { "START TRANSACTION READ WRITE" } else { "START TRANSACTION" };
    let tables = with_children(&client, &protected(&client, spec).await?).await?;
    let mut tried = 0;
    for role in &spec.application_roles {
        for table in &tables {
            let Some(write) = harmless_write(&client, role, table).await? else { continue };
            let written = client
                .batch_execute(&format!("{start}; {USE_OWN_SEARCH_PATH_SQL}; SET LOCAL ROLE {}; {write}", ident(role)))
                .await;
            client.batch_execute("ROLLBACK").await?;
            match written {
                Ok(()) => tried += 1,
                Err(e) if e.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {
                    let message = format!(
                        "a write of role {role} to {table} is refused although writes were unblocked: {}; next: SHOW \
                         default_transaction_read_only in a new session, SELECT * FROM credit_migration.write_block",
                        Failure::from(&e).message
                    );
                    return Err(Failure::new(Reason::WritesStillBlocked, message));
                }
                Err(e) => return Err(Failure::from(&e)),
            }
        }
    }
    Ok(format!("{tried} writes of the application succeeded"))
}

/// A write that changes no row, and that `role` has the privilege for. `None` if it has none.
async fn harmless_write(client: &Client, role: &str, table: &Table) -> Result<Option<String>, Failure> {
    let column_for = |privilege: &str| {
        format!(
            "(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND \
              a.attidentity <> 'a'
                AND has_column_privilege($1, t.oid, a.attnum, '{privilege}') ORDER BY a.attnum LIMIT 1)"
        )
    };
    let query = format!(
        "SELECT {}, has_table_privilege($1, t.oid, 'DELETE'), {}
         FROM (SELECT pg_catalog.to_regclass($2)::oid AS oid) AS t",
        column_for("UPDATE"),
        column_for("INSERT")
    );
    let row = client.query_one(&query, &[&role, &table.sql()]).await?;
    let column: Option<String> = row.get(0);
    let may_delete: Option<bool> = row.get(1);
    let insert: Option<String> = row.get(2);
    Ok(match (column, may_delete, insert) {
        (Some(column), _, _) => Some(format!("UPDATE {} SET {} = DEFAULT WHERE false", table.sql(), ident(&column))),
        (None, Some(true), _) => Some(format!("DELETE FROM {} WHERE false", table.sql())),
        // The usual right on an append-only table.
        (None, _, Some(column)) => {
            Some(format!("INSERT INTO {} ({}) SELECT NULL WHERE false", table.sql(), ident(&column)))
        }
        (None, _, None) => None,
    })
}

async fn expect_refusal(client: &Client, role: &str, table: &Table, write: &str) -> Result<String, Failure> {
    client.batch_execute(&format!("BEGIN READ WRITE; {USE_OWN_SEARCH_PATH_SQL}")).await?;
    let result = match client.batch_execute(&format!("SET LOCAL ROLE {}", ident(role))).await {
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let message = format!(
                "the verification cannot act as role {role}; next: GRANT {} TO the migration role",
                ident(role)
            );
            return Err(Failure::new(Reason::PrivilegeMissing, message));
        }
        Err(e) => return Err(Failure::from(&e)),
        Ok(()) => client.batch_execute(write).await,
    };
    client.batch_execute("ROLLBACK").await?;
    match result {
        Ok(()) => {
            let message = format!(
                "a write of role {role} to {table} succeeded although writes are blocked; next: check trigger \
                 {WRITE_BLOCK_TRIGGER} on {table}"
            );
            Err(Failure::new(Reason::WritesNotBlocked, message))
        }
        Err(e) if e.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => Ok(format!(
            "role {role} on {table}: {} (SQLSTATE 25006)",
            e.as_db_error().map(|db| db.message()).unwrap_or_default()
        )),
        Err(e) if e.as_db_error().is_none() => Err(Failure::from(&e)),
        Err(e) if [&SqlState::LOCK_NOT_AVAILABLE, &SqlState::QUERY_CANCELED].map(Some).contains(&e.code()) => {
            Err(Failure::new(
                Reason::LockTimeout,
                format!(
                    "{table} is locked against writes by another session, so the write block cannot be verified: {}; \
                     next: end the statement that changes or indexes it",
                    Failure::from(&e).message
                ),
            ))
        }
        Err(e) => Err(Failure::new(
            Reason::WritesNotBlocked,
            format!(
                "a write of role {role} to {table} failed, but not because of the write block: {}",
                Failure::from(&e).message
            ),
        )),
    }
}
