//! `migration.invariants`: pairs of queries whose results the SQL must leave equal.
//!
//! # Contract
//! - The one runs before the SQL, under its locks, the other after it, in the same transaction: nothing else changes
//!   what they read of the protected tables. In a rollback `after` is the one before.
//! - They only read: each runs in a subtransaction that is read-only.
//! - A difference undoes the SQL, in a rollback, too. A query that cannot be run shows none, and no SQL cures it: it
//!   undoes the up SQL and the rehearsals, but a rollback in a window, with writes blocked, goes on without it.
//! - Results are compared in the server, row by row, whatever their order: as `EXCEPT ALL` does, so `5` equals `5.00`.
//!   They may be personal, and never leave it: differences are counted.

use tokio_postgres::Transaction;

use super::ControlSpec;
use crate::{
    api::{Direction, Invariant, InvariantEvidence, Reason},
    runner::{
        Failure, UnlessLost,
        database::connection::{PIN_SEARCH_PATH_SQL, USE_OWN_SEARCH_PATH_SQL},
    },
    shared::sql,
};

/// The invariants whose first query was run.
pub(super) struct Recorded<'a> {
    direction: Direction,
    not_run: NotRun,
    /// Each with its place in the spec.
    invariants: Vec<(usize, &'a Invariant)>,
}

/// What becomes of an invariant with a query that cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotRun {
    /// It counts as broken.
    Refused,
    /// It is left out, with a warning.
    LeftOut,
}

/// Keeps what the first query of each invariant answers.
///
/// # Errors
/// `InvariantBroken` if a query cannot be run and may not be left out; `LockTimeout`, `DatabaseUnavailable`; those of
/// a lost connection.
pub(super) async fn record<'a>(
    tx: &Transaction<'_>,
    spec: &'a ControlSpec,
    direction: Direction,
    not_run: NotRun,
) -> Result<Recorded<'a>, Failure> {
    let mut invariants = Vec::with_capacity(spec.invariants.len());
    for (number, invariant) in spec.invariants.iter().enumerate() {
        let (field, query) = queries(invariant, direction)[0];
        let done = attempt(tx, record_one(tx, &table(number), query)).await?;
        if let Some(()) = usable(done, invariant, field, not_run)? {
            invariants.push((number, invariant));
        }
    }
    Ok(Recorded { direction, not_run, invariants })
}

/// Compares it with what the second query answers.
///
/// # Errors
/// As [`record`]; `InvariantBroken` if the results differ.
pub(super) async fn compare(tx: &Transaction<'_>, recorded: Recorded<'_>) -> Result<Vec<InvariantEvidence>, Failure> {
    let Recorded { direction, not_run, invariants } = recorded;
    let mut held = Vec::with_capacity(invariants.len());
    for (number, invariant) in invariants {
        let (field, query) = queries(invariant, direction)[1];
        let compared = attempt(tx, compare_one(tx, &table(number), query)).await?;
        let Some([rows, gone, new]) = usable(compared, invariant, field, not_run)? else { continue };
        if gone + new > 0 {
            let sql = direction.sql_name();
            let message = format!(
                "invariant {}: of {rows} rows before the {sql} SQL {gone} are not there after it, {new} others are, \
                 limit 0; next: run both queries by hand; correct the {sql} SQL in its ConfigMap, or, before the \
                 window, spec.migration.invariants",
                invariant.name
            );
            return Err(Failure::new(Reason::InvariantBroken, message));
        }
        held.push(InvariantEvidence { name: invariant.name.clone(), rows });
    }
    Ok(held)
}

/// Runs the queries of one invariant so that the transaction can go on after a failure.
///
/// # Errors
/// Those of a lost connection; of a transaction that cannot go on.
async fn attempt<T>(
    tx: &Transaction<'_>,
    queries: impl Future<Output = Result<T, Failure>>,
) -> Result<Result<T, Failure>, Failure> {
    tx.batch_execute("SAVEPOINT invariant_attempt").await?;
    let done = queries.await;
    match &done {
        Ok(_) => tx.batch_execute("RELEASE SAVEPOINT invariant_attempt").await?,
        Err(failure) if failure.is_connection_lost() => {}
        Err(_) => tx.batch_execute("ROLLBACK TO SAVEPOINT invariant_attempt").await?,
    }
    done.unless_lost()
}

