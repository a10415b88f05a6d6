//! What else uses the tables that a migration changes: publications, slots, views, functions, foreign keys, roles.
//!
//! # Contract
//! - Only catalogs and `pg_stat_statements` are read. Names leave this module, texts of statements and functions do
//!   not.
//! - What the server does not record is searched by name: a function's text, a statement. So a name that is a common
//!   word may be found where it means something else.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::control::{ident, oids};
use crate::{
    api::{StatementStatistics, TableUser, TableUserKind, TableUsers},
    runner::Failure,
};

/// SQL: `tables` with their partitions, and `named` with what they are called: `bare` to search, `label` to show.
/// `$1`: oids, `$2`: names of tables that are gone.
const TABLES: &str = r"WITH RECURSIVE tables AS (
    SELECT unnest($1::oid[]) AS oid
    UNION SELECT i.inhrelid FROM pg_inherits i JOIN tables t ON t.oid = i.inhparent
), named AS (
    SELECT c.oid, c.relname::text AS bare, format('%I.%I', n.nspname, c.relname) AS label, c.reltype
    FROM tables t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    UNION ALL SELECT NULL, regexp_replace(name, '^.*\.', ''), name, NULL FROM unnest($2::text[]) AS name
), searched AS (
    SELECT *, '\m' || regexp_replace(bare, '([^[:alnum:]_])', '\\\1', 'g') || '\M' AS pattern FROM named
)";

/// SQL: kind, name and table of each object that uses one.
const OBJECTS: &str = r", views AS (
    SELECT v.oid, v.relkind, n.label FROM named n
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = n.oid
         AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
    UNION
    SELECT v.oid, v.relkind, w.label FROM views w
    JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = w.oid
         AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
), routines AS (
    SELECT p.oid, p.prosrc, format('%I.%I(%s)', s.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang
    WHERE s.nspname NOT IN ('pg_catalog', 'information_schema', 'credit_migration')
      AND l.lanname NOT IN ('internal', 'c')
      AND NOT EXISTS (SELECT FROM pg_depend e
                      WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
), recorded AS (
    SELECT DISTINCT p.oid, p.name, n.label FROM routines p
    JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
    JOIN named n ON d.refclassid = 'pg_class'::regclass AND d.refobjid = n.oid
         OR d.refclassid = 'pg_type'::regclass AND d.refobjid IN (SELECT t.oid FROM pg_type t
                                                                  WHERE n.reltype IN (t.oid, t.typelem))
)
SELECT 'Publication', quote_ident(p.pubname), n.label
FROM pg_publication_tables p JOIN named n ON n.label = format('%I.%I', p.schemaname, p.tablename)
UNION ALL
SELECT 'Slot', quote_ident(slot_name), NULL FROM pg_replication_slots
WHERE slot_type = 'logical' AND database = current_database()
UNION ALL
SELECT DISTINCT CASE v.relkind WHEN 'm' THEN 'MaterializedView' ELSE 'View' END, v.oid::regclass::text, v.label
FROM views v
UNION ALL
SELECT 'ForeignKey', format('%I of %s', k.conname, k.conrelid::regclass), n.label
FROM pg_constraint k JOIN named n ON n.oid = k.confrelid
WHERE k.contype = 'f' AND k.conparentid = 0 AND k.conrelid NOT IN (SELECT oid FROM tables)
UNION ALL
SELECT 'Function', name, label FROM recorded
UNION ALL
SELECT 'FunctionText', p.name, n.label FROM routines p JOIN searched n ON p.prosrc ~* n.pattern
WHERE NOT EXISTS (SELECT FROM recorded r WHERE r.oid = p.oid AND r.label = n.label)";

/// What uses the tables now.
pub struct TableUsage {
    objects: Vec<TableUser>,
    /// Calls of statements by role and table, since the server has counted.
    calls: BTreeMap<(String, String), i64>,
    statistics: StatementStatistics,
}

impl TableUsage {
    /// Looks up what uses `tables`, as a spec or SQL names them. Roles of `known` are no news. One that is gone is
    /// searched for by its name.
    ///
    /// # Errors
    /// Database errors.
    pub async fn read(client: &Client, tables: &[String], known: &[String]) -> Result<Self, Failure> {
        let found = oids(client, tables).await?;
        let gone: Vec<&String> = tables.iter().zip(&found).filter(|(_, oid)| oid.is_none()).map(|(t, _)| t).collect();
        let found: Vec<u32> = found.into_iter().flatten().collect();
        let rows = client.query(&format!("{TABLES}{OBJECTS}"), &[&found, &gone]).await?;
        let objects = rows.iter().filter_map(user).collect();
        let (calls, statistics) = match calls(client, &found, &gone, known).await {
            Ok(read) => read,
            Err(failure) if failure.is_connection_lost() => return Err(failure),
            // The server has the extension, and does not load its library.
            Err(_) => (BTreeMap::new(), StatementStatistics::NotReadable),
        };
        Ok(Self { objects, calls, statistics })
    }

    /// All of it.
    pub fn evidence(self) -> TableUsers {
        self.since(&BTreeMap::new())
    }

    /// Of the roles those that have used a table after `before` was read.
    pub fn since_then(self, before: &Self) -> TableUsers {
        self.since(&before.calls)
    }

    fn since(self, before: &BTreeMap<(String, String), i64>) -> TableUsers {
        let Self { mut objects, calls, statistics } = self;
        let new = calls.into_iter().filter(|(key, calls)| before.get(key).is_none_or(|earlier| calls > earlier));
        let role = |((name, table), _)| TableUser { kind: TableUserKind::Role, name, table: Some(table) };
        objects.extend(new.map(role));
        TableUsers::new(objects, statistics)
    }
}

fn user(row: &Row) -> Option<TableUser> {
    let kind = TableUserKind::ALL.iter().find(|kind| kind.as_str() == row.get::<_, &str>(0))?;
    Some(TableUser { kind: *kind, name: row.get(1), table: row.get(2) })
}

/// Calls of statements that name a table, by role and table.
async fn calls(
    client: &Client,
    found: &[u32],
    gone: &[&String],
    known: &[String],
) -> Result<(BTreeMap<(String, String), i64>, StatementStatistics), Failure> {
    let query = "SELECT n.nspname::text, pg_has_role('pg_read_all_stats', 'USAGE')
        FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'pg_stat_statements'";
    let Some(row) = client.query_opt(query, &[]).await? else {
        return Ok((BTreeMap::new(), StatementStatistics::NotInstalled));
    };
    if !row.get::<_, bool>(1) {
        return Ok((BTreeMap::new(), StatementStatistics::NotReadable));
    }
    let query = format!(
        "{TABLES} SELECT quote_ident(r.rolname), n.label, sum(s.calls)::bigint
         FROM {}.pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid JOIN searched n ON s.query ~* n.pattern
         WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND r.rolname NOT IN (session_user, current_user) AND r.rolname::text <> ALL ($3)
         GROUP BY 1, 2",
        ident(row.get(0))
    );
    let rows = client.query(&query, &[&found, &gone, &known]).await?;
    let calls = rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    Ok((calls, StatementStatistics::Read))
}
