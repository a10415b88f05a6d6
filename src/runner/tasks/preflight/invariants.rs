//! Preflight's part on `migration.invariants`: a slip in a query is found before hours of dump and restore.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::database;
use crate::{
    api::{Invariant, Reason},
    runner::{
        Failure,
        checks::sql,
        context::TaskContext,
        database::{
            connection::USE_OWN_SEARCH_PATH_SQL,
            control::{Table, protected, with_children},
        },
        tasks::findings::Findings,
    },
};

/// Verifies that each is two queries that the server can parse, and that the first one fits the schema as it is and
/// reads only tables whose writes are blocked.
pub async fn check(context: &TaskContext<'_>, client: &Client, findings: &mut Findings) {
    let invariants = &context.spec.plan.migration.invariants;
    let blocked = match blocked(context, client).await {
        Ok(blocked) => blocked,
        // A finding of its own.
        Err(_) => return,
    };
    let mut good = 0;
    for invariant in invariants {
        match valid(client, invariant, &blocked).await {
            Ok(()) => good += 1,
            Err(failure) => findings.add(format!("invariant {}", invariant.name), Err(failure)),
        }
    }
    if good == invariants.len() && good > 0 {
        findings.add("invariants", Ok(format!("{good} can be run before the up SQL")));
    }
}

async fn blocked(context: &TaskContext<'_>, client: &Client) -> Result<Vec<Table>, Failure> {
    with_children(client, &protected(client, &context.control_spec()).await?).await
}

async fn valid(client: &Client, invariant: &Invariant, blocked: &[Table]) -> Result<(), Failure> {
    let Invariant { name: _, before, after } = invariant;
    for (field, query) in [("before", before), ("after", after)] {
        sql::single(query).map_err(|failure| Failure::new(failure.reason, format!("{field}: {}", failure.message)))?;
        database::parse(client, field, query).await?;
    }
    client.batch_execute(&format!("BEGIN READ ONLY; {USE_OWN_SEARCH_PATH_SQL}")).await?;
    let explained = client.simple_query(&format!("EXPLAIN (VERBOSE, FORMAT JSON) {before}")).await;
    client.batch_execute("ROLLBACK").await?;
    let explained = explained.map_err(|error| match Failure::from(&error) {
        Failure { reason: Reason::SqlFailed, message } => {
            let message = format!("before: {message}; next: correct it in spec.migration.invariants");
            Failure::new(Reason::InvariantBroken, message)
        }
        other => other,
    })?;
    let mut read = BTreeSet::new();
    relations(&plan(&explained), &mut read);
    match read.into_iter().find(|table| !blocked.contains(table)) {
        None => Ok(()),
        Some(table) => {
            let message = format!(
                "before: it reads {table}, which is not protected: what others write to it while the SQL runs would \
                 count as a difference; next: add {table} to spec.migration.protectedTables, or leave it out of the \
                 query"
            );
            Err(Failure::new(Reason::InvariantBroken, message))
        }
    }
}

/// The plan of a query that was explained as JSON.
fn plan(explained: &[SimpleQueryMessage]) -> Value {
    let lines = explained.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    serde_json::from_str(&lines.collect::<Vec<_>>().join("\n")).unwrap_or_default()
}

/// Tables that a plan reads, also by views. What a function reads is in no plan.
fn relations(plan: &Value, found: &mut BTreeSet<Table>) {
    match plan {
        Value::Array(parts) => parts.iter().for_each(|part| relations(part, found)),
        Value::Object(fields) => {
            let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
            if let (Some(schema), Some(name)) = (text("Schema"), text("Relation Name"))
                && !["pg_catalog", "information_schema"].contains(&schema.as_str())
            {
                found.insert(Table { schema, name });
            }
            fields.values().for_each(|part| relations(part, found));
        }
        _ => {}
    }
}
