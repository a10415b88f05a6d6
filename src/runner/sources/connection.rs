//! A new connection to the database.

use std::time::Duration;

use crate::runner::{
    Failure,
    judge::{Measurement, Value},
    postgres::{Target, classify},
};

/// Longest time for connecting and one query.
const LIMIT: Duration = Duration::from_secs(2);

/// Connects anew. The value is the used part of `max_connections`, 0 to 1; that no connection is to be had is bad.
pub async fn measure(target: &Result<Target, Failure>) -> Measurement {
    let target = match target {
        Ok(target) => target,
        // Without an address nothing is said about the database.
        Err(failure) => return Measurement::Error(failure.message.clone()),
    };
    match tokio::time::timeout(LIMIT, used(target)).await {
        Ok(Ok(part)) => Measurement::Value { value: Value::Number(part), samples: None },
        Ok(Err(failure)) => Measurement::Bad(failure.message),
        Err(_) => Measurement::Bad(format!("{} gave no connection within {LIMIT:?}", target.host_port())),
    }
}

async fn used(target: &Target) -> Result<String, Failure> {
    let client = target.connect("connection-check").await?;
    // The sum over the databases: who is connected is hidden from ordinary roles, how many are is not.
    let row = client
        .query_one(
            "SELECT round(sum(numbackends)::numeric / current_setting('max_connections')::numeric, 4)::text
             FROM pg_catalog.pg_stat_database",
            &[],
        )
        .await
        .map_err(|e| classify(&e))?;
    Ok(row.get(0))
}
