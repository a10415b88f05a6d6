//! The cutover, as the database records it, and the table of transactions that explains what came after.

use jiff::Timestamp;
use tokio_postgres::GenericClient;

use super::{ControlSpec, exists, ident, literal, resolve};
use crate::{api::Transactions, runner::Failure};

/// The commit of the up SQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cutover {
    /// Start of the transaction that ran the SQL, by the server's clock. A row with a later time was written after the
    /// cutover, or by that transaction itself.
    ///
    /// Why not its end: `now()` is the start of a transaction. One that started while the SQL was running, and wrote
    /// once writes were unblocked, has a time between both. No other transaction committed a write between both:
    /// writes were blocked and the database was drained.
    pub since: Timestamp,
    /// Number of that transaction; empty if no ledger has it.
    xid: String,
    /// What was written before writes were unblocked; `None` until then. Rows that the SQL wrote in a subtransaction
    /// have a number of their own: this alone shows that they are not later ones.
    snapshot: Option<String>,
}

impl Cutover {
    /// A cutover that no ledger has.
    pub(crate) fn at(since: Timestamp) -> Self {
        Self { since, xid: String::new(), snapshot: None }
    }

    /// SQL: the row of `alias` was not written by the SQL itself, nor before it.
    pub(crate) fn not_by_the_sql(&self, alias: &str) -> String {
        let by_it = format!("{alias}.xmin::text = {}", literal(&self.xid));
        let Some(snapshot) = &self.snapshot else { return format!("NOT {by_it}") };
        // A row has the lower 32 bits of the number; the others follow from the nearest number to the snapshot's.
        let snapshot = format!("{}::pg_catalog.pg_snapshot", literal(snapshot));
        let next = format!("pg_catalog.pg_snapshot_xmax({snapshot})::text::bigint");
        let ahead = format!("((({alias}.xmin::text::bigint - {next} + 2147483648) & 4294967295) - 2147483648)");
        let number = format!("greatest({next} + {ahead}, 0)::text::pg_catalog.xid8");
        format!("NOT ({by_it} OR pg_catalog.pg_visible_in_snapshot({number}, {snapshot}))")
    }
}

/// Stores what is visible now as written before the cutover. Writes are still blocked. A snapshot of the SQL's own
/// transaction would not do: it does not reach to the numbers of its subtransactions.
///
/// # Errors
/// Database errors.
pub async fn keep_snapshot(client: &impl GenericClient, spec: &ControlSpec) -> Result<(), Failure> {
    let keep = "UPDATE credit_migration.ledger SET snapshot = pg_catalog.pg_current_snapshot()::text
        WHERE migration_uid = $1 AND step = 'up' AND snapshot IS NULL";
    client.execute(keep, &[&spec.uid]).await?;
    Ok(())
}

/// When the up SQL was committed. `None` if it never was, or was rolled back.
///
/// # Errors
/// Database errors.
pub async fn cutover(client: &impl GenericClient, spec: &ControlSpec) -> Result<Option<Cutover>, Failure> {
    if !exists(client, "ledger").await? {
        return Ok(None);
    }
    let row = client
        .query_opt(
            "SELECT u.started_at, u.xid, pg_catalog.to_jsonb(u)->>'snapshot' FROM credit_migration.ledger u
             WHERE u.migration_uid = $1 AND u.step = 'up' AND u.xid IS NOT NULL
               AND NOT EXISTS (SELECT FROM credit_migration.ledger d WHERE d.migration_uid = $1 AND d.step = 'down')",
            &[&spec.uid],
        )
        .await?;
    Ok(row.map(|row| Cutover { since: row.get(0), xid: row.get(1), snapshot: row.get(2) }))
}

/// Columns of a table of the spec that are there now, with their types. `None` if there is no such table.
///
/// # Errors
/// `TableMissing` if the name is not a table's; database errors.
pub(crate) async fn columns(
    client: &impl GenericClient,
    name: &str,
) -> Result<Option<(super::Table, Vec<(String, String)>)>, Failure> {
    let Some(table) = resolve(client, name).await? else { return Ok(None) };
    let rows = client
        .query(
            "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped",
            &[&table.sql()],
        )
        .await?;
    Ok(Some((table, rows.iter().map(|row| (row.get(0), row.get(1))).collect())))
}

/// The table of transactions as it is now. Names are quoted.
pub(crate) struct TransactionsTable {
    pub table: String,
    pub user: String,
    pub amount: String,
    created_at: String,
    /// Zone of the times in a column without one, as a literal.
    zone: Option<String>,
    pub user_type: String,
    /// The column with the kind, if it is there.
    pub kind: Option<String>,
}

impl TransactionsTable {
    /// SQL: a row of `alias` is later than `moment`, an expression of type `timestamptz`. The column stays as it is,
    /// so that its index can be used.
    pub(crate) fn later(&self, alias: &str, moment: &str) -> String {
        match &self.zone {
            Some(zone) => format!("{alias}.{} > (({moment})::timestamptz AT TIME ZONE {zone})", self.created_at),
            None => format!("{alias}.{}::timestamptz > {moment}", self.created_at),
        }
    }

    /// SQL: the day of a row of `alias`, in UTC.
    pub(crate) fn day(&self, alias: &str) -> String {
        let moment = match &self.zone {
            Some(zone) => format!("({alias}.{} AT TIME ZONE {zone})", self.created_at),
            None => format!("{alias}.{}::timestamptz", self.created_at),
        };
        format!("({moment} AT TIME ZONE 'UTC')::date::text")
    }
}

/// The table of transactions, or a text that says what it lacks: a new schema may not have it any more.
///
/// # Errors
/// Those of [`columns`].
pub(crate) async fn transactions(
    client: &impl GenericClient,
    spec: Option<&Transactions>,
) -> Result<Result<TransactionsTable, String>, Failure> {
    let Some(spec) = spec else { return Ok(Err("spec.credits.transactions is null".to_owned())) };
    let Some((table, columns)) = columns(client, &spec.table).await? else {
        return Ok(Err(format!("table {} is not there any more", spec.table)));
    };
    let type_of = |name: &str| columns.iter().find(|(column, _)| column == name).map(|(_, kind)| kind.clone());
    let lacking = [&spec.user_column, &spec.amount_column, &spec.created_at_column];
    if let Some(column) = lacking.into_iter().find(|column| type_of(column).is_none()) {
        return Ok(Err(format!("table {table} has no column {column} any more")));
    }
    // Without its zone such a time would be read in that of this session, which no one chose. A domain counts as the
    // type beneath it.
    let without_zone = "SELECT coalesce(nullif(t.typbasetype, 0), t.oid) = 'pg_catalog.timestamp'::pg_catalog.regtype
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attname::text = $2 AND NOT a.attisdropped";
    let found = client.query_opt(without_zone, &[&table.sql(), &spec.created_at_column]).await?;
    let without_zone = found.is_some_and(|row| row.get(0));
    Ok(Ok(TransactionsTable {
        table: table.sql(),
        user: ident(&spec.user_column),
        amount: ident(&spec.amount_column),
        created_at: ident(&spec.created_at_column),
        zone: without_zone.then(|| literal(&spec.created_at_time_zone)),
        user_type: type_of(&spec.user_column).unwrap_or_default(),
        kind: spec.type_column.as_deref().filter(|column| type_of(column).is_some()).map(ident),
    }))
}
