//! Tables of the spec, as they are in the database now, and quoting of their names.

use std::{borrow::Cow, fmt};

use tokio_postgres::{GenericClient, Row, SimpleQueryMessage};

use super::{ControlSpec, SCHEMA};
use crate::{
    api::{Balances, Credits, Direction, Reason},
    runner::{Failure, database::connection::PIN_SEARCH_PATH_SQL},
};

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

/// `table` or `schema.table` of a spec, quoted: as SQL that a person runs names it.
pub fn quoted(name: &str) -> String {
    match name.split_once('.') {
        Some((schema, table)) => format!("{}.{}", ident(schema), ident(table)),
        None => ident(name),
    }
}

/// Oids of relations that the spec names, in the order of `names`; `None` where there is none of that name. A name
/// without a schema is one of the `search_path` that SQL of the spec has.
pub(crate) async fn oids(client: &impl GenericClient, names: &[String]) -> Result<Vec<Option<u32>>, Failure> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let values: Vec<String> = names.iter().map(|name| format!("({})", literal(&quoted(name)))).collect();
    // One message: the server does all of it or nothing, and the path is pinned again whatever becomes of the caller.
    let query = format!(
        "SET search_path TO DEFAULT; SELECT pg_catalog.to_regclass(v.name)::pg_catalog.oid FROM (VALUES {}) AS v (name);
         {PIN_SEARCH_PATH_SQL}",
        values.join(", ")
    );
    let mut found = Vec::new();
    for message in client.simple_query(&query).await? {
        if let SimpleQueryMessage::Row(row) = message {
            found.push(row.try_get(0)?.and_then(|oid| oid.parse().ok()));
        }
    }
    Ok(found)
}

/// Finds a table of the spec: an ordinary or partitioned one. `None` if there is none of that name.
///
/// # Errors
/// `TableMissing` if it is another relation; database errors.
pub(crate) async fn resolve(client: &impl GenericClient, name: &str) -> Result<Option<Table>, Failure> {
    match relations(client, &[name.to_owned()]).await?.pop() {
        Some(found) if !found.is_table => Err(not_a_table(name)),
        found => Ok(found.map(|found| found.table)),
    }
}

/// A relation of the spec.
struct Relation {
    table: Table,
    /// An ordinary or partitioned one.
    is_table: bool,
    /// In the spec.
    name: String,
}

/// Those of the spec's names that exist, in their order.
async fn relations(client: &impl GenericClient, names: &[String]) -> Result<Vec<Relation>, Failure> {
    let query = "SELECT n.nspname::text, c.relname::text, c.relkind IN ('r', 'p'), o.name
        FROM unnest($1::oid[], $2::text[]) AS o (oid, name) JOIN pg_class c ON c.oid = o.oid
        JOIN pg_namespace n ON n.oid = c.relnamespace";
    let rows = client.query(query, &[&oids(client, names).await?, &names]).await?;
    let read = |row: &Row| Relation {
        table: Table { schema: row.get(0), name: row.get(1) },
        is_table: row.get(2),
        name: row.get(3),
    };
    Ok(rows.iter().map(read).collect())
}

/// Those of the spec's names that exist, all of them tables.
///
/// # Errors
/// As [`resolve`].
pub(super) async fn resolve_all(client: &impl GenericClient, names: &[String]) -> Result<Vec<Table>, Failure> {
    let table = |found: Relation| if found.is_table { Ok(found.table) } else { Err(not_a_table(&found.name)) };
    relations(client, names).await?.into_iter().map(table).collect()
}

fn not_a_table(name: &str) -> Failure {
    let message = format!("{name} is not a table; next: name the table behind it in the spec");
    Failure::new(Reason::TableMissing, message)
}

/// What the spec names, to read from it.
///
/// # Errors
/// `TableMissing`; database errors.
pub(crate) async fn existing(client: &impl GenericClient, name: &str) -> Result<Table, Failure> {
    let query = "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = ANY ($1)";
    let row = client.query_opt(query, &[&oids(client, &[name.to_owned()]).await?]).await?;
    let row = row.ok_or_else(|| missing(name))?;
    Ok(Table { schema: row.get(0), name: row.get(1) })
}

/// The tables of the spec that exist now, without doubles, parked ones under the names that they have now: who has a
/// lock on one of these keeps a rollback from moving it back. After the up SQL a view may have the name of a table:
/// what is written by it is written to a table beneath.
///
/// # Errors
/// `TableMissing` if one is another relation before the up SQL; database errors.
pub(crate) async fn protected(client: &impl GenericClient, spec: &ControlSpec) -> Result<Vec<Table>, Failure> {
    let names: Vec<String> = spec.protected.iter().chain(&spec.protected_after).cloned().collect();
    let (tables, others): (Vec<Relation>, Vec<Relation>) =
        relations(client, &names).await?.into_iter().partition(|found| found.is_table);
    if let Some(other) = others.first()
        && !is_migrated(client, spec).await?
    {
        return Err(not_a_table(&other.name));
    }
    let mut tables: Vec<Table> = tables.into_iter().map(|found| found.table).collect();
    if exists(client, "parked_tables").await? {
        let query = "SELECT p.parked_in, p.name FROM credit_migration.parked_tables p
            WHERE p.migration_uid = $1 AND pg_catalog.to_regclass(format('%I.%I', p.parked_in, p.name)) IS NOT NULL";
        let parked = client.query(query, &[&spec.uid]).await?;
        tables.extend(parked.iter().map(|row| Table { schema: row.get(0), name: row.get(1) }));
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
             FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid JOIN pg_catalog.pg_namespace n ON n.oid = \
             c.relnamespace
             WHERE c.relkind IN ('r', 'p') GROUP BY 1, 2 ORDER BY max(t.depth), 1, 2",
            &[&names],
        )
        .await?;
    Ok(rows.iter().map(|row| Table { schema: row.get(0), name: row.get(1) }).collect())
}

