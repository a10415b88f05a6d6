//! Fingerprint of a database: what every table holds and how it is built, so that two states can be compared.
//!
//! # Contract
//! - Rows are hashed as JSON objects and the hashes are added up: neither the order of rows nor that of columns counts
//!   (a rollback that drops a column and adds it again moves it to the end).
//! - Of each table, also columns, defaults, constraints, indexes, triggers, policies, owner and grants are compared.
//! - Views, functions and types must be there as they were; new functions and types are no difference: a rollback may
//!   bring its own `verify_rollback()`.
//! - A sequence may be ahead of what it was, never behind: behind, it would give out numbers that are taken.
//! - The schema `credit_migration` and triggers that call its functions are left out.
//! - Differences name objects and count rows; they never show a row.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Transaction};

use super::snapshot::{Access, snapshot};
use crate::{
    api::Reason,
    runner::{Failure, clients::rate_limit::RateLimit},
};

/// A database at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Rows of each table by its quoted name: how many, and the sum of their hashes.
    pub tables: BTreeMap<String, (i64, String)>,
    /// Lines that describe each object.
    pub objects: BTreeMap<String, BTreeSet<String>>,
    /// Position of each sequence, counted in its own direction.
    pub sequences: BTreeMap<String, i64>,
}

/// Texts of dates, floats and names depend on these: states that are compared must be read alike.
pub(super) const FINGERPRINT_SETTINGS: &str = "SET LOCAL timezone = 'UTC'; SET \
    LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'iso_8601'; SET LOCAL extra_float_digits = 1; SET LOCAL \
    bytea_output = 'hex'; SET LOCAL row_security = off; SET LOCAL quote_all_identifiers = off";

/// Object and line. `pg_catalog` alone is in the search path of the session, so that every name comes out qualified.
pub(super) const OBJECTS_SQL: &str = r#"
WITH rel AS (
    SELECT c.*, format('%I.%I', n.nspname, c.relname) AS name,
           CASE c.relkind WHEN 'v' THEN 'view ' WHEN 'm' THEN 'materialized view ' WHEN 'S' THEN 'sequence '
                          WHEN 'f' THEN 'foreign table ' ELSE 'table ' END AS word
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'credit_migration', 'pg_toast')
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
), routine AS (
    SELECT p.*, format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)) AS name
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'credit_migration') AND n.nspname NOT LIKE 'pg\_temp\_%'
      AND NOT EXISTS (SELECT FROM pg_depend AS d
                      WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
)
SELECT word || name, 'kind ' || relkind::text || ' owner ' || pg_get_userbyid(relowner) || ' options '
       || coalesce(array_to_string(reloptions, ','), '') || ' rls ' || relrowsecurity || relforcerowsecurity
       || ' identity ' || relreplident::text || ' persistence ' || relpersistence::text
       || ' bound ' || coalesce(pg_get_expr(relpartbound, oid), '') FROM rel
UNION ALL
SELECT word || name, 'grant ' || a.privilege_type || ' to ' || a.grantee::regrole || ' grantable ' || a.is_grantable
FROM rel, aclexplode(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) AS a
UNION ALL
SELECT word || name, 'column ' || quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod)
       || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
       || ' default ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
       || ' identity ' || a.attidentity::text || ' generated ' || a.attgenerated::text
       || ' collation ' || a.attcollation::regcollation::text || ' grants ' || coalesce(a.attacl::text, '')
       || ' comment ' || coalesce(col_description(rel.oid, a.attnum), '')
FROM rel JOIN pg_attribute AS a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE relkind <> 'S'
UNION ALL
SELECT word || name, 'constraint ' || quote_ident(k.conname) || ' ' || pg_get_constraintdef(k.oid)
FROM rel JOIN pg_constraint AS k ON k.conrelid = rel.oid
UNION ALL
SELECT word || name, 'index ' || pg_get_indexdef(i.indexrelid)
       || ' valid ' || i.indisvalid || ' clustered ' || i.indisclustered