/// The query that runs before the SQL of a direction, and the one after it, each with the name of its field.
fn queries(invariant: &Invariant, direction: Direction) -> [(&'static str, &str); 2] {
    let [before, after] = [("before", invariant.before.as_str()), ("after", invariant.after.as_str())];
    match direction {
        Direction::Forward => [before, after],
        Direction::Rollback => [after, before],
    }
}

/// Where the first result is kept: dropped with the transaction.
fn table(number: usize) -> String {
    format!("pg_temp.credit_migration_invariant_{number}")
}

async fn record_one(tx: &Transaction<'_>, table: &str, query: &str) -> Result<(), Failure> {
    tx.batch_execute(USE_OWN_SEARCH_PATH_SQL).await?;
    let (columns, query) = (names(columns(tx, query).await?), embedded(query));
    tx.execute(&format!("CREATE TEMPORARY TABLE {table} ({columns}) ON COMMIT DROP AS {query} WITH NO DATA"), &[])
        .await?;
    tx.batch_execute(READ_ONLY).await?;
    tx.execute(&format!("INSERT INTO {table} {query}"), &[]).await?;
    tx.batch_execute(&format!("{READ_WRITE}; {PIN_SEARCH_PATH_SQL}")).await?;
    Ok(())
}

/// Rows of the first result; of them those that are not in the second; rows of the second that are not in the first.
async fn compare_one(tx: &Transaction<'_>, table: &str, query: &str) -> Result<[u64; 3], Failure> {
    tx.batch_execute(&format!("{USE_OWN_SEARCH_PATH_SQL}; {READ_ONLY}")).await?;
    let [first, second] = [columns(tx, &format!("TABLE {table}")).await?, columns(tx, query).await?];
    if first != second {
        let message = format!("it answers {second} columns, the other query {first}");
        return Err(Failure::new(Reason::InvariantBroken, message));
    }
    let (columns, query) = (names(second), embedded(query));
    let counted = format!(
        "WITH second ({columns}) AS MATERIALIZED ({query})
         SELECT (SELECT pg_catalog.count(*) FROM {table}),
                (SELECT pg_catalog.count(*) FROM (TABLE {table} EXCEPT ALL TABLE second) AS gone),
                (SELECT pg_catalog.count(*) FROM (TABLE second EXCEPT ALL TABLE {table}) AS new)"
    );
    let row = tx.query_one(&counted, &[]).await?;
    tx.batch_execute(&format!("{READ_WRITE}; {PIN_SEARCH_PATH_SQL}")).await?;
    Ok([0, 1, 2].map(|column| u64::try_from(row.get::<_, i64>(column)).unwrap_or_default()))
}

/// A subtransaction that cannot write: only its end makes the transaction writable again. Temporary tables do not
/// count.
const READ_ONLY: &str = "SAVEPOINT invariant; SET LOCAL transaction_read_only = on";
const READ_WRITE: &str = "RELEASE SAVEPOINT invariant";

/// A query as part of another statement: without its semicolon, and a comment at its end must not comment out what
/// follows.
fn embedded(query: &str) -> String {
    let text = match sql::read(query).as_deref() {
        Ok([statement]) => statement.text.clone(),
        // What our parser does not know.
        _ => query.trim_end().trim_end_matches(';').to_owned(),
    };
    format!("{text}\n")
}

/// How many columns a query answers.
async fn columns(tx: &Transaction<'_>, query: &str) -> Result<usize, Failure> {
    match tx.prepare(query).await?.columns().len() {
        0 => Err(Failure::new(Reason::InvariantBroken, "it answers no column, at least 1 is needed")),
        columns => Ok(columns),
    }
}

/// Names for so many columns: those of a query may be no names, or be there twice.
fn names(columns: usize) -> String {
    (0..columns).map(|number| format!("c{number}")).collect::<Vec<_>>().join(", ")
}

/// `None` for an invariant that is left out. What may pass keeps its reason.
fn usable<T>(
    done: Result<T, Failure>,
    invariant: &Invariant,
    field: &str,
    not_run: NotRun,
) -> Result<Option<T>, Failure> {
    let failure = match done {
        Ok(result) => return Ok(Some(result)),
        Err(failure) => failure,
    };
    let message = format!(
        "invariant {}: query {field}: {}; next: correct it in spec.migration.invariants",
        invariant.name, failure.message
    );
    if not_run == NotRun::LeftOut {
        tracing::warn!(error = message, "the rollback goes on without an invariant that cannot be run");
        return Ok(None);
    }
    let reason = if failure.reason.is_contention() { failure.reason } else { Reason::InvariantBroken };
    Err(Failure::new(reason, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollback_runs_the_pair_backwards() {
        let pair = Invariant { name: "total".into(), before: "SELECT 1".into(), after: "SELECT 2".into() };
        assert_eq!(queries(&pair, Direction::Forward).map(|(field, _)| field), ["before", "after"]);
        assert_eq!(queries(&pair, Direction::Rollback).map(|(_, query)| query), ["SELECT 2", "SELECT 1"]);
    }

    #[test]
    fn the_end_of_a_query_does_not_reach_what_follows() {
        assert_eq!(embedded("SELECT 1; \n"), "SELECT 1\n");
        assert_eq!(embedded("SELECT 1; -- all"), "SELECT 1\n");
        assert_eq!(embedded("SELECT 1 -- all"), "SELECT 1\n");
    }
}
