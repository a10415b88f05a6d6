//! Why a window need not compare every balance: those that are not tracked are known to be unchanged.
//!
//! # What is known
//! A row of `credit_migration.compared` says: in one snapshot each balance that was not tracked was that of the
//! baseline, which had so many users with this total, and the catalogs had these *facts* of the balances. As long as
//! the facts are the same, that has remained so:
//! - A row is written by a statement, which runs the change-tracking triggers: `ENABLE ALWAYS`, on each table of the
//!   tree, for each event, without a condition, with the function that this program has written. User and write are
//!   committed together.
//! - Whatever else changes a balance changes a fact: a rewrite, a TRUNCATE or another table (`oid`, `relfilenode`),
//!   partitions that come or go (the tree), another column or type (`attnum`, `atttypid`), a trigger or a function that
//!   is altered and altered back (`xmin` of its row: a row version is never written twice), row security.
//! - Writers hold a lock on the table that conflicts with each change of its triggers, so none writes half with them.
//!
//! Where balances can change without a write and without a fact, nothing is ever known, and all are compared: foreign
//! and unlogged tables, virtual generated columns, balances of a type that is not the server's own, users of an enum, a
//! composite type or an array.

use tokio_postgres::GenericClient;

use super::{
    BalancesTable, ControlSpec, exists,
    functions::{TRACK_CHANGES_SETTINGS, track_changes_body},
    triggers::{CHANGE_TRACKING_TRIGGER, TRUNCATE_TRACKING_TRIGGER},
};
use crate::{api::Comparison, runner::Failure};

/// What the catalogs have of the balances and their tracking, as a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts(String);

impl Facts {
    /// As the transaction's snapshot shows them; `None` if a write may go untracked. The table must have been read or
    /// locked by the transaction before, so that its name cannot become that of another one.
    pub(super) async fn read(client: &impl GenericClient, balances: &BalancesTable) -> Result<Option<Self>, Failure> {
        let name = |quoted: &str| quoted[1..quoted.len() - 1].replace("\"\"", "\"");
        let columns = [name(&balances.user), name(&balances.balance)];
        let body = track_changes_body(client, balances).await?;
        // tgtype: 29 is AFTER INSERT, UPDATE or DELETE of each row, 32 AFTER TRUNCATE.
        let query = format!(
            "WITH RECURSIVE tree (oid) AS (
                 SELECT pg_catalog.to_regclass($1)::oid
                 UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree t ON i.inhparent = t.oid),
             function AS (
                 SELECT p.oid, p.xmin::text AS version FROM pg_catalog.pg_proc p
                 WHERE p.oid = pg_catalog.to_regproc('credit_migration.track_changes')::oid AND p.prosrc = $3
                   AND p.prosecdef AND p.proconfig = ARRAY['{TRACK_CHANGES_SETTINGS}']),
             facts AS (
                 SELECT t.oid, c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AS ordinary,
                        concat_ws('/', c.relkind, c.relfilenode, c.relrowsecurity, c.relforcerowsecurity) AS file,
                        (SELECT string_agg(concat_ws('/', a.attname, a.attnum, a.atttypid, a.atttypmod, a.attcollation,
                                                     a.attgenerated), ' ' ORDER BY a.attnum)
                         FROM pg_catalog.pg_attribute a
                         JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
                         JOIN pg_catalog.pg_type b ON b.oid = coalesce(nullif(y.typbasetype, 0), y.oid)
                         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname::text = ANY ($2)
                           AND a.attgenerated <> 'v' AND b.typtype = 'b' AND b.typcategory <> 'A'
                           AND (a.attname::text <> ($2)[2]
                                OR b.typnamespace = 'pg_catalog'::pg_catalog.regnamespace)
                         HAVING count(*) = 2) AS columns,
                        (SELECT string_agg(concat_ws('/', g.oid, g.xmin), ' ' ORDER BY g.oid)
                         FROM pg_catalog.pg_trigger g JOIN function p ON p.oid = g.tgfoid
                         WHERE g.tgrelid = c.oid AND g.tgenabled = 'A' AND g.tgqual IS NULL AND g.tgattr::text = ''
                           AND (g.tgname, g.tgtype) IN (('{CHANGE_TRACKING_TRIGGER}', 29),
                                                        ('{TRUNCATE_TRACKING_TRIGGER}', 32))
                         HAVING count(*) = 2) AS triggers
                 FROM tree t LEFT JOIN pg_catalog.pg_class c ON c.oid = t.oid
                 UNION ALL
                 SELECT c.oid, NOT (c.relrowsecurity OR c.relhasrules OR EXISTS (
                            SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = c.oid AND NOT g.tgisinternal)),
                        c.relfilenode::text, '', ''
                 FROM pg_catalog.pg_class c
                 WHERE c.oid IN ('credit_migration.baseline'::pg_catalog.regclass,
                                 'credit_migration.changed_users'::pg_catalog.regclass))
             SELECT CASE WHEN bool_and(coalesce(ordinary AND columns IS NOT NULL AND triggers IS NOT NULL, false))
                         THEN encode(sha256(convert_to(string_agg(concat_ws(' ', oid, file, columns, triggers), '; '
                                                                  ORDER BY oid)
                                                       || (SELECT version FROM function), 'UTF8')), 'hex') END
             FROM facts"
        );
        let row = client.query_one(&query, &[&balances.table.sql(), &columns.as_slice(), &body]).await?;
        Ok(row.get::<_, Option<String>>(0).map(Self))
    }
}

