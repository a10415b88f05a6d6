//! Queries of checks on the migrated database.

use std::time::Duration;

use super::Session;
use crate::{
    api::{Reason, SqlCheck},
    runner::{
        Failure,
        judge::{Measurement, Value},
        postgres::{Target, classify},
        probe::TIMEOUT,
        sqltext,
    },
};

/// Runs queries of checks, each in a read-only transaction, over one connection that is made again when it is lost.
pub struct SqlProber(Session);

impl SqlProber {
    /// Connects at the first query.
    pub fn new(target: Result<Target, Failure>) -> Self {
        Self(Session::new(target, "checks"))
    }

    /// First column of the first row.
    pub async fn measure(&mut self, check: &SqlCheck, limit: Duration) -> Measurement {
        match tokio::time::timeout(limit + TIMEOUT, self.first_value(check, limit)).await {
            Ok(Ok(Some(text))) => Measurement::Value { value: Value::of_text(&text), samples: None },
            Ok(Ok(None)) => Measurement::Nothing("the query has no row, or NULL in its first column".to_owned()),
            Ok(Err(failure)) => {
                self.0.lose();
                Measurement::Error(failure.message)
            }
            Err(_) => {
                self.0.lose();
                Measurement::Error(format!("no answer of the database within {:?}", limit + TIMEOUT))
            }
        }
    }

    async fn first_value(&mut self, check: &SqlCheck, limit: Duration) -> Result<Option<String>, Failure> {
        single(&check.query)?;
        let client = self.0.client().await?;
        let begin = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = 1000",
            limit.as_millis()
        );
        client.batch_execute(&begin).await.map_err(|e| classify(&e))?;
        let rows = client.simple_query(&check.query).await.map_err(|e| classify(&e))?;
        client.batch_execute("ROLLBACK").await.map_err(|e| classify(&e))?;
        Ok(rows
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.try_get(0).ok().flatten().map(str::to_owned)),
                _ => None,
            })
            .flatten())
    }
}

/// That a query is one statement, and none that ends the read-only transaction around it.
///
/// # Errors
/// `SqlSyntaxError` with what it is instead.
pub(in crate::runner) fn single(query: &str) -> Result<(), Failure> {
    let refused = |what: &str| Failure::new(Reason::SqlSyntaxError, format!("query: {what}"));
    match sqltext::read(query) {
        Ok(statements) if statements.len() == 1 => Ok(()),
        Ok(_) => Err(refused("more than one statement")),
        // What only our parser does not know may still be good; the server will tell.
        Err(problems) => match problems.iter().find(|p| p.reason != Reason::SqlSyntaxError) {
            Some(problem) => Err(refused(&problem.message)),
            None => Ok(()),
        },
    }
}
