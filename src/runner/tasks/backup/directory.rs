//! A dump in several archives, written by several programs at the same time, all of one snapshot.
//!
//! ```text
//!  schema.dump       all but rows                     pg_dump --section=pre-data --section=post-data
//!  rest.dump         rows of all other tables, ...    pg_dump --section=data --exclude-table-data=...
//!  table-001.dump    rows of the largest table        pg_dump --section=data --table=...
//!  manifest.json     written last: names, bytes and digests of these
//! ```
//! `pg_dump --format=directory` writes files, whose names only it knows, and would need a disk for the largest tables.
//! These archives are streams as that of one job is.

use futures::StreamExt;
use tokio_postgres::Transaction;
use tokio_util::sync::CancellationToken;

use super::archives::{Archive, Dumped, Dumper, remove};
use crate::{
    api::MigrationRunSpec,
    runner::{
        Failure,
        clients::{
            manifest::{Holds, Manifest, ManifestArchive},
            object_store::StoreClient,
        },
        database::control,
    },
};

/// A smaller table has no archive of its own: each costs a `pg_dump`, which first reads the whole catalog.
const MIN_TABLE_BYTES: i64 = 8 << 20;
/// Tables with an archive of their own, the largest ones.
const MAX_TABLES: i64 = 100;
/// How long is waited for a table that another session has locked exclusively, as `pg_dump` does.
const LOCK_TIMEOUT: &str = "60s";

/// Quoted name, pattern of `pg_dump`, and bytes on the server's disk.
const TABLES_SQL: &str = r#"
SELECT format('%I.%I', n.nspname, c.relname),
       '"' || replace(n.nspname, '"', '""') || '"."' || replace(c.relname, '"', '""') || '"',
       pg_table_size(c.oid)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND pg_table_size(c.oid) >= $1
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', $3)
  -- pg_dump decides whose rows of an extension's tables it dumps.
  AND NOT EXISTS (SELECT FROM pg_depend AS d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY pg_table_size(c.oid) DESC, 1 LIMIT $2"#;

/// A table with an archive of its own.
pub(super) struct LargeTable {
    name: String,
    pattern: String,
    bytes: u64,
}

/// The tables that get an archive of their own. They stay locked, for reading, until the transaction ends: `TRUNCATE`
/// takes rows from a snapshot, too, and the program that dumps a table may start an hour later.
///
/// # Errors
/// `LockTimeout`; those of a database error.
pub(super) async fn lock_large_tables(transaction: &Transaction<'_>) -> Result<Vec<LargeTable>, Failure> {
    let rows = transaction.query(TABLES_SQL, &[&MIN_TABLE_BYTES, &MAX_TABLES, &control::SCHEMA]).await?;
    let tables: Vec<LargeTable> = rows
        .iter()
        .map(|row| LargeTable {
            name: row.get(0),
            pattern: row.get(1),
            bytes: u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
        })
        .collect();
    if !tables.is_empty() {
        let row = transaction.query_one("SELECT current_setting('lock_timeout')", &[]).await?;
        let before: String = row.get(0);
        let names: Vec<String> = tables.iter().map(|table| format!("ONLY {}", table.name)).collect();
        let lock = format!(
            "SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; LOCK TABLE {} IN ACCESS SHARE MODE; \
             SET LOCAL lock_timeout = '{before}'",
            names.join(", ")
        );
        transaction.batch_execute(&lock).await?;
    }
    Ok(tables)
}

/// One program to run.
struct Part {
    name: String,
    holds: Holds,
    table: Option<String>,
    arguments: Vec<String>,
    expected: u64,
}

/// What is dumped by which program, the longest first. `total` is the size of the database.
fn parts(tables: Vec<LargeTable>, total: u64) -> Vec<Part> {
    let own: u64 = tables.iter().map(|table| table.bytes).sum();
    let rows = "--section=data".to_owned();
    let without = tables.iter().map(|table| format!("--exclude-table-data={}", table.pattern));
    let rest = Part {
        name: "rest.dump".to_owned(),
        holds: Holds::Rest,
        table: None,
        arguments: std::iter::once(rows.clone()).chain(without).collect(),
        expected: total.saturating_sub(own),
    };
    let schema = Part {
        name: "schema.dump".to_owned(),
        holds: Holds::Schema,
        table: None,
        arguments: vec!["--section=pre-data".to_owned(), "--section=post-data".to_owned()],
        expected: 0,
    };
    let of_table = |(number, table): (usize, LargeTable)| Part {
        name: format!("table-{:03}.dump", number + 1),
        holds: Holds::Table,
        arguments: vec![rows.clone(), format!("--table={}", table.pattern)],
        table: Some(table.name),
        expected: table.bytes,
    };
    let mut parts: Vec<Part> = tables.into_iter().enumerate().map(of_table).chain([rest, schema]).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.expected));
    parts
}

