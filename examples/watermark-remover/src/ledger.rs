//! The SQL that both credit systems share: it uses only what the schemas of v1 and v2 have in common.
//!
//! Every change of a balance is one row in `credit_transactions` in the same transaction, so a balance is always the
//! sum of its user's transactions. The row in `user_credits` is locked first, so two changes of one user never overtake
//! each other.

use serde::Serialize;
use tokio_postgres::{
    Client, GenericClient, Transaction,
    types::{ToSql, Type},
};

use crate::failure::Failure;

/// What `GET /credits` answers. A field that the running version or the present schema doesn't know is left out.
#[derive(Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Credits {
    pub user_id: i64,
    pub balance: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purchased_credits: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_credits: Option<i64>,
    /// The schema is the other version's: only what both have is shown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub degraded: bool,
}

/// What a login answers.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Login {
    pub token: String,
    pub user_id: i64,
}

/// A user's balance after a change.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Balance {
    pub user_id: i64,
    pub balance: i64,
}

/// Finds the user of an email. Only reads, so that logins work while writes are paused.
pub async fn login(client: &Client, email: &str) -> Result<Login, Failure> {
    let row =
        client.query_typed_opt("SELECT api_token, id FROM users WHERE email = $1", &[(&email, Type::TEXT)]).await?;
    let row = row.ok_or(Failure::Unauthorized)?;
    Ok(Login { token: row.try_get(0)?, user_id: row.try_get(1)? })
}

/// The user whom a token belongs to.
pub async fn user_of(client: &impl GenericClient, token: &str) -> Result<i64, Failure> {
    let row = client.query_typed_opt("SELECT id FROM users WHERE api_token = $1", &[(&token, Type::TEXT)]).await?;
    Ok(row.ok_or(Failure::Unauthorized)?.try_get(0)?)
}

/// The balance alone, from the columns that both schemas have.
pub async fn common_credits(client: &Client, user_id: i64) -> Result<Credits, Failure> {
    let row = client
        .query_typed_opt("SELECT balance FROM user_credits WHERE user_id = $1", &[(&user_id, Type::INT8)])
        .await?;
    let balance = row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default();
    Ok(Credits { user_id, balance, degraded: true, ..Credits::default() })
}

/// Takes `amount` credits from the balance, or fails with [`Failure::NotEnough`] and takes nothing.
///
/// `spared` is 0 but for a fault on purpose: so many credits less are taken from the balance than the ledger says.
pub async fn deduct(
    tx: &Transaction<'_>,
    user_id: i64,
    amount: i64,
    reason: &str,
    spared: i64,
) -> Result<Balance, Failure> {
    let row = tx
        .query_typed_opt("SELECT balance FROM user_credits WHERE user_id = $1 FOR UPDATE", &[(&user_id, Type::INT8)])
        .await?;
    let balance: i64 = row.map(|row| row.try_get(0)).transpose()?.unwrap_or_default();
    if balance < amount {
        return Err(Failure::NotEnough { balance });
    }
    tx.execute_typed(
        "UPDATE user_credits SET balance = balance - $2, updated_at = now() WHERE user_id = $1",
        &[(&user_id, Type::INT8), (&(amount - spared), Type::INT8)],
    )
    .await?;
    record(tx, user_id, "usage", -amount, reason).await?;
    Ok(Balance { user_id, balance: balance - amount + spared })
}

/// Puts the user on `plan` and grants its credits.
pub async fn subscribe(tx: &Transaction<'_>, user_id: i64, plan: &str, credits: i64) -> Result<Balance, Failure> {
    let row = tx
        .query_typed_one(
            "INSERT INTO user_credits (user_id, balance) VALUES ($1, $2) \
             ON CONFLICT (user_id) DO UPDATE SET balance = user_credits.balance + excluded.balance, updated_at = now() \
             RETURNING balance",
            &[(&user_id, Type::INT8), (&credits, Type::INT8)],
        )
        .await?;
    record(tx, user_id, "subscription_grant", credits, plan).await?;
    tx.execute_typed(
        "INSERT INTO subscriptions (user_id, plan) VALUES ($1, $2) \
         ON CONFLICT (user_id) DO UPDATE SET plan = excluded.plan, status = 'active', updated_at = now()",
        &[(&user_id, Type::INT8), (&plan, Type::TEXT)],
    )
    .await?;
    Ok(Balance { user_id, balance: row.try_get(0)? })
}

async fn record(tx: &Transaction<'_>, user_id: i64, kind: &str, amount: i64, description: &str) -> Result<(), Failure> {
    let values: [(&(dyn ToSql + Sync), Type); 4] =
        [(&user_id, Type::INT8), (&kind, Type::TEXT), (&amount, Type::INT8), (&description, Type::TEXT)];
    tx.execute_typed(
        "INSERT INTO credit_transactions (user_id, type, amount, description) VALUES ($1, $2, $3, $4)",
        &values,
    )
    .await?;
    Ok(())
}
