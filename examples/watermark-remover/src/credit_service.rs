//! v1: balances with a part that was purchased in packages; what a plan grants is fixed in the program.

use tokio_postgres::{Client, Transaction, types::Type};

use crate::{
    failure::Failure,
    ledger::{self, Balance, Credits},
};

/// What each plan grants.
pub const PLANS: [(&str, i64); 3] = [("basic", 100), ("pro", 500), ("enterprise", 2000)];

/// What a plan grants, by the fixed table.
pub fn monthly_credits(plan: &str) -> Result<i64, Failure> {
    let found = PLANS.iter().find(|(name, _)| *name == plan);
    found.map(|(_, credits)| *credits).ok_or(Failure::BadRequest("unknown plan"))
}

/// A user's credits; without the purchased part when the schema is already v2's.
pub async fn credits(client: &Client, user_id: i64) -> Result<Credits, Failure> {
    let query = "SELECT balance, purchased_credits FROM user_credits WHERE user_id = $1";
    match client.query_typed_opt(query, &[(&user_id, Type::INT8)]).await.map_err(Failure::from) {
        Ok(Some(row)) => Ok(Credits {
            user_id,
            balance: row.try_get(0)?,
            purchased_credits: Some(row.try_get(1)?),
            ..Credits::default()
        }),
        Ok(None) => Ok(Credits { user_id, purchased_credits: Some(0), ..Credits::default() }),
        Err(failure) if failure.is_other_schema() => ledger::common_credits(client, user_id).await,
        Err(failure) => Err(failure),
    }
}

/// Puts a user on a plan and grants its credits.
pub async fn upgrade(tx: &Transaction<'_>, user_id: i64, plan: &str) -> Result<Balance, Failure> {
    ledger::subscribe(tx, user_id, plan, monthly_credits(plan)?).await
}