/// Dumps into `folder`. On any failure all that was written is removed.
///
/// # Errors
/// `DumpFailed`; those of the store.
pub(super) async fn dump(
    dumper: &Dumper<'_>,
    store: &StoreClient,
    folder: &str,
    tables: Vec<LargeTable>,
    (run, database, total): (&MigrationRunSpec, &str, u64),
    stop: &CancellationToken,
) -> Result<Dumped, Failure> {
    // The first failure ends the others, each of which aborts its own upload.
    let stop = stop.child_token();
    let jobs = usize::try_from(dumper.jobs()).unwrap_or(1);
    let mut running = futures::stream::iter(parts(tables, total))
        .map(|part| {
            let stop = stop.clone();
            async move { write(dumper, store, folder, part, &stop).await }
        })
        .buffer_unordered(jobs);
    let (mut archives, mut failed) = (vec![], None);
    while let Some(written) = running.next().await {
        match written {
            Ok(archive) => archives.push(archive),
            Err(failure) => {
                stop.cancel();
                failed.get_or_insert(failure);
            }
        }
    }
    archives.sort_by(|a, b| a.name.cmp(&b.name));
    let manifest = Manifest {
        migration: run.migration.clone(),
        migration_uid: run.migration_uid.clone(),
        database: database.to_owned(),
        archives,
    };
    let dumped = Dumped::directory(folder, &manifest)?;
    match failed {
        None => Ok(dumped),
        Some(failure) => {
            dumped.remove(store).await;
            Err(failure)
        }
    }
}

/// Writes one archive, to its end.
async fn write(
    dumper: &Dumper<'_>,
    store: &StoreClient,
    folder: &str,
    part: Part,
    stop: &CancellationToken,
) -> Result<ManifestArchive, Failure> {
    let Part { name, holds, table, arguments, expected } = part;
    let object = format!("{folder}/{name}");
    let Archive { mut upload, bytes, sha256 } = dumper.archive(&object, &arguments, expected, stop).await?;
    let completed = tokio::select! {
        completed = upload.complete() => completed,
        () = stop.cancelled() => Err(Failure::terminated()),
    };
    if let Err(failure) = completed {
        upload.abort().await;
        // The answer may have been lost.
        remove(store, &[object]).await;
        return Err(failure);
    }
    Ok(ManifestArchive { name, holds, table, bytes, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_part_is_dumped_first_and_no_row_twice() {
        let table = |name: &str, bytes| LargeTable { name: name.into(), pattern: format!("\"{name}\""), bytes };
        let parts = parts(vec![table("a", 50), table("b", 20)], 100);
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["table-001.dump", "rest.dump", "table-002.dump", "schema.dump"]);
        assert_eq!(parts[0].arguments, ["--section=data", "--table=\"a\""]);
        assert_eq!(parts[1].arguments, ["--section=data", "--exclude-table-data=\"a\"", "--exclude-table-data=\"b\""]);
        assert_eq!(parts[1].expected, 30);
    }
}
