//! The control schema `credit_migration` in the target database: gate, guards, capture, baseline, ledger.
//!
//! ```text
//!  install        claim the database; schema, functions; guard and capture triggers       (days before)
//!  take_baseline  every user's balance, in the snapshot of the dump                       (Backup)
//!  write_block::enable   one UPDATE: the triggers refuse writes                       (window)
//!  run_up         THE transaction: locks, baseline brought up to date, SQL, verification, ledger
//!  compare        every user's balance against the baseline                               (beside the rollout)
//!  run_down       the same transaction for the way back
//!  write_block::disable  one UPDATE: the triggers let writes pass
//!  cleanup        triggers and functions go, ledger and intent stay as the record         (when no one waits)
//! ```
//!
//! # What is relied on
//! - Tables are named by the spec and resolved once, before any SQL of a migration runs: it may change `search_path`.
//! - A dump leaves out the *data* of this schema. So a restored copy has guards and no gate row: it is open.
//! - The role is no superuser: owner of database and tables, member of the application's roles, `pg_signal_backend`.

mod apply;
mod baseline;
mod cutover;
mod read_only_default;
mod stored_down_sql;
mod triggers;
mod verify_blocked;
pub mod worker_lock;
pub mod write_block;

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio_postgres::GenericClient;

pub use apply::{Applied, StopSignal, run_down, run_up};
pub(crate) use baseline::has_baseline;
pub use baseline::{compare, refresh_baseline, take_baseline, users_written, users_written_within};
pub use cutover::{Cutover, cutover};
pub(crate) use cutover::{TransactionsTable, columns, transactions};
pub use stored_down_sql::{store_down_sql, stored_down_sql};
pub use triggers::{install, reinstall};
pub use verify_blocked::verify_writes_blocked;

use crate::{
    api::{Balances, CreditMigrationSpec, Reason},
    runner::Failure,
};

/// Name of the control schema.
pub const SCHEMA: &str = "credit_migration";

/// First key of every advisory lock of this program ("cmig"); the second says which. They count within one database.
pub(crate) const LOCK_CLASS: i32 = 0x636d_6967;
/// Held by the one window task that works; a second pod waits for it.
pub(crate) const LOCK_WORKER: i32 = 1;
/// Held exclusively while the gate is closed; each guarded transaction shares it.
pub(crate) const LOCK_WRITE_BLOCK: i32 = 2;
/// Held for the length of one transaction that installs, migrates or cleans up.
pub(crate) const LOCK_CHANGE: i32 = 3;

/// What is migrated, under which names, with which limits: the part of a run's spec that the database needs.
#[derive(Clone, Debug)]
pub struct ControlSpec {
    /// UID of the `CreditMigration`.
    pub uid: String,
    /// Its name, for messages.
    pub name: String,
    /// Table and columns of the balances.
    pub balances: Balances,
    /// Every table whose writes the window blocks, as the spec writes them.
    pub protected: Vec<String>,
    /// Tables that must not exist after the up SQL.
    pub tables_gone: Vec<String>,
    /// Roles of the application.
    pub application_roles: Vec<String>,
    /// Longest wait for one lock.
    pub lock_timeout: Duration,
    /// Longest run of one statement.
    pub statement_timeout: Duration,
    /// Query that proves the way back.
    pub verify_down: Option<String>,
    /// How long the put-up and take-down of one trigger is tried again before it fails.
    pub trigger_timeout: Duration,
}

impl ControlSpec {
    /// Takes what it needs out of a run's `migrationUID`, `migration` and `plan`.
    pub fn new(uid: &str, name: &str, plan: &CreditMigrationSpec) -> Self {
        let migration = &plan.migration;
        let mut protected = vec![plan.credits.balances.table.clone(), plan.credits.transactions.table.clone()];
        for table in migration.tables_gone.iter().chain(&migration.protected_tables) {
            if !protected.contains(table) {
                protected.push(table.clone());
            }
        }
        Self {
            uid: uid.to_owned(),
            name: name.to_owned(),
            balances: plan.credits.balances.clone(),
            protected,
            tables_gone: migration.tables_gone.clone(),
            application_roles: plan.database.application_roles.clone(),
            lock_timeout: migration.lock_timeout.into(),
            statement_timeout: migration.statement_timeout.into(),
            verify_down: migration.verify_down.clone(),
            trigger_timeout: Duration::from_secs(60),
        }
    }
}

/// One file of SQL, split into statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sql {
    /// The statements in their order; none may begin or end a transaction.
    pub statements: Vec<String>,
    /// `sha256:` and 64 hex digits of the file.
    pub sha256: String,
}

/// A table that exists, by schema and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
}

