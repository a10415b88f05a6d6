//! v2: credits come from the plan only; what a plan grants is in `credit_plans`, each grant in `subscription_credits`.

use tokio_postgres::{Client, Transaction, types::Type};

use crate::{
    credit_service,
    failure::Failure,
    ledger::{self, Balance, Credits},
};

/// A user's credits and plan; the balance alone while the schema is still v1's.
pub async fn credits(client: &Client, user_id: i64) -> Result<Credits, Failure> {
    let query = "SELECT c.balance, p.plan, p.monthly_credits FROM user_credits AS c \
                 LEFT JOIN subscriptions AS s ON s.user_id = c.user_id AND s.status = 'active' \
                 LEFT JOIN credit_plans AS p ON p.plan = s.plan WHERE c.user_id = $1";
    match client.query_typed_opt(query, &[(&user_id, Type::INT8)]).await.map_err(Failure::from) {
        Ok(Some(row)) => {
            let (balance, plan, monthly_credits) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            Ok(Credits { user_id, balance, plan, monthly_credits, ..Credits::default() })
        }
        Ok(None) => Ok(Credits { user_id, ..Credits::default() }),
        Err(failure) if failure.is_other_schema() => ledger::common_credits(client, user_id).await,
        Err(failure) => Err(failure),
    }
}

/// Puts a user on a plan and grants its credits; on v1's schema as v1 does it.
pub async fn upgrade(tx: &Transaction<'_>, user_id: i64, plan: &str) -> Result<Balance, Failure> {
    // Asked first, because a statement that fails would spoil the transaction.
    let present = tx.query_typed_one("SELECT to_regclass('subscription_credits') IS NOT NULL", &[]).await?;
    if !present.try_get::<_, bool>(0)? {
        return credit_service::upgrade(tx, user_id, plan).await;
    }
    let row =
        tx.query_typed_opt("SELECT monthly_credits FROM credit_plans WHERE plan = $1", &[(&plan, Type::TEXT)]).await?;
    let credits: i64 = row.ok_or(Failure::BadRequest("unknown plan"))?.try_get(0)?;
    let balance = ledger::subscribe(tx, user_id, plan, credits).await?;
    tx.execute_typed(
        "INSERT INTO subscription_credits (user_id, plan, credits) VALUES ($1, $2, $3)",
        &[(&user_id, Type::INT8), (&plan, Type::TEXT), (&credits, Type::INT8)],
    )
    .await?;
    Ok(balance)
}
