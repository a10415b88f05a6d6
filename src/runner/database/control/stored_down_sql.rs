//! The approved down SQL, stored by the transaction of the up SQL: the ConfigMap that it came from may be pruned by the
//! next release, in the weeks in which a rollback may be needed.

use tokio_postgres::Client;

use super::{ControlSpec, Sql, exists};
use crate::runner::Failure;

/// The stored down SQL, if it is the one that is approved now: its digest is computed from the stored text, which
/// others may have changed.
///
/// # Errors
/// Database errors; those of [`Sql::read`].
pub async fn stored_down_sql(client: &Client, spec: &ControlSpec, approved: &str) -> Result<Option<Sql>, Failure> {
    if !exists(client, "ledger").await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT down_sql FROM credit_migration.ledger
             WHERE migration_uid = $1 AND step = 'up' AND down_sql IS NOT NULL",
            &[&spec.uid],
        )
        .await?;
    let stored = row.map(|row| Sql::read("stored down SQL", row.get(0))).transpose()?;
    Ok(stored.filter(|sql| sql.sha256 == approved))
}
