//! Measures the statements of the SQL on the rehearsal's copy: seconds, rows, and the locks that each takes.
//!
//! # Contract
//! - Locks are read by a session of its own: what runs the SQL is as in the window, whatever the SQL sets there.
//! - Of a statement its keywords are kept, no name and no value.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use tokio_postgres::Client;

use super::Sql;
use crate::{
    api::{Direction, LockMode, StatementEvidence, StatementLock},
    runner::Failure,
    shared::sql::keywords,
};

/// Tables and views of users. One that the SQL makes no one else can wait for.
const TABLES_SQL: &str = "SELECT c.oid, format('%I.%I', n.nspname, c.relname)
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'credit_migration')
      AND n.nspname NOT LIKE 'pg\\_toast%'";

/// Locks that a session has.
const LOCKS_SQL: &str = "SELECT l.relation, l.mode FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
    WHERE l.pid = $1 AND l.locktype = 'relation' AND l.granted AND d.datname = current_database()";

/// See the file's head.
pub struct StatementMeter<'a> {
    observer: &'a Client,
    /// Of the session that runs the SQL.
    pid: i32,
    direction: Direction,
    lines: Vec<usize>,
    started: Instant,
    /// Tables that were there before the SQL.
    tables: BTreeMap<u32, String>,
    held: BTreeSet<(LockMode, u32)>,
    /// Those of the SQL that is running, each with the seconds from the start of the SQL to its own: how long it keeps
    /// its lock is not known yet.
    running: Vec<(f64, StatementEvidence)>,
    measured: Vec<StatementEvidence>,
}

impl<'a> StatementMeter<'a> {
    /// Measures what `client` runs, by another session of the same database.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn new(observer: &'a Client, client: &Client) -> Result<Self, Failure> {
        let pid = client.query_one("SELECT pg_catalog.pg_backend_pid()", &[]).await?.get(0);
        Ok(Self {
            observer,
            pid,
            direction: Direction::Forward,
            lines: vec![],
            started: Instant::now(),
            tables: BTreeMap::new(),
            held: BTreeSet::new(),
            running: vec![],
            measured: vec![],
        })
    }

    /// All statements that were measured, in their order.
    pub fn measured(self) -> Vec<StatementEvidence> {
        self.measured
    }

    /// An SQL is about to run, in a transaction that may have locks already.
    ///
    /// # Errors
    /// Those of a database error.
    pub(super) async fn start(&mut self, direction: Direction, sql: &Sql) -> Result<&mut Self, Failure> {
        let tables = self.observer.query(TABLES_SQL, &[]).await?;
        self.tables = tables.iter().map(|row| (row.get(0), row.get(1))).collect();
        self.held = self.locks().await?;
        self.direction = direction;
        self.lines = sql.lines();
        self.running.clear();
        self.started = Instant::now();
        Ok(self)
    }

    /// A statement has run.
    ///
    /// # Errors
    /// Those of a database error.
    pub(super) async fn note(&mut self, index: usize, statement: &str, seconds: f64, rows: u64) -> Result<(), Failure> {
        // Without what reading the locks takes.
        let started_at = self.started.elapsed().as_secs_f64() - seconds;
        let held = self.locks().await?;
        let strongest = held.difference(&self.held).max();
        let lock = strongest.and_then(|(mode, table)| {
            Some(StatementLock { mode: *mode, table: self.tables.get(table)?.clone(), held_seconds: seconds })
        });
        let line = self.lines.get(index).map_or(1, |line| u32::try_from(*line).unwrap_or(u32::MAX));
        let (direction, keywords) = (self.direction, keywords(statement));
        self.running.push((started_at, StatementEvidence { direction, line, keywords, seconds, rows, lock }));
        self.held = held;
        Ok(())
    }

    /// All statements of the SQL have run, with what they have deferred.
    pub(super) fn stop(&mut self) {
        let end = self.started.elapsed().as_secs_f64();
        for (started_at, mut statement) in self.running.drain(..) {
            if let Some(lock) = &mut statement.lock {
                lock.held_seconds = end - started_at;
            }
            self.measured.push(statement);
        }
    }

    /// The locks that the session has on tables that were there before.
    async fn locks(&self) -> Result<BTreeSet<(LockMode, u32)>, Failure> {
        let rows = self.observer.query(LOCKS_SQL, &[&self.pid]).await?;
        let lock = |row: &tokio_postgres::Row| Some((LockMode::of_pg_locks(row.get(1))?, row.get(0)));
        Ok(rows.iter().filter_map(lock).filter(|(_, table)| self.tables.contains_key(table)).collect())
    }
}