FROM rel JOIN pg_index AS i ON i.indrelid = rel.oid
UNION ALL
SELECT word || rel.name, 'trigger ' || pg_get_triggerdef(t.oid) || ' enabled ' || t.tgenabled::text
FROM rel JOIN pg_trigger AS t ON t.tgrelid = rel.oid AND NOT t.tgisinternal
JOIN pg_proc AS p ON p.oid = t.tgfoid JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname <> 'credit_migration'
UNION ALL
SELECT word || name, 'policy ' || quote_ident(p.polname) || ' ' || p.polcmd::text || p.polpermissive || ' '
       || coalesce(pg_get_expr(p.polqual, p.polrelid), '')
       || ' ' || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
       || ' ' || (SELECT coalesce(string_agg(r::regrole::text, ',' ORDER BY r::regrole::text), '')
                  FROM unnest(p.polroles) AS r)
FROM rel JOIN pg_policy AS p ON p.polrelid = rel.oid
UNION ALL
SELECT word || name, 'parent ' || i.inhparent::regclass FROM rel JOIN pg_inherits AS i ON i.inhrelid = rel.oid
UNION ALL
SELECT word || name, 'rule ' || pg_get_ruledef(r.oid) FROM rel JOIN pg_rewrite AS r ON r.ev_class = rel.oid
UNION ALL
SELECT word || name, 'comment ' || obj_description(rel.oid, 'pg_class')
FROM rel WHERE obj_description(rel.oid, 'pg_class') IS NOT NULL
UNION ALL
SELECT word || name, format('sequence %s start %s by %s from %s to %s cache %s cycle %s',
       s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
FROM rel JOIN pg_sequence AS s ON s.seqrelid = rel.oid
UNION ALL
SELECT word || name, 'owned by ' || d.refobjid::regclass || ' '
       || (SELECT attname FROM pg_attribute WHERE attrelid = d.refobjid AND attnum = d.refobjsubid)
FROM rel JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = rel.oid AND d.deptype IN ('a', 'i')
     AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0
WHERE relkind = 'S'
UNION ALL
SELECT 'function ' || name, 'kind ' || prokind::text || ' owner ' || pg_get_userbyid(proowner) || ' '
       || CASE WHEN prokind = 'a' THEN '' ELSE pg_get_functiondef(oid) END FROM routine
UNION ALL
SELECT 'function ' || name, 'grant ' || a.privilege_type || ' to ' || a.grantee::regrole
FROM routine, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a
UNION ALL
SELECT 'type ' || format('%I.%I', n.nspname, t.typname), format('%s owner %s base %s check %s labels %s', t.typtype,
       pg_get_userbyid(t.typowner), format_type(t.typbasetype, t.typtypmod),
       (SELECT string_agg(pg_get_constraintdef(k.oid), ' ' ORDER BY k.conname)
        FROM pg_constraint AS k WHERE k.contypid = t.oid),
       (SELECT string_agg(quote_literal(e.enumlabel), ',' ORDER BY e.enumsortorder)
        FROM pg_enum AS e WHERE e.enumtypid = t.oid))
FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
WHERE t.typtype IN ('e', 'd') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'credit_migration')
  AND n.nspname NOT LIKE 'pg\_temp\_%'
UNION ALL
SELECT 'schema ' || quote_ident(n.nspname), 'owner ' || pg_get_userbyid(n.nspowner) || ' grants '
       || (SELECT string_agg(a.grantee::regrole || '=' || a.privilege_type, ','
                             ORDER BY a.grantee::regrole::text, a.privilege_type)
           FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a)
FROM pg_namespace AS n
WHERE n.nspname NOT LIKE 'pg\_%' AND n.nspname NOT IN ('information_schema', 'credit_migration')"#;

/// Bytes of a table that are read between two checks of the limit.
const CHUNK_BYTES: u64 = 8 << 20;

