//! Preflight's part on the checks of all stages: each must be measurable as it is written. Prometheus is queried once;
//! no request goes to the application.

use serde_json_path::JsonPath;
use tokio_postgres::Client;

use super::database;
use crate::{
    api::{BalancesCheck, BalancesComparison, Check, Reason},
    runner::{
        Failure,
        checks::{
            evaluator::Measurement,
            prometheus,
            sequence::{self, Secret},
            sql, statements,
        },
        clients::http_probe::{PROBE_TIMEOUT, Prober},
        context::TaskContext,
        tasks::findings::Findings,
    },
};

/// Verifies each check once; `client` is `None` if the database cannot be reached.
pub async fn check(context: &TaskContext<'_>, client: Option<&Client>, findings: &mut Findings) {
    let checks = context.spec.plan.all_checks();
    let mut good = 0;
    for (_, check) in &checks {
        match invalid(context, client, check).await {
            None => good += 1,
            Some(problem) => {
                findings.add(format!("check {}", check.name), Err(Failure::new(Reason::CheckInvalid, problem)));
            }
        }
    }
    if good == checks.len() {
        findings.add("checks", Ok(format!("{good} can be measured as they are written")));
    }
}

/// The reason why a check cannot be measured, and what to write instead. `None` if it can.
async fn invalid(context: &TaskContext<'_>, client: Option<&Client>, check: &Check) -> Option<String> {
    if let Some(source) = &check.sql {
        let one = "write one SELECT";
        if let Err(failure) = sql::single(&source.query) {
            return Some(format!("{}; next: {one}", failure.message));
        }
        let parsed = match client {
            Some(client) => database::parse(client, "query", &source.query).await,
            None => Ok(true),
        };
        return parsed.err().map(|failure| format!("{}; next: {one} that the server can parse", failure.message));
    }
    if let Some(source) = &check.http {
        let path = source.json_path.as_deref().map(JsonPath::parse)?;
        return path.err().map(|e| format!("jsonPath: {e}; next: write it as RFC 9535 has it, for example $.balance"));
    }
    if let Some(source) = &check.sequence {
        let name = source.secret_ref.as_ref().map(|secret| secret.name.as_str());
        let secret = name.map(|name| Secret::new(&context.settings.secrets(), name));
        return sequence::invalid(source, secret.as_ref(), name.unwrap_or_default(), context.settings.namespace());
    }
    if let Some(source) = &check.logs {
        let pattern = regex::bytes::Regex::new(&source.pattern).err()?;
        // The last line says what is wrong; those before it draw where.
        let last = pattern.to_string().lines().last().unwrap_or_default().to_owned();
        return Some(format!("pattern: {last}; next: write a regular expression, for example \\bERROR\\b"));
    }
    if let Some(source) = &check.prometheus {
        // Otherwise a slip in the query is found when the new version is live, by a trigger that never fires. That
        // there is no data yet is not a mistake.
        let answer = prometheus::measure(&Prober::new().ok()?, source, PROBE_TIMEOUT).await;
        let Measurement::Error(problem) = answer else { return None };
        return Some(format!("{problem}; next: correct url and query, and let this namespace's pods reach the server"));
    }
    // A trigger that is on by default watches what there is.
    if let Some(BalancesCheck { compare: BalancesComparison::Users }) = &check.balances
        && context.spec.plan.credits.transactions.is_none()
        && !check.is_trigger()
    {
        let next = "name that table, set compare: Total, or write a sql check";
        return Some(format!("spec.credits.transactions is null: nothing explains balances; next: {next}"));
    }
    if check.statements.is_some() {
        return statements::unready(client?).await;
    }
    None
}
