//! Puts up schema, functions and triggers, and claims the database for one migration.
//!
//! # Contract
//! - Idempotent: what is there as it should be is neither touched nor locked.
//! - Each trigger is put up in a transaction of its own under `lock_timeout`, tried again after a jittered pause: a long
//!   write transaction makes other writers wait at most that long at a time.
//! - The gate is not touched.

use std::time::Instant;

use tokio_postgres::{Client, GenericClient};

use super::{
    BalancesTable, ControlSpec, LOCK_CLASS, LOCK_WRITE_BLOCK, SCHEMA, Table, balances, jitter, millis, protected,
    resolve,
    schema::{create_schema, is_migrated},
    trigger_lock_timeout, with_children,
};
use crate::{api::Reason, runner::Failure};

/// Statement trigger that refuses writes while the gate is closed.
pub(crate) const WRITE_BLOCK_TRIGGER: &str = "credit_migration_block_writes";
/// Row trigger that notes whose balance was written.
pub(crate) const CHANGE_TRACKING_TRIGGER: &str = "credit_migration_track_changes";
/// Statement trigger that notes a TRUNCATE of the balances.
pub(crate) const TRUNCATE_TRACKING_TRIGGER: &str = "credit_migration_track_truncates";

/// The guard. Who passes a closed gate: only the server process that the gate's row names (by pid *and* start, since
/// pids come again), logged in as the functions' owner, in a transaction that says so. Each alone could be forged or hit
/// by accident (anybody may set a setting; a person may be logged in as the owner); a role cannot forge another
/// process's identity. The gate is read before the lock is tried, so that refused writers never hold the lock which
/// the window is about to take.
pub(super) fn block_writes_function() -> String {
    format!(
        "CREATE OR REPLACE FUNCTION credit_migration.block_writes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $block_writes$
DECLARE
    block record;
BEGIN
    SELECT g.migration_uid, g.deadline, g.pid, g.backend_start INTO block FROM credit_migration.write_block AS g WHERE g.blocked;
    IF FOUND THEN
        IF block.pid = pg_backend_pid() AND session_user = current_user
           AND current_setting('credit_migration.pass', true) = block.migration_uid
           AND EXISTS (SELECT FROM pg_stat_get_activity(pg_backend_pid()) AS a WHERE a.backend_start = block.backend_start) THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = format('writes to %I.%I are blocked by migration %s until at most %s',
            TG_TABLE_SCHEMA, TG_TABLE_NAME, block.migration_uid,
            to_char(block.deadline AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'));
    END IF;
    -- A snapshot taken before the gate was closed shows it open for ever; a lock knows no snapshots.
    IF NOT pg_try_advisory_xact_lock_shared({LOCK_CLASS}, {LOCK_WRITE_BLOCK}) THEN
        RAISE EXCEPTION USING ERRCODE = '25006',
            MESSAGE = format('writes to %I.%I are blocked by a credit migration', TG_TABLE_SCHEMA, TG_TABLE_NAME);
    END IF;
    RETURN NULL;
END
$block_writes$;
REVOKE ALL ON FUNCTION credit_migration.block_writes() FROM PUBLIC;"
    )
}

/// The capture. Column names are compiled in: reading them from the row at run time would cost every write much more.
///
/// One row for each user, however often it is written: the window may be followed by weeks. Nobody waits for it who does not wait
/// already: the same transaction has locked the user's balance before. A user that is in twice in one statement (its number was
/// changed) takes two statements, since one may not meet its own row again.
///
/// A table of an earlier version has no unique index; there each write gets a row, as then. Making the index would block writers.
fn track_changes_function(balances: &BalancesTable, unique: bool) -> String {
    let BalancesTable { user, balance, .. } = balances;
    let record = |user: String| {
        let conflict = if unique { " ON CONFLICT (user_id) DO UPDATE SET id = DEFAULT" } else { "" };
        format!("INSERT INTO credit_migration.changed_users (user_id) VALUES ({user}::text){conflict};")
    };
    let (old, new) = (record(format!("OLD.{user}")), record(format!("NEW.{user}")));
    format!(
        "CREATE OR REPLACE FUNCTION credit_migration.track_changes() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $track_changes$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.{user}::text IS DISTINCT FROM NEW.{user}::text THEN
            {old}
            {new}
        ELSIF OLD.{balance} IS DISTINCT FROM NEW.{balance} THEN
            {new}
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        {new}
    ELSIF TG_OP = 'DELETE' THEN
        {old}
    ELSE
        INSERT INTO credit_migration.changed_users (user_id) VALUES (NULL);
    END IF;
    RETURN NULL;
END
$track_changes$;
REVOKE ALL ON FUNCTION credit_migration.track_changes() FROM PUBLIC;"
    )
}

/// Makes the capture's function, as its table is.
pub(super) async fn create_track_changes_function(
    tx: &impl GenericClient,
    balances: &BalancesTable,
) -> Result<(), Failure> {
    let row = tx
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                            WHERE i.indrelid = pg_catalog.to_regclass('credit_migration.changed_users') AND i.indisunique AND i.indisvalid
                              AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = 'user_id')",
            &[],
        )
        .await?;
    tx.batch_execute(&track_changes_function(balances, row.get(0))).await.map_err(Failure::from)
}

/// Claims the database, makes the schema, and puts up guards and capture.
///
/// In: a connection as the migration role, outside of a transaction.
///
/// # Errors
/// `DatabaseInUse` names the migration that holds the database; `TableMissing`, `ColumnMissing`; `LockTimeout` when a
/// trigger could not be put up within `spec.trigger_timeout`; database errors.
pub async fn install(client: &mut Client, spec: &ControlSpec) -> Result<(), Failure> {
    install_all(client, spec, true).await
}

/// As [`install`], in a database that is claimed already: a pod of a run that was deleted must not put back what Cleanup has
/// taken down meanwhile.
///
/// # Errors
/// `BalancesUnexplained` without the claim: the baseline goes with it; those of [`install`].
pub async fn reinstall(client: &mut Client, spec: &ControlSpec) -> Result<(), Failure> {
    install_all(client, spec, false).await
}

async fn install_all(client: &mut Client, spec: &ControlSpec, claim: bool) -> Result<(), Failure> {
    for name in &spec.protected {
        // Some may be gone after the migration; the window calls this again, and then only the balances must be there.
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

/// Which trigger.
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
                "CREATE TRIGGER {name} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {on} FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.block_writes()"
            ),
            TriggerKind::ChangeTracking => format!(
                "CREATE TRIGGER {name} AFTER INSERT OR UPDATE OR DELETE ON {on} FOR EACH ROW EXECUTE FUNCTION {SCHEMA}.track_changes()"
            ),
            TriggerKind::TruncateTracking => format!(
                "CREATE TRIGGER {name} AFTER TRUNCATE ON {on} FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.track_changes()"
            ),
        }
    }
}

/// Puts one trigger up, in a short transaction of its own, tried again until `spec.trigger_timeout` is over.
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
                    "trigger {} could not be put up on {table} within {} s: {message}; next: end the transactions that write to {table} for long",
                    kind.name(),
                    spec.trigger_timeout.as_secs()
                );
                return Err(Failure::new(Reason::LockTimeout, message));
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// Puts one trigger up inside the caller's transaction, `ENABLE ALWAYS`: `session_replication_role` must not get around it. What a
/// subscription of logical replication applies does get around the guard (an apply worker fires row triggers only), so Preflight
/// refuses protected tables that a subscription writes to.
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

/// Inside the migration's transaction, after its SQL: guards on what is new, guard and capture on the balances (the SQL
/// may have put another table in their place).
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