/// Tables with rows of their own: name, bytes, and blocks by which rows can be found; 0 if they cannot. Versions before
/// 14 would read the whole table for each chunk.
const TABLES_SQL: &str = r"
SELECT format('%I.%I', n.nspname, c.relname), pg_table_size(c.oid),
       CASE WHEN current_setting('server_version_num')::int >= 140000
             AND (SELECT amname FROM pg_am WHERE oid = c.relam) = 'heap'
            THEN pg_relation_size(c.oid) / current_setting('block_size')::int ELSE 0 END
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND (c.relkind = 'r' OR c.relispopulated)
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'credit_migration', 'pg_toast')
  AND NOT EXISTS (SELECT FROM pg_depend AS d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

const SEQUENCES_SQL: &str = r"
SELECT format('%I.%I', schemaname, sequencename),
       coalesce(last_value, start_value - increment_by) * sign(increment_by)::bigint
FROM pg_sequences WHERE schemaname NOT IN ('credit_migration')";

impl Fingerprint {
    /// Takes the fingerprint of the database that `client` is connected to, in one snapshot, and reads tables no faster
    /// than the limit. `read` is called for each table that was read, with the
    /// number of all.
    ///
    /// # Errors
    /// Those of a database error: mostly `ConnectionLost`, or `SqlFailed` for a table that cannot be read.
    pub async fn take(
        client: &mut Client,
        rate: &RateLimit,
        mut read: impl FnMut(usize, u64),
    ) -> Result<Self, Failure> {
        let transaction = snapshot(client, Access::Read).await?;
        let mut print = Self::of_objects(&transaction).await?;
        let tables = transaction.query(TABLES_SQL, &[]).await?;
        let count = u64::try_from(tables.len()).unwrap_or(u64::MAX);
        for row in tables {
            let table: String = row.get(0);
            let size = |column| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
            let of_rows = read_rows(&transaction, &table, size(1), size(2), rate).await?;
            print.tables.insert(table, of_rows);
            read(1, count);
        }
        transaction.commit().await?;
        Ok(print)
    }

    /// The same without rows.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn without_rows(client: &mut Client) -> Result<Self, Failure> {
        let transaction = snapshot(client, Access::Read).await?;
        let print = Self::of_objects(&transaction).await?;
        transaction.commit().await?;
        Ok(print)
    }

    async fn of_objects(transaction: &Transaction<'_>) -> Result<Self, Failure> {
        transaction.batch_execute(FINGERPRINT_SETTINGS).await?;
        let mut print = Self::default();
        for row in transaction.query(OBJECTS_SQL, &[]).await? {
            print.objects.entry(row.get(0)).or_default().insert(row.get(1));
        }
        for row in transaction.query(SEQUENCES_SQL, &[]).await? {
            print.sequences.insert(row.get(0), row.get(1));
        }
        Ok(print)
    }

    /// What is different in `after`, one text per object. Empty if the two are equal.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (table, (rows, hash)) in &self.tables {
            match after.tables.get(table) {
                // Reported below, with the object.
                None => {}
                Some((now, _)) if now != rows => found.push(format!("table {table}: {rows} rows before, {now} after")),
                Some((_, now)) if now != hash => found.push(format!("table {table}: rows changed")),
                Some(_) => {}
            }
        }
        for (object, lines) in &self.objects {
            match after.objects.get(object) {
                None => found.push(format!("{object} is gone")),
                Some(now) if now != lines => {
                    let changed: BTreeSet<String> = lines.symmetric_difference(now).map(|line| subject(line)).collect();
                    let changed: Vec<String> = changed.into_iter().collect();
                    found.push(format!("{object}: {} changed", changed.join(", ")));
                }
                Some(_) => {}
            }
        }
        for object in after.objects.keys().filter(|object| !self.objects.contains_key(*object)) {
            if !object.starts_with("function ") && !object.starts_with("type ") {
                found.push(format!("{object} is new"));
            }
        }
        for (sequence, was) in &self.sequences {
            if let Some(now) = after.sequences.get(sequence).filter(|now| *now < was) {
                found.push(format!(
                    "sequence {sequence}: at {was} before, at {now} after, so it gives out taken numbers"
                ));
            }
        }
        found
    }
}

