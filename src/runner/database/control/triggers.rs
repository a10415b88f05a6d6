//! Creates the triggers, after schema and functions, and claims the database for one migration.
//!
//! # Contract
//! - Idempotent: what exists as it should is neither changed nor locked.
//! - Each trigger is created in a transaction of its own under `lock_timeout`, and retried after a jittered pause: a
//!   long write transaction makes other writers wait at most that long at a time.
//! - The write block is not changed.

use std::time::{Duration, Instant};

use tokio_postgres::{Client, GenericClient};

use super::{
    BalancesTable, ControlSpec, Table, balances, define,
    functions::create_track_changes_function,
    ident, jitter, millis, oids, protected,
    schema::create_schema,
    sessions::Session,
    tables::{is_migrated, missing},
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
    let found = oids(client, &spec.protected).await?;
    // Some may be gone after the migration; the window calls this again, and then only the balances must exist.
    if let Some((name, _)) = spec.protected.iter().zip(found).find(|(_, found)| found.is_none())
        && !is_migrated(client, spec).await?
    {
        return Err(missing(name));
    }
    let balances = balances(client, spec).await?;
    create_schema(client, spec, &balances, claim).await?;
    let tables = protected(client, spec).await?;
    for table in with_children(client, &tables).await? {
        change_trigger(client, spec, &table, TriggerChange::Ensure(TriggerKind::WriteBlock)).await?;
    }
    for kind in [TriggerKind::TruncateTracking, TriggerKind::ChangeTracking] {
        for table in with_children(client, std::slice::from_ref(&balances.table)).await? {
            change_trigger(client, spec, &table, TriggerChange::Ensure(kind)).await?;
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
    pub(super) fn name(self) -> &'static str {
        match self {
            TriggerKind::WriteBlock => WRITE_BLOCK_TRIGGER,
            TriggerKind::ChangeTracking => CHANGE_TRACKING_TRIGGER,
            TriggerKind::TruncateTracking => TRUNCATE_TRACKING_TRIGGER,
        }
    }

    fn function(self) -> &'static str {
        match self {
            TriggerKind::WriteBlock => "credit_migration.block_writes",
            TriggerKind::ChangeTracking | TriggerKind::TruncateTracking => "credit_migration.track_changes",
        }
    }

    fn definition(self, table: &Table) -> String {
        let (name, on, function) = (self.name(), table.sql(), self.function());
        let (events, each) = match self {
            TriggerKind::WriteBlock => ("BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE", "STATEMENT"),
            TriggerKind::ChangeTracking => ("AFTER INSERT OR UPDATE OR DELETE", "ROW"),
            TriggerKind::TruncateTracking => ("AFTER TRUNCATE", "STATEMENT"),
        };
        format!("CREATE TRIGGER {name} {events} ON {on} FOR EACH {each} EXECUTE FUNCTION {function}()")
    }
}

/// A change of one trigger.
#[derive(Clone, Copy)]
pub(crate) enum TriggerChange<'a> {
    Ensure(TriggerKind),
    /// Drops the trigger of this name. It, or its table, may be gone.
    Drop(&'a str),
}

impl TriggerChange<'_> {
    fn name(&self) -> &str {
        match self {
            TriggerChange::Ensure(kind) => kind.name(),
            TriggerChange::Drop(name) => name,
        }
    }

    async fn apply(&self, tx: &impl GenericClient, table: &Table) -> Result<(), Failure> {
        match self {
            TriggerChange::Ensure(kind) => ensure_trigger_in(tx, table, *kind).await,
            TriggerChange::Drop(name) => {
                define(tx, &format!("DROP TRIGGER IF EXISTS {} ON {}", ident(name), table.sql())).await
            }
        }
    }
}

