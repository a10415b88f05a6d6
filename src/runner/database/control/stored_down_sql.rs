//! The approved down SQL, stored where the committed up SQL is recorded: the ConfigMap that it came from may be
//! pruned by the next release, in the weeks in which a rollback may be needed.

use tokio_postgres::{Client, types::Json};

use super::{ControlSpec, Sql, exists};
use crate::runner::Failure;

/// Stores it in the ledger's row of the up SQL.
///
/// # Errors
/// Database errors.
pub async fn store_down_sql(client: &Client, spec: &ControlSpec, down: &Sql) -> Result<(), Failure> {
    client
        .execute(
            "UPDATE credit_migration.ledger SET down_sha256 = $2, down_statements = $3 WHERE migration_uid = $1 AND \
                step = 'up'",
            &[&spec.uid, &down.sha256, &Json(&down.statements)],
        )
        .await?;
    Ok(())
}

/// The stored down SQL, if it has the digest that is approved now.
///
/// # Errors
/// Database errors.
pub async fn stored_down_sql(client: &Client, spec: &ControlSpec, approved: &str) -> Result<Option<Sql>, Failure> {
    if !exists(client, "ledger").await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT down_statements FROM credit_migration.ledger
             WHERE migration_uid = $1 AND step = 'up' AND down_sha256 = $2 AND down_statements IS NOT NULL",
            &[&spec.uid, &approved],
        )
        .await?;
    Ok(row.map(|row| {
        let Json(statements) = row.get(0);
        Sql { statements, sha256: approved.to_owned() }
    }))
}
