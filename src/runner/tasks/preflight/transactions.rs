//! Preflight's part on the table of transactions: whether a balance can be explained without reading all of it.

use tokio_postgres::Client;

use crate::{
    api::{BalancesCheck, BalancesComparison, Transactions},
    runner::{
        Failure,
        context::TaskContext,
        database::control::{existing, ident},
        tasks::findings::Findings,
    },
};

/// Whether there is an index, if a check needs one. None is no mistake: a small table is read quickly.
pub(super) async fn check(context: &TaskContext<'_>, client: &Client, findings: &mut Findings) {
    let plan = &context.spec.plan;
    let Some(transactions) = &plan.credits.transactions else { return };
    let by_user = Some(BalancesCheck { compare: BalancesComparison::Users });
    if plan.all_checks().iter().any(|(_, check)| check.balances == by_user) {
        findings.add("index of transactions", index(client, transactions).await);
    }
}

async fn index(client: &Client, transactions: &Transactions) -> Result<String, Failure> {
    let table = existing(client, &transactions.table).await?;
    let query = "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a
                    ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND a.attname::text = $2),
            greatest(c.reltuples, 0)::bigint
        FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)";
    let row = client.query_one(query, &[&table.sql(), &transactions.user_column]).await?;
    let (found, rows): (bool, i64) = (row.get(0), row.get(1));
    Ok(match found {
        true => format!("{table} has one by {}", transactions.user_column),
        false => format!(
            "warning: {table} has none by {}: each comparison of written balances reads the whole table, some {rows} \
             rows; next: CREATE INDEX CONCURRENTLY ON {} ({}, {})",
            transactions.user_column,
            table.sql(),
            ident(&transactions.user_column),
            ident(&transactions.created_at_column)
        ),
    })
}