/// How many rows a table has, and the sums of their hashes. With a limit it is read in chunks.
async fn read_rows(
    transaction: &Transaction<'_>,
    table: &str,
    bytes: u64,
    blocks: u64,
    rate: &RateLimit,
) -> Result<(i64, String), Failure> {
    let chunks = if rate.is_limited() { bytes.div_ceil(CHUNK_BYTES).min(blocks).max(1) } else { 1 };
    let (mut count, mut sums) = (0, [0_i128; 2]);
    for chunk in 0..chunks {
        // The last one has no end: it costs nothing, and no row can be missed.
        let first = chunk * blocks / chunks;
        let end = if chunk + 1 < chunks {
            format!(" AND t.ctid < '({},0)'", (chunk + 1) * blocks / chunks)
        } else {
            String::new()
        };
        let of_chunk = if chunks > 1 { format!("WHERE t.ctid >= '({first},0)'{end}") } else { String::new() };
        // The name is quoted by the server. Two seeds: 128 bits, so that two differences do not cancel by chance.
        let query = format!(
            "SELECT count(*), coalesce(sum(hashtextextended(j, 0)::numeric), 0)::text,
                    coalesce(sum(hashtextextended(j, 1)::numeric), 0)::text
             FROM (SELECT to_jsonb(t)::text COLLATE \"C\" AS j FROM ONLY {table} AS t {of_chunk}) AS rows"
        );
        let row = transaction.query_one(&query, &[]).await?;
        count += row.get::<_, i64>(0);
        for (sum, column) in sums.iter_mut().zip([1, 2]) {
            let text: &str = row.get(column);
            *sum += text.parse::<i128>().map_err(|e| Failure::new(Reason::Internal, format!("sum of hashes: {e}")))?;
        }
        rate.pass(bytes / chunks).await;
    }
    Ok((count, format!("{} {}", sums[0], sums[1])))
}

/// Rows of all tables, at one moment.
///
/// # Errors
/// Those of a database error.
pub async fn count_rows(client: &mut Client) -> Result<u64, Failure> {
    let transaction = snapshot(client, Access::Read).await?;
    let mut rows = 0;
    for table in transaction.query(TABLES_SQL, &[]).await? {
        // The name is quoted by the server.
        let query = format!("SELECT count(*) FROM ONLY {}", table.get::<_, &str>(0));
        rows += transaction.query_one(&query, &[]).await?.get::<_, i64>(0);
    }
    transaction.commit().await?;
    Ok(u64::try_from(rows).unwrap_or(0))
}

/// First words of a line: `column balance` of `column balance bigint not null ...`.
fn subject(line: &str) -> String {
    let mut words = line.split_whitespace();
    match words.next().unwrap_or_default() {
        word @ ("column" | "constraint" | "policy") => format!("{word} {}", words.next().unwrap_or_default()),
        // `CREATE [UNIQUE] INDEX name`, `CREATE [CONSTRAINT] TRIGGER name`
        word @ ("index" | "trigger") => {
            let name = words.skip_while(|w| !w.eq_ignore_ascii_case(word)).nth(1).unwrap_or_default();
            format!("{word} {name}")
        }
        "grant" => "grants".to_owned(),
        "kind" => "owner or options".to_owned(),
        word => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print(objects: &[(&str, &[&str])], tables: &[(&str, i64, &str)], sequences: &[(&str, i64)]) -> Fingerprint {
        Fingerprint {
            tables: tables.iter().map(|(n, c, h)| ((*n).to_owned(), (*c, (*h).to_owned()))).collect(),
            objects: objects
                .iter()
                .map(|(o, l)| ((*o).to_owned(), l.iter().map(|x| (*x).to_owned()).collect()))
                .collect(),
            sequences: sequences.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
        }
    }

    #[test]
    fn names_what_is_different() {
        let before = print(
            &[
                ("table a", &["column x bigint", "index CREATE UNIQUE INDEX i ON a (x)"]),
                ("table b", &[]),
                ("function f()", &["v1"]),
            ],
            &[("a", 2, "h"), ("b", 1, "h"), ("c", 1, "h")],
            &[("s", 5), ("r", 5)],
        );
        let after = print(
            &[("table a", &["column x integer"]), ("table n", &[]), ("function f()", &["v1"]), ("function g()", &[])],
            &[("a", 3, "h"), ("c", 1, "other"), ("n", 0, "")],
            &[("s", 4), ("r", 6)],
        );
        assert_eq!(
            before.differences(&after),
            [
                "table a: 2 rows before, 3 after",
                "table c: rows changed",
                "table a: column x, index i changed",
                "table b is gone",
                "table n is new",
                "sequence s: at 5 before, at 4 after, so it gives out taken numbers",
            ]
        );
        assert!(before.differences(&before).is_empty());
    }
}
