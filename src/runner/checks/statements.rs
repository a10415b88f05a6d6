//! Mean time of statements, by the extension `pg_stat_statements`.

use std::collections::HashMap;

use tokio_postgres::Client;

use super::{
    Session, TargetProvider,
    evaluator::{Measurement, Value},
};
use crate::{
    api::{Balances, Reason, StatementsCheck},
    runner::{Failure, clients::http_probe::PROBE_TIMEOUT, database::control::ident},
    shared::message::Message,
};

/// What the server counted of one statement of one role since its own last reset.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Counted {
    calls: i64,
    milliseconds: f64,
}

/// By role and query of this database.
type Totals = HashMap<(u32, i64), Counted>;

/// The counts of the last measurement.
pub struct StatementsSource {
    session: Session,
    containing: String,
    before: Option<Totals>,
}

impl StatementsSource {
    /// Nothing counted yet.
    pub fn new(check: &StatementsCheck, balances: &Balances, target_provider: impl Into<TargetProvider>) -> Self {
        // Without its schema: statements mostly leave it to the search path.
        let table = balances.table.rsplit_once('.').map_or(balances.table.as_str(), |(_, table)| table);
        let containing = check.containing.clone().unwrap_or_else(|| table.to_owned());
        Self { session: Session::new(target_provider.into(), "statements"), containing, before: None }
    }

    /// Mean milliseconds since the last measurement; the samples are the calls.
    pub async fn measure(&mut self) -> Measurement {
        let (session, containing) = (&mut self.session, &self.containing);
        let counted = async {
            let client = session.client().await?;
            match ready(client).await? {
                Some(schema) => totals_of(client, &schema, containing).await.map(Some),
                None => Ok(None),
            }
        };
        let now = match tokio::time::timeout(PROBE_TIMEOUT, counted).await {
            Ok(Ok(Some(now))) => now,
            Ok(Ok(None)) => return Measurement::NoData(EXTENSION_MISSING.into()),
            Ok(Err(failure)) => return self.lost(failure.into()),
            Err(_) => {
                return self.lost(format!("no answer of the database within {} s", PROBE_TIMEOUT.as_secs()).into());
            }
        };
        let Some(before) = self.before.replace(now) else {
            return Measurement::NoData("the first measurement: calls are counted from here on".into());
        };
        let (calls, milliseconds) = since(&before, self.before.as_ref().unwrap_or(&before));
        if calls == 0 {
            return Measurement::NoData("no call of such a statement since the last measurement".into());
        }
        let samples = f64::from(u32::try_from(calls).unwrap_or(u32::MAX));
        Measurement::Value { value: Value::Number(format!("{:.3}", milliseconds / samples)), samples: Some(samples) }
    }

    fn lost(&mut self, detail: Message) -> Measurement {
        self.session.lose();
        Measurement::Error(detail)
    }
}

const EXTENSION_MISSING: &str = "the extension pg_stat_statements is missing; next: put it into \
    shared_preload_libraries, restart the server, and CREATE EXTENSION pg_stat_statements;";

/// The extension's schema, `None` if it is not there or not loaded.
///
/// # Errors
/// `PrivilegeMissing` if the texts of other roles' statements are hidden.
pub(in crate::runner) async fn ready(client: &Client) -> Result<Option<String>, Failure> {
    let row = client
        .query_opt(
            "SELECT n.nspname::text, pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), current_user::text,
                    pg_catalog.current_setting('pg_stat_statements.max', true) IS NOT NULL
             FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
             WHERE e.extname = 'pg_stat_statements'",
            &[],
        )
        .await?;
    let Some(row) = row.filter(|row| row.get(3)) else { return Ok(None) };
    if !row.get::<_, bool>(1) {
        let role: &str = row.get(2);
        return Err(Failure::new(
            Reason::PrivilegeMissing,
            format!("role {role} may not see statements of others; next: GRANT pg_read_all_stats TO {};", ident(role)),
        ));
    }
    Ok(Some(row.get(0)))
}

/// The reason why a `statements` check cannot be measured, `None` if it can.
pub(in crate::runner) async fn unready(client: &Client) -> Option<String> {
    match ready(client).await {
        Ok(Some(_)) => None,
        Ok(None) => Some(EXTENSION_MISSING.to_owned()),
        Err(failure) => Some(failure.message),
    }
}

/// Statements of this database that hold the text, without those of this role: they are the operator's own.
async fn totals_of(client: &Client, schema: &str, containing: &str) -> Result<Totals, Failure> {
    let query = format!(
        "SELECT s.userid, s.queryid, sum(s.calls)::bigint, sum(s.total_exec_time)::double precision
         FROM {}.pg_stat_statements s
         WHERE s.dbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
           AND s.userid <> (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
           AND s.queryid IS NOT NULL AND strpos(s.query, $1) > 0 GROUP BY 1, 2",
        ident(schema)
    );
    let rows = client.query(&query, &[&containing]).await?;
    let counted = |row: &tokio_postgres::Row| Counted { calls: row.get(2), milliseconds: row.get(3) };
    Ok(rows.iter().map(|row| ((row.get(0), row.get(1)), counted(row))).collect())
}

/// Calls and milliseconds between two measurements. What became less was reset meanwhile: all of it is new.
fn since(before: &Totals, now: &Totals) -> (i64, f64) {
    now.iter().fold((0, 0.0), |(calls, milliseconds), (key, now)| {
        let known = before.get(key).filter(|b| b.calls <= now.calls && b.milliseconds <= now.milliseconds);
        let Counted { calls: c, milliseconds: m } = known.copied().unwrap_or(Counted { calls: 0, milliseconds: 0.0 });
        (calls + now.calls - c, milliseconds + now.milliseconds - m)
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn totals(list: &[(i64, i64, f64)]) -> Totals {
        list.iter()
            .map(|(query, calls, milliseconds)| ((1, *query), Counted { calls: *calls, milliseconds: *milliseconds }))
            .collect()
    }

    #[rstest]
    #[case::nothing_new(&[(1, 10, 100.0)], &[(1, 10, 100.0)], (0, 0.0))]
    #[case::only_what_is_new(&[(1, 10, 100.0)], &[(1, 12, 104.0)], (2, 4.0))]
    #[case::another_statement(&[(1, 10, 100.0)], &[(1, 10, 100.0), (2, 3, 9.0)], (3, 9.0))]
    #[case::a_reset(&[(1, 10, 100.0)], &[(1, 4, 8.0)], (4, 8.0))]
    #[case::one_that_was_dropped(&[(1, 10, 100.0), (2, 7, 7.0)], &[(2, 8, 9.0)], (1, 2.0))]
    fn counts_between_two_measurements(
        #[case] before: &[(i64, i64, f64)],
        #[case] now: &[(i64, i64, f64)],
        #[case] want: (i64, f64),
    ) {
        assert_eq!(since(&totals(before), &totals(now)), want);
    }
}
