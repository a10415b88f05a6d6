//! Balances compared with the cutover, explained by the transactions since.
//!
//! # What is explained
//! A user's balance must be that of the baseline (0 without one: the user is new) plus the sum of the user's
//! transactions since the cutover. A user without a balance now counts as one with 0: who was deleted is explained only
//! if the transactions led to 0 and are still there.
//!
//! # Which users are checked
//! Those whose balance was written since the cutover, as the change-tracking triggers recorded: any other balance is
//! that of the baseline. (A transaction without its change of the balance is found as soon as anything else changes
//! that balance.)
//!
//! # Cost
//! Users are looked up by index, so a measurement costs what changed, not what there is:
//! ```text
//!  full ....... every 20th measurement: all captured users
//!  between .... users captured since the last full one, and those that were unexplained the last time
//! ```
//! A row that was numbered before the last full measurement and committed after it is seen by the next full one.
//! After a TRUNCATE of the balances every user is checked each time.

use std::time::Duration;

use jiff::Timestamp;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use super::{
    Session, TargetProvider,
    evaluator::{Measurement, Value},
};
use crate::{
    api::{BalancesCheck, BalancesComparison, Reason},
    runner::{
        Failure,
        database::control::{self, BalancesTable, ControlSpec, Cutover, TransactionsTable, WrittenUsers},
    },
    shared::message::Message,
};

/// Measurements from one full one to the next.
const FULL_MEASUREMENT_EVERY: u32 = 20;
/// Users that are looked up one by one; more are joined.
const MAX_LISTED_USERS: usize = 20_000;
/// Longest run of one statement, and of a measurement.
const BALANCES_SETTINGS: &str = "SET LOCAL statement_timeout = 25000; SET LOCAL lock_timeout = 1000";
const BALANCES_TIMEOUT: Duration = Duration::from_secs(30);

/// What is kept between two measurements.
pub struct BalancesSource {
    session: Session,
    control_spec: ControlSpec,
    comparison: BalancesComparison,
    /// The cutover that all fields below belong to.
    since: Option<Timestamp>,
    users: Users,
    /// Sum of the baseline.
    total: Option<String>,
}

/// The users that the next measurement checks.
#[derive(Debug, Default)]
struct Users {
    /// Number of the last captured row that the last full measurement saw.
    seen: i64,
    /// Measurements since then; `None` before the first.
    age: Option<u32>,
    /// Unexplained the last time.
    unexplained: Vec<String>,
}

/// Why there is no value.
enum NoValue {
    NoData(Message),
    Failed(Failure),
}

impl From<Failure> for NoValue {
    fn from(failure: Failure) -> Self {
        match failure.reason {
            // The new schema has other names: nothing can be said, and nothing is wrong.
            Reason::TableMissing | Reason::ColumnMissing => Self::NoData(failure.into()),
            _ => Self::Failed(failure),
        }
    }
}

impl From<tokio_postgres::Error> for NoValue {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl BalancesSource {
    /// Nothing measured yet.
    pub fn new(check: &BalancesCheck, control_spec: &ControlSpec, target_provider: impl Into<TargetProvider>) -> Self {
        Self {
            session: Session::new(target_provider.into(), "balances"),
            control_spec: control_spec.clone(),
            comparison: check.compare,
            since: None,
            users: Users::default(),
            total: None,
        }
    }

    /// Number of unexplained users, or percent between both sums.
    pub async fn measure(&mut self) -> Measurement {
        let measured = tokio::time::timeout(BALANCES_TIMEOUT, self.value()).await;
        match measured {
            Ok(Ok(text)) => Measurement::Value { value: Value::Number(text), samples: None },
            Ok(Err(NoValue::NoData(detail))) => Measurement::NoData(detail),
            Ok(Err(NoValue::Failed(failure))) => {
                self.session.lose();
                Measurement::Error(failure.into())
            }
            Err(_) => {
                self.session.lose();
                Measurement::Error(format!("no answer of the database within {} s", BALANCES_TIMEOUT.as_secs()).into())
            }
        }
    }

    async fn value(&mut self) -> Result<String, NoValue> {
        let Self { session, control_spec, comparison, since, users, total } = self;
        let tx = start_snapshot(session.client().await?).await?;
        let Some(cutover) = control::cutover(&tx, control_spec).await? else {
            return Err(NoValue::NoData("the ledger of the database has no cutover of this migration".into()));
        };
        if since.replace(cutover.since) != Some(cutover.since) {
            (*users, *total) = (Users::default(), None);
        }
        for table in ["baseline", "changed_users"] {
            if !control::exists(&tx, table).await? {
                return Err(NoValue::NoData(
                    format!("credit_migration.{table} is not there any more: the migration has ended").into(),
                ));
            }
        }
        let balances = control::balances(&tx, control_spec).await?;
        let value = match comparison {
            BalancesComparison::Users => {
                let transactions = transactions(&tx, control_spec).await?.map_err(|lacks| {
                    let lacking = Message::new(format!("{lacks}: nothing explains balances"));
                    NoValue::NoData(lacking.next("watch this schema with a sql check"))
                })?;
                let query = Query { tx: &tx, control_spec, cutover, balances, transactions };
                users.measure(&query).await?.to_string()
            }
            BalancesComparison::Total => percent(&tx, control_spec, &balances, total).await?,
        };
        tx.rollback().await?;
        Ok(value)
    }
}

/// One snapshot for all: a balance and the transaction that explains it are committed together.
async fn start_snapshot(client: &mut Client) -> Result<Transaction<'_>, NoValue> {
    let tx = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start().await?;
    tx.batch_execute(BALANCES_SETTINGS).await?;
    Ok(tx)
}

