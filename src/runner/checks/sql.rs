//! Queries of checks on the migrated database.

use std::{pin::pin, time::Duration};

use futures::TryStreamExt;
use tokio_postgres::SimpleQueryMessage;

use super::{
    Session, TargetProvider,
    evaluator::{Measurement, Value},
};
use crate::{
    api::{Reason, SqlCheck},
    runner::{Failure, database::connection::USE_OWN_SEARCH_PATH_SQL},
    shared::{self, sql::ProblemKind},
};

/// Rows after the first that are passed by; a query with more is ended.
const MAX_IGNORED_ROWS: usize = 1000;

/// Runs the query of a check in a read-only transaction, over a connection that is made again when it is lost.
pub struct SqlQuerySource(Session);

impl SqlQuerySource {
    /// Connects at the first query.
    pub fn new(target_provider: TargetProvider) -> Self {
        Self(Session::new(target_provider, "checks"))
    }

    /// First column of the first row. The query has `limit`; `more` is left for connecting and the way.
    pub async fn measure(&mut self, check: &SqlCheck, limit: Duration, more: Duration) -> Measurement {
        match tokio::time::timeout(limit + more, self.first_value(check, limit)).await {
            Ok(Ok(Some(text))) => Measurement::Value { value: Value::of_text(&text), samples: None },
            Ok(Ok(None)) => Measurement::NoData("the query has no row, or NULL in its first column".into()),
            Ok(Err(failure)) => {
                self.0.lose();
                Measurement::Error(failure.into())
            }
            Err(_) => {
                self.0.lose();
                Measurement::Error(
                    format!("no answer of the database within {} s", (limit + more).as_secs_f64()).into(),
                )
            }
        }
    }

    async fn first_value(&mut self, check: &SqlCheck, limit: Duration) -> Result<Option<String>, Failure> {
        single(&check.query)?;
        let client = self.0.client().await?;
        let start = format!(
            "BEGIN READ ONLY; {USE_OWN_SEARCH_PATH_SQL}; SET LOCAL statement_timeout = {}; \
             SET LOCAL lock_timeout = 1000",
            limit.as_millis()
        );
        client.batch_execute(&start).await?;
        let mut first = None;
        let mut rows = 0;
        {
            // Row by row: the whole result of a query that forgot its WHERE would not fit into the pod.
            let mut messages = pin!(client.simple_query_raw(&check.query).await?);
            while let Some(message) = messages.try_next().await? {
                let SimpleQueryMessage::Row(row) = message else { continue };
                if rows == 0 {
                    first = row.try_get(0).ok().flatten().map(str::to_owned);
                }
                rows += 1;
                if rows > MAX_IGNORED_ROWS {
                    break;
                }
            }
        }
        if rows > MAX_IGNORED_ROWS {
            self.0.give_up().await;
        } else {
            client.batch_execute("ROLLBACK").await?;
        }
        Ok(first)
    }
}

/// That a query is one statement, and none that ends the read-only transaction around it.
///
/// # Errors
/// `SqlSyntaxError` with what it is instead.
pub(in crate::runner) fn single(query: &str) -> Result<(), Failure> {
    let refused = |what: &str| Failure::new(Reason::SqlSyntaxError, format!("query: {what}"));
    match shared::sql::read(query) {
        Ok(statements) if statements.len() == 1 => Ok(()),
        Ok(_) => Err(refused("more than one statement")),
        // What only our parser does not know may still be valid; the server decides.
        Err(problems) => match problems.iter().find(|p| p.kind != ProblemKind::SyntaxError) {
            Some(problem) => Err(refused(&problem.message)),
            None => Ok(()),
        },
    }
}