/// Whether the up SQL of this migration has run, by the ledger.
pub(super) async fn is_migrated(client: &impl GenericClient, spec: &ControlSpec) -> Result<bool, Failure> {
    if !exists(client, "ledger").await? {
        return Ok(false);
    }
    let row = client
        .query_one("SELECT EXISTS (SELECT FROM credit_migration.ledger WHERE migration_uid = $1)", &[&spec.uid])
        .await?;
    Ok(row.get(0))
}

/// Whether the up SQL of this migration has run and the down SQL has not, by the ledger.
async fn has_new_schema(client: &impl GenericClient, spec: &ControlSpec) -> Result<bool, Failure> {
    if !exists(client, "ledger").await? {
        return Ok(false);
    }
    let query = "SELECT count(*) FILTER (WHERE step = 'up') > 0 AND count(*) FILTER (WHERE step = 'down') = 0
        FROM credit_migration.ledger WHERE migration_uid = $1";
    Ok(client.query_one(query, &[&spec.uid]).await?.get(0))
}

/// The ledger's names as they are now: from the commit of the up SQL to that of the down SQL those of the new version.
///
/// # Errors
/// Database errors.
pub(crate) async fn credits_now<'a>(
    client: &impl GenericClient,
    spec: &'a ControlSpec,
) -> Result<Cow<'a, Credits>, Failure> {
    let new = spec.credits.after.is_some() && has_new_schema(client, spec).await?;
    Ok(if new { Cow::Owned(spec.credits.of_new_version()) } else { Cow::Borrowed(&spec.credits) })
}

/// The balances table, which must be there with its two columns.
pub(crate) async fn balances(client: &impl GenericClient, spec: &ControlSpec) -> Result<BalancesTable, Failure> {
    let columns = &credits_now(client, spec).await?.balances;
    let table = resolve(client, &columns.table).await?.ok_or_else(|| missing(&columns.table))?;
    columns_of(client, columns, table).await
}

/// The balances table after the SQL of a direction, in its transaction. A name that stays is that of the same table,
/// also where the SQL has put another one before it in the `search_path`.
pub(crate) async fn balances_after(
    client: &impl GenericClient,
    spec: &ControlSpec,
    direction: Direction,
    before: &BalancesTable,
) -> Result<BalancesTable, Failure> {
    let new_version = spec.credits.of_new_version().balances;
    let (was, columns) = match direction {
        Direction::Forward => (&spec.credits.balances, &new_version),
        Direction::Rollback => (&new_version, &spec.credits.balances),
    };
    let table = match was.table == columns.table {
        true => before.table.clone(),
        false => resolve(client, &columns.table).await?.ok_or_else(|| missing(&columns.table))?,
    };
    columns_of(client, columns, table).await
}

async fn columns_of(client: &impl GenericClient, columns: &Balances, table: Table) -> Result<BalancesTable, Failure> {
    let rows = client
        .query(
            "SELECT a.attname::text, pg_catalog.format_type(a.atttypid, a.atttypmod)
             FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attname::text \
             = ANY ($2)",
            &[&table.sql(), &vec![columns.user_column.as_str(), columns.balance_column.as_str()]],
        )
        .await?;
    if rows.is_empty() {
        return Err(missing(&columns.table));
    }
    let column = |name: &str| rows.iter().find(|row| row.get::<_, &str>(0) == name);
    let (Some(user), Some(_)) = (column(&columns.user_column), column(&columns.balance_column)) else {
        let message = format!(
            "{table} lacks column {} or {}; next: correct spec.credits",
            columns.user_column, columns.balance_column
        );
        return Err(Failure::new(Reason::ColumnMissing, message));
    };
    Ok(BalancesTable {
        user: ident(&columns.user_column),
        balance: ident(&columns.balance_column),
        user_type: user.get(1),
        table,
    })
}

/// The balances table as it is now. Column names are quoted.
pub(crate) struct BalancesTable {
    pub table: Table,
    pub user: String,
    pub balance: String,
    pub user_type: String,
}

pub(super) fn missing(name: &str) -> Failure {
    Failure::new(
        Reason::TableMissing,
        format!("table {name} does not exist; next: correct spec.credits or spec.migration"),
    )
}

/// Whether a table of the control schema exists: Backup creates the schema, and Cleanup drops part of it.
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
}