impl Table {
    /// Quoted, for SQL.
    pub fn sql(&self) -> String {
        format!("{}.{}", ident(&self.schema), ident(&self.name))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// `name` as a quoted identifier.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as a quoted literal, for the few statements that take no parameters.
pub(crate) fn literal(text: &str) -> String {
    // The E form with doubled backslashes means the same under every setting of standard_conforming_strings.
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// `table` or `schema.table` of a spec, quoted.
pub fn quoted(name: &str) -> String {
    match name.split_once('.') {
        Some((schema, table)) => format!("{}.{}", ident(schema), ident(table)),
        None => ident(name),
    }
}

/// Finds a table of the spec: an ordinary or partitioned one. `None` if there is none of that name.
pub(crate) async fn resolve(client: &impl GenericClient, name: &str) -> Result<Option<Table>, Failure> {
    let row = client
        .query_opt(
            "SELECT n.nspname::text, c.relname::text, c.relkind IN ('r', 'p')
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = pg_catalog.to_regclass($1)",
            &[&quoted(name)],
        )
        .await?;
    match row {
        Some(row) if row.get::<_, bool>(2) => Ok(Some(Table { schema: row.get(0), name: row.get(1) })),
        Some(_) => Err(Failure::new(
            Reason::TableMissing,
            format!("{name} is not a table; next: name the table behind it in the spec"),
        )),
        None => Ok(None),
    }
}

/// The tables of the spec that exist now, without doubles.
pub(crate) async fn protected(client: &impl GenericClient, spec: &ControlSpec) -> Result<Vec<Table>, Failure> {
    let mut tables = Vec::new();
    for name in &spec.protected {
        if let Some(table) = resolve(client, name).await? {
            tables.push(table);
        }
    }
    tables.sort();
    tables.dedup();
    Ok(tables)
}

/// `roots` with all their partitions and inheritance children, parents first.
pub(crate) async fn with_children(client: &impl GenericClient, roots: &[Table]) -> Result<Vec<Table>, Failure> {
    let names: Vec<String> = roots.iter().map(Table::sql).collect();
    let rows = client
        .query(
            "WITH RECURSIVE tree (oid, depth) AS (
                 SELECT pg_catalog.to_regclass(name)::oid, 0 FROM unnest($1::text[]) AS name
                 UNION ALL
                 SELECT i.inhrelid, t.depth + 1 FROM pg_catalog.pg_inherits i JOIN tree t ON i.inhparent = t.oid)
             SELECT n.nspname::text, c.relname::text
             FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
             WHERE c.relkind IN ('r', 'p') GROUP BY 1, 2 ORDER BY max(t.depth), 1, 2",
            &[&names],
        )
        .await?;
    Ok(rows.iter().map(|row| Table { schema: row.get(0), name: row.get(1) }).collect())
}

/// The balances table, which must be there with its two columns.
pub(crate) async fn balances(
    client: &impl GenericClient,
    spec: &ControlSpec,
    table: Option<&Table>,
) -> Result<BalancesTable, Failure> {
    let columns = &spec.balances;
    let table = match table {
        Some(table) => table.clone(),
        None => resolve(client, &columns.table).await?.ok_or_else(|| missing(&columns.table))?,
    };
    let rows = client
        .query(
            "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod)
             FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attname::text = ANY ($2)",
            &[&table.sql(), &vec![columns.user_column.as_str(), columns.balance_column.as_str()]],
        )
        .await?;
    if rows.is_empty() {
        return Err(missing(&columns.table));
    }
    let user_type =
        rows.iter().find(|row| row.get::<_, &str>(0) == columns.user_column).map(|row| row.get::<_, String>(1));
    let has_balance = rows.iter().any(|row| row.get::<_, &str>(0) == columns.balance_column);
    let (Some(user_type), true) = (user_type, has_balance) else {
        let message = format!(
            "{table} lacks column {} or {}; next: correct spec.credits.balances",
            columns.user_column, columns.balance_column
        );
        return Err(Failure::new(Reason::ColumnMissing, message));
    };
    Ok(BalancesTable { table, user: ident(&columns.user_column), balance: ident(&columns.balance_column), user_type })
}

/// The balances table as it is now. Column names are quoted.
pub(crate) struct BalancesTable {
    pub table: Table,
    pub user: String,
    pub balance: String,
    pub user_type: String,
}

fn missing(name: &str) -> Failure {
    Failure::new(
        Reason::TableMissing,
        format!("table {name} does not exist; next: correct spec.credits or spec.migration"),
    )
}

/// Milliseconds for `SET lock_timeout`; never 0, which would mean "wait forever".
pub(crate) fn millis(duration: Duration) -> u128 {
    duration.as_millis().max(1)
}

/// Longest wait for the lock of one trigger: whoever waits queues all writers behind it, on a day without any window.
pub(crate) fn trigger_lock_timeout(spec: &ControlSpec) -> Duration {
    spec.lock_timeout.min(Duration::from_millis(200))
}

/// A pause between `base` and twice `base`, so that tries do not fall into step with whatever blocks them.
pub(crate) fn jitter(base: Duration) -> Duration {
    let noise = u32::try_from(RandomState::new().hash_one(0) % 1000).unwrap_or_default();
    base + base * noise / 1000
}

/// Whether a table of the control schema is there: the schema is made by Backup, and part of it goes with Cleanup.
pub(crate) async fn exists(client: &impl GenericClient, table: &str) -> Result<bool, Failure> {
    let name = format!("{SCHEMA}.{table}");
    let row = client.query_one("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[&name]).await;
    Ok(row?.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_so_that_they_stay_names() {
        assert_eq!(quoted("user_credits"), r#""user_credits""#);
        assert_eq!(quoted("billing.user_credits"), r#""billing"."user_credits""#);
        assert_eq!(quoted(r#"x"; DROP TABLE y; --"#), r#""x""; DROP TABLE y; --""#);
        assert_eq!(literal(r"it's a \ "), r"E'it''s a \\ '");
    }

    #[test]
    fn a_pause_stays_in_its_bounds() {
        for _ in 0..100 {
            let pause = jitter(Duration::from_millis(100));
            assert!((100..200).contains(&pause.as_millis()), "{pause:?}");
        }
    }
}
