//! A new version that has its balances under other names.

use credit_migration::{
    api::{Credits, Reason},
    runner::database::control::{self, ControlSpec, StopSignal},
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::harness::{Database, spec, sql, state_of};

/// The sample's spec with these new names of the balances, and nothing else to verify.
fn with(balances: &Value) -> ControlSpec {
    let credits: Credits = serde_json::from_value(json!({"after": {"balances": balances}})).unwrap();
    let protected_after = vec![credits.of_new_version().balances.table];
    ControlSpec { credits, protected_after, verify_down: None, tables_gone: vec![], ..spec() }
}

async fn up(client: &mut Client, spec: &ControlSpec, statements: &[&str]) -> Result<(), (Reason, String)> {
    let run = control::run_up(client, spec, &sql(statements), &sql(&["SELECT 1"]), &StopSignal::default()).await;
    run.map(|_| ()).map_err(|failure| (failure.reason, failure.message))
}

const RENAME: [&str; 2] =
    ["ALTER TABLE user_credits RENAME TO wallets", "ALTER TABLE wallets RENAME COLUMN balance TO credits"];
const RENAME_BACK: [&str; 2] =
    ["ALTER TABLE wallets RENAME COLUMN credits TO balance", "ALTER TABLE wallets RENAME TO user_credits"];

#[tokio::test]
async fn renamed_balances_are_compared_both_ways() {
    let database = Database::new().await;
    let spec = with(&json!({"table": "wallets", "balanceColumn": "credits"}));
    let mut client = database.prepared(&spec).await;
    let altered = [&RENAME[..], &["UPDATE wallets SET credits = credits + 1 WHERE user_id = 7"]].concat();
    let (reason, message) = up(&mut client, &spec, &altered).await.unwrap_err();
    assert_eq!(reason, Reason::BalancesUnexplained, "{message}");
    assert!(message.contains("changed the balances of 1 users"), "{message}");
    // Other columns may be written under the new names.
    let filled =
        [&RENAME[..], &["ALTER TABLE wallets ADD note text", "UPDATE wallets SET note = 'moved', credits = credits"]]
            .concat();
    up(&mut client, &spec, &filled).await.unwrap();
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);
    assert_eq!(control::missing_safeguards(&database.target(), &spec, "").await.unwrap().len(), 1);

    let app = database.session("app").await;
    app.batch_execute("UPDATE wallets SET credits = credits - 5 WHERE user_id IN (1, 2)").await.unwrap();
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 2);
    assert_eq!(control::credits_written(&client, &spec).await.unwrap(), "10");
    // A rollback that loses a write of the new version, and one that keeps it.
    let lost = sql(&[&["UPDATE wallets SET credits = credits + 5 WHERE user_id = 1"], &RENAME_BACK[..]].concat());
    let failure = control::run_down(&mut client, &spec, &lost).await.unwrap_err();
    assert_eq!(failure.reason, Reason::BalancesUnexplained, "{failure}");
    control::run_down(&mut client, &spec, &sql(&RENAME_BACK)).await.unwrap();
    assert_eq!(database.value("SELECT sum(balance) FROM user_credits WHERE user_id IN (1, 2)").await, "1993");
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);
    app.batch_execute("UPDATE user_credits SET balance = balance - 5 WHERE user_id = 3").await.unwrap();
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 1, "the old names are tracked again");
}

const MOVE: &str =
    "CREATE TABLE billing.wallets AS SELECT user_id::text AS owner, balance AS credits FROM user_credits";

/// No trigger sees what another table gets: the comparison after the commit does.
#[tokio::test]
async fn moved_balances_are_all_compared() {
    let database = Database::new().await;
    let spec = with(&json!({"table": "billing.wallets", "userColumn": "owner", "balanceColumn": "credits"}));
    let mut client = database.prepared(&spec).await;
    let key = "ALTER TABLE billing.wallets ADD PRIMARY KEY (owner)";
    let grant = "GRANT USAGE ON SCHEMA billing TO app; GRANT SELECT, UPDATE ON billing.wallets TO app";
    let moved = ["CREATE SCHEMA billing", MOVE, key, grant];
    for wrong in [
        "UPDATE billing.wallets SET credits = 0 WHERE owner = '9'",
        "DELETE FROM billing.wallets WHERE owner = '9'",
        "INSERT INTO billing.wallets VALUES ('9000', 1)",
    ] {
        let database = Database::new().await;
        let mut client = database.prepared(&spec).await;
        up(&mut client, &spec, &[&moved[..], &[wrong]].concat()).await.unwrap();
        assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 1, "{wrong}");
        let (compared, all) = control::compare_blocked(&mut client, &spec).await.unwrap();
        assert_eq!((compared.unexplained, all), (1, true), "{wrong}");
    }
    let (reason, message) = up(&mut client, &spec, &["CREATE SCHEMA billing"]).await.unwrap_err();
    assert_eq!(reason, Reason::TableMissing, "{message}");
    assert!(message.contains("table billing.wallets does not exist"), "{message}");
    up(&mut client, &spec, &moved).await.unwrap();
    assert_eq!(control::compare(&client, &spec).await.unwrap().unexplained, 0);

    let app = database.session("app").await;
    app.batch_execute("UPDATE billing.wallets SET credits = credits - 5 WHERE owner = '1'").await.unwrap();
    // The old table has no balances any more; its writers are not stopped by names of the new one.
    assert_eq!(state_of(&app, "UPDATE user_credits SET balance = 0 WHERE user_id = 2").await, "ok");
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 1);
    let down = |moved_back: &str| sql(&[moved_back, "DROP SCHEMA billing CASCADE"]);
    let failure = control::run_down(&mut client, &spec, &down("SELECT 1")).await.unwrap_err();
    assert_eq!(failure.reason, Reason::BalancesUnexplained, "{failure}");
    let moved_back = "UPDATE user_credits SET balance = credits FROM billing.wallets WHERE owner = user_id::text";
    control::run_down(&mut client, &spec, &down(moved_back)).await.unwrap();
    assert_eq!(database.value("SELECT sum(balance) FROM user_credits WHERE user_id IN (1, 2)").await, "1998");
    app.batch_execute("UPDATE user_credits SET balance = balance - 5 WHERE user_id = 3").await.unwrap();
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 1);
}

/// Expand and contract: the old name stays for those who read it.
#[tokio::test]
async fn a_view_may_take_the_old_name() {
    let database = Database::new().await;
    let spec = with(&json!({"table": "wallets", "balanceColumn": "credits"}));
    let mut client = database.prepared(&spec).await;
    let view = "CREATE VIEW user_credits AS SELECT user_id, credits AS balance FROM wallets";
    let grants = "GRANT SELECT, INSERT, UPDATE ON user_credits TO app; GRANT SELECT, UPDATE ON user_credits TO analyst";
    up(&mut client, &spec, &[&RENAME[..], &[view, grants]].concat()).await.unwrap();
    // A pod that takes over, and the rollback, install again.
    control::reinstall(&mut client, &spec).await.unwrap();
    let app = database.session("app").await;
    app.batch_execute("UPDATE user_credits SET balance = balance - 5 WHERE user_id = 1").await.unwrap();
    assert_eq!(control::users_written(&client, &spec).await.unwrap(), 1);
    control::run_down(&mut client, &spec, &sql(&[&["DROP VIEW user_credits"], &RENAME_BACK[..]].concat()))
        .await
        .unwrap();
    assert_eq!(database.value("SELECT balance FROM user_credits WHERE user_id = 1").await, "996");
}
