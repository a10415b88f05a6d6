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
    /// The old schema, as Preflight has found it: all that the spec names.
    pub const ALL: Self = Self { purchased: true, transactions: true };

    /// What is there now.
    ///
    /// # Errors
    /// Those of a database error.
    pub async fn now(client: &impl GenericClient, credits: &Credits) -> Result<Self, Failure> {
        let has = async |table: &str, names: &[Option<&String>]| {
            let found = control::columns(client, table).await?;
            let columns = found.map(|(_, columns)| columns).unwrap_or_default();
            let there = |name: &String| columns.iter().any(|(column, _)| column == name);
            Ok::<_, Failure>(names.iter().flatten().all(|name| there(name)))
        };
        let (balances, transactions) = (&credits.balances, &credits.transactions);
        Ok(Self {
            purchased: has(&balances.table, &[balances.purchased_column.as_ref()]).await?,
            transactions: match transactions {
                Some(t) => has(&t.table, &[t.type_column.as_ref(), Some(&t.amount_column)]).await?,
                None => false,
            },
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
    let purchased = match &balances.purchased_column {
        Some(column) if present.purchased => format!("coalesce(sum({}), 0)::text", ident(column)),
        _ => "NULL::text".to_owned(),
    };
    let query = format!(
        "SELECT count(DISTINCT {user}), coalesce(sum({balance}), 0)::text, {purchased},
                round(coalesce(avg({balance}), 0), 4)::text,
                coalesce(max({balance}), 0)::text, now()
         FROM {}",
        existing(client, &balances.table).await?.sql()
    );
    let row = client.query_one(&query, &[]).await?;
    let transactions = match &credits.transactions {
        Some(transactions) if present.transactions => {
            let kind = kind_or_all(transactions.type_column.as_deref().map(ident));
            let from = existing(client, &transactions.table).await?.sql();
            let kinds = client.query(&by_kind(&kind, &ident(&transactions.amount_column), &from), &[]).await?;
            Some(kinds.iter().map(kind_of).collect())
        }
        _ => None,
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
    let Ok(found) = control::transactions(client, credits.transactions.as_ref()).await? else { return Ok(None) };
    let control::TransactionsTable { table, amount, kind, .. } = &found;
    let kind = kind_or_all(kind.as_deref().map(|kind| format!("x.{kind}")));
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

/// SQL: the type of a row as text; `all` without such a column.
fn kind_or_all(column: Option<String>) -> String {
    column.map_or_else(|| "'all'".to_owned(), |column| format!("coalesce({column}::text, 'NULL')"))
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
