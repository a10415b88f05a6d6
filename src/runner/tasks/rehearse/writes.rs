//! The rehearsal's part on `rehearsal.writes`: the rollback of a new version that has written. A down SQL that is right
//! for the rows of the backup may fail on those that only the new version writes.
//!
//! The copy is as before the first up SQL; rows are not compared afterwards, since they are to stay.

use tokio_postgres::{Client, Transaction};

use super::{MigrationSql, baseline, require_equal, seconds};
use crate::{
    api::{Reason, WritesEvidence},
    runner::{
        Failure,
        database::{
            control::{self, ControlSpec, SharedObjects, Sql, StopSignal, ident, millis, write_block},
            fingerprint::Fingerprint,
        },
    },
};

/// Migrates the copy again, writes on it as the application, and rolls back.
///
/// # Errors
/// `SqlFailed` if the writes fail, or write nothing; `SqlOutsideDatabase`; what the down SQL fails with;
/// `RollbackNotEqual`.
pub(super) async fn rehearse(
    client: &mut Client,
    control_spec: &ControlSpec,
    sql: &MigrationSql,
    writes: &Sql,
) -> Result<WritesEvidence, Failure> {
    // On the copy the first pass may be forgotten.
    client.batch_execute("DELETE FROM credit_migration.ledger").await?;
    baseline(client, control_spec).await?;
    let before = Fingerprint::without_rows(client).await?;
    let migrated = write_block::with_blocked_copy(client, control_spec, async |client| {
        control::rehearse_up(client, control_spec, &sql.up, &sql.down, None).await
    });
    migrated.await?;
    let rows = write(client, control_spec, writes).await?;
    let users = control::users_written(client, control_spec).await?;
    let after_writes =
        |failure: Failure| Failure::new(failure.reason, format!("after spec.rehearsal.writes: {}", failure.message));
    let rolled_back = write_block::with_blocked_copy(client, control_spec, async |client| {
        control::rehearse_down(client, control_spec, &sql.down, None).await.map_err(after_writes)
    });
    let applied = rolled_back.await?;
    require_equal(&before, &Fingerprint::without_rows(client).await?).map_err(after_writes)?;
    Ok(WritesEvidence { rows, users, rollback_seconds: seconds(applied)? })
}

/// Runs the writes in one transaction, as the application's role. Returns how many rows they wrote.
async fn write(client: &mut Client, control_spec: &ControlSpec, writes: &Sql) -> Result<u64, Failure> {
    let failed = |failure: Failure| Failure::new(failure.reason, format!("spec.rehearsal.writes: {}", failure.message));
    let role = control_spec.application_roles.first();
    let role =
        role.ok_or_else(|| failed(Failure::new(Reason::RoleMissing, "spec.database.applicationRoles is empty")))?;
    let tx = client.transaction().await?;
    let limits = format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; SET LOCAL ROLE {}",
        millis(control_spec.lock_timeout),
        millis(control_spec.statement_timeout),
        ident(role)
    );
    let before = written_rows(&tx).await?;
    tx.batch_execute(&limits).await.map_err(|e| failed(e.into()))?;
    let shared = SharedObjects::read(&tx).await?;
    let stop = StopSignal::default();
    control::run_statements(&tx, writes, &limits, &stop, None).await.map_err(failed)?;
    let rows = written_rows(&tx).await?.saturating_sub(before);
    if rows == 0 {
        let message = "no row was written, at least 1 is needed; next: write as the new version does";
        return Err(failed(Failure::new(Reason::SqlFailed, message)));
    }
    shared.commit_unchanged(tx, "the SQL", &stop).await.map_err(failed)?;
    Ok(rows)
}

/// Rows that this session has written, triggers and functions included; those of the control schema do not count.
async fn written_rows(tx: &Transaction<'_>) -> Result<u64, Failure> {
    let query = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint
        FROM pg_catalog.pg_stat_xact_user_tables WHERE schemaname <> 'credit_migration'";
    Ok(u64::try_from(tx.query_one(query, &[]).await?.get::<_, i64>(0)).unwrap_or(0))
}
