//! Preflight's part on `migration.invariants`: a slip in a query is found before hours of dump and restore.

use tokio_postgres::Client;

use super::database;
use crate::{
    api::{Invariant, Reason},
    runner::{
        Failure, checks::sql, context::TaskContext, database::connection::USE_OWN_SEARCH_PATH_SQL,
        tasks::findings::Findings,
    },
};

/// Verifies that each is two queries that the server can parse, and that the first one fits the schema as it is.
pub async fn check(context: &TaskContext<'_>, client: &Client, findings: &mut Findings) {
    let invariants = &context.spec.plan.migration.invariants;
    let mut good = 0;
    for invariant in invariants {
        match valid(client, invariant).await {
            Ok(()) => good += 1,
            Err(failure) => findings.add(format!("invariant {}", invariant.name), Err(failure)),
        }
    }
    if good == invariants.len() && good > 0 {
        findings.add("invariants", Ok(format!("{good} can be run before the up SQL")));
    }
}

async fn valid(client: &Client, invariant: &Invariant) -> Result<(), Failure> {
    let Invariant { name: _, before, after } = invariant;
    for (field, query) in [("before", before), ("after", after)] {
        sql::single(query).map_err(|failure| Failure::new(failure.reason, format!("{field}: {}", failure.message)))?;
        database::parse(client, field, query).await?;
    }
    client.batch_execute(&format!("BEGIN READ ONLY; {USE_OWN_SEARCH_PATH_SQL}")).await?;
    let prepared = client.prepare(before).await;
    client.batch_execute("ROLLBACK").await?;
    prepared.map(|_| ()).map_err(|error| match Failure::from(&error) {
        Failure { reason: Reason::SqlFailed, message } => {
            let message = format!("before: {message}; next: correct it in spec.migration.invariants");
            Failure::new(Reason::InvariantBroken, message)
        }
        other => other,
    })
}