/// The table of transactions as it is now, or what it lacks.
async fn transactions(
    tx: &Transaction<'_>,
    control_spec: &ControlSpec,
) -> Result<Result<TransactionsTable, String>, Failure> {
    let credits = control::credits_now(tx, control_spec).await?;
    control::transactions(tx, credits.transactions.as_ref()).await
}

/// How far the sum is from that of the baseline, which is read once.
async fn percent(
    tx: &Transaction<'_>,
    control_spec: &ControlSpec,
    balances: &BalancesTable,
    total: &mut Option<String>,
) -> Result<String, NoValue> {
    let before = match total {
        Some(before) => before.clone(),
        None => {
            let query =
                "SELECT coalesce(sum(balance), 0)::text FROM credit_migration.baseline WHERE migration_uid = $1";
            let row = tx.query_one(query, &[&control_spec.uid]).await?;
            total.insert(row.get(0)).clone()
        }
    };
    let query = format!(
        "SELECT CASE WHEN n.total = b.total THEN '0'
                     ELSE trim_scale(round(abs(n.total - b.total) * 100::numeric / nullif(abs(b.total), 0::numeric), \
                     4))::text END
         FROM (SELECT coalesce(sum({}), 0)::numeric AS total FROM {}) n,
              (SELECT $1::text::numeric AS total) b",
        balances.balance,
        balances.table.sql()
    );
    let row = tx.query_one(&query, &[&before]).await?;
    row.get::<_, Option<String>>(0)
        .ok_or_else(|| NoValue::NoData("the sum was 0 at the cutover: there is no percentage of it".into()))
}

/// A balance that nothing explains. Amounts are decimal texts in credits.
pub(super) struct UnexplainedBalance {
    pub(super) user: String,
    /// Of the baseline; `None` for a user who is new.
    pub(super) before: Option<String>,
    /// Sum of the transactions since the cutover.
    pub(super) since: String,
    /// What the two add up to.
    pub(super) expected: String,
    /// `None` for a user who has no balance any more.
    pub(super) now: Option<String>,
}

/// The balances that nothing explains, at most `limit`, in the order of their users. None before the cutover, or when
/// nothing could explain them.
///
/// # Errors
/// Database errors.
pub(super) async fn unexplained_balances(
    client: &mut Client,
    control_spec: &ControlSpec,
    limit: usize,
) -> Result<Vec<UnexplainedBalance>, Failure> {
    let listed = async {
        let tx = start_snapshot(client).await?;
        let Some(cutover) = control::cutover(&tx, control_spec).await? else { return Ok(vec![]) };
        let balances = control::balances(&tx, control_spec).await?;
        let Ok(transactions) = transactions(&tx, control_spec).await? else { return Ok(vec![]) };
        Query { tx: &tx, control_spec, cutover, balances, transactions }.list(limit).await
    };
    match listed.await {
        Ok(found) => Ok(found),
        Err(NoValue::NoData(_)) => Ok(vec![]),
        Err(NoValue::Failed(failure)) => Err(failure),
    }
}

/// What the comparison of users needs.
struct Query<'a> {
    tx: &'a Transaction<'a>,
    control_spec: &'a ControlSpec,
    cutover: Cutover,
    balances: BalancesTable,
    transactions: TransactionsTable,
}

