//! Verification that writes are blocked, or unblocked: a write of no row, as a role of the application, is tried.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, Row, error::SqlState};

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
    let writes = harmless_writes(client, &spec.application_roles, &tables).await?;
    let not_tried = spec.application_roles.len() * tables.len() - writes.len();
    for write in &writes {
        refusals.push(expect_refusal(client, write).await?);
    }
    if refusals.is_empty() {
        // The application may write none of them: the owner takes its place, in a session that the write block does
        // not name.
        let role: String = client.query_one("SELECT current_user::text", &[]).await?.get(0);
        for write in &harmless_writes(client, &[role], &tables).await? {
            refusals.push(expect_refusal(client, write).await?);
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
    for Write { role, table, statement } in &harmless_writes(&client, &spec.application_roles, &tables).await? {
        let write = format!("{start}; {USE_OWN_SEARCH_PATH_SQL}; SET LOCAL ROLE {}; {statement}", ident(role));
        let (written, ended) = futures::join!(client.batch_execute(&write), client.batch_execute("ROLLBACK"));
        ended?;
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
    Ok(format!("{tried} writes of the application succeeded"))
}

/// A write that changes no row, and that a role has the privilege for.
struct Write<'a> {
    role: &'a str,
    table: &'a Table,
    statement: String,
}

/// One write for each role and table where the role has a privilege, by one query, however many there are.
async fn harmless_writes<'a>(
    client: &Client,
    roles: &'a [String],
    tables: &'a [Table],
) -> Result<Vec<Write<'a>>, Failure> {
    let column_for = |privilege: &str| {
        format!(
            "(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND \
              a.attidentity <> 'a'
                AND has_column_privilege(r.name, t.oid, a.attnum, '{privilege}') ORDER BY a.attnum LIMIT 1)"
        )
    };
    let query = format!(
        "SELECT {}, has_table_privilege(r.name, t.oid, 'DELETE'), {}
         FROM unnest($1::text[]) WITH ORDINALITY AS r (name, place)
         CROSS JOIN (SELECT pg_catalog.to_regclass(n.name)::oid AS oid, n.place
                     FROM unnest($2::text[]) WITH ORDINALITY AS n (name, place)) AS t
         ORDER BY r.place, t.place",
        column_for("UPDATE"),
        column_for("INSERT")
    );
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let rows = client.query(&query, &[&roles, &names]).await?;
    let pairs = roles.iter().flat_map(|role| tables.iter().map(move |table| (role, table)));
    let write = |row: &Row, table: &Table| {
        let column: Option<String> = row.get(0);
        let may_delete: Option<bool> = row.get(1);
        let insert: Option<String> = row.get(2);
        match (column, may_delete, insert) {
            (Some(column), _, _) => {
                Some(format!("UPDATE {} SET {} = DEFAULT WHERE false", table.sql(), ident(&column)))
            }
            (None, Some(true), _) => Some(format!("DELETE FROM {} WHERE false", table.sql())),
            // The usual right on an append-only table.
            (None, _, Some(column)) => {
                Some(format!("INSERT INTO {} ({}) SELECT NULL WHERE false", table.sql(), ident(&column)))
            }
            (None, _, None) => None,
        }
    };
    Ok(pairs
        .zip(&rows)
        .filter_map(|((role, table), row)| Some(Write { role, table, statement: write(row, table)? }))
        .collect())
}

async fn expect_refusal(client: &Client, write: &Write<'_>) -> Result<String, Failure> {
    let Write { role, table, statement } = write;
    // Sent at once: with many partitions the answers' way would count. One write at a time: one that meets a lock is
    // the last.
    let (start, act) =
        (format!("BEGIN READ WRITE; {USE_OWN_SEARCH_PATH_SQL}"), format!("SET LOCAL ROLE {}", ident(role)));
    let (begun, acted, written, ended) = futures::join!(
        client.batch_execute(&start),
        client.batch_execute(&act),
        client.batch_execute(statement),
        client.batch_execute("ROLLBACK")
    );
    begun?;
    ended?;
    let result = match acted {
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
            let message = format!(
                "the verification cannot act as role {role}; next: GRANT {} TO the migration role",
                ident(role)
            );
            return Err(Failure::new(Reason::PrivilegeMissing, message));
        }
        Err(e) => return Err(Failure::from(&e)),
        Ok(()) => written,
    };
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
