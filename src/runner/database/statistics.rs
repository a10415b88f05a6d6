//! The checklist's statistics of the credit system, for the backup's baseline and for the reports after the cutover.

use serde::Serialize;
use tokio_postgres::GenericClient;

use super::control::{self, Cutover, existing, ident};
use crate::{
    api::{Credits, Time, TransactionStatistics},
    runner::Failure,
};

/// Statistics of one snapshot: the shape of `BaselineEvidence`, without what a new schema has given up.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Statistics {
    /// Distinct users.
    pub users: u64,
    /// Sum of balances, a decimal text in credits, as all amounts.
    pub total_balance: String,
    /// Sum of purchased credits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_purchased: Option<String>,
    /// Average balance.
    pub average_balance: String,
    /// Largest balance.
    pub max_balance: String,
    /// Transactions by type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transactions: Option<Vec<TransactionStatistics>>,
    /// Time of the snapshot.
    pub taken_at: Time,
}

/// Which parts of the schema can be read.
#[derive(Clone, Copy, Debug)]
pub struct Present {
    /// The column of purchased credits.
    pub purchased: bool,
    /// The table of transactions, with its columns for type and amount.
    pub transactions: bool,
}

impl Present {
    /// The old schema, as Preflight has found it.
    pub const ALL: Self = Self { purchased: true, transactions: true };

    /// What is there now.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn now(client: &impl GenericClient, credits: &Credits) -> Result<Self, Failure> {
        let has = |found: &Option<(_, Vec<(String, String)>)>, names: &[&String]| {
            let columns = found.as_ref().map(|(_, columns)| columns.as_slice()).unwrap_or_default();
            names.iter().all(|name| columns.iter().any(|(column, _)| column == *name))
        };
        let (balances, transactions) = (&credits.balances, &credits.transactions);
        let in_balances = control::columns(client, &balances.table).await?;
        let in_transactions = control::columns(client, &transactions.table).await?;
        Ok(Self {
            purchased: has(&in_balances, &[&balances.purchased_column]),
            transactions: has(&in_transactions, &[&transactions.type_column, &transactions.amount_column]),
        })
    }
}

/// Reads the statistics as the caller's snapshot shows them.
///
/// # Errors
/// Those of a database error.
pub async fn statistics(
    client: &impl GenericClient,
    credits: &Credits,
    present: Present,
) -> Result<Statistics, Failure> {
    let balances = &credits.balances;
    let (user, balance) = (ident(&balances.user_column), ident(&balances.balance_column));
    let purchased = match present.purchased {
        true => format!("coalesce(sum({}), 0)::text", ident(&balances.purchased_column)),
        false => "NULL::text".to_owned(),
    };
    let query = format!(
        "SELECT count(DISTINCT {user}), coalesce(sum({balance}), 0)::text, {purchased},
                round(coalesce(avg({balance}), 0), 4)::text,
                coalesce(max({balance}), 0)::text, now()
         FROM {}",
        existing(client, &balances.table).await?.sql()
    );
    let row = client.query_one(&query, &[]).await?;
    let transactions = match present.transactions {
        false => None,
        true => {
            let transactions = &credits.transactions;
            let (kind, amount) = (ident(&transactions.type_column), ident(&transactions.amount_column));
            let from = existing(client, &transactions.table).await?.sql();
            let kind = format!("coalesce({kind}::text, 'NULL')");
            let kinds = client.query(&by_kind(&kind, &amount, &from), &[]).await?;
            Some(kinds.iter().map(kind_of).collect())
        }
    };
    Ok(Statistics {
        users: count(row.get(0)),
        total_balance: row.get(1),
        total_purchased: row.get(2),
        average_balance: row.get(3),
        max_balance: row.get(4),
        transactions,
        taken_at: row.get(5),
    })
}

/// How the new version was used.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// From when on transactions are counted.
    pub since: Time,
    /// Users whose balance was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_written: Option<u64>,
    /// Transactions by type; one of type `all` without the column.
    pub transactions: Vec<TransactionStatistics>,
    /// Transactions by day.
    pub days: Vec<Day>,
}

/// Transactions of one day.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Day {
    /// The day in UTC, `2026-01-31`.
    pub day: String,
    /// Transactions.
    pub count: u64,
    /// Sum of absolute amounts.
    pub total_amount: String,
}

impl Usage {
    /// Transactions since the cutover.
    pub fn count(&self) -> u64 {
        self.transactions.iter().map(|kind| kind.count).sum()
    }
}

/// Usage since the cutover; `None` if no table records it any more.
///
/// # Errors
/// Those of a database error.
pub async fn usage(
    client: &impl GenericClient,
    credits: &Credits,
    cutover: &Cutover,
) -> Result<Option<Usage>, Failure> {
    let Ok(found) = control::transactions(client, &credits.transactions).await? else { return Ok(None) };
    let control::TransactionsTable { table, amount, kind, .. } = &found;
    let kind = kind.as_deref().map_or_else(|| "'all'".to_owned(), |kind| format!("coalesce(x.{kind}::text, 'NULL')"));
    let amount = format!("x.{amount}");
    let sums = sums(&amount);
    let later = found.later("x", "$1");
    let from = format!("{table} x WHERE {later} AND {}", cutover.not_by_the_sql("x"));
    let rows = async |query: String| client.query(&query, &[&cutover.since]).await.map_err(Failure::from);
    let transactions = rows(by_kind(&kind, &amount, &from)).await?.iter().map(kind_of).collect();
    let days = rows(format!("SELECT {}, {sums} FROM {from} GROUP BY 1 ORDER BY 1", found.day("x"))).await?;
    let day = |TransactionStatistics { kind, count, total_amount }| Day { day: kind, count, total_amount };
    Ok(Some(Usage {
        since: cutover.since,
        users_written: None,
        transactions,
        days: days.iter().map(kind_of).map(day).collect(),
    }))
}

/// Most types of transactions that are listed one by one. A column of free text has as many as rows, and a status with
/// all of them would be too large for the API server.
const MAX_KINDS: usize = 50;
/// Most characters of a type.
const MAX_KIND_LENGTH: usize = 64;

/// Number and sum by type, in order of the type: the most frequent ones, and all others as one of type `other`.
fn by_kind(kind: &str, amount: &str, from: &str) -> String {
    format!(
        "WITH kinds AS (SELECT {kind} AS kind, count(*) AS n,
                               coalesce(sum(abs({amount})), 0) AS total
                        FROM {from} GROUP BY 1),
              placed AS (SELECT *, row_number() OVER (ORDER BY n DESC, kind) AS place FROM kinds)
         SELECT CASE WHEN place <= {MAX_KINDS} THEN left(kind, {MAX_KIND_LENGTH}) ELSE 'other' END,
                sum(n)::bigint, sum(total)::text
         FROM placed GROUP BY 1 ORDER BY 1"
    )
}

fn sums(amount: &str) -> String {
    format!("count(*), coalesce(sum(abs({amount})), 0)::text")
}

fn kind_of(row: &tokio_postgres::Row) -> TransactionStatistics {
    TransactionStatistics { kind: row.get(0), count: count(row.get(1)), total_amount: row.get(2) }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
