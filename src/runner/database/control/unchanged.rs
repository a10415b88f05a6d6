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

use tokio_postgres::{Client, GenericClient, Transaction, error::SqlState};

use super::{
    BalancesTable, ControlSpec, balances,
    baseline::{DIFFERS, WrittenUsers, compare_with, count, record_all},
    exists,
    functions::{TRACK_CHANGES_SETTINGS, track_changes_body},
    triggers::{CHANGE_TRACKING_TRIGGER, TRUNCATE_TRACKING_TRIGGER},
};
use crate::{
    api::{Comparison, Direction, Reason},
    runner::{
        Failure,
        database::snapshot::{Access, snapshot},
    },
};

/// Attempts of a comparison that meets a TRUNCATE, or what alters the table.
const ATTEMPTS: u32 = 3;

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
        Ok(same.then(|| Self { facts, users: count(&row, 1), total: row.get(2) }))
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

/// Notes that the baseline has so many users and credits more; nothing is known any more if it was recorded anew.
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

/// Compares the balances that are not tracked with the baseline, with writes open, unless they are known to be
/// unchanged and `again` is false: so that the window has to compare the tracked ones only. Returns whether that is
/// known now; where it cannot be, the window compares all.
///
/// Forward a difference is a failure. A rollback keeps the balances that it finds: there the baseline is recorded anew.
///
/// # Errors
/// `BalancesUnexplained`; `TableMissing`, `ColumnMissing`, database errors.
pub async fn compare_untracked(
    client: &mut Client,
    spec: &ControlSpec,
    direction: Direction,
    again: bool,
) -> Result<bool, Failure> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let tx = snapshot(client, Access::Write).await?;
        match compare_in(&tx, spec, direction, again).await {
            Ok(known) => match tx.commit().await {
                Err(error) if attempts < ATTEMPTS && is_conflict(&error) => {}
                done => return done.map(|()| known).map_err(Failure::from),
            },
            // A table that was rewritten meanwhile is empty in an older snapshot.
            Err(failure) if attempts < ATTEMPTS && failure.reason == Reason::BalancesUnexplained => {}
            Err(failure) => return Err(failure),
        }
    }
}

fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE)
}

async fn compare_in(
    tx: &Transaction<'_>,
    spec: &ControlSpec,
    direction: Direction,
    again: bool,
) -> Result<bool, Failure> {
    let balances = balances(tx, spec).await?;
    tx.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", balances.table.sql())).await?;
    if !again && Unchanged::read(tx, spec, &balances).await?.is_some() {
        return Ok(true);
    }
    // After a TRUNCATE all are tracked: the next refresh records the baseline anew.
    if matches!(WrittenUsers::tracked(tx).await?, WrittenUsers::All) {
        return Ok(false);
    }
    let query = format!(
        "SELECT count(b.user_id), coalesce(sum(b.balance), 0)::text, count(*) FILTER (WHERE {DIFFERS} AND NOT EXISTS
             (SELECT FROM credit_migration.changed_users c WHERE c.user_id = coalesce(b.user_id, t.id)))
         FROM {}",
        WrittenUsers::All.joined(&balances)
    );
    let row = tx.query_one(&query, &[&spec.uid]).await?;
    let compared = Comparison { users: count(&row, 0), unexplained: count(&row, 2), total_balance: row.get(1) };
    if compared.unexplained == 0 {
        return store(tx, spec, &balances, Some(&compared)).await;
    }
    let untracked = format!("{}, although no write of them was tracked", compared.differences());
    match direction {
        Direction::Forward => Err(Failure::new(
            Reason::BalancesUnexplained,
            format!("{untracked}; next: find out what writes past the triggers, then let the Backup step run again"),
        )),
        Direction::Rollback => {
            tracing::warn!("{untracked}; a rollback keeps them as they are");
            tx.execute("DELETE FROM credit_migration.baseline WHERE migration_uid = $1", &[&spec.uid]).await?;
            record_all(tx, spec, &balances).await?;
            let compared = compare_with(tx, spec, &balances, WrittenUsers::All).await?;
            store(tx, spec, &balances, Some(&compared)).await
        }
    }
}

/// Compares with writes blocked: the tracked balances, if the others are known to be unchanged, otherwise all, after
/// which that is known. Returns whether all were compared, too.
///
/// # Errors
/// `TableMissing`, `ColumnMissing`, database errors.
pub async fn compare_blocked(client: &mut Client, spec: &ControlSpec) -> Result<(Comparison, bool), Failure> {
    let tx = snapshot(client, Access::Write).await?;
    let balances = balances(&tx, spec).await?;
    tx.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", balances.table.sql())).await?;
    if let Some(unchanged) = Unchanged::read(&tx, spec, &balances).await? {
        let users = WrittenUsers::to_compare(&tx).await?;
        if compare_with(&tx, spec, &balances, users).await?.unexplained == 0 {
            return Ok((unchanged.comparison(), false));
        }
    }
    let compared = compare_with(&tx, spec, &balances, WrittenUsers::All).await?;
    if compared.unexplained == 0 {
        store(&tx, spec, &balances, Some(&compared)).await?;
        tx.commit().await?;
    }
    Ok((compared, true))
}