impl Users {
    async fn measure(&mut self, query: &Query<'_>) -> Result<i64, NoValue> {
        let full = self.age.is_none_or(|age| age + 1 >= FULL_MEASUREMENT_EVERY);
        let from = if full { 0 } else { self.seen };
        let last =
            query.tx.query_one("SELECT coalesce(max(id), 0) FROM credit_migration.changed_users", &[]).await?.get(0);
        let limit = i64::try_from(MAX_LISTED_USERS + 1).unwrap_or(i64::MAX);
        let captured = query
            .tx
            .query(
                "SELECT DISTINCT user_id FROM credit_migration.changed_users WHERE id > $1 AND user_id IS NOT NULL \
                 LIMIT $2",
                &[&from, &limit],
            )
            .await?;
        let mut listed: Vec<String> = captured.iter().map(|row| row.get(0)).collect();
        if !full {
            // Kept here until there is an answer: a query that fails must not make them forgotten.
            listed.extend_from_slice(&self.unexplained);
        }
        let written = WrittenUsers::tracked(query.tx).await?;
        let (count, unexplained) = if matches!(written, WrittenUsers::All) || listed.len() > MAX_LISTED_USERS {
            query.unexplained(&query.ids(written), &[]).await?
        } else {
            query.unexplained("SELECT DISTINCT unnest($2::text[]) AS user_id", &listed).await?
        };
        // Too many to look up one by one: the next measurement checks all captured users, and they are among them.
        let too_many = unexplained.len() > MAX_LISTED_USERS;
        if full || too_many {
            self.seen = last;
        }
        self.age = if too_many {
            None
        } else if full {
            Some(0)
        } else {
            self.age.map(|age| age + 1)
        };
        self.unexplained = if too_many { Vec::new() } else { unexplained };
        Ok(count)
    }
}

impl Query<'_> {
    /// Those users whose balance was written, or every user before, meanwhile and now. `$2` is not used, and named all
    /// the same: each query has the same parameters.
    fn ids(&self, written: WrittenUsers) -> String {
        let captured = "SELECT DISTINCT c.user_id FROM credit_migration.changed_users c
             WHERE c.user_id IS NOT NULL AND $2::text[] IS NOT NULL";
        let BalancesTable { table, user, .. } = &self.balances;
        match written {
            WrittenUsers::Tracked => captured.to_owned(),
            WrittenUsers::All => format!(
                "{captured} UNION SELECT b.user_id FROM credit_migration.baseline b WHERE b.migration_uid = $1
                 UNION SELECT t.{user}::text FROM {} t",
                table.sql()
            ),
        }
    }

    /// Among the users that `ids` selects (`$2`: `listed`), those whose balance nothing explains: how many, and at most
    /// [`MAX_LISTED_USERS`] + 1 of them by name.
    async fn unexplained(&self, ids: &str, listed: &[String]) -> Result<(i64, Vec<String>), NoValue> {
        let query = format!(
            "{} SELECT (SELECT count(*) FROM wrong), ARRAY (SELECT user_id FROM wrong LIMIT {})",
            self.wrong(ids),
            MAX_LISTED_USERS + 1
        );
        let Self { tx, control_spec, cutover, .. } = self;
        let row = tx.query_one(&query, &[&control_spec.uid, &listed, &cutover.since]).await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Every balance that nothing explains, at most `limit`.
    async fn list(&self, limit: usize) -> Result<Vec<UnexplainedBalance>, NoValue> {
        let Self { tx, control_spec, cutover, .. } = self;
        let written = WrittenUsers::tracked(*tx).await?;
        let query = format!(
            "{} SELECT user_id, before::text, since::text, (coalesce(before, 0) + since)::text, now::text FROM wrong
             ORDER BY user_id LIMIT {limit}",
            self.wrong(&self.ids(written))
        );
        let none: &[String] = &[];
        let rows = tx.query(&query, &[&control_spec.uid, &none, &cutover.since]).await?;
        let read = |row: &tokio_postgres::Row| UnexplainedBalance {
            user: row.get(0),
            before: row.get(1),
            since: row.get(2),
            expected: row.get(3),
            now: row.get(4),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// `WITH ... wrong`: the users among those that `ids` selects whose balance nothing explains, with its parts. Its
    /// parameters are the migration's UID, the users of `ids` and the cutover.
    fn wrong(&self, ids: &str) -> String {
        let Self { balances, transactions, cutover, .. } = self;
        let BalancesTable { table, user, balance, user_type } = balances;
        let x = transactions;
        format!(
            "WITH ids AS MATERIALIZED ({ids}),
                  sums AS (SELECT x.{xuser}::text AS user_id, sum(x.{amount})::numeric AS amount
                           FROM {xtable} x JOIN ids ON x.{xuser} = CAST(ids.user_id AS {xtype})
                           WHERE {later} AND {not_by_the_sql} GROUP BY 1),
                  wrong AS (SELECT ids.user_id, b.balance AS before, coalesce(s.amount, 0) AS since,
                                   t.{balance}::numeric AS now
                            FROM ids
                            LEFT JOIN credit_migration.baseline b ON b.migration_uid = $1 AND b.user_id = ids.user_id
                            LEFT JOIN {table} t ON t.{user} = CAST(ids.user_id AS {user_type})
                            LEFT JOIN sums s ON s.user_id = ids.user_id
                            WHERE coalesce(b.balance, 0) + coalesce(s.amount, 0) <> coalesce(t.{balance}::numeric, 0))",
            xuser = x.user,
            xtable = x.table,
            xtype = x.user_type,
            amount = x.amount,
            later = x.later("x", "$3"),
            not_by_the_sql = cutover.not_by_the_sql("x"),
            table = table.sql(),
        )
    }
}
