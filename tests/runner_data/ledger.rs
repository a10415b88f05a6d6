//! Ledgers that lack what not every ledger has.

use credit_migration::api::{Reason, Task};
use serde_json::{Value, json};

use crate::harness::World;

const UP: &str = "ALTER TABLE users ADD plan text;";
const DOWN: &str = "ALTER TABLE users DROP plan;";

/// A world whose spec and database have a ledger of their own.
async fn with(credits: Value, alter: &str) -> World {
    let mut world = World::new().await;
    world.alter(alter).await;
    world.sql(UP, DOWN);
    let plan = &mut world.spec.plan;
    plan.credits = serde_json::from_value(credits).unwrap();
    (plan.migration.tables_gone, plan.migration.verify_down) = (vec![], None);
    world
}

/// What Preflight says is not measured.
async fn not_measured(world: &World) -> Vec<String> {
    let outcome = world.run(Task::Preflight).await;
    assert!(outcome.result.is_ok(), "{:?}", outcome.result);
    outcome.findings().into_iter().filter(|f| f.name == "not measured").map(|f| f.message).collect()
}

#[tokio::test]
async fn purchases_and_types_may_be_absent() {
    let credits = json!({"balances": {"purchasedColumn": null}, "transactions": {"typeColumn": null}});
    let alter = "ALTER TABLE user_credits DROP purchased_credits; ALTER TABLE credit_transactions DROP type";
    let mut world = with(credits, alter).await;
    let wanted = [
        "purchased credits; to measure it set spec.credits.balances.purchasedColumn",
        "types of transactions; to measure it set spec.credits.transactions.typeColumn",
    ];
    assert_eq!(not_measured(&world).await, wanted);
    let baseline = world.backed_up().await.noted["baseline"].clone();
    assert_eq!(baseline.get("totalPurchased"), None);
    assert_eq!(baseline["transactions"], json!([{"type": "all", "count": 600, "totalAmount": "454500"}]));
    world.spec.plan.backup.key_users.balance_over = "2990".to_owned();
    let exported = world.run(Task::ExportKeyUsers).await;
    assert_eq!(exported.noted["keyUsers"]["users"], 1, "{:?}", exported.result);
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);

    // What comes after the cutover is explained all the same.
    world.cutover(UP).await;
    let writes = "UPDATE user_credits SET balance = 0 WHERE user_id = 1;
        UPDATE user_credits SET balance = 25 WHERE user_id = 2;
        INSERT INTO credit_transactions (user_id, amount) VALUES (2, 5)";
    world.alter(writes).await;
    let users = json!([{"name": "users", "interval": "1s", "balances": {}, "max": "0"}]);
    let checks: Vec<_> = serde_json::from_value(users).unwrap();
    let results = world.watched(&checks, 1).await;
    assert!(results[0].message.starts_with("1 > 0"), "{:?}", results[0]);
}

#[tokio::test]
async fn a_ledger_without_transactions_is_compared_up_to_the_cutover() {
    let mut world = with(json!({"transactions": null}), "DROP TABLE credit_transactions").await;
    let wanted =
        ["transactions: nothing explains balances after the window; to measure it set spec.credits.transactions"];
    assert_eq!(not_measured(&world).await, wanted);
    assert_eq!(world.backed_up().await.noted["baseline"]["transactions"], json!([]));
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);
    let not_passing = rehearsed.noted["rehearsal"]["checksNotPassing"].to_string();
    assert!(not_passing.contains("balance-errors: spec.credits.transactions is null"), "{not_passing}");
    // A balance that the SQL changes is found as ever.
    world.sql(&format!("{UP} UPDATE user_credits SET balance = 0 WHERE user_id = 1;"), DOWN);
    assert_eq!(world.run(Task::Rehearse).await.failure().reason, Reason::BalancesUnexplained);

    world.sql(UP, DOWN);
    world.cutover(UP).await;
    world.spec.task = Task::DayCheck;
    let reported = world.run(Task::DayCheck).await;
    let summary = reported.noted["report"]["summary"].as_str().unwrap();
    assert!(summary.ends_with("transactions since the cutover unknown"), "{summary}");

    // A check that would never measure anything is refused before.
    world.spec.plan.validation.checks =
        serde_json::from_value(json!([{"name": "users", "balances": {}, "max": "0"}])).unwrap();
    let refused = world.run(Task::Preflight).await;
    assert_eq!(refused.failure().reason, Reason::CheckInvalid, "{}", refused.failure());
}

/// The new version has both tables under other names, and a view for who reads the old one.
#[tokio::test]
async fn a_ledger_of_other_names_is_measured_after_the_cutover() {
    let names = json!({"after": {
        "balances": {"table": "billing.wallets", "userColumn": "owner", "balanceColumn": "credits"},
        "transactions": {"table": "entries", "amountColumn": "delta"},
    }});
    let mut world = with(names, "CREATE SCHEMA billing AUTHORIZATION migrator_{n}").await;
    let role = &world.spec.plan.database.application_roles[0];
    let up = &format!(
        "ALTER TABLE user_credits RENAME TO wallets;
        ALTER TABLE wallets RENAME user_id TO owner; ALTER TABLE wallets RENAME balance TO credits;
        ALTER TABLE wallets SET SCHEMA billing;
        CREATE VIEW user_credits AS SELECT owner AS user_id, credits AS balance FROM billing.wallets;
        GRANT SELECT, INSERT, UPDATE ON user_credits TO {role};
        ALTER TABLE credit_transactions RENAME TO entries; ALTER TABLE entries RENAME amount TO delta;"
    );
    let down = "DROP VIEW user_credits; ALTER TABLE billing.wallets SET SCHEMA public;
        ALTER TABLE wallets RENAME owner TO user_id; ALTER TABLE wallets RENAME credits TO balance;
        ALTER TABLE wallets RENAME TO user_credits;
        ALTER TABLE entries RENAME delta TO amount; ALTER TABLE entries RENAME TO credit_transactions;";
    world.sql(up, down);
    let preflight = world.run(Task::Preflight).await;
    assert!(preflight.result.is_ok(), "{:?}", preflight.result);
    world.backed_up().await;
    let rehearsed = world.run(Task::Rehearse).await;
    assert!(rehearsed.result.is_ok(), "{:?}", rehearsed.result);

    world.cutover(up).await;
    let writes = "UPDATE billing.wallets SET credits = 0 WHERE owner = 1;
        UPDATE billing.wallets SET credits = credits + 5 WHERE owner = 2;
        INSERT INTO entries (user_id, type, delta) VALUES (2, 'bonus', 5)";
    world.alter(writes).await;
    let users = json!([{"name": "users", "interval": "1s", "balances": {}, "max": "0"}]);
    let results = world.watched(&serde_json::from_value::<Vec<_>>(users).unwrap(), 1).await;
    assert!(results[0].message.starts_with("1 > 0"), "{:?}", results[0]);
    world.spec.task = Task::DayCheck;
    let reported = world.run(Task::DayCheck).await;
    let summary = reported.noted["report"]["summary"].as_str().unwrap_or_default();
    assert!(
        summary.contains("300 users") && summary.contains("1 transactions since"),
        "{summary} {:?}",
        reported.result
    );
}
