//! A new connection to the database.

use std::time::Duration;

use super::{
    TargetProvider,
    evaluator::{Measurement, Value},
};
use crate::{
    api::Reason,
    runner::database::{connect_error::ConnectError, connection::Target},
};

/// Longest time for connecting and one query.
const CONNECTION_CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Opens a new connection. The value is the used part of `max_connections`, 0 to 1; without a connection the
/// measurement has failed. That this role gets none says nothing about the application's: a changed password must not
/// start a rollback.
pub async fn measure(target_provider: &TargetProvider) -> Measurement {
    let target = match target_provider.target() {
        Ok(target) => target,
        // Without an address nothing is said about the database.
        Err(failure) => return Measurement::Error(failure.into()),
    };
    match tokio::time::timeout(CONNECTION_CHECK_TIMEOUT, used(&target)).await {
        Ok(Ok(part)) => Measurement::Value { value: Value::Number(part), samples: None },
        Ok(Err(error)) if of_the_server(&error) => Measurement::Failed(error.failure.message),
        Ok(Err(error)) => Measurement::Error(error.failure.into()),
        Err(_) => Measurement::Failed(format!(
            "{} gave no connection within {} s",
            target.host_port(),
            CONNECTION_CHECK_TIMEOUT.as_secs()
        )),
    }
}

/// Whether the server fails all clients: not reached, not answered, no connection left.
fn of_the_server(error: &ConnectError) -> bool {
    matches!(error.failure.reason, Reason::HostUnreachable | Reason::ConnectionLost) && !error.concerns_role_alone
}

async fn used(target: &Target) -> Result<String, ConnectError> {
    let client = target.try_connect("connection-check").await?;
    // The sum over the databases: who is connected is hidden from ordinary roles, how many are is not.
    let row = client
        .query_one(
            "SELECT round(sum(numbackends)::numeric / current_setting('max_connections')::numeric, 4)::text
             FROM pg_catalog.pg_stat_database",
            &[],
        )
        .await?;
    Ok(row.get(0))
}
