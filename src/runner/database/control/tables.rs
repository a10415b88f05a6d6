//! Tables of the spec, as they are in the database now, and quoting of their names.

use std::fmt;

use tokio_postgres::{GenericClient, Row, SimpleQueryMessage};

use super::{ControlSpec, SCHEMA};
use crate::{
    api::Reason,
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
pub(crate) async fn resolve(client: &impl GenericClient, name: &str) -> Result<Option<Table>, Failure> {
    Ok(resolve_all(client, &[name.to_owned()]).await?.pop())
}

/// As [`resolve`]: those that exist, in the order of `names`.
pub(super) async fn resolve_all(client: &impl GenericClient, names: &[String]) -> Result<Vec<Table>, Failure> {
    let query = "SELECT n.nspname::text, c.relname::text, c.relkind IN ('r', 'p'), o.place
        FROM unnest($1::oid[]) WITH ORDINALITY AS o (oid, place) JOIN pg_class c ON c.oid = o.oid
        JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY o.place";
    let rows = client.query(query, &[&oids(client, names).await?]).await?;
    let table = |row: &Row| match row.get(2) {
        true => Ok(Table { schema: row.get(0), name: row.get(1) }),
        false => {
            let name = usize::try_from(row.get::<_, i64>(3) - 1).ok().and_then(|index| names.get(index));
            let name = name.map(String::as_str).unwrap_or_default();
            let message = format!("{name} is not a table; next: name the table behind it in the spec");
            Err(Failure::new(Reason::TableMissing, message))
        }
    };
    rows.iter().map(table).collect()
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

/// The tables of the spec that exist now, without doubles.
pub(crate) async fn protected(client: &impl GenericClient, spec: &ControlSpec) -> Result<Vec<Table>, Failure> {
    let mut tables = resolve_all(client, &spec.protected).await?;
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
             WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attname::text \
             = ANY ($2)",
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