/// Changes one trigger in a short transaction of its own, retried for `spec.trigger_timeout`: the lock lasts no longer
/// than the change takes, and writers queue behind the wait for it.
///
/// # Errors
/// `LockTimeout` with the sessions that have a lock on the table; database errors.
pub(crate) async fn change_trigger(
    client: &mut Client,
    spec: &ControlSpec,
    table: &Table,
    change: TriggerChange<'_>,
) -> Result<(), Failure> {
    let start = Instant::now();
    let short = trigger_lock_timeout(spec);
    let (mut lock_timeout, mut vacuum_met) = (short, false);
    loop {
        let tx = client.transaction().await?;
        let settings =
            format!("SET LOCAL client_min_messages = warning; SET LOCAL lock_timeout = {}", millis(lock_timeout));
        tx.batch_execute(&settings).await?;
        let message = match change.apply(&tx, table).await {
            Ok(()) => return tx.commit().await.map_err(Failure::from),
            Err(Failure { reason: Reason::LockTimeout, message }) => message,
            Err(failure) => return Err(failure),
        };
        tx.rollback().await?;
        let holders = holders(client, table, change).await?;
        if start.elapsed() >= spec.trigger_timeout {
            let who = if holders.is_empty() {
                "none that is visible now".to_owned()
            } else {
                holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            let message = format!(
                "trigger {} on {table} could not be changed within {} s: {message}; sessions with a lock on the table: \
                 {who}; next: end these transactions, or wait for the vacuum",
                change.name(),
                spec.trigger_timeout.as_secs()
            );
            return Err(Failure::new(Reason::LockTimeout, message));
        }
        // An autovacuum gives way to a waiter after deadlock_timeout. One against wraparound does not: so once.
        let only_vacuum = !holders.is_empty() && holders.iter().all(|holder| holder.role.is_none());
        lock_timeout = if only_vacuum && !vacuum_met { deadlock_timeout(client).await? + short } else { short };
        vacuum_met |= only_vacuum;
        tokio::time::sleep(jitter(short * 2)).await;
    }
}

/// Other sessions with a lock on a table that a change waits for.
async fn holders(client: &Client, table: &Table, change: TriggerChange<'_>) -> Result<Vec<Session>, Failure> {
    let waits_for_readers = matches!(change, TriggerChange::Drop(_));
    let rows = client
        .query(
            &format!(
                "SELECT DISTINCT {} FROM pg_catalog.pg_locks l
             JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
             WHERE l.locktype = 'relation' AND l.granted AND l.relation = pg_catalog.to_regclass($1)::oid
               AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
               AND a.pid <> pg_backend_pid()
               AND ($2 OR l.mode NOT IN ('AccessShareLock', 'RowShareLock')) ORDER BY 1",
                Session::COLUMNS
            ),
            &[&table.sql(), &waits_for_readers],
        )
        .await?;
    Ok(rows.iter().map(Session::read).collect())
}

pub(super) async fn deadlock_timeout(client: &Client) -> Result<Duration, Failure> {
    let query = "SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'deadlock_timeout'";
    let millis: i64 = client.query_one(query, &[]).await?.get(0);
    Ok(Duration::from_millis(u64::try_from(millis).unwrap_or_default()))
}

/// Those tables on which a trigger is missing, not enabled always, or has another function.
pub(super) async fn without_trigger(
    client: &Client,
    tables: &[Table],
    kind: TriggerKind,
) -> Result<Vec<Table>, Failure> {
    let names: Vec<String> = tables.iter().map(Table::sql).collect();
    let rows = client
        .query(
            "SELECT n.position FROM unnest($1::text[]) WITH ORDINALITY AS n (name, position)
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t
                WHERE t.tgrelid = pg_catalog.to_regclass(n.name) AND t.tgname = $2 AND t.tgenabled = 'A'
                  AND t.tgfoid = coalesce(pg_catalog.to_regproc($3)::oid, 0))",
            &[&names, &kind.name(), &kind.function()],
        )
        .await?;
    let without = rows.iter().filter_map(|row| tables.get(usize::try_from(row.get::<_, i64>(0)).ok()? - 1));
    Ok(without.cloned().collect())
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
            "SELECT t.tgenabled = 'A', t.tgfoid = coalesce(pg_catalog.to_regproc($3)::oid, 0)
             FROM pg_catalog.pg_trigger t
             WHERE t.tgrelid = pg_catalog.to_regclass($1) AND t.tgname = $2",
            &[&table.sql(), &kind.name(), &kind.function()],
        )
        .await?
        .map(|row| (row.get::<_, bool>(0), row.get::<_, bool>(1)));
    let (name, on) = (kind.name(), table.sql());
    let create = match state {
        Some((true, true)) => return Ok(()),
        Some((false, true)) => String::new(),
        // Of this name, and with another function.
        Some((_, false)) => format!("DROP TRIGGER {name} ON {on}; {}; ", kind.definition(table)),
        None => format!("{}; ", kind.definition(table)),
    };
    define(tx, &format!("{create}ALTER TABLE {on} ENABLE ALWAYS TRIGGER {name}")).await
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
    let tracked = with_children(tx, std::slice::from_ref(&balances.table)).await?;
    disable_tracking_elsewhere(tx, &tracked).await?;
    for table in tracked {
        ensure_trigger_in(tx, &table, TriggerKind::WriteBlock).await?;
        ensure_trigger_in(tx, &table, TriggerKind::TruncateTracking).await?;
        ensure_trigger_in(tx, &table, TriggerKind::ChangeTracking).await?;
    }
    Ok(())
}

/// Disables the change tracking of tables that have no balances any more: its function has the names of those that do,
/// and would fail. What the SQL has detached or moved is locked by it already.
async fn disable_tracking_elsewhere(tx: &impl GenericClient, balances: &[Table]) -> Result<(), Failure> {
    let names: Vec<String> = balances.iter().map(Table::sql).collect();
    let rows = tx
        .query(
            "SELECT n.nspname::text, c.relname::text, t.tgname::text
             FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
             JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE t.tgfoid = coalesce(pg_catalog.to_regproc('credit_migration.track_changes')::oid, 0)
               AND t.tgenabled <> 'D' AND t.tgparentid = 0
               AND NOT EXISTS (SELECT FROM unnest($1::text[]) AS name
                               WHERE pg_catalog.to_regclass(name)::oid = t.tgrelid)",
            &[&names],
        )
        .await?;
    for row in &rows {
        let (table, trigger) = (Table { schema: row.get(0), name: row.get(1) }, ident(row.get(2)));
        define(tx, &format!("ALTER TABLE {} DISABLE TRIGGER {trigger}", table.sql())).await?;
    }
    Ok(())
}
