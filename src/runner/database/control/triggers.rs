//! Creates the triggers, after schema and functions, and claims the database for one migration.
//!
//! # Contract
//! - Idempotent: what exists as it should is neither changed nor locked.
//! - Each trigger is created in a transaction of its own under `lock_timeout`, and retried after a jittered pause: a
//!   long write transaction makes other writers wait at most that long at a time.
//! - The write block is not changed.

use std::time::Instant;

use tokio_postgres::{Client, GenericClient};

use super::{
    BalancesTable, ControlSpec, SCHEMA, Table, balances,
    functions::create_track_changes_function,
    jitter, millis, protected, resolve,
    schema::{create_schema, is_migrated},
    trigger_lock_timeout, with_children,
};
use crate::{api::Reason, runner::Failure};

/// Write-block trigger: refuses each statement that writes while writes are blocked.
pub(crate) const WRITE_BLOCK_TRIGGER: &str = "credit_migration_block_writes";
/// Change-tracking trigger: records for each row whose balance was written.
pub(crate) const CHANGE_TRACKING_TRIGGER: &str = "credit_migration_track_changes";
/// Change-tracking trigger: records a TRUNCATE of the balances.
pub(crate) const TRUNCATE_TRACKING_TRIGGER: &str = "credit_migration_track_truncates";

/// Claims the database, creates the schema, and installs the triggers.
///
/// In: a connection as the migration role, outside of a transaction.
///
/// # Errors
/// `DatabaseInUse` names the migration that holds the database; `TableMissing`, `ColumnMissing`; `LockTimeout` when a
/// trigger could not be created within `spec.trigger_timeout`; database errors.
pub async fn install(client: &mut Client, spec: &ControlSpec) -> Result<(), Failure> {
    install_all(client, spec, true).await
}

/// As [`install`], in a database that is claimed already: a pod of a run that was deleted must not install again what
/// Cleanup has removed meanwhile.
///
/// # Errors
/// `BalancesUnexplained` without the claim: the baseline goes with it; those of [`install`].
pub async fn reinstall(client: &mut Client, spec: &ControlSpec) -> Result<(), Failure> {
    install_all(client, spec, false).await
}

async fn install_all(client: &mut Client, spec: &ControlSpec, claim: bool) -> Result<(), Failure> {
    for name in &spec.protected {
        // Some may be gone after the migration; the window calls this again, and then only the balances must exist.
        if resolve(client, name).await?.is_none() && !is_migrated(client, spec).await? {
            return Err(Failure::new(
                Reason::TableMissing,
                format!("table {name} does not exist; next: correct spec.credits or spec.migration"),
            ));
        }
    }
    let balances = balances(client, spec, None).await?;
    create_schema(client, spec, &balances, claim).await?;
    let tables = protected(client, spec).await?;
    for table in with_children(client, &tables).await? {
        ensure_trigger(client, spec, &table, TriggerKind::WriteBlock).await?;
    }
    for kind in [TriggerKind::TruncateTracking, TriggerKind::ChangeTracking] {
        for table in with_children(client, std::slice::from_ref(&balances.table)).await? {
            ensure_trigger(client, spec, &table, kind).await?;
        }
    }
    Ok(())
}

/// The triggers of the control schema.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TriggerKind {
    WriteBlock,
    ChangeTracking,
    TruncateTracking,
}

impl TriggerKind {
    fn name(self) -> &'static str {
        match self {
            TriggerKind::WriteBlock => WRITE_BLOCK_TRIGGER,
            TriggerKind::ChangeTracking => CHANGE_TRACKING_TRIGGER,
            TriggerKind::TruncateTracking => TRUNCATE_TRACKING_TRIGGER,
        }
    }

    fn definition(self, table: &Table) -> String {
        let (name, on) = (self.name(), table.sql());
        match self {
            TriggerKind::WriteBlock => format!(
                "CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {on} FOR EACH STATEMENT \
                    EXECUTE FUNCTION {SCHEMA}.block_writes()"
            ),
            TriggerKind::ChangeTracking => format!(
                "CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {on} FOR EACH ROW EXECUTE FUNCTION \
                    {SCHEMA}.track_changes()"
            ),
            TriggerKind::TruncateTracking => format!(
                "CREATE TRIGGER {name} AFTER TRUNCATE ON {on} FOR EACH STATEMENT EXECUTE FUNCTION \
                    {SCHEMA}.track_changes()"
            ),
        }
    }
}

/// Creates one trigger in a short transaction of its own, retried for `spec.trigger_timeout`.
async fn ensure_trigger(
    client: &mut Client,
    spec: &ControlSpec,
    table: &Table,
    kind: TriggerKind,
) -> Result<(), Failure> {
    let start = Instant::now();
    loop {
        let tx = client.transaction().await?;
        tx.batch_execute(&format!("SET LOCAL lock_timeout = {}", millis(trigger_lock_timeout(spec)))).await?;
        let result = ensure_trigger_in(&tx, table, kind).await;
        match result {
            Ok(()) => return tx.commit().await.map_err(Failure::from),
            Err(failure) if failure.reason == Reason::LockTimeout && start.elapsed() < spec.trigger_timeout => {
                tx.rollback().await?;
                tokio::time::sleep(jitter(trigger_lock_timeout(spec) * 2)).await;
            }
            Err(Failure { reason: Reason::LockTimeout, message }) => {
                let message = format!(
                    "trigger {} could not be created on {table} within {} s: {message}; next: end the \
                     transactions that write to {table} for long",
                    kind.name(),
                    spec.trigger_timeout.as_secs()
                );
                return Err(Failure::new(Reason::LockTimeout, message));
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Creates one trigger inside the caller's transaction, `ENABLE ALWAYS`: `session_replication_role` must not bypass
/// it. A subscription of logical replication does bypass the write-block trigger (an apply worker fires row triggers
/// only), so Preflight refuses protected tables that a subscription writes to.
pub(crate) async fn ensure_trigger_in(
    tx: &impl GenericClient,
    table: &Table,
    kind: TriggerKind,
) -> Result<(), Failure> {
    let state = tx
        .query_opt(
            "SELECT t.tgenabled = 'A' FROM pg_catalog.pg_trigger t
             WHERE t.tgrelid = pg_catalog.to_regclass($1) AND t.tgname = $2",
            &[&table.sql(), &kind.name()],
        )
        .await?
        .map(|row| row.get::<_, bool>(0));
    if state == Some(true) {
        return Ok(());
    }
    if state.is_none() {
        tx.batch_execute(&kind.definition(table)).await?;
    }
    tx.batch_execute(&format!("ALTER TABLE {} ENABLE ALWAYS TRIGGER {}", table.sql(), kind.name()))
        .await
        .map_err(Failure::from)
}

/// Inside the migration's transaction, after its SQL: write-block triggers on new tables, all triggers on the
/// balances (the SQL may have replaced their table).
pub(crate) async fn ensure_triggers_in(
    tx: &impl GenericClient,
    tables: &[Table],
    balances: &BalancesTable,
) -> Result<(), Failure> {
    create_track_changes_function(tx, balances).await?;
    for table in with_children(tx, tables).await? {
        ensure_trigger_in(tx, &table, TriggerKind::WriteBlock).await?;
    }
    for table in with_children(tx, std::slice::from_ref(&balances.table)).await? {
        ensure_trigger_in(tx, &table, TriggerKind::WriteBlock).await?;
        ensure_trigger_in(tx, &table, TriggerKind::TruncateTracking).await?;
        ensure_trigger_in(tx, &table, TriggerKind::ChangeTracking).await?;
    }
    Ok(())
}