/// What the last comparison of all balances has shown, if it still holds for those that are not tracked.
#[derive(Debug)]
pub(super) struct Unchanged {
    facts: Facts,
    users: u64,
    total: String,
}

impl Unchanged {
    /// `None` if nothing is known, and all balances have to be compared. See [`Facts::read`].
    pub(super) async fn read(
        client: &impl GenericClient,
        spec: &ControlSpec,
        balances: &BalancesTable,
    ) -> Result<Option<Self>, Failure> {
        // A database that an earlier version of this program has prepared has no such table.
        if !exists(client, "compared").await? {
            return Ok(None);
        }
        let query = "SELECT facts, users, total::text FROM credit_migration.compared WHERE migration_uid = $1";
        let Some(row) = client.query_opt(query, &[&spec.uid]).await? else { return Ok(None) };
        let facts = Facts(row.get(0));
        let same = Facts::read(client, balances).await?.is_some_and(|now| now == facts);
        Ok(same.then(|| Self {
            facts,
            users: u64::try_from(row.get::<_, i64>(1)).unwrap_or_default(),
            total: row.get(2),
        }))
    }

    /// Whether the facts are the same now, after the SQL of the migration has run in this transaction.
    pub(super) async fn holds(&self, client: &impl GenericClient, balances: &BalancesTable) -> Result<bool, Failure> {
        Ok(Facts::read(client, balances).await?.as_ref() == Some(&self.facts))
    }

    /// The comparison of all, given that no tracked balance differs.
    pub(super) fn comparison(self) -> Comparison {
        Comparison { users: self.users, unexplained: 0, total_balance: self.total }
    }
}

/// Stores that each balance which is not tracked is that of the baseline, by the facts of now; deletes what was known
/// if `compared` is none, or a write may go untracked. In: the transaction that has compared.
pub(super) async fn store(
    tx: &impl GenericClient,
    spec: &ControlSpec,
    balances: &BalancesTable,
    compared: Option<&Comparison>,
) -> Result<bool, Failure> {
    if !exists(tx, "compared").await? {
        return Ok(false);
    }
    tx.batch_execute("DELETE FROM credit_migration.compared").await?;
    let (Some(compared), Some(Facts(facts))) = (compared, Facts::read(tx, balances).await?) else { return Ok(false) };
    let users = i64::try_from(compared.users).unwrap_or(i64::MAX);
    tx.execute(
        "INSERT INTO credit_migration.compared (migration_uid, facts, users, total)
         VALUES ($1, $2, $3, $4::text::numeric)",
        &[&spec.uid, &facts, &users, &compared.total_balance],
    )
    .await?;
    Ok(true)
}

/// Notes that the baseline has so many users and credits more; nothing is known any more if it was recorded again.
pub(super) async fn adjust(
    tx: &impl GenericClient,
    spec: &ControlSpec,
    by: Option<(i64, &str)>,
) -> Result<(), Failure> {
    if !exists(tx, "compared").await? {
        return Ok(());
    }
    match by {
        Some((users, total)) => {
            let adjust = "UPDATE credit_migration.compared SET users = users + $2, total = total + $3::text::numeric
                WHERE migration_uid = $1";
            tx.execute(adjust, &[&spec.uid, &users, &total]).await?;
        }
        None => tx.batch_execute("DELETE FROM credit_migration.compared").await?,
    }
    Ok(())
}
